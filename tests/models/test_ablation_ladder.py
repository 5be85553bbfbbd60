"""The ablation ladder: what each preset is made of, what it costs, and that each trains, saves and loads."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from small_set import inputs
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from hida import ops
from hida.cli.presets import main, table
from hida.config import Config, GeneratorConfig, load_preset, presets
from hida.data.framing import Batch
from hida.models import build_generator
from hida.models.cost import cost
from hida.training.distributed import World
from hida.training.state import TrainingState
from hida.weights import checkpoint

LADDER = ["model_a", "model_b", "model_c", "model_d", "full", "leaky", "metaacon", "infoacon", "apdrawing"]
LADDER += [f"dog_{where}" for where in ("none", "top2", "mid3", "btm2", "all")]
WORLD = World(0, 1, torch.device("cpu"))


def narrow(name: str, width: int = 2) -> Config:
    config = load_preset(name)
    return dataclasses.replace(
        config,
        generator=dataclasses.replace(config.generator, base_width=width),
        discriminator=dataclasses.replace(config.discriminator, base_width=2),
    )


@pytest.mark.parametrize("name", LADDER)
def test_each_trains_a_step_saves_and_loads(name, tmp_path):
    config = narrow(name)
    state = TrainingState(config, WORLD)
    before = {key: value.clone() for key, value in state.generator.state_dict().items()}
    photo, depth, style = inputs(2)
    losses = state.step(Batch(photo, depth, style, depth * 2 - 1), 0.0)
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(not torch.equal(before[key], value) for key, value in state.generator.named_parameters())
    path = tmp_path / "iteration-00000001.safetensors"
    checkpoint.save(path, checkpoint.CHECKPOINT, config, state.counters(), state.tensors())
    generator, loaded = checkpoint.load_generator(path)
    assert loaded == config
    with torch.inference_mode():
        torch.testing.assert_close(generator(photo, depth, style), state.ema(photo, depth, style), rtol=0, atol=1e-6)


def test_model_a_is_the_u_net_of_pix2pix():
    """Written out: LeakyReLU → conv → norm down, ReLU → transposed conv → norm up, tanh at the end."""
    torch.manual_seed(0)
    generator = build_generator(narrow("model_a", 4)).eval()
    s = dict(generator.named_parameters())
    photo, depth, style = inputs()
    x = F.conv2d(photo, s["stem_photo.weight"], s["stem_photo.bias"], stride=2, padding=1)
    skips = [x]
    for k in range(7):
        x = F.conv2d(F.leaky_relu(x, 0.2), s[f"encoder.{k}.conv.weight"], s[f"encoder.{k}.conv.bias"], 2, 1)
        x = F.instance_norm(x) if k < 6 else x
        skips.append(x)
    for k in range(7):
        x = torch.cat((x, skips[7 - k]), 1) if k else x
        x = F.conv_transpose2d(F.relu(x), s[f"decoder.{k}.up.weight"], s[f"decoder.{k}.up.bias"], 2, 1)
        x = F.instance_norm(x)
    x = F.relu(torch.cat((x, skips[0]), 1))
    wanted = torch.tanh(F.conv_transpose2d(x, s["head_sketch.up.weight"], s["head_sketch.up.bias"], 2, 1))
    with torch.inference_mode():
        sketch, depth_hat = generator(photo, depth, style)
        torch.testing.assert_close(sketch, wanted, rtol=0, atol=1e-4)
        assert not depth_hat.any()
        # Neither depth nor style enters.
        assert torch.equal(generator(photo, 1 - depth, style + 2)[0], sketch)
    # Isola et al. report 54.4 M for three output channels: 2·64·4² + 1 of them are per channel.
    assert cost(load_preset("model_a").generator).parameters == 54_409_603 - 2 * (2 * 64 * 16 + 1)


def test_what_each_rung_reacts_to():
    photo, depth, style = inputs()
    reacts = {}
    for name in ("model_a", "model_b", "model_c", "model_d"):
        torch.manual_seed(0)
        generator = build_generator(narrow(name, 4)).eval()
        with torch.inference_mode():
            base = generator(photo, depth, style)[0]
            changed = generator(photo, depth.flip(3), style)[0], generator(photo, depth, style + 1)[0]
        reacts[name] = [not torch.equal(base, other) for other in changed]
    assert reacts == {
        "model_a": [False, False],
        "model_b": [True, False],
        "model_c": [True, True],
        "model_d": [True, True],
    }


def test_names_of_one_network_are_one_configuration():
    def generator(name):
        return load_preset(name).generator

    assert generator("full") == generator("infoacon") == generator("dog_top2") == generator("released")
    assert generator("dog_none") == generator("model_d")
    different = {generator(name) for name in LADDER}
    assert len(different) == len(LADDER) - 3


@pytest.mark.parametrize("name", ["model_b", "full"])
def test_512_pixels_in_one_piece(name):
    with torch.inference_mode():
        assert build_generator(narrow(name)).eval()(*inputs(1, 512, 512))[0].shape == (1, 1, 512, 512)


INFO_ACON_ALONE = GeneratorConfig(4, modulation="none", residual="none")


@pytest.mark.parametrize("config", [*(narrow(name, 4).generator for name in LADDER), INFO_ACON_ALONE], ids=str)
def test_the_counted_arithmetic_is_what_runs(config):
    generator = build_generator(config).eval()
    with torch.inference_mode(), ops.backend("reference"), FlopCounterMode(display=False) as counter:
        sketch, _ = generator(*inputs())
    assert sketch.std() > 0
    assert 2 * cost(config).macs == counter.get_total_flops()


@pytest.mark.parametrize("preset", ["released", "paper"])
def test_the_released_network_takes_the_published_arithmetic(preset):
    parameters, macs = cost(load_preset(preset).generator)
    assert parameters == 80_894_566
    assert round(2 * macs / 1e9, 1) == 29.1


def test_the_document_holds_the_table_that_the_code_prints(capsys):
    text = Path(__file__).parents[2].joinpath("docs", "ablations.md").read_text(encoding="utf-8")
    head, *_ = table([]).splitlines()
    names = re.findall(r"^\| (\w+) \|", text[text.index(head) + len(head) :].split("\n\n")[0], re.MULTILINE)
    assert sorted(names) == presets()
    assert table([load_preset(name) for name in names]) in text
    main(["model_a", "--width", "4"])
    assert "| model_a |" in capsys.readouterr().out
