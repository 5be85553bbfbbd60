"""Networks read from files, with their batch norms folded away, compute what they computed."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import save_file

from hida.depth.builtin.network import DepthNet
from hida.depth.faceboxes import FaceBoxes, _Conv
from hida.depth.mobilenet import MobileNet
from hida.errors import HidaError


def shaken(network):
    """Give the batch norms weights and statistics, so that folding has something to fold."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.8, 1.6)
            torch.nn.init.normal_(module.bias, 0, 0.3)
    return network.eval()


def of_training(network):
    """Return a file's contents as training leaves them: with another head, and parallel modules' names."""
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    state |= {"module.fc_lm.weight": torch.zeros(136, 512), "module.fc_lm.bias": torch.zeros(136)}
    return {"epoch": 50, "state_dict": state}


@pytest.mark.parametrize(
    ("kind", "contents", "suffix", "shape"),
    [
        (FaceBoxes, lambda network: network.half().state_dict(), "pth", (1, 3, 96, 130)),  # half precision is widened
        (FaceBoxes, lambda network: network.half().state_dict(), "safetensors", (1, 3, 96, 130)),
        (MobileNet, of_training, "pth", (2, 3, 120, 120)),
        (DepthNet, None, "", (2, 3, 128, 128)),
    ],
)
def test_folding_changes_nothing(tmp_path, kind, contents, suffix, shape):
    torch.manual_seed(0)
    network, path = shaken(kind()), tmp_path / f"weights.{suffix}"
    if contents is None:
        folded = copy.deepcopy(network).fold()
    else:
        save_file(contents(network), path) if suffix == "safetensors" else torch.save(contents(network), path)
        folded = kind.from_file(path)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    assert sum(isinstance(module, _Conv) for module in folded.modules()) == (2 + 3 * 7 + 4) * (kind is FaceBoxes)
    x = torch.randn(shape) * (50 if kind is FaceBoxes else 1)
    with torch.inference_mode():
        results = [getattr(n, "raw", n)(x) for n in (network.float(), folded)]
    for expected, found in zip(*(r if isinstance(r, tuple) else (r,) for r in results), strict=True):
        assert expected.std() > 0.01
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 if kind is FaceBoxes else 1e-4)


def test_what_is_folded_already_is_not_folded_again():
    layer = _Conv(3, 4, 3).eval()
    layer.fold()
    with pytest.raises(TypeError, match="Conv2d and Identity cannot be folded"):
        layer.fold()


@pytest.mark.parametrize("kind", [FaceBoxes, MobileNet])
def test_other_weights_are_refused(tmp_path, kind):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(HidaError, match=rf"other\.pth is not a file of {kind.__name__} weights"):
        kind.from_file(tmp_path / "other.pth")
