"""Checkpoints: bit-exact, whole or passed over, and never executed."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pickle
import re
import resource
import struct
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from hida.config import Config, DiscriminatorConfig, GeneratorConfig
from hida.models import Generator, build_generator
from hida.weights.checkpoint import (
    CHECKPOINT,
    WEIGHTS,
    CheckpointError,
    checkpoint_path,
    load,
    load_generator,
    newest,
    save,
)

CONFIG = Config(name="tiny", generator=GeneratorConfig(base_width=2), discriminator=DiscriminatorConfig(base_width=1))


def write(path, tensors=None, config=CONFIG, state=None, kind=CHECKPOINT):
    save(path, kind, config, state or {"iteration": 7}, tensors or {"generator.a": torch.arange(100.0)})
    return path


def test_a_single_value_with_a_step_of_its_own_is_saved_and_values_begin_at_whole_words(tmp_path):
    one = torch.randn(4, 5).T[1:2, 0:1]
    for name in ("a", "ab", "abc"):
        path = write(tmp_path / f"{name}.safetensors", {name: one})
        assert torch.equal(load(path).tensors[name], one)
        assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path):
    bits = torch.randint(-(2**31), 2**31 - 1, (3, 5), dtype=torch.int32)
    tensors = {
        "generator.bits": bits.view(torch.float32),  # NaNs and denormals among them
        "generator.half": torch.randn(3, 4).half(),
        "ema.bf16": torch.randn(2, 2).bfloat16(),
        "optimizer_generator.step.a": torch.tensor(3.0),
        "discriminator.last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last).requires_grad_(),
        "discriminator.view": torch.randn(4, 6)[:, ::2],
    }
    state = {"iteration": 7, "images": 28, "scaler": {"scale": 0.1 + 0.2}}
    found = load(write(tmp_path / "c.safetensors", tensors, state=state))
    assert (found.kind, found.config, found.state) == (CHECKPOINT, CONFIG, state)
    assert found.tensors.keys() == tensors.keys()
    for name, value in tensors.items():
        loaded = found.tensors[name]
        assert (loaded.dtype, loaded.shape) == (value.dtype, value.shape)
        assert (
            loaded.contiguous().view(torch.uint8).flatten().tolist()
            == (value.detach().contiguous().reshape(-1).view(torch.uint8).tolist())
            if value.dim()
            else loaded == value
        )
    assert found.part("optimizer_generator").keys() == {"step.a"}
    assert load(tmp_path / "c.safetensors", ("ema.",)).tensors.keys() == {"ema.bf16"}


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 100, 0.3, 0.6, 0.99, -1])
def test_a_torn_file_is_passed_over_for_the_older_one(tmp_path, keep):
    old = write(checkpoint_path(tmp_path, 5), {"generator.a": torch.tensor([5.0])})
    torn = write(checkpoint_path(tmp_path, 10))
    data = torn.read_bytes()
    torn.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=r"iteration-00000010\.safetensors' is not a readable weights file"):
        load(torn)
    with pytest.warns(UserWarning, match=r"passing over a checkpoint: .*iteration-00000010"):
        found = newest(tmp_path)
    assert found.path == old
    assert found.part("generator")["a"].tolist() == [5.0]


def test_nothing_whole_is_none(tmp_path):
    assert newest(tmp_path) is None
    assert newest(tmp_path / "absent") is None
    checkpoint_path(tmp_path, 1).parent.mkdir()
    checkpoint_path(tmp_path, 1).write_bytes(b"")
    with pytest.warns(UserWarning, match="passing over"):
        assert newest(tmp_path) is None
    with (
        pytest.warns(UserWarning, match="passing over"),
        pytest.raises(CheckpointError, match="holds no whole checkpoint"),
    ):
        load_generator(tmp_path)


def test_newest_goes_by_the_iteration_and_ignores_strangers(tmp_path):
    for iteration in (9, 100, 99_999_999):
        write(checkpoint_path(tmp_path, iteration))
    folder = tmp_path / "checkpoints"
    for name in ("iteration-x.safetensors", "other.safetensors", ".iteration-99999999.abc.part.safetensors"):
        (folder / name).write_bytes(b"x")
    assert newest(tmp_path).path == checkpoint_path(tmp_path, 99_999_999)
    assert newest(folder).path == checkpoint_path(tmp_path, 99_999_999)


@pytest.mark.parametrize(
    ("config", "state"),
    [
        ("{", "{}"),
        ('{"unknown": 1}', "{}"),
        ("[]", "{}"),
        ('{"train": {"batch": 0}}', "{}"),
        ("{}", "3"),
        ("{}", "nul"),
        (None, "{}"),
    ],
)
def test_damaged_metadata_is_passed_over_too(tmp_path, config, state):
    path = checkpoint_path(tmp_path, 3)
    path.parent.mkdir()
    metadata = {"format": CHECKPOINT, "version": "1", "config": config, "state": state}
    save_file({"a": torch.ones(1)}, path, {key: value for key, value in metadata.items() if value is not None})
    with pytest.raises(CheckpointError, match="iteration-00000003"):
        load(path)
    with pytest.warns(UserWarning, match="passing over"):
        assert newest(tmp_path) is None


def test_other_safetensors_are_refused(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="safetensors file but not one of HIDA's"):
        load(tmp_path / "a.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors", {"format": WEIGHTS, "version": "2"})
    with pytest.raises(CheckpointError, match="has format version 2, this program reads 1; update hida"):
        load(tmp_path / "a.safetensors")


@pytest.mark.parametrize(("part", "words"), [("config", "configuration"), ("state", "counters")])
def test_a_part_that_is_absent_is_named(tmp_path, part, words):
    metadata = {"format": WEIGHTS, "version": "1", "config": "{}", "state": "{}"}
    del metadata[part]
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors", metadata)
    with pytest.raises(CheckpointError, match=rf"not a readable weights file \(it has no {words}\)"):
        load(tmp_path / "a.safetensors")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("writer", ["pickle", "torch", "old torch", "zip", "text", "long header", "wild header"])
def test_other_files_are_refused_and_nothing_in_them_runs(tmp_path, writer):
    path, marker = tmp_path / "weights.safetensors", tmp_path / "exploded"
    if writer == "pickle":
        path.write_bytes(pickle.dumps(Bomb(marker)))
    elif writer in ("torch", "old torch"):
        torch.save({"state_dict": Bomb(marker)}, path, _use_new_zipfile_serialization=writer == "torch")
    elif writer == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data.pkl", pickle.dumps(Bomb(marker)))
    elif writer == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", encoding="utf-8")
    elif writer == "long header":
        path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    else:
        header = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors' is not a readable weights file") as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert not marker.exists()


def test_a_missing_file_a_folder_and_a_pipe_are_told_apart(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    faults = {"absent": "there is no weights file", "": "is a folder; give a file", "pipe": "is a pipe or a device"}
    for name, fault in faults.items():
        with pytest.raises(CheckpointError, match=fault):
            load(tmp_path / name)


def generator_tensors(prefix, seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return {f"{prefix}.{name}": t.to(dtype) for name, t in build_generator(CONFIG).state_dict().items()}


def test_the_generator_is_rebuilt_averaged_in_float32_and_for_drawing(tmp_path):
    tensors = {**generator_tensors("generator", 1), **generator_tensors("ema", 2, torch.float16)}
    path = write(checkpoint_path(tmp_path, 4), tensors)
    before = torch.get_rng_state()
    for given in (path, tmp_path):
        generator, config = load_generator(given)
        assert torch.equal(torch.get_rng_state(), before)  # nothing is drawn that the file replaces
        assert config == CONFIG
        assert not generator.training
        for name, value in generator.state_dict().items():
            assert value.dtype == torch.float32
            assert torch.equal(value, tensors[f"ema.{name}"].float())
            assert value.untyped_storage().nbytes() == value.nbytes  # its own, and no view of the file
    only = write(tmp_path / "w.safetensors", generator_tensors("generator", 1), kind=WEIGHTS)
    own = load_generator(only)[0].stem_photo.weight
    assert torch.equal(own, tensors["generator.stem_photo.weight"])
    assert own.requires_grad
    assert own.untyped_storage().nbytes() == own.nbytes


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda t: t.update({"ema.stem_photo.weight": torch.ones(4, 3, 4, 4)}),
            r"stem_photo\.weight is \(4, 3, 4, 4\), expected \(2, 3, 4, 4\)",
        ),
        (lambda t: t.pop("ema.stem_photo.bias"), r"stem_photo\.bias is absent, expected \(2,\)"),
        (lambda t: t.update({"ema.more": torch.ones(1)}), r"more is \(1,\), expected no such tensor"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, said):
    tensors = generator_tensors("ema")
    change(tensors)
    with pytest.raises(CheckpointError, match=f"w.safetensors' does not fit its configuration: {said}"):
        load_generator(write(tmp_path / "w.safetensors", tensors))


def test_a_configuration_of_another_width_is_named(tmp_path):
    config = dataclasses.replace(CONFIG, generator=GeneratorConfig(base_width=4))
    with pytest.raises(CheckpointError, match="does not fit its configuration"):
        load_generator(write(tmp_path / "w.safetensors", generator_tensors("ema"), config))


GOOGOL = "1" + "0" * 400
FALSE = {
    "generator.base_width": ["1000000", str(2**62), str(2**64), GOOGOL, "66", "2.0", "true"],
    "generator.styles": [str(10**9), "999", "0"],
    "generator.dog_levels": [f"[{GOOGOL}]", f"[{'1, ' * 100_000} 9]", "[[]]"],
    "discriminator.base_width": ["1000000", str(2**62)],
    "train.epochs": [GOOGOL, "NaN", '"' + "9" * 5000 + '"'],
    "train.batch": [GOOGOL, GOOGOL * 20],
    "name": ["3", f"[{'1, ' * 100_000} 9]", '{"a": 1}'],
}


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field, values in FALSE.items() for value in values],
    ids=lambda words: words[:20],
)
def test_a_false_configuration_is_refused_before_a_network_is_filled(tmp_path, monkeypatch, field, value):
    monkeypatch.setattr(Generator, "load_state_dict", lambda *_, **__: pytest.fail("a network was filled"))
    config = CONFIG.to_dict()
    *above, last = field.split(".")
    (config[above[0]] if above else config)[last] = "@"
    words = json.dumps(config).replace('"@"', value)
    path = tmp_path / "w.safetensors"
    metadata = {"format": WEIGHTS, "version": "1", "config": words, "state": "{}"}
    save_file(generator_tensors("generator"), path, metadata)
    with pytest.raises(CheckpointError, match=r"w\.safetensors' ") as caught:
        load_generator(path)
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["config", "state"])
@pytest.mark.parametrize(
    "text", ["[" * 10**5, '{"a":' * 10**5, "[" * 900 + "]" * 900, '{"name": "a", "name": "b"}', "NaN", ""]
)
def test_documents_that_are_no_json_are_refused(tmp_path, part, text):
    path = tmp_path / "w.safetensors"
    save_file(
        {"a": torch.ones(1)}, path, {"format": WEIGHTS, "version": "1", "config": "{}", "state": "{}", part: text}
    )
    with pytest.raises(
        CheckpointError, match=r"w\.safetensors' (is not a readable weights file|holds a conf)"
    ) as caught:
        load(path)
    assert len(str(caught.value)) < 400


def test_an_infinite_option_is_read(tmp_path):
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, checkpoint_minutes=math.inf))
    assert load(write(tmp_path / "c.safetensors", config=config)).config == config


def test_a_header_of_a_hundred_megabytes_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "w.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 99_000_000))
        file.truncate(99_000_100)
    with pytest.raises(CheckpointError, match="its header is too large"):
        load(path)


def test_a_file_that_may_not_grow_leaves_the_old_one(tmp_path):
    # The system refuses the write itself, in the middle of the file.
    path = write(tmp_path / "c.safetensors")
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match=re.escape(str(path))):
            write(path, {"generator.a": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["c.safetensors"]
