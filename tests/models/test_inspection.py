"""hida inspect: the maps are those of the network's formulas, and a module left out is left out."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from small_set import inputs

from hida import ops
from hida.cli.inspect import main
from hida.cli.run import run_command
from hida.config import Config, GeneratorConfig
from hida.models import build_generator
from hida.models.inspection import ablations, features
from hida.weights import checkpoint

PHOTO_AND_DEPTH = inputs()[:2]
STYLE = torch.tensor([1])


@pytest.fixture(autouse=True)
def the_ops_that_it_looks_at():
    # What is compared must round alike: these weights enlarge the last digit a thousand times.
    with ops.backend("reference"):
        yield


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    built = build_generator(GeneratorConfig(base_width=2)).eval()
    for level in built.decoder[:2]:  # a fresh DOG moves nothing
        torch.nn.init.normal_(level.up.offset_mask.weight)
    # Fresh weights are so small that nothing depends on anything.
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if name.endswith("weight"):
                parameter *= 20
    return built


@torch.inference_mode()
def test_the_maps_fit_together(generator):
    levels = features(generator, *PHOTO_AND_DEPTH, STYLE)
    assert [maps["H"].shape[1] for maps in levels] == [2, 4, 8, 16, 32, 64, 128]
    assert [("DOG offsets" in maps) for maps in levels] == [True, True, *[False] * 5]
    assert levels[0]["DOG offsets"].shape == (36, 2, 2)
    for maps, level in zip(levels, generator.decoder, strict=True):
        p1, p2 = level.adaptation.p1[0], level.adaptation.p2[0]
        linear = (p1 - p2) * maps["H"]
        f = linear * torch.sigmoid(maps["θ"] * linear) + p2 * maps["H"]
        torch.testing.assert_close(maps["after InfoACON"], f, rtol=1e-4, atol=1e-5)
        normal = torch.nn.functional.instance_norm(f[None])[0]
        torch.testing.assert_close(maps["result"], normal * (1 + maps["γ"]) + maps["β"] + f, rtol=1e-3, atol=1e-3)


def test_nothing_remains_changed_and_each_module_matters(generator):
    with torch.inference_mode():
        before = generator(*PHOTO_AND_DEPTH, STYLE)[0][0, 0]
    drawn = ablations(generator, *PHOTO_AND_DEPTH, STYLE)
    assert list(drawn) == ["all modules", "without InfoACON", "without DySPADE", "without DOG", "without depth"]
    torch.testing.assert_close(drawn["all modules"], before, rtol=0, atol=1e-4)
    assert all((drawn[name] - before).abs().max() > 1e-4 for name in list(drawn)[1:])
    with torch.inference_mode():
        torch.testing.assert_close(generator(*PHOTO_AND_DEPTH, STYLE)[0][0, 0], before, rtol=0, atol=0)


def test_without_dog_is_the_network_with_straight_offsets(generator):
    drawn = ablations(generator, *PHOTO_AND_DEPTH, STYLE)["without DOG"]
    kept = [(level.up.offset_mask.weight.clone(), level.up.offset_mask.bias.clone()) for level in generator.decoder[:2]]
    with torch.no_grad():
        for level in generator.decoder[:2]:
            level.up.offset_mask.weight[:36] = 0
            level.up.offset_mask.bias[:36] = 0
        wanted = generator(*PHOTO_AND_DEPTH, STYLE)[0][0, 0]
        for level, (weight, bias) in zip(generator.decoder[:2], kept, strict=True):
            level.up.offset_mask.weight.copy_(weight)
            level.up.offset_mask.bias.copy_(bias)
    torch.testing.assert_close(drawn, wanted, rtol=0, atol=1e-4)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, config in {
        "full": GeneratorConfig(2),
        "model_b": GeneratorConfig(
            2, activation="relu", modulation="none", style_map=False, residual="none", dog_levels=()
        ),
    }.items():
        tensors = {f"ema.{k}": v for k, v in build_generator(config).state_dict().items()}
        checkpoint.save(f"{name}.safetensors", checkpoint.WEIGHTS, Config(generator=config), {}, tensors)
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (90, 120, 3), np.uint8)).save("photo.png")
    Image.fromarray(random.integers(0, 256, (90, 120), np.uint8)).save("depth.png")
    return tmp_path


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("weights", ["full", "model_b"])
def test_two_pictures_are_written(folder, weights):
    pytest.importorskip("matplotlib")
    words = ["photo.png", "--weights", f"{weights}.safetensors", "--depth", "depth.png", "--frame", "whole"]
    assert run_command(main, [*words, "--device", "cpu"]) == 0
    written = sorted(path.name for path in (folder / "inspection").iterdir())
    assert written == ["photo_features.png", "photo_modules.png"]
    for name in written:
        assert np.asarray(Image.open(folder / "inspection" / name)).std() > 0


def test_without_matplotlib_it_is_one_sentence(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run_command(main, ["photo.png", "--weights", "full.safetensors"]) == 2
    assert "run pip install matplotlib." in capsys.readouterr().err
    assert not (folder / "inspection").exists()
