"""MiDaS loading and arithmetic, on networks small enough to know the answer of."""

import os
import sys
import types
import warnings
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

import hida.depth
from hida.depth import midas
from hida.depth.midas import HALF, IMAGENET, Midas, Preparation, _first_map, normalise
from hida.errors import HidaError

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


class Brightness(torch.nn.Module):
    """Inverse depth 3 + 5·brightness: undoes the ImageNet normalisation, so a wrong one shows."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[2] % 32 == 0
        assert x.shape[3] % 32 == 0
        return 3.0 + 5.0 * (x * self.std + self.mean).mean(1)


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "net.pt"
    torch.jit.script(Brightness()).save(str(path))
    return path


def ramp(width: int = 200, height: int = 120) -> np.ndarray:
    values = np.rint(np.linspace(20, 220, width)).astype(np.uint8)
    return np.repeat(np.tile(values, (height, 1))[..., None], 3, 2)


def test_torchscript_gives_normalised_inverse_depth_in_the_photo_size(script):
    found = Midas.load(script).predict(ramp())
    assert found.shape == (120, 200)
    assert found.dtype == np.float32
    assert found.min() == 0
    assert found.max() == 1
    # The brightest is the nearest; in between it is linear, resampling aside.
    np.testing.assert_allclose(found[60], np.linspace(0, 1, 200), atol=0.01)


def test_predict_reaches_it_by_its_name_only(script, tmp_path):
    photo = Image.fromarray(ramp())
    np.testing.assert_array_equal(hida.depth.predict(photo, "midas", model=script), Midas.load(script).predict(photo))
    with pytest.raises(HidaError, match="there is no depth network"):
        hida.depth.predict(photo, "midas", model=tmp_path / "missing.pt")


def test_a_small_map_is_enlarged_between_the_centres_of_its_pixels():
    found = Midas(lambda pixels: np.array([[[3.0, 7.0], [3.0, 7.0]]], np.float32)).predict(
        np.zeros((3, 4, 3), np.uint8)
    )
    np.testing.assert_allclose(found, [[0, 0.25, 0.75, 1]] * 3, atol=1e-6)


def test_constant_output_is_zeros():
    flat = Midas(lambda pixels: np.full((1, *pixels.shape[2:]), 7.0, np.float32))
    assert not flat.predict(ramp()).any()
    assert not normalise(np.zeros((3, 3))).any()
    assert not normalise(np.full((3, 3), -1e8)).any()


@pytest.mark.parametrize("wrap", [lambda y: y[:, None], lambda y: [y], lambda y: {"predicted_depth": y, "other": 0}])
def test_the_outputs_that_published_networks_give_are_understood(wrap):
    class Wrapped(torch.nn.Module):
        def forward(self, x):
            return wrap(x.mean(1))

    network = Midas(midas._on_torch(Wrapped(), "cpu"))
    plain = Midas(lambda pixels: pixels.mean(1))
    np.testing.assert_allclose(network.predict(ramp()), plain.predict(ramp()), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "size", "multiple", "statistics"),
    [
        ("midas_v21.pt", 384, 32, IMAGENET),
        ("intel-isl/MiDaS:MiDaS_small", 256, 32, IMAGENET),
        ("intel-isl/MiDaS:DPT_Hybrid", 384, 32, HALF),
        ("depth_anything_v2_vits.onnx", 518, 14, IMAGENET),
        ("Depth-Anything-V2-Small.pt", 518, 14, IMAGENET),
    ],
)
def test_preparation_follows_the_published_networks(name, size, multiple, statistics):
    found = Preparation.for_name(name)
    assert (found.size, found.multiple, (found.mean, found.std)) == (size, multiple, statistics)


@pytest.mark.parametrize("multiple", [14, 32])
@pytest.mark.parametrize(("height", "width"), [(250, 250), (100, 200), (3000, 2000), (1, 1), (5, 4000), (4000, 5)])
def test_input_sides_are_whole_multiples_near_the_asked_size(height, width, multiple):
    preparation = Preparation(384, multiple)
    found = preparation.input_size(height, width)
    assert all(side % multiple == 0 and side > 0 for side in found)
    assert abs(min(found) - 384) <= multiple / 2
    assert max(found) <= 4 * 384 + multiple
    if max(height, width) <= 4 * min(height, width):
        assert found[1] / found[0] == pytest.approx(width / height, rel=0.1)


def test_any_photo_size_works(script):
    network = Midas.load(script)
    for height, width in ((1, 1), (1, 90), (33, 257)):
        assert network.predict(np.full((height, width, 3), 9, np.uint8)).shape == (height, width)


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (lambda pixels: np.full((1, 4, 4), np.nan), "not finite"),
        (lambda pixels: np.zeros((1, 2, 4, 4)), "instead of one"),
        (lambda pixels: _first_map(["a text"]), "gave str instead of one"),
        (lambda pixels: np.zeros(()) @ pixels, "failed on an input of"),
    ],
)
def test_networks_of_another_kind_are_named(network, reason):
    with pytest.raises(HidaError, match=reason):
        Midas(network).predict(ramp())


def test_what_is_no_network_is_one_sentence_with_the_way_out(tmp_path, recwarn):
    torch.save({"a": torch.zeros(2)}, tmp_path / "dpt.pt")
    torch.save({"a": torch.zeros(2)}, tmp_path / "former.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "noise.pt").write_bytes(b"noise")
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg")
    os.mkfifo(tmp_path / "pipe")
    faults = {
        **dict.fromkeys(("dpt.pt", "former.pt", "noise.pt"), "is not a TorchScript file; a checkpoint.*hub"),
        "photo.jpg": "is not a TorchScript file but a JPEG picture: give a TorchScript .*torch.hub name",
        "pipe": "is a pipe or a device, from which weights are not read",
        ".": "is a folder",
    }
    for name, fault in faults.items():
        with pytest.raises(HidaError, match=fault) as caught:
            Midas.load(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not recwarn.list


class Wrong(torch.nn.Module):
    def forward(self, x):
        return x[:, :1] + torch.ones(3, 7)


def test_what_torch_says_in_many_lines_is_told_in_its_last(tmp_path, recwarn):
    path = tmp_path / "w.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Wrong()).save(path)
    with pytest.raises(HidaError, match=r"failed on an input of .* \(The size of tensor a") as caught:
        Midas.load(path).predict(ramp())
    assert "\n" not in str(caught.value)
    # A program that is damaged, in a sound archive.
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(tmp_path / "d.pt", "w") as damaged:
        for name in whole.namelist():
            content = whole.read(name)
            damaged.writestr(
                name, b"def f(self) -> Nothing:\n" if "/code/" in name and name.endswith(".py") else content
            )
    with pytest.raises(HidaError, match=r"d\.pt is TorchScript that cannot be loaded \(") as caught:
        Midas.load(tmp_path / "d.pt")
    assert "\n" not in str(caught.value)
    assert not recwarn.list


@pytest.fixture
def onnxruntime(monkeypatch):
    """A stand-in for onnxruntime whose every network gives the brightness; records what it is fed."""
    fed = []

    class Session:
        def __init__(self, path, providers):
            if "broken" in path:
                raise RuntimeError("[ONNXRuntimeError] : 7 : INVALID_PROTOBUF\nmore")
            self.shape = [1, 3, 64, 96] if "fixed" in path else ["batch", 3, "height", "width"]

        def get_inputs(self):
            return [types.SimpleNamespace(name="image", shape=self.shape)]

        def run(self, names, feed):
            fed.append(feed["image"])
            return [feed["image"].mean(1)]

    monkeypatch.setitem(sys.modules, "onnxruntime", types.SimpleNamespace(InferenceSession=Session))
    return fed


@pytest.mark.parametrize(("name", "shape"), [("fixed.onnx", (1, 3, 64, 96)), ("dynamic.onnx", (1, 3, 384, 640))])
def test_onnx_is_fed_what_it_declares(tmp_path, onnxruntime, name, shape):
    (tmp_path / name).write_bytes(b"x")
    found = Midas.load(tmp_path / name).predict(ramp())
    assert onnxruntime[0].shape == shape
    assert onnxruntime[0].dtype == np.float32
    assert found.shape == (120, 200)
    np.testing.assert_allclose(found[60], np.linspace(0, 1, 200), atol=0.02)


def test_a_broken_onnx_file_and_a_missing_onnxruntime_are_said(tmp_path, onnxruntime, monkeypatch):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"x")
    with pytest.raises(HidaError, match=r"broken\.onnx cannot be opened.*INVALID_PROTOBUF") as caught:
        Midas.load(path)
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(HidaError, match="pip install onnxruntime"):
        Midas.load(path)


def test_torch_hub_is_asked_for_what_was_named(monkeypatch):
    asked = []

    def load(repository, entry, **options):
        asked.append((repository, entry))
        if entry == "absent":
            raise RuntimeError("Cannot find callable absent in hubconf")
        return Brightness()

    monkeypatch.setattr(torch.hub, "load", load)
    assert Midas.load("someone/Depth:MiDaS").predict(ramp()).shape == (120, 200)
    with pytest.raises(HidaError, match=r"could not load absent from someone/Depth \(Cannot find"):
        Midas.load("someone/Depth:absent")
    assert asked == [("someone/Depth", "MiDaS"), ("someone/Depth", "absent")]
