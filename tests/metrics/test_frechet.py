"""FID and KID: golden values, SciPy and loops as oracles, the two files of weights, properties."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm

from hida import weights
from hida.errors import HidaError
from hida.metrics import fid, frechet, inception, kid
from hida.metrics.frechet import frechet_distance, kernel_distance

needs_inception = pytest.mark.skipif(
    not weights.is_available("inception"), reason="the weights inception are not on this machine"
)


@pytest.fixture
def random_inception(monkeypatch):
    """The network with seeded random weights in place of the trained ones."""
    torch.manual_seed(0)
    network = inception.Inception()
    monkeypatch.setattr(frechet, "load_inception", lambda device="cpu": network)
    return network


def gaussian_sets(n: int = 40, m: int = 50, width: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, width)) @ rng.normal(size=(width, width)), rng.normal(0.5, 2, (m, width))


@pytest.mark.parametrize(("n", "m", "width"), [(40, 50, 6), (7, 9, 20), (30, 9, 12)])
def test_frechet_distance_equals_the_formula_with_a_matrix_root(n, m, width):
    a, b = gaussian_sets(n, m, width)
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # The root of a singular product is what SciPy is bad at: a small diagonal keeps it honest.
    product = covariance_a @ covariance_b + 1e-12 * np.eye(width)
    root = sqrtm(product).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(covariance_a + covariance_b - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-4)


def test_frechet_distance_of_a_shift_is_its_square():
    a, _ = gaussian_sets()
    assert frechet_distance(a, a + 0.5) == pytest.approx(6 * 0.25, abs=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    a, b = gaussian_sets()
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), abs=1e-9)


def test_kernel_distance_equals_its_double_sums():
    a, b = gaussian_sets(5, 7)

    def kernel(x, y):
        return (float(x @ y) / 6 + 1) ** 3

    within_a = np.mean([kernel(a[i], a[j]) for i in range(5) for j in range(5) if i != j])
    within_b = np.mean([kernel(b[i], b[j]) for i in range(7) for j in range(7) if i != j])
    across = np.mean([kernel(x, y) for x in a for y in b])
    assert kernel_distance(a, b) == pytest.approx(within_a + within_b - 2 * across, abs=1e-9)


def test_kernel_distance_is_unbiased_and_subsets_tend_to_it():
    rng = np.random.default_rng(0)
    same = [kernel_distance(rng.normal(size=(20, 4)), rng.normal(size=(20, 4))) for _ in range(400)]
    assert abs(np.mean(same)) < 4 * np.std(same) / np.sqrt(400)
    assert min(same) < 0
    a, b = gaussian_sets()
    every = kernel_distance(a, b)
    assert kernel_distance(a, b, subsets=2000, subset_size=20) == pytest.approx(every, rel=0.05)
    assert kernel_distance(a, b, subsets=3, subset_size=10, seed=1) == kernel_distance(a, b, 3, 10, seed=1)


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_one_image_is_refused(distance):
    with pytest.raises(HidaError, match="at least two images"):
        distance(np.zeros((1, 4)), np.zeros((3, 4)))


@needs_inception
@pytest.mark.slow
def test_64_features_give_the_documented_value_of_torchmetrics():
    # Its example seeds before it builds the network, whose initialisation then draws from the same stream,
    # and it scales by (v − 128)/128 where the usual FID has 2v/255 − 1.
    network = inception.load_inception()
    torch.manual_seed(123)
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, bias=False)
    torch.nn.Linear(2048, 1008)
    a = torch.randint(0, 200, (100, 3, 299, 299), dtype=torch.uint8)
    b = torch.randint(100, 255, (100, 3, 299, 299), dtype=torch.uint8)
    assert fid(a / 256, b / 256, tap=64) == pytest.approx(12.7202, abs=1e-3)


@pytest.mark.fs2k
@needs_inception
@pytest.mark.slow
def test_pool3_gives_the_golden_value_between_two_styles():
    if not os.environ.get("HIDA_FS2K"):
        pytest.skip("HIDA_FS2K is not set")
    folder = Path(os.environ["HIDA_FS2K"])
    entries = json.loads((folder / "anno_train.json").read_text(encoding="utf-8"))
    sets = []
    for style in (0, 1):
        names = [entry["image_name"] for entry in entries if entry["style"] == style]
        stems = [name.replace("photo", "sketch").replace("image", "sketch") for name in names]
        sets.append([next((folder / "sketch").glob(f"{stem}.*")) for stem in stems])
    assert list(map(len, sets)) == [357, 350]
    assert fid(*sets) == pytest.approx(49.3205, abs=2e-3)


@needs_inception
def test_the_network_equals_the_torchscript_it_was_read_from():
    # Run here, in a test, as the oracle; the library itself only reads the tensors.
    oracle = torch.jit.load(str(weights.find("inception")))
    x = torch.rand(2, 3, 299, 299, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(inception.load_inception()(x), oracle(2 * x - 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tap", [64, 192, 768, 2048])
def test_features_of_a_set_have_the_tap_s_width(random_inception, tap):
    batch = torch.randint(0, 256, (2, 1, 60, 50), dtype=torch.uint8)
    found = frechet.features(batch, tap)
    assert found.shape == (2, tap)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, frechet.features(batch.repeat(1, 3, 1, 1), tap), atol=1e-9)
    np.testing.assert_allclose(found[1:], frechet.features(batch[1:].float() / 255, tap), rtol=1e-3, atol=1e-6)


def test_folders_of_any_sizes_and_depth_are_read(random_inception, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "a" / "deep").mkdir(parents=True)
    for name, size in (("one.png", 40), ("two.png", 50), ("deep/three.jpg", 40)):
        Image.fromarray(rng.integers(0, 256, (size, size), dtype=np.uint8)).save(tmp_path / "a" / name)
    (tmp_path / "a" / ".hidden.png").write_bytes(b"no image")
    assert fid(tmp_path / "a", str(tmp_path / "a"), tap=64) == pytest.approx(0, abs=1e-6)
    assert kid(tmp_path / "a", sorted((tmp_path / "a").rglob("[!.]*.png")) * 2) == pytest.approx(0, abs=1)


def test_faulty_folders_are_one_clear_error(random_inception, tmp_path):
    with pytest.raises(HidaError, match="not a folder"):
        fid(tmp_path / "none", tmp_path)
    with pytest.raises(HidaError, match="holds no images"):
        fid(tmp_path, tmp_path)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(HidaError, match=r"broken\.png"):
        fid(tmp_path, tmp_path)
    with pytest.raises(HidaError, match="no 100 features"):
        fid(torch.zeros(2, 3, 40, 40), torch.zeros(2, 3, 40, 40), tap=100)


class Layer(torch.nn.Module):
    def __init__(self, i: int, o: int, k: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(o, i, k, k))
        self.beta, self.mean, self.var = (torch.nn.Parameter(torch.rand(o) + 0.1) for _ in range(3))
        self.padding = [k // 2, k // 2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.conv2d(x, self.weight, None, [1, 1], self.padding) + self.beta[:, None, None]


def test_a_torchscript_is_read_without_being_run(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(Layer(3, 4, 3), torch.nn.Sequential(Layer(4, 5, 1), torch.nn.ReLU()), Layer(5, 2, 3))
    torch.jit.script(model).save(str(tmp_path / "net.pt"))
    assert inception._is_torchscript(tmp_path / "net.pt")
    layers = [module for module in model.modules() if isinstance(module, Layer)]
    found = list(inception._torchscript_layers(tmp_path / "net.pt"))
    assert len(found) == 3
    for layer, tensors in zip(layers, found, strict=True):
        for name, value in zip(("weight", "beta", "mean", "var"), tensors, strict=True):
            assert torch.equal(getattr(layer, name), value)


def test_an_archive_that_carries_code_is_refused(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "attacked"),)

    with zipfile.ZipFile(tmp_path / "bad.pt", "w") as archive:
        archive.writestr("net/data.pkl", pickle.dumps(Attack()))
        archive.writestr("net/constants.pkl", b"")
    with pytest.raises(HidaError, match=r"bad\.pt is not a readable TorchScript.*mkdir"):
        list(inception._torchscript_layers(tmp_path / "bad.pt"))
    assert not (tmp_path / "attacked").exists()


def test_a_state_dictionary_is_folded_like_its_batch_norm(tmp_path):
    torch.manual_seed(0)
    convolution, norm = torch.nn.Conv2d(3, 4, 3, bias=False), torch.nn.BatchNorm2d(4, eps=1e-3)
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        tensor.data.uniform_(0.5, 2)
    state = {f"Conv.conv.{k}": v for k, v in convolution.state_dict().items()}
    state |= {f"Conv.bn.{k}": v for k, v in norm.state_dict().items()}
    torch.save(state, tmp_path / "state.pth")
    ((weight, beta, mean, variance),) = inception._state_layers(tmp_path / "state.pth")
    x = torch.rand(1, 3, 8, 8)
    expected = norm.eval()(convolution(x))
    got = torch.nn.functional.batch_norm(torch.conv2d(x, weight), mean, variance, None, beta, eps=1e-3)
    torch.testing.assert_close(got, expected)


def test_without_weights_the_error_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("HIDA_WEIGHTS", "")
    monkeypatch.setenv("HIDA_CACHE", str(tmp_path))
    inception.load_inception.cache_clear()
    with pytest.raises(HidaError, match="hida weights fetch inception"):
        fid(torch.zeros(2, 3, 40, 40), torch.zeros(2, 3, 40, 40))
    inception.load_inception.cache_clear()
