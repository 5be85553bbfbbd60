"""The HIDA generator: photo, depth and style in; sketch and reconstructed depth out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hida.config import GeneratorConfig
from hida.models.conditions import depth_pyramid, style_at, style_weights
from hida.nn import DOG, Conv2d, DynamicAdaptation, DySPADE, InfoACON, InstanceNorm, Upsample
from hida.nn.activation import activation
from hida.ops.checks import OpError, require_image
from hida.ops.layout import channels_last, joined

STRIDE = 256
"""The eight halvings of the encoder: image sides must be multiples of it."""


class EncoderLevel(nn.Module):
    """metaACON → conv 4×4 stride 2 → instance norm (none at the bottleneck): (N, C, H, W) → (N, C', H/2, W/2)."""

    def __init__(self, in_channels: int, out_channels: int, normalise: bool, config: GeneratorConfig) -> None:
        super().__init__()
        self.activation = activation(config.activation, in_channels, slope=0.2)
        self.conv = Conv2d(in_channels, out_channels, 4, stride=2, padding=1)
        self.norm = InstanceNorm() if normalise else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.activation(x)))


class DecoderLevel(nn.Module):
    """Double the size, then adapt to depth, style and the photo's own features (paper, Fig. 3).

    ``previous`` (N, C, H, W) and ``skip`` (N, C, H, W) → (N, C', 2H, 2W); the innermost level has no skip.
    The condition is (depth, style, A) at the new size, where A = metaACON(up(skip → one channel)). An ablated
    network leaves out depth or style, and without InfoACON activates what it upsamples before it does so.
    """

    def __init__(self, channels: tuple[int, int, int], config: GeneratorConfig, dog: bool, dropout: bool) -> None:
        super().__init__()
        previous, skip, out = channels
        self.up = DOG(previous + skip, out) if dog else Upsample(previous + skip, out)
        if config.activation != "info_acon":
            self.activation = activation(config.activation, previous + skip)
        self.conditioned = config.activation == "info_acon" or config.modulation == "spade"
        self.style_map = config.style_map
        if skip and self.conditioned:
            self.appearance = nn.Sequential(Upsample(skip, 1), activation(config.activation, 1))
        self.adaptation = _adaptation(out, config.depth + config.style_map * config.styles + bool(skip), config)
        self.dropout = nn.Dropout(config.dropout if dropout else 0.0)

    def forward(self, previous: Tensor, skip: Tensor | None, depth: Tensor | None, style: Tensor) -> Tensor:
        below = previous if skip is None else torch.cat((previous, skip), 1)
        if hasattr(self, "activation"):
            below = self.activation(below)
        h = self.up(below)
        if not self.conditioned:
            return self.dropout(self.adaptation(h))
        condition = [] if depth is None else [depth.to(h.dtype)]
        if self.style_map:
            condition.append(style_at(style.to(h.dtype), h.shape[2:]))
        if skip is not None:
            condition.append(self.appearance(skip))
        return self.dropout(self.adaptation(h, joined(condition, like=h)))


def _adaptation(channels: int, condition_channels: int, config: GeneratorConfig) -> nn.Module:
    if config.modulation == "spade" and config.activation == "info_acon":
        return DynamicAdaptation(channels, condition_channels, config.residual)
    if config.modulation == "spade":
        return DySPADE(channels, condition_channels, config.residual, config.activation)
    if config.activation == "info_acon":
        return InfoACON(channels, condition_channels)
    return InstanceNorm()


class Head(nn.Module):
    """metaACON → up: the last doubling, from features and a stem to an image of one channel."""

    def __init__(self, channels: int, config: GeneratorConfig) -> None:
        super().__init__()
        self.activation = activation(config.activation, channels)
        self.up = Upsample(channels, 1)

    def forward(self, features: Tensor, stem: Tensor) -> Tensor:
        return self.up(self.activation(torch.cat((features, stem), 1)))


class Encoded(NamedTuple):
    """What the encoder hands to the decoder: the stems, every level's features, the depth at every level's size.

    Depths are None in a network without depth.
    """

    stem_photo: Tensor
    stem_depth: Tensor | None
    features: list[Tensor]
    depths: Sequence[Tensor | None]


class Generator(nn.Module):
    """Draw a sketch of a photo in a style, guided by its depth map.

    A U-Net of eight levels with two stems (photo, depth), dynamic adaptation in each decoder level and two heads.
    At the released width (64) it has 80,894,566 parameters.
    Source: HIDA (ICCV 2023), Fig. 2 and Sec. 3; the arrangement is that of the authors' released weights.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.base_width
        encoder = [(1 + config.depth) * width, 2 * width, 4 * width] + 5 * [8 * width]
        skips = encoder[::-1]  # down8 (the bottleneck), down7, …, down2, cat of the stems
        decoder = 4 * [8 * width] + [4 * width, 2 * width, width]
        self.stem_photo = nn.Conv2d(3, width, 4, stride=2, padding=1)
        if config.depth:
            self.stem_depth = nn.Conv2d(1, width, 4, stride=2, padding=1)
        self.encoder = nn.ModuleList(
            EncoderLevel(encoder[i], encoder[i + 1], normalise=i < len(encoder) - 2, config=config)
            for i in range(len(encoder) - 1)
        )
        self.decoder = nn.ModuleList()
        previous = skips[0]
        for level, out in enumerate(decoder):
            channels = (previous, skips[level] if level else 0, out)
            self.decoder.append(DecoderLevel(channels, config, dog=level in config.dog_levels, dropout=level < 3))
            previous = out
        self.head_sketch = Head(2 * width, config)
        if config.depth:
            self.head_depth = Head(2 * width, config)
        self.apply(_initialise)

    def forward(self, photo: Tensor, depth: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sketch (N, 1, H, W) in [−1, 1] and the reconstructed depth (N, 1, H, W).

        Args:
            photo: (N, 3, H, W) in [−1, 1]; H and W multiples of 256.
            depth: (N, 1, H, W) in [0, 1], near is 1.
            style: (N,) integers 0..S−1, (N, S) floating-point weights of a mixture, or (N, S, H, W) weights of every
                pixel, of any size.

        Returns:
            Both in the size of the photo; a network without depth returns zeros for the depth.

        Raises:
            OpError: if a shape or dtype does not fit.
        """
        encoded = self.encode(photo, depth)
        x = self.decode(encoded, style)
        depth_hat = self.head_depth(x, encoded.stem_depth) if self.config.depth else torch.zeros_like(depth)
        return self.sketch(x, encoded), depth_hat

    def encode(self, photo: Tensor, depth: Tensor) -> Encoded:
        """Return all that does not depend on the style, so that several styles of one photo can share it."""
        _require_inputs(photo, depth)
        photo = _for_convolution(photo, self.stem_photo.weight)
        # What is only picked from may be rounded first.
        if self.config.depth and self.config.depth_per_level == "nearest":
            depth = _for_convolution(depth, self.stem_depth.weight)
        stem_photo = self.stem_photo(photo)
        stem_depth = self.stem_depth(depth) if self.config.depth else None
        x = stem_photo if stem_depth is None else torch.cat((stem_photo, stem_depth), 1)
        features = []
        for level in self.encoder:
            x = level(x)
            features.append(x)
        depths: Sequence[Tensor | None] = [None] * len(self.decoder)
        if self.config.depth:
            depths = depth_pyramid(depth, len(self.decoder), self.config.depth_per_level)
        return Encoded(stem_photo, stem_depth, features, depths)

    def decode(self, encoded: Encoded, style: Tensor) -> Tensor:
        """Return the features (N, C, H/2, W/2) that both heads read, in ``style`` (as :meth:`forward` takes it)."""
        stem = encoded.stem_photo
        weights = style_weights(style, stem.shape[0], self.config.styles, stem.dtype)
        x = encoded.features[-1]
        for index, level in enumerate(self.decoder):
            skip = encoded.features[-1 - index] if index else None
            x = level(x, skip, encoded.depths[index], weights)
        return x

    def sketch(self, x: Tensor, encoded: Encoded) -> Tensor:
        """Return the sketch (N, 1, H, W) in [−1, 1] from decoded features."""
        return torch.tanh(self.head_sketch(x, encoded.stem_photo))


def _for_convolution(image: Tensor, weight: Tensor) -> Tensor:
    """Return the image in the dtype and layout that a GPU's convolution would copy it to, forward and backward."""
    if image.device.type != "cuda":
        return image
    casts = torch.is_autocast_enabled("cuda") and image.dtype == torch.float32
    dtype = torch.get_autocast_dtype("cuda") if casts else image.dtype
    return image.to(dtype, memory_format=torch.channels_last if channels_last(weight) else torch.preserve_format)


def _initialise(module: nn.Module) -> None:
    """Draw convolution weights from N(0, 0.02²), as Pix2Pix does; DOG's own convolutions keep theirs."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.kernel_size != (1, 1):
        if module.weight.is_meta or module.weight.any():
            nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _require_inputs(photo: Tensor, depth: Tensor) -> None:
    require_image("photo", photo)
    require_image("depth", depth)
    if photo.shape[1] != 3:
        raise OpError(f"photo must have shape (N, 3, H, W); its shape is {tuple(photo.shape)}.")
    n, _, height, width = photo.shape
    if height % STRIDE or width % STRIDE or not height or not width:
        raise OpError(
            f"photo must have sides that are multiples of {STRIDE}, since the encoder halves them eight times; "
            f"they are {height}×{width}: resize or pad it (hida.Sketcher does)."
        )
    if tuple(depth.shape) != (n, 1, height, width):
        raise OpError(f"depth must have shape {(n, 1, height, width)}; its shape is {tuple(depth.shape)}.")
