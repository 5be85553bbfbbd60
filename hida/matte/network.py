"""The network of MediaPipe's selfie segmentation: which pixels of a small picture belong to a person.

A MobileNetV3 (https://arxiv.org/abs/1905.02244, its small variant with narrower ends) that halves the size four times,
and a decoder that gates each skip connection by the means of its channels. Written after the published graph,
``selfie_segmentation.tflite``; layers are defined in the order of its operators.
"""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hida.weights.foreign import fill, load_state

SIDE = 256
"""Pixels along a side of the square that the network was trained on."""


class _Gate(nn.Module):
    """Return a factor in (0, 1) for each channel, computed from the means of all (squeeze and excitation)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.restore = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)
        return torch.sigmoid(self.restore(F.relu(self.reduce(means))))


class _Block(nn.Module):
    """Widen, convolve each channel on its own, gate, and narrow again; added to the input where the shape allows it."""

    def __init__(
        self, inputs: int, wide: int, outputs: int, kernel: int, stride: int, gate: int = 0, hard_swish: bool = False
    ) -> None:
        super().__init__()
        self.expand = nn.Conv2d(inputs, wide, 1)
        self.depthwise = nn.Conv2d(wide, wide, kernel, stride, groups=wide)
        self.gate = _Gate(wide, gate) if gate else None
        self.project = nn.Conv2d(wide, outputs, 1)
        self.activation = F.hardswish if hard_swish else F.relu
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.expand(x))
        y = self.activation(self.depthwise(_padded(y, self.depthwise)))
        if self.gate is not None:
            y = y * self.gate(y)
        y = self.project(y)
        return x + y if self.residual else y


class _Context(nn.Module):
    """Gate the deepest features by the means of the whole picture (LR-ASPP)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.local = nn.Conv2d(inputs, outputs, 1)
        self.overall = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.local(x)) * torch.sigmoid(self.overall(x.mean((2, 3), keepdim=True)))


class _Decoder(nn.Module):
    """Double the size and add what of the skip connection the gate lets through."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(inputs, outputs, 1)
        self.gate = _Gate(outputs, outputs)
        self.mix = nn.Conv2d(outputs, outputs, 1)
        self.depthwise = nn.Conv2d(outputs, outputs, 3, groups=outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.narrow(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False))
        x = F.relu(self.mix(skip * self.gate(skip + x) + x))
        return x + F.relu(self.depthwise(_padded(x, self.depthwise)))


class SelfieSegmentation(nn.Module):
    """The network; ``forward`` takes (N, 3, H, W) RGB in [0, 1] and returns (N, 1, H, W) in [0, 1]: a person there.

    Sides are multiples of 16; trained on 256×256.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2)
        self.block1 = _Block(16, 16, 16, 3, 2, gate=8)
        self.block2 = _Block(16, 72, 24, 3, 2)
        self.block3 = _Block(24, 88, 24, 3, 1)
        self.block4 = _Block(24, 96, 32, 5, 2, gate=24, hard_swish=True)
        self.block5 = _Block(32, 128, 32, 5, 1, gate=32, hard_swish=True)
        self.block6 = _Block(32, 128, 32, 5, 1, gate=32, hard_swish=True)
        self.block7 = _Block(32, 96, 32, 5, 1, gate=24, hard_swish=True)
        self.block8 = _Block(32, 96, 32, 5, 1, gate=24, hard_swish=True)
        self.context = _Context(32, 128)
        self.decoder1 = _Decoder(128, 24)
        self.decoder2 = _Decoder(24, 16)
        self.decoder3 = _Decoder(16, 16)
        self.out = nn.ConvTranspose2d(16, 1, 2, 2)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> SelfieSegmentation:
        """Read ``matte.safetensors`` (float16 is widened).

        Raises:
            HidaError: the file holds other weights.
        """
        network = cls()
        fill(network, load_state(path), path)
        return network.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        half = F.hardswish(self.stem(_padded(x, self.stem)))
        quarter = self.block1(half)
        eighth = self.block3(self.block2(quarter))
        deep = self.block4(eighth)
        for block in (self.block5, self.block6, self.block7, self.block8):
            deep = block(deep)
        y = self.decoder1(self.context(deep), eighth)
        y = self.decoder3(self.decoder2(y, quarter), half)
        return torch.sigmoid(self.out(y))


def _padded(x: Tensor, convolution: nn.Conv2d) -> Tensor:
    """Pad as TensorFlow's "same" does: with stride 2 and even sides, one pixel more at the right and the bottom."""
    kernel, stride = convolution.kernel_size[0], convolution.stride[0]
    before, after = (kernel - stride) // 2, (kernel - stride + 1) // 2
    return F.pad(x, (before, after, before, after))
