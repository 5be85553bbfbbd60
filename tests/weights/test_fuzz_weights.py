"""A thousand damaged files of weights: each is read or refused in a sentence, in bounded time and memory; none runs."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzzing import mutations, withstand

from hida.config import Config, DiscriminatorConfig, GeneratorConfig
from hida.data.framing import Batch
from hida.errors import HidaError
from hida.models.discriminator import Discriminator
from hida.training.distributed import World
from hida.training.state import TrainingState
from hida.weights import checkpoint
from hida.weights.archives import read_members
from hida.weights.arrays import read_npy
from hida.weights.checkpoint import fill_module, load, load_generator, write_snapshot
from hida.weights.foreign import load_arrays, load_state
from hida.weights.released import exporting, importing

pytestmark = pytest.mark.slow

CONFIG = Config(name="tiny", generator=GeneratorConfig(base_width=2), discriminator=DiscriminatorConfig(base_width=1))
WORDS = (
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    65,
    10**6,
    2**31,
    2**62,
    2**64,
    10**30,
    10**400,
    0.5,
    -0.0,
    1e308,
    "",
    "x",
    "a\nb",
    [],
    [1],
    {},
    [[]],
    {"a": 1},
    "1" * 10_000,
    [0] * 10_000,
)


class Trap:
    """Unpickling it leaves a mark."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def mark(tmp_path):
    """A place where nothing may be afterwards."""
    yield tmp_path / "ran"
    assert not (tmp_path / "ran").exists()


def written(path: Path):
    """Return a function that writes a case and returns its path."""

    def write(content: bytes) -> Path:
        path.write_bytes(content)
        return path

    return write


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A training state after an iteration, and its checkpoint as bytes."""
    state = TrainingState(CONFIG, World(0, 1, torch.device("cpu")))
    noise = torch.Generator().manual_seed(0)
    photo, depth, sketch = (torch.rand(2, c, 256, 256, generator=noise) for c in (3, 1, 1))
    state.step(Batch(photo, depth, torch.tensor([0, 2]), sketch), 0.0)
    path = tmp_path_factory.mktemp("saved") / "c.safetensors"
    checkpoint.save(path, checkpoint.CHECKPOINT, CONFIG, state.counters(), state.tensors())
    return state, path.read_bytes()


def reader_of_checkpoints(path, state):
    """Return a function that does with a checkpoint two of the things that commands do."""

    def discriminator(found):
        fill_module(Discriminator(found.config.discriminator), found.part("discriminator"), path)

    uses = [
        lambda found: load_generator(path),
        lambda found: write_snapshot(path, path.with_name("out.safetensors")),
        exporting.convert,
        state.restore,
        state.adopt,
        discriminator,
    ]
    chance = random.Random(1)

    def read(content: bytes) -> None:
        path.write_bytes(content)
        chosen = chance.sample(uses, 2)
        found, refusals = load(path), []
        for use in chosen:
            try:
                use(found)
            except HidaError as error:
                refusals.append(error)
        if refusals:
            raise refusals[0]

    return read


def test_damaged_checkpoints(saved, tmp_path, mark):
    state, content = saved
    read = reader_of_checkpoints(tmp_path / "c.safetensors", state)
    withstand(read, mutations([content], 200))
    assert withstand(read, [content] * 4) == 4


def structured(content: bytes, count: int, seed: int = 0):
    """Yield checkpoints whose header, configuration or counters say something else."""
    chance = random.Random(seed)
    length = struct.unpack("<Q", content[:8])[0]
    for _ in range(count):
        header = json.loads(content[8 : 8 + length])
        metadata = header["__metadata__"]
        documents = {name: json.loads(metadata[name]) for name in ("config", "state")}
        kind = chance.randrange(6)
        if kind < 3:
            name = "config" if kind < 2 else "state"
            holder = documents[name]
            while True:
                key = chance.choice(list(holder))
                if not isinstance(holder[key], dict) or not holder[key] or chance.random() < 0.1:
                    break
                holder = holder[key]
            if chance.random() < 0.2:
                del holder[key]
            else:
                holder[chance.choice([key, key, key, "more", "a\nb"])] = chance.choice(WORDS)
            metadata[name] = json.dumps(documents[name])
        elif kind == 3:
            metadata[chance.choice(list(metadata))] = chance.choice(
                [
                    "",
                    "[" * 100_000,
                    '{"a":' * 10_000,
                    "NaN",
                    "1",
                    "2",
                    "nul",
                    "[]",
                    '{"name": "a", "name": "b"}',
                    "\u0000",
                    "9" * 5000,
                ]
            )
        else:
            names = [name for name in header if name != "__metadata__"]
            name = chance.choice(names)
            entry = header[name]
            change = chance.randrange(6)
            if change == 0:
                entry["shape"] = chance.choice(
                    [[], [0], [2**40], [2**62, 4], [-1], entry["shape"][::-1], [1, *entry["shape"]]]
                )
            elif change == 1:
                entry["dtype"] = chance.choice(["F16", "F64", "I32", "BOOL", "BF16", "F8_E4M3", "C64", "F4", "X", "I8"])
            elif change == 2:
                entry["data_offsets"] = chance.choice(
                    [[0, 0], [0, 4], [2**40, 2**41], [8, 4], header[chance.choice(names)]["data_offsets"]]
                )
            elif change == 3:
                header[
                    chance.choice(
                        ["ema.more", "generator.", "optimizer_generator.exp_avg", "x", "unused.a", "é\n" * 50]
                    )
                ] = header.pop(name)
            elif change == 4:
                # Two tensors of one size change places, or one gets the name of another.
                other = chance.choice(names)
                header[name], header[other] = header[other], header[name]
            else:
                del header[name]
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        yield struct.pack("<Q", len(text)) + text + content[8 + length :]


def test_checkpoints_that_say_something_else(saved, tmp_path, mark):
    state, content = saved
    read = reader_of_checkpoints(tmp_path / "c.safetensors", state)
    withstand(read, structured(content, 200))


@pytest.mark.parametrize("old", [False, True], ids=["zip", "stream"])
def test_damaged_files_of_torch(tmp_path, mark, old):
    path = tmp_path / "a.pth"
    values = {"a.weight": torch.randn(4, 3), "a.bias": torch.randn(4).half(), "steps": torch.tensor(3)}
    samples = []
    for content in (
        values,
        {"state_dict": values, "callback": Trap(mark)},
        {"state_dict": values, "x": [1, {"a": None}]},
    ):
        torch.save(content, path, _use_new_zipfile_serialization=not old)
        samples.append(path.read_bytes())
    write = written(path)

    def read(content):
        write(content)
        found = load_state(path)
        importing.read(path)
        return {name: value.sum() for name, value in found.items()}

    withstand(read, mutations(samples, 200, seed=1))


def test_damaged_files_of_arrays(tmp_path, mark):
    path, values = tmp_path / "a", {"a": np.arange(12.0).reshape(3, 4), "b": {"c": np.arange(3, dtype=np.int8)}}
    pickles = [pickle.dumps(values, protocol) for protocol in (3, 4)]
    pickles.append(pickle.dumps({**values, "trap": Trap(mark)}, 4))
    withstand(lambda content: load_arrays(written(path)(content)), mutations(pickles, 200, seed=2))

    def read(content):
        return [read_npy(member) for member in read_members(written(path)(content), lambda name: True).values()]

    archives = []
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", a=values["a"], b=np.float32([1, 2]))
        archives.append((tmp_path / "a.npz").read_bytes())
    withstand(read, mutations(archives, 200, seed=3), allowed=(HidaError, ValueError))
