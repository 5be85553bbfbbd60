"""LPIPS: golden values, the lpips package as cross-check, properties of the network."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hida.metrics.lpips  # noqa: F401  the package's attribute of this name is the function
from hida import weights
from hida.errors import HidaError
from hida.metrics import lpips

MODULE = __import__("sys").modules["hida.metrics.lpips"]


def needs(asset: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not weights.is_available(asset), reason=f"the weights {asset} are not on this machine")


def golden_images() -> list[np.ndarray]:
    folder = os.environ.get("HIDA_GOLDEN")
    if not folder:
        pytest.skip("set HIDA_GOLDEN to the folder with lpips/ex_ref.png, ex_p0.png and ex_p1.png")
    return [
        np.asarray(Image.open(Path(folder) / "lpips" / f"ex_{name}.png").convert("RGB")) for name in ("ref", "p0", "p1")
    ]


def images(count: int = 3, channels: int = 3, size: int = 40, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)


@pytest.fixture(params=["alex", "vgg"])
def random_network(request, monkeypatch):
    """A network of seeded random weights in place of the trained one: what holds for it holds for any."""
    torch.manual_seed(0)
    network = MODULE.LPIPS(request.param)
    for head in network.heads:
        head.weight.abs_()
    monkeypatch.setattr(MODULE, "load_lpips", lambda net, device="cpu": network)
    return request.param


@needs("alexnet-features")
def test_alex_equals_the_golden_values():
    reference, first, second = golden_images()
    assert lpips(reference, first) == pytest.approx(0.7219, abs=5e-4)
    assert lpips(reference, second) == pytest.approx(0.1376, abs=5e-4)


@pytest.mark.parametrize(
    "net",
    [
        pytest.param("alex", marks=needs("alexnet-features")),
        pytest.param("vgg", marks=[needs("vgg16-features"), pytest.mark.slow]),
    ],
)
def test_equals_the_lpips_package(net):
    try:
        import lpips as package

        oracle = package.LPIPS(net=net, pnet_rand=True, verbose=False)
    except (ImportError, RuntimeError, OSError) as error:
        pytest.skip(f"the lpips package does not import here: {error}")
    ours = MODULE.load_lpips(net)
    theirs = [module for module in oracle.net.modules() if isinstance(module, torch.nn.Conv2d)]
    for mine, other in zip(MODULE._convolutions(ours.stages), theirs, strict=True):
        other.weight.data.copy_(mine.weight)
        other.bias.data.copy_(mine.bias)
    a, b = images(2, size=70, seed=1), images(2, size=70, seed=2) // 2
    with torch.no_grad():
        expected = oracle(a.float() / 127.5 - 1, b.float() / 127.5 - 1).flatten().double()
    torch.testing.assert_close(lpips(a, b, net=net), expected, rtol=1e-5, atol=1e-6)


@needs("alexnet-features")
def test_heads_of_the_asset_are_those_of_the_package():
    heads = MODULE._package_heads("alex")
    if heads is None:
        pytest.skip("the lpips package is not installed")
    for i, head in enumerate(MODULE.load_lpips("alex").heads):
        assert torch.equal(head.weight, heads[f"lin{i}.model.1.weight"])


def test_identity_symmetry_batch_and_grey(random_network):
    a, b = images(seed=1), images(seed=2) // 2
    values = lpips(a, b, net=random_network)
    assert values.shape == (3,)
    assert values.dtype == torch.float64
    assert (values > 0).all()
    assert torch.equal(lpips(a, a, net=random_network), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(lpips(b, a, net=random_network), values, rtol=1e-6, atol=0)
    single = lpips(a[1].permute(1, 2, 0).numpy(), b[1].permute(1, 2, 0).numpy(), net=random_network)
    assert single == pytest.approx(values[1].item(), rel=1e-4)
    grey = images(channels=1)
    torch.testing.assert_close(
        lpips(grey, b, net=random_network), lpips(grey.repeat(1, 3, 1, 1), b, net=random_network), rtol=0, atol=0
    )
    assert lpips(a[:0], b[:0], net=random_network).shape == (0,)


def test_one_feature_map_by_hand():
    torch.manual_seed(0)
    network = MODULE.LPIPS("alex")
    image = torch.rand(1, 3, 40, 40) * 2 - 1
    scaled = (image - torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)) / torch.tensor([0.458, 0.448, 0.450]).view(
        3, 1, 1
    )
    first = network.stages[0][0]
    expected = torch.nn.functional.conv2d(scaled, first.weight, first.bias, 4, 2).clamp(min=0)
    expected = expected / (expected.square().sum(1, keepdim=True).sqrt() + 1e-10)
    torch.testing.assert_close(MODULE._unit(next(network.activations(image))), expected)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
def test_where_nothing_answers_nothing_is_divided_by_zero(kind):
    stage = torch.zeros(1, 4, 2, 2, dtype=kind, requires_grad=True)
    unit = MODULE._unit(stage)
    unit.sum().backward()
    assert (unit == 0).all()
    assert stage.grad.isfinite().all()


def test_the_fallback_reads_torchvision_s_checkpoint(tmp_path, monkeypatch):
    donor = MODULE.LPIPS("alex")
    convolutions = MODULE._convolutions(donor.stages)
    # torchvision numbers the layers of ``features``; the classifier must not be mistaken for them.
    state = {}
    for index, layer in zip((0, 3, 6, 8, 10), convolutions, strict=True):
        state |= {f"features.{index}.weight": layer.weight, f"features.{index}.bias": layer.bias}
    state["classifier.1.weight"] = torch.zeros(1)
    (tmp_path / "checkpoints").mkdir()
    torch.save(state, tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth")
    heads = {f"lin{i}.model.1.weight": head.weight for i, head in enumerate(donor.heads)}
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(MODULE, "_package_heads", lambda net: heads)
    found = MODULE._torchvision_state(MODULE.LPIPS("alex"))
    for name, value in donor.state_dict().items():
        assert torch.equal(found[name], value), name


def test_without_weights_the_error_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("HIDA_WEIGHTS", "")
    monkeypatch.setenv("HIDA_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    MODULE.load_lpips.cache_clear()
    with pytest.raises(HidaError, match="hida weights fetch alexnet-features"):
        lpips(images(1), images(1))
    MODULE.load_lpips.cache_clear()


def test_a_foreign_file_is_refused(tmp_path):
    import pickle

    path = tmp_path / "alexnet-features.ckpt"
    path.write_bytes(pickle.dumps({"AlexNet_0": {"Conv_0": {"kernel": np.zeros((3, 3, 3, 8))}}}))
    with pytest.raises(HidaError, match=r"alexnet-features\.ckpt does not hold"):
        MODULE._fill_from_asset(MODULE.LPIPS("alex"), path)


def test_bad_input_is_one_clear_error(random_network):
    with pytest.raises(HidaError, match="40×40 and 41×41"):
        lpips(images(), images(size=41), net=random_network)
    with pytest.raises(HidaError, match="at least"):
        lpips(images(size=9), images(size=9), net=random_network)
    with pytest.raises(HidaError, match="no net 'squeeze'"):
        MODULE.LPIPS("squeeze")
