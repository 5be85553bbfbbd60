"""The conditional patch discriminator."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from hida.config import DiscriminatorConfig
from hida.models.conditions import style_at, style_weights
from hida.models.projected import FeatureHeads
from hida.nn import Conv2d, InstanceNorm
from hida.ops.checks import OpError, require_shape, require_tensor
from hida.ops.cpu.layout import channels_last_on_cpu
from hida.ops.layout import channels_last, joined

SLOPE = 0.2
"""of every leaky ReLU"""


class Discriminator(nn.Module):
    """Score a sketch beside its depth map: (N, 1, H, W) twice → (N, 1, H', W') logits, one per patch.

    256×256 gives 35×35: kernel 4 with padding 2 everywhere, as in the released code. 2,763,713 parameters at
    width 64. With ``scales`` above 1 further discriminators of the same make see the pictures at half the size, a
    quarter … What the configuration lets it know besides, every method takes: ``photo`` (N, 3, H, W), and ``style``,
    (N,) numbers or (N, S) weights, which becomes S constant planes.
    Source: HIDA (ICCV 2023), Eq. 8; Isola et al., "pix2pix", CVPR 2017 (which shows it the photo); Mirza and Osindero,
    "Conditional generative adversarial nets", 2014 (the planes); Wang et al., "pix2pixHD", CVPR 2018.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        channels = 2 + 3 * config.photo + config.styles
        self.layers = _layers(channels, config.base_width)
        self.coarser = nn.ModuleList(_layers(channels, config.base_width) for _ in range(config.scales - 1))
        self.heads = FeatureHeads(config.styles) if config.projected else None

    def forward(
        self, depth: Tensor, sketch: Tensor, photo: Tensor | None = None, style: Tensor | None = None
    ) -> Tensor:
        """Return the logits of the full size."""
        return self.layers(self._joined(depth, sketch, photo, style))

    def logits(
        self, depth: Tensor, sketch: Tensor, photo: Tensor | None = None, style: Tensor | None = None
    ) -> list[Tensor]:
        """Return the logits of every scale, the full size first."""
        return [features[-1] for features in self.features(depth, sketch, photo, style)]

    def features(
        self, depth: Tensor, sketch: Tensor, photo: Tensor | None = None, style: Tensor | None = None
    ) -> list[list[Tensor]]:
        """Return the outputs of the norms and, last, the logits: a list per scale, the full size first.

        In training with the configuration's noise on the sketch: what is too small to be seen through it cannot decide.
        Source: Sønderby et al., "Amortised MAP inference for image super-resolution", ICLR 2017 (instance noise).
        """
        if self.training and self.config.noise:
            sketch = sketch + self.config.noise * torch.randn_like(sketch)
        image = self._joined(depth, sketch, photo, style)
        found = [_features(self.layers, image)]
        for layers in self.coarser:
            image = _halved(image)
            found.append(_features(layers, image))
        return found

    def _joined(self, depth: Tensor, sketch: Tensor, photo: Tensor | None, style: Tensor | None) -> Tensor:
        require_tensor("depth", depth)
        require_tensor("sketch", sketch)
        if depth.dim() != 4 or depth.shape[1] != 1 or depth.shape != sketch.shape:
            raise OpError(
                f"depth and sketch must both have shape (N, 1, H, W); "
                f"theirs are {tuple(depth.shape)} and {tuple(sketch.shape)}."
            )
        depth = depth.to(sketch.dtype)
        weight = self.layers.get_parameter("0.weight")
        if weight.shape[1] > 2:
            return joined((depth, sketch, *self._told(sketch, photo, style)), like=weight)
        if channels_last_on_cpu(weight):
            return torch.stack((depth[:, 0], sketch[:, 0]), -1).permute(0, 3, 1, 2)
        return joined((depth, sketch), like=weight)

    def _told(self, sketch: Tensor, photo: Tensor | None, style: Tensor | None) -> list[Tensor]:
        """Return what it sees besides depth and sketch, in the sketch's precision."""
        n, _, *size = sketch.shape
        found = []
        if self.config.photo:
            if photo is None:
                raise OpError("this discriminator sees the photo; give it as photo.")
            require_shape("photo", photo, (n, 3, *size))
            found.append(photo)
        if self.config.styles:
            if style is None:
                raise OpError("this discriminator is told the style; give it as style.")
            found.append(style_at(style_weights(style, n, self.config.styles), sketch.shape[2:]))
        return [image.to(sketch.dtype) for image in found]


def _halved(image: Tensor) -> Tensor:
    """Return the means of 3×3 pixels around every other one.

    On a GPU in NCHW: PyTorch's gradient of a padded mean in NHWC is wrong there (all of 2.11 to 2.13 at least,
    https://github.com/pytorch/pytorch/issues/188344), and a generator that follows it is ruined.
    """
    if image.device.type == "cpu" or not channels_last(image):
        return functional.avg_pool2d(image, 3, stride=2, padding=1, count_include_pad=False)
    halved = functional.avg_pool2d(image.contiguous(), 3, stride=2, padding=1, count_include_pad=False)
    return halved.contiguous(memory_format=torch.channels_last)


def _features(layers: nn.Module, x: Tensor) -> list[Tensor]:
    found = []
    for layer in layers.children():
        x = layer(x)
        if isinstance(layer, InstanceNorm):
            found.append(x)
    return [*found, x]


def _layers(channels: int, width: int) -> nn.Sequential:
    # The norm comes before its convolution, behind the previous activation, as in the released class.
    # An Identity keeps the place of an activation that the norm behind or before it computes: weights are numbered.
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=2), nn.Identity()]
    for factor, stride in ((1, 2), (2, 2), (4, 1)):
        layers += [
            InstanceNorm(before=SLOPE),
            nn.Conv2d(factor * width, 2 * factor * width, 4, stride=stride, padding=2),
            nn.Identity(),
        ]
    layers += [InstanceNorm(before=SLOPE, after=SLOPE), nn.Identity(), Conv2d(8 * width, 1, 4, padding=2)]
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, 0.0, 0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)
