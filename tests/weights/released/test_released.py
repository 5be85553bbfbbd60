"""The authors' checkpoint: read exactly, written back exactly, and refused when it is anything else."""

from __future__ import annotations

import argparse
import json
import math
import os
import pickle
import resource
from pathlib import Path

import numpy as np
import plain
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from hida.cli import export_released, import_released
from hida.cli.run import run_command
from hida.config import Config, DiscriminatorConfig, GeneratorConfig
from hida.models import build_generator
from hida.models.discriminator import Discriminator
from hida.weights import checkpoint
from hida.weights.checkpoint import load, load_generator
from hida.weights.released import importing


def save(path: Path, state, **more) -> Path:
    torch.save({"epoch": 749, "global_step": 1, "state_dict": state, **more}, path)
    return path


@pytest.fixture(scope="module")
def state():
    return plain.checkpoint()


@pytest.fixture(scope="module")
def imported(state, tmp_path_factory):
    folder = tmp_path_factory.mktemp("released")
    out = folder / "released.safetensors"
    import_released.main([str(save(folder / "a.ckpt", state)), str(out)])
    return out


def inputs(seed=3):
    random = torch.Generator().manual_seed(seed)
    photo, depth = torch.rand(1, 3, 256, 256, generator=random) * 2 - 1, torch.rand(1, 1, 256, 256, generator=random)
    return photo, depth


@pytest.mark.parametrize("style", [1, 2, 3])
def test_the_generator_draws_what_the_released_network_draws(imported, state, style):
    photo, depth = inputs()
    generator, config = load_generator(imported)
    assert config.generator == GeneratorConfig(base_width=8)
    with torch.inference_mode():
        sketch, depth_hat = generator(photo, depth, torch.tensor([style - 1]))
        wanted, wanted_depth = plain.draw(state, photo, depth, style)
    assert wanted.std() > 0.05
    assert (sketch - wanted).abs().max() < 1e-4
    assert (depth_hat - wanted_depth).abs().max() < 1e-4 * wanted_depth.std()


def test_the_styles_differ(state):
    photo, depth = inputs()
    with torch.inference_mode():
        drawn = [plain.draw(state, photo, depth, style)[0] for style in (1, 2, 3)]
    assert (
        min((a - b).abs().max() for a, b in ((drawn[0], drawn[1]), (drawn[1], drawn[2]), (drawn[0], drawn[2]))) > 0.01
    )


def test_the_discriminator_answers_as_the_released_one(imported, state):
    loaded = load(imported)
    discriminator = Discriminator(loaded.config.discriminator)
    discriminator.load_state_dict(loaded.part("discriminator"))
    _, depth = inputs()
    sketch = torch.rand(1, 1, 256, 256) * 2 - 1
    with torch.inference_mode():
        found, wanted = discriminator(depth, sketch), plain.discriminate(state, depth, sketch)
    assert found.shape == wanted.shape == (1, 1, 35, 35)
    assert (found - wanted).abs().max() < 1e-4 * wanted.std()


GOLDEN = Path(os.environ.get("HIDA_GOLDEN", "")) / "released_keys.json"


@pytest.mark.skipif(not GOLDEN.is_file(), reason="needs released_keys.json")
def test_the_plain_network_has_the_names_and_shapes_of_the_released_file():
    listed = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert list(plain.shapes().items()) == [(name, tuple(shape)) for name, shape, _ in listed["G"] + listed["D"]]


@pytest.mark.slow
def test_the_whole_released_checkpoint_is_taken_without_an_option_and_given_back(tmp_path, capsys):
    full = {
        name: value.double() if value.dtype.is_floating_point else value
        for name, value in plain.checkpoint(64, 64).items()
    }
    ckpt, out, back = tmp_path / "a.ckpt", tmp_path / "a.safetensors", tmp_path / "back.ckpt"
    import_released.main([str(save(ckpt, full)), str(out), "--list-unused"])
    printed = capsys.readouterr().out
    assert "80,894,566 parameters of the generator are used, 27,773,680" in printed
    assert "108,668,246 parameters are accounted for" in printed
    assert {line.split()[2] for line in printed.splitlines() if line.startswith("not used: ")} == {
        name for name in full if plain.unused(name)
    }
    generator, config = load_generator(out)
    assert sum(p.numel() for p in generator.parameters()) == 80_894_566
    assert config.generator == GeneratorConfig()
    photo, depth = inputs()
    single = {name: value.float() for name, value in full.items()}
    with torch.inference_mode():
        for style in (1, 2, 3):
            sketch, depth_hat = generator(photo, depth, torch.tensor([style - 1]))
            wanted, wanted_depth = plain.draw(single, photo, depth, style)
            assert (sketch - wanted).abs().max() < 1e-4
            assert (depth_hat - wanted_depth).abs().max() < 1e-4 * wanted_depth.std()
    del generator, single
    export_released.main([str(out), str(back)])
    given_back = torch.load(back, weights_only=True)["state_dict"]
    assert list(given_back) == list(full)
    for name, value in full.items():
        assert given_back[name].dtype == value.dtype
        assert torch.equal(given_back[name], value)


def test_the_counts_are_those_of_the_released_class():
    shapes = plain.shapes()
    generator = {
        name: np.prod(shape)
        for name, shape in shapes.items()
        if name.startswith("Generator.") and not plain.buffer(name)
    }
    assert sum(n for name, n in generator.items() if not plain.unused(name)) == 80_894_566
    assert sum(generator.values()) == 108_668_246
    assert sum(np.prod(shape) for name, shape in shapes.items() if name.startswith("Disc")) == 2_763_713


def test_what_is_not_used_is_listed_and_not_loaded(imported, state, tmp_path, capsys):
    import_released.main(
        [str(save(tmp_path / "a.ckpt", state)), str(tmp_path / "b.safetensors"), "--no-keep-unused", "--list-unused"]
    )
    printed = capsys.readouterr().out
    idle = {name for name in state if plain.unused(name)}
    listed = {line.split()[2] for line in printed.splitlines() if line.startswith("not used: ")}
    assert listed == idle
    number = sum(state[name].numel() for name in state if name.startswith("Generator.") and name not in idle)
    assert f"{number:,} parameters of the generator are used" in printed
    loaded = load(tmp_path / "b.safetensors")
    assert not loaded.part("unused")
    assert sum(tensor.numel() for tensor in loaded.part("generator").values()) == number
    assert load(imported).part("unused").keys() == idle


def test_there_and_back_is_identical(imported, state, tmp_path):
    export_released.main([str(imported), str(tmp_path / "back.ckpt")])
    back = torch.load(tmp_path / "back.ckpt", weights_only=True)["state_dict"]
    assert list(back) == list(state)
    assert all(torch.equal(back[name], state[name]) and back[name].dtype == state[name].dtype for name in state)
    import_released.main([str(tmp_path / "back.ckpt"), str(tmp_path / "again.safetensors")])
    first, second = load(imported), load(tmp_path / "again.safetensors")
    assert first.config == second.config
    assert first.tensors.keys() == second.tensors.keys()
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)


def test_without_the_unused_ones_the_names_are_the_same_and_they_are_zero(state, tmp_path, capsys):
    import_released.main([str(save(tmp_path / "a.ckpt", state)), str(tmp_path / "b.safetensors"), "--no-keep-unused"])
    export_released.main([str(tmp_path / "b.safetensors"), str(tmp_path / "back.ckpt")])
    assert "never uses are zero" in capsys.readouterr().out
    back = torch.load(tmp_path / "back.ckpt", weights_only=True)["state_dict"]
    assert {name: tuple(value.shape) for name, value in back.items()} == {
        name: tuple(value.shape) for name, value in state.items()
    }
    for name, value in back.items():
        assert torch.equal(value, torch.zeros_like(value) if plain.unused(name) else state[name])


def test_weights_trained_here_are_exported_and_draw_the_same(tmp_path, capsys):
    config = Config(generator=GeneratorConfig(base_width=4))
    torch.manual_seed(1)
    generator = build_generator(config).eval()
    tensors = {f"ema.{name}": value for name, value in generator.state_dict().items()}
    checkpoint.save(tmp_path / "run.safetensors", checkpoint.WEIGHTS, config, {}, tensors)
    export_released.main([str(tmp_path / "run.safetensors"), str(tmp_path / "run.ckpt")])
    assert "have no discriminator" in capsys.readouterr().out
    exported = torch.load(tmp_path / "run.ckpt", weights_only=True)["state_dict"]
    assert list(exported) == [name for name in plain.shapes() if name.startswith("Generator.")]
    photo, depth = inputs()
    with torch.inference_mode():
        sketch, _ = generator(photo, depth, torch.tensor([2]))
        torch.testing.assert_close(plain.draw(exported, photo, depth, 3)[0], sketch, rtol=0, atol=1e-4)


def test_a_discriminator_that_knows_more_than_theirs_stays_behind(tmp_path, capsys):
    config = Config(generator=GeneratorConfig(base_width=4), discriminator=DiscriminatorConfig(2, photo=True, styles=3))
    networks = {"ema": build_generator(config), "discriminator": Discriminator(config.discriminator)}
    tensors = {f"{part}.{name}": t for part, network in networks.items() for name, t in network.state_dict().items()}
    checkpoint.save(tmp_path / "run.safetensors", checkpoint.WEIGHTS, config, {}, tensors)
    export_released.main([str(tmp_path / "run.safetensors"), str(tmp_path / "run.ckpt")])
    assert "sees the photo or the style" in capsys.readouterr().out
    exported = torch.load(tmp_path / "run.ckpt", weights_only=True)["state_dict"]
    assert list(exported) == [name for name in plain.shapes() if name.startswith("Generator.")]


def test_a_folder_gets_weights_and_configuration(state, tmp_path):
    out = tmp_path / "model"
    import_released.main([str(save(tmp_path / "a.ckpt", state)), str(out)])
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "weights.safetensors"]
    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["generator"]["base_width"] == 8
    assert load_generator(out)[1].generator.base_width == 8


def test_plain_data_beside_the_tensors_is_read(state, tmp_path):
    more = {"hparams": argparse.Namespace(ngf=64, model="gauparsing"), "best": np.float64(15.06), "monitor": None}
    extra = {"criterionGMSD.hx.weight": torch.ones(3, 1, 3, 3)}
    path = save(tmp_path / "a.ckpt", {**state, **extra}, **more)
    assert importing.read(path).keys() == {**state, **extra}.keys()
    import_released.main([str(path), str(tmp_path / "a.safetensors")])


def test_tensors_that_share_memory_are_taken(state, tmp_path):
    shared = dict(state)
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    shared.update(dict.fromkeys(counters, torch.tensor(5)))
    shared["Generator.up3.p1"] = shared["Generator.up3.p2"]
    out = tmp_path / "w.safetensors"
    import_released.main([str(save(tmp_path / "s.ckpt", shared)), str(out)])
    export_released.main([str(out), str(tmp_path / "b.ckpt")])
    again = importing.read(tmp_path / "b.ckpt")
    assert list(again) == list(shared)
    assert all(torch.equal(again[name], value) for name, value in shared.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision_is_read_and_given_back(state, tmp_path, dtype):
    order = sorted(state)  # another than that of the classes
    given = {name: state[name].to(dtype) if state[name].is_floating_point() else state[name] for name in order}
    given["Generator.final_rgb.0.bn1.running_var"][0] = math.nan  # no part of the network
    import_released.main([str(save(tmp_path / "a.ckpt", given)), str(tmp_path / "a.safetensors")])
    assert {p.dtype for p in load_generator(tmp_path / "a.safetensors")[0].parameters()} == {torch.float32}
    export_released.main([str(tmp_path / "a.safetensors"), str(tmp_path / "b.ckpt")])
    back = torch.load(tmp_path / "b.ckpt", weights_only=True)["state_dict"]
    assert list(back) == order
    for name in order:
        torch.testing.assert_close(back[name], given[name], rtol=0, atol=0, equal_nan=True)


COUNT = "Generator.final_rgb.0.bn1.num_batches_tracked"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(
            ("Generator.down_rgb.bias", kind)
            for kind in ("int8", "bool", "quint8", "complex64", "float16", "\x1b", "nn")
        ),
        *(("Discrimanator.discriminator_0.model0.0.bias", kind) for kind in ("int64", "bfloat16")),
        *((COUNT, kind) for kind in ("bool", "int8", "float16")),
    ],
)
def test_a_precision_that_does_not_hold_the_values_is_refused(imported, tmp_path, capsys, name, kind):
    found = load(imported)
    found.tensors[f"unused.{COUNT}"] = torch.tensor(2049)
    next(entry for entry in found.state["tensors"] if entry[0] == name)[1] = kind
    checkpoint.save(tmp_path / "b.safetensors", found.kind, found.config, found.state, found.tensors)
    assert run_command(export_released.main, [str(tmp_path / "b.safetensors"), str(tmp_path / "b.ckpt")]) == 2
    said = capsys.readouterr().err
    assert "b.safetensors' has a damaged list of tensors" in said
    assert said.count("\n") == 1
    assert "\x1b" not in said
    assert not (tmp_path / "b.ckpt").exists()


@pytest.mark.parametrize("name", ["\ud800", "\x1b[31m", "a\nb", "n" * 9_000_000, "n" * 600], ids=lambda name: name[:3])
def test_a_name_that_cannot_be_shown_or_read_again_is_refused(state, tmp_path, capsys, name):
    path = save(tmp_path / "a.ckpt", {**state, f"criterion{name}": torch.zeros(1)})
    assert run_command(import_released.main, [str(path), str(tmp_path / "out" / "a.safetensors")]) == 2
    said = capsys.readouterr().err
    assert "a.ckpt' has a tensor whose name is too long or not printable" in said
    assert said.count("\n") == 1
    assert len(said) < 400
    assert "\x1b" not in said
    assert not (tmp_path / "out").exists()


def test_more_names_than_are_read_again_are_not_written(state, tmp_path, capsys):
    more = {f"criterion{k:0490}": torch.zeros(0) for k in range(6000)}
    path = save(tmp_path / "a.ckpt", {**state, **more})
    assert run_command(import_released.main, [str(path), str(tmp_path / "out" / "a.safetensors")]) == 2
    assert "a.safetensors' was not written, since the names of its tensors are too long" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_statistics_that_are_not_finite_do_no_harm_where_they_are_not_used(state, tmp_path):
    name = "Generator.final_rgb.0.bn1.running_var"
    path = save(tmp_path / "a.ckpt", changed(state, name, torch.full_like(state[name], torch.nan)))
    assert run_command(import_released.main, [str(path), str(tmp_path / "a.safetensors")]) == 0


def changed(state, name, value):
    return {**state, name: value}


def without(state, *names):
    return {name: value for name, value in state.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: without(s, "Generator.up3.norm.mlp_beta.bias"), "lacks Generator.up3.norm.mlp_beta.bias"),
        (lambda s: without(s, "Discrimanator.discriminator_0.model5.0.bias"), "discriminator_0.model5.0.bias"),
        (lambda s: without(s, "Generator.down_rgb.weight"), "lacks Generator.down_rgb.weight"),
        (lambda s: changed(s, "Generator.up7.fc1.bias", torch.zeros(3)), "does not have: Generator.up7.fc1.bias"),
        (lambda s: changed(s, "other", torch.zeros(3)), "does not have: other"),
        (lambda s: changed(s, "Generator.up2.fc3.bias", torch.zeros(3)), "Generator.up2.fc3.bias is (3,), not (64,)"),
        (
            lambda s: changed(s, "Generator.up0.fc2.weight", torch.zeros(64, 2, 3, 3)),
            "Generator.up0.fc2.weight is (64, 2, 3, 3), not (64, 4, 3, 3)",
        ),
        (
            lambda s: changed(s, "Generator.up0.p1", torch.full((1, 64, 1, 1), torch.nan)),
            "not finite, in Generator.up0.p1",
        ),
        (  # the network computes in float32
            lambda s: changed(s, "Generator.up0.p1", torch.full((1, 64, 1, 1), 1e39, dtype=torch.float64)),
            "not finite, in Generator.up0.p1",
        ),
        (lambda s: changed(s, "Generator.down_rgb.weight", torch.zeros(10**6, 1, 1, 1)), "a.ckpt' is not of the rel"),
        (lambda s: changed(s, "Generator.up0.p1", "text"), "no state_dict of named tensors"),
        (lambda s: [1, 2], "no state_dict of named tensors"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(state, tmp_path, capsys, change, sentence):
    path = save(tmp_path / "a.ckpt", change(state))
    assert run_command(import_released.main, [str(path), str(tmp_path / "out" / "a.safetensors")]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_further_modules_are_left_aside_only_when_named(state, tmp_path):
    path = save(tmp_path / "a.ckpt", changed(state, "Generator.up1.extra.weight", torch.zeros(3)))
    words = [str(path), str(tmp_path / "a.safetensors")]
    assert run_command(import_released.main, words) == 2
    assert run_command(import_released.main, [*words, "--unused", "Generator.up1.extra"]) == 0


@pytest.mark.parametrize(
    ("beginning", "said"),
    [
        ("Generator.up9", "has no tensor whose name begins with 'Generator.up9', as --unused says; check the name"),
        ("", "--unused is empty, which would ignore everything;"),
        ("Generator.down_rgb", "'Generator.down_rgb' names only what the network uses, such as Generator.down_rgb.w"),
    ],
)
def test_a_module_to_leave_aside_that_is_not_there_is_refused(state, tmp_path, capsys, beginning, said):
    path = save(tmp_path / "a.ckpt", state)
    words = [str(path), str(tmp_path / "a.safetensors"), "--unused", "Generator.up1.norm", beginning]
    assert run_command(import_released.main, words) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "a.safetensors").exists()


def test_what_is_not_used_is_counted_in_one_line(state, tmp_path, capsys):
    more = {f"criterion{k}.\u00e4{'n' * 200}": torch.zeros(1) for k in range(3)}
    more |= {f"criterion{'abcdefghij'[k]}.x": torch.zeros(1) for k in range(9)}
    import_released.main([str(save(tmp_path / "a.ckpt", {**state, **more})), str(tmp_path / "a.safetensors")])
    lines = capsys.readouterr().out.splitlines()
    idle = [name for name in state if plain.unused(name)]
    levels = sum(name.startswith("Generator.up") for name in idle)
    assert lines[0].startswith(f"not used: {len(idle) + len(more)} tensors ({levels} of Generator.up*, ")
    assert lines[0].endswith("further parts); --list-unused names them all")
    assert len(lines) == 4
    assert max(map(len, lines)) < 500


class Touch:
    """Unpickling it runs a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_does_not_run(state, tmp_path, capsys, zipped):
    trap = tmp_path / "ran"
    path = tmp_path / "a.ckpt"
    content = {"state_dict": state, "callback": Touch(trap)}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps({"state_dict": {}, "callback": Touch(trap)}))
    assert run_command(import_released.main, [str(path), str(tmp_path / "a.safetensors")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "posix.system" in said or not zipped
    assert "weights_only" not in said
    assert not trap.exists()
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.parametrize("part", [0.0, 0.3, 0.99])
def test_a_torn_file_is_one_sentence(state, tmp_path, capsys, part):
    path = save(tmp_path / "a.ckpt", state)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    assert run_command(import_released.main, [str(path), str(tmp_path / "a.safetensors")]) == 2
    said = capsys.readouterr().err
    assert "torn or of another kind" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "a.safetensors").exists()


def test_what_is_no_checkpoint_is_named(tmp_path, capsys):
    picture, sentences = tmp_path / "photo.jpg", {}
    Image.new("RGB", (64, 64)).save(picture)
    (tmp_path / "empty.ckpt").touch()
    (tmp_path / "page.ckpt").write_text("\n<!DOCTYPE html><title>Sign in</title>", encoding="utf-8")
    (tmp_path / "words.ckpt").write_text("words\n" * 9, encoding="utf-8")
    save_file({"a": torch.ones(2)}, tmp_path / "w.safetensors")
    os.mkfifo(tmp_path / "pipe")
    names = ("photo.jpg", "empty.ckpt", "page.ckpt", "words.ckpt", "w.safetensors", "pipe", ".", "/dev/null")
    for name in names:
        assert run_command(import_released.main, [str(tmp_path / name), str(tmp_path / "out.safetensors")]) == 2
        sentences[name] = capsys.readouterr().err
    assert "photo.jpg' cannot be read as a checkpoint (it is a JPEG picture); give the rel" in sentences["photo.jpg"]
    assert "it is empty" in sentences["empty.ckpt"]
    assert "(it is a web page, as a download that failed leaves it); give" in sentences["page.ckpt"]
    assert "(it is no file of torch.save)" in sentences["words.ckpt"]
    assert "(it is a safetensors file); give" in sentences["w.safetensors"]
    assert "pipe' is a pipe or a device, from which weights are not read: save them to a file." in sentences["pipe"]
    assert "'/dev/null' is a pipe or a device" in sentences["/dev/null"]
    assert "is a folder; give the checkpoint file in it" in sentences["."]
    assert all(said.count("\n") == 1 for said in sentences.values())
    assert not (tmp_path / "out.safetensors").exists()


@pytest.fixture
def run(tmp_path):
    """A folder that looks like a run's, whose checkpoint is damaged."""
    path = checkpoint.checkpoint_path(tmp_path / "run", 3)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"damaged")
    (tmp_path / "run" / "config.json").write_text("{}", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("command", "out", "said"),
    [
        ("import", "{run}", "is a checkpoint of a run, which the weights would replace"),
        (
            "import",
            "run/checkpoints/iteration-4.safetensors",
            "has the name of a run's checkpoint; choose another name.",
        ),
        ("import", "run", "run' is the folder of a run, whose weights.safetensors and config.json would be replaced"),
        ("import", "a.ckpt", "a.ckpt' does not end in .safetensors; give it a name"),
        ("import", "new.PT", "new.PT' does not end in .safetensors; give it a name"),
        ("import", "file", "there is a file where a folder was expected"),
        ("import", "file/w.safetensors", "there is a file where a folder was expected"),
        ("import", "same.safetensors", "is itself what is read; choose another name to write."),
        ("export", "w.safetensors", "w.safetensors' does not end in .ckpt; give it a name"),
        ("export", "run", "run' is a folder; give the name of a file to write."),
        ("export", "new", "new' does not end in .ckpt; give it a name"),
        ("export", "same.ckpt", "is itself what is read; choose another name to write."),
        ("export", "file/w.ckpt", "there is a file where a folder was expected"),
    ],
)
def test_a_place_that_is_wrong_is_said_before_anything_is_read(run, tmp_path, capsys, command, out, said):
    for name in ("a.ckpt", "w.safetensors", "file"):
        (tmp_path / name).write_text("not read", encoding="utf-8")
    (tmp_path / "same.safetensors").symlink_to(tmp_path / "a.ckpt")
    (tmp_path / "same.ckpt").hardlink_to(tmp_path / "w.safetensors")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    main = import_released.main if command == "import" else export_released.main
    given = tmp_path / ("a.ckpt" if command == "import" else "w.safetensors")
    assert run_command(main, [str(given), str(tmp_path / out.format(run=run))]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("command", ["import", "export"])
def test_a_disk_that_is_full_is_one_sentence_and_leaves_nothing(state, imported, tmp_path, capsys, command):
    given = save(tmp_path / "a.ckpt", state) if command == "import" else imported
    out = tmp_path / "new" / ("b.safetensors" if command == "import" else "b.ckpt")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
    try:
        main = import_released.main if command == "import" else export_released.main
        assert run_command(main, [str(given), str(out)]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (
        capsys.readouterr().err
        == f"hida: the file is larger than it may be here ({out}); choose another output folder.\n"
    )
    assert not list((tmp_path / "new").iterdir())


def test_an_absent_file_and_another_network_are_one_sentence(tmp_path, capsys):
    assert run_command(import_released.main, [str(tmp_path / "no.ckpt"), str(tmp_path / "a.safetensors")]) == 2
    assert "there is no checkpoint" in capsys.readouterr().err
    config = Config(generator=GeneratorConfig(base_width=2, residual="input"))
    tensors = {f"ema.{name}": value for name, value in build_generator(config).state_dict().items()}
    checkpoint.save(tmp_path / "w.safetensors", checkpoint.WEIGHTS, config, {}, tensors)
    assert run_command(export_released.main, [str(tmp_path / "w.safetensors"), str(tmp_path / "b.ckpt")]) == 2
    assert "differs from the released network in residual" in capsys.readouterr().err
    assert not (tmp_path / "b.ckpt").exists()


def test_built_in_weights_are_named_as_elsewhere(tmp_path, capsys):
    assert run_command(export_released.main, ["small", str(tmp_path / "small.ckpt")]) == 0
    assert run_command(export_released.main, ["smal", str(tmp_path / "b.ckpt")]) == 2
    assert "there are no weights named 'smal'; give a path or one of: small." in capsys.readouterr().err
