"""The pose and shape regressor of 3DDFA_V2: MobileNetV1 at half width.

Howard et al., MobileNets, https://arxiv.org/abs/1704.04861; Guo et al., Towards Fast, Accurate and Stable 3D Dense
Face Alignment, https://arxiv.org/abs/2009.09960
"""

from __future__ import annotations

import os

import torch.nn.functional as F
from torch import Tensor, nn

from hida.depth.folding import fold
from hida.weights.foreign import fill, load_state

SIDE = 120
PARAMETERS = 62  # 3x4 pose, 40 of shape, 10 of expression

# Name, output channels at full width, stride.
_BLOCKS = (
    ("dw2_1", 64, 1),
    ("dw2_2", 128, 2),
    ("dw3_1", 128, 1),
    ("dw3_2", 256, 2),
    ("dw4_1", 256, 1),
    ("dw4_2", 512, 2),
    ("dw5_1", 512, 1),
    ("dw5_2", 512, 1),
    ("dw5_3", 512, 1),
    ("dw5_4", 512, 1),
    ("dw5_5", 512, 1),
    ("dw5_6", 1024, 2),
    ("dw6", 1024, 1),
)


class _Separable(nn.Module):
    """Convolve 3×3 depthwise and then 1×1, each with batch norm and ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv_dw: nn.Module = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        self.bn_dw: nn.Module = nn.BatchNorm2d(inputs)
        self.conv_sep: nn.Module = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn_sep: nn.Module = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn_dw(self.conv_dw(x)), inplace=True)
        return F.relu(self.bn_sep(self.conv_sep(x)), inplace=True)

    def fold(self) -> None:
        self.conv_dw, self.bn_dw = fold(self.conv_dw, self.bn_dw)
        self.conv_sep, self.bn_sep = fold(self.conv_sep, self.bn_sep)


class MobileNet(nn.Module):
    """Predict (N, 62) whitened parameters from (N, 3, 120, 120) BGR crops, (value - 127.5) / 128."""

    def __init__(self, width: float = 0.5) -> None:
        super().__init__()
        channels = int(32 * width)
        self.conv1: nn.Module = nn.Conv2d(3, channels, 3, 2, 1, bias=False)
        self.bn1: nn.Module = nn.BatchNorm2d(channels)
        for name, outputs, stride in _BLOCKS:
            outputs = int(outputs * width)
            self.add_module(name, _Separable(channels, outputs, stride))
            channels = outputs
        self.fc_param = nn.Linear(channels, PARAMETERS)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> MobileNet:
        """Read ``mb05_120x120.pth`` (its auxiliary landmark layer, used in training only, is left out)."""
        network = cls()
        state = {name: value for name, value in load_state(path).items() if not name.startswith("fc_lm.")}
        fill(network, state, path)
        network.eval()
        network.conv1, network.bn1 = fold(network.conv1, network.bn1)
        for module in network.modules():
            if isinstance(module, _Separable):
                module.fold()
        return network.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        for name, _, _ in _BLOCKS:
            x = self.get_submodule(name)(x)
        return self.fc_param(x.mean((2, 3)))


def crop(photo: Tensor, left: int, top: int, right: int, bottom: int) -> Tensor:
    """Cut (H, W, 3) uint8 RGB to the box, black outside the photo: (1, 3, 120, 120) as the network reads it."""
    height, width = photo.shape[:2]
    inside = photo[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    inside = inside.permute(2, 0, 1).flip(0)
    missing = [max(-left, 0), max(right - width, 0), max(-top, 0), max(bottom - height, 0)]
    # The box may be wholly outside; then nothing is left of the photo and the padding is the box itself.
    if 0 in inside.shape:
        inside, missing = inside.new_zeros(3, bottom - top, right - left), [0, 0, 0, 0]
    square = F.interpolate(F.pad(inside, missing)[None], (SIDE, SIDE), mode="bilinear", align_corners=False)
    return (square.float() - 127.5) / 128
