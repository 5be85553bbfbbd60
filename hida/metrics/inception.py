"""The 2015 TensorFlow Inception network that defines FID and KID.

It differs from torchvision's Inception v3 in its weights, in average pooling that does not count the padding, and in
the maximum pooling of its last block. Batch norm is folded into the convolutions.

Source: Heusel et al., arXiv:1706.08500.
"""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hida.device import to_channels_last
from hida.errors import HidaError

SIZE = 299
# Features of four depths: after the first and second maximum, after Mixed_6e, and pool3.
TAPS = (64, 192, 768, 2048)
_BATCH_NORM_EPS = 1e-3


class _Conv(nn.Conv2d):
    bias: Tensor  # never without

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu_()


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class _MixedA(nn.Module):
    def __init__(self, channels: int, pool: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(channels, 64, 1)
        self.branch5x5_1 = _Conv(channels, 48, 1)
        self.branch5x5_2 = _Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = _Conv(channels, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, padding=1)
        self.branch_pool = _Conv(channels, pool, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(_average(x))], 1)


class _MixedB(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3 = _Conv(channels, 384, 3, stride=2)
        self.branch3x3dbl_1 = _Conv(channels, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), three, F.max_pool2d(x, 3, 2)], 1)


class _MixedC(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        across: dict[str, Any] = {"kernel_size": (1, 7), "padding": (0, 3)}
        down: dict[str, Any] = {"kernel_size": (7, 1), "padding": (3, 0)}
        self.branch1x1 = _Conv(768, 192, 1)
        self.branch7x7_1 = _Conv(768, width, 1)
        self.branch7x7_2 = _Conv(width, width, **across)
        self.branch7x7_3 = _Conv(width, 192, **down)
        self.branch7x7dbl_1 = _Conv(768, width, 1)
        self.branch7x7dbl_2 = _Conv(width, width, **down)
        self.branch7x7dbl_3 = _Conv(width, width, **across)
        self.branch7x7dbl_4 = _Conv(width, width, **down)
        self.branch7x7dbl_5 = _Conv(width, 192, **across)
        self.branch_pool = _Conv(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_average(x))], 1)


class _MixedD(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = _Conv(768, 192, 1)
        self.branch3x3_2 = _Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = _Conv(768, 192, 1)
        self.branch7x7x3_2 = _Conv(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = _Conv(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = _Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), self.branch7x7x3_4(seven), F.max_pool2d(x, 3, 2)], 1)


class _MixedE(nn.Module):
    def __init__(self, channels: int, maximum: bool) -> None:
        super().__init__()
        self.maximum = maximum
        self.branch1x1 = _Conv(channels, 320, 1)
        self.branch3x3_1 = _Conv(channels, 384, 1)
        self.branch3x3_2a = _Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = _Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = _Conv(channels, 448, 1)
        self.branch3x3dbl_2 = _Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = _Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = _Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = _Conv(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, 1, 1) if self.maximum else _average(x)
        parts = [self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pooled)]
        return torch.cat(parts, 1)


class Inception(nn.Module):
    """(N, 3, H, W) in [0, 1] → (N, tap) features, float32; any size is brought to 299×299 without antialiasing."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3)
        self.Mixed_5b = _MixedA(192, 32)
        self.Mixed_5c = _MixedA(256, 64)
        self.Mixed_5d = _MixedA(288, 64)
        self.Mixed_6a = _MixedB(288)
        self.Mixed_6b = _MixedC(128)
        self.Mixed_6c = _MixedC(160)
        self.Mixed_6d = _MixedC(160)
        self.Mixed_6e = _MixedC(192)
        self.Mixed_7a = _MixedD()
        self.Mixed_7b = _MixedE(1280, maximum=False)
        self.Mixed_7c = _MixedE(2048, maximum=True)
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor, tap: int = 2048) -> Tensor:
        if tap not in TAPS:
            raise HidaError(f"Inception has no {tap} features; choose from {', '.join(map(str, TAPS))}.")
        if x.shape[-2:] != (SIZE, SIZE):
            x = F.interpolate(x, (SIZE, SIZE), mode="bilinear", align_corners=False)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(2 * x - 1)))
        x = F.max_pool2d(x, 3, 2)
        if tap == 64:
            return x.mean((2, 3))
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, 2)
        if tap == 192:
            return x.mean((2, 3))
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))
        if tap == 768:
            return x.mean((2, 3))
        return self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean((2, 3))


@functools.lru_cache(maxsize=2)
def load_inception(device: torch.device | str = "cpu") -> Inception:
    """Return the network with the weights of the asset ``inception``; both of its file formats are read as data.

    Raises:
        HidaError: if the file is not on this machine (the message says what fetches it), or holds something else.
    """
    from hida import weights

    path = weights.find("inception")
    network = Inception()
    layers = [layer for layer in network.modules() if isinstance(layer, _Conv)]
    read = _torchscript_layers if _is_torchscript(path) else _state_layers
    found = list(read(path))
    if [tuple(weight.shape) for weight, *_ in found] != [tuple(layer.weight.shape) for layer in layers]:
        raise HidaError(f"{path} does not hold the {len(layers)} convolutions of the 2015 Inception; fetch it again.")
    for layer, (weight, beta, mean, variance) in zip(layers, found, strict=True):
        scale = (variance.double() + _BATCH_NORM_EPS).rsqrt()
        layer.weight.copy_(weight.double() * scale[:, None, None, None])
        layer.bias.copy_(beta.double() - mean.double() * scale)
    # Wide convolutions on few pixels: channels last is a third faster on CPUs, and never slower.
    return to_channels_last(network.to(device))


_Layer = tuple[Tensor, Tensor, Tensor, Tensor]  # kernel, then the batch norm's shift, mean and variance


def _state_layers(path: Path) -> Iterable[_Layer]:
    """Yield the layers of the usual PyTorch state dictionary, in the order of its convolutions."""
    from hida.weights.foreign import load_state

    state = load_state(path)
    for name, weight in state.items():
        if name.endswith(".conv.weight"):
            norm = name.removesuffix("conv.weight") + "bn."
            try:
                gamma, beta, mean, variance = (
                    state[norm + part] for part in ("weight", "bias", "running_mean", "running_var")
                )
            except KeyError as error:
                raise HidaError(f"{path} lacks {error.args[0]}; fetch it again.") from None
            # The 2015 network has no gain; a file that carries one is folded exactly all the same.
            yield weight * gamma[:, None, None, None], beta, mean * gamma, variance


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _torchscript_layers(path: Path) -> Iterable[_Layer]:
    """Yield the layers of a TorchScript archive: its tensors are read, its program is neither loaded nor run."""
    from hida.weights.pickled import PickleError, Thing
    from hida.weights.torch_file import Stored, TorchFile

    try:
        # Any scripted module is read as its attributes in order, none of its code.
        file = TorchFile(path, {"__torch__*": Thing, "torch.jit._pickle.build_intlist": lambda items: items})
        waiting, seen = [file.content], set()
        while waiting:
            module = waiting.pop()
            if not isinstance(module, Thing) or id(module) in seen:
                continue
            seen.add(id(module))
            found = [module.attributes.get(name) for name in ("weight", "beta", "mean", "var")]
            stored = [value for value in found if isinstance(value, Stored)]
            if len(stored) == 4:
                weight, beta, mean, variance = (file.tensor(value) for value in stored)
                yield weight, beta, mean, variance
            else:
                waiting.extend(reversed(list(module.attributes.values())))
    except PickleError as error:
        raise HidaError(f"{path} is not a readable TorchScript archive ({error}); fetch it again.") from None
