"""hida inspect: the maps are those of the network's formulas, and a module left out is left out."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from small_set import inputs

from hida import ops
from hida.cli.figures import modules_figure
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


def averaged(first, last):
    """A hook on the convolution to θ's logits, γ and β, in this order: those of [first, last) become their means."""

    def hook(module, given, result):
        maps = result.unflatten(1, (3, -1)).clone()
        maps[:, first:last] = maps[:, first:last].mean((3, 4), keepdim=True)
        return maps.flatten(1, 2)

    return hook


def straight(module, given, result):
    return torch.cat((0 * result[:, :36], result[:, 36:]), 1)


def test_without_a_module_its_maps_are_their_means_and_its_offsets_are_zero(generator):
    drawn = ablations(generator, *PHOTO_AND_DEPTH, STYLE)
    modulations = [level.adaptation.modulation for level in generator.decoder]
    for name, modules, hook in (
        ("InfoACON", modulations, averaged(0, 1)),
        ("DySPADE", modulations, averaged(1, 3)),
        ("DOG", [level.up.offset_mask for level in generator.decoder[:2]], straight),
    ):
        handles = [module.register_forward_hook(hook) for module in modules]
        with torch.inference_mode():
            wanted = generator(*PHOTO_AND_DEPTH, STYLE)[0][0, 0]
        for handle in handles:
            handle.remove()
        torch.testing.assert_close(drawn[f"without {name}"], wanted, rtol=0, atol=1e-4, msg=name)


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


def test_what_is_darker_without_a_module_is_red_and_what_is_lighter_blue():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    drawn = {"all modules": torch.tensor([[0.5, -0.5]]), "without DOG": torch.tensor([[-0.5, 0.5]])}
    figure = modules_figure(pyplot, torch.zeros(1, 3, 1, 2), drawn)
    shown = figure.axes[3].images[0]
    red, _, blue, _ = shown.to_rgba(shown.get_array()).transpose(2, 0, 1)[:, 0]
    pyplot.close(figure)
    assert (red[0] > blue[0], red[1] < blue[1]) == (True, True)


def test_without_matplotlib_it_is_one_sentence(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run_command(main, ["photo.png", "--weights", "full.safetensors"]) == 2
    assert "run pip install matplotlib." in capsys.readouterr().err
    assert not (folder / "inspection").exists()
