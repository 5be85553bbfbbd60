"""Files of tensors: what the libraries read, and what the system says where it cannot be written."""

from __future__ import annotations

import errno
import json
import re
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors.torch
import torch

import hida
from hida.weights import saving
from hida.weights.saving import save_tensors, save_torch

ROOT = Path(hida.__file__).parent


def every_kind():
    torch.manual_seed(0)
    tensors = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in saving._TYPES}
    tensors |= {'ä\n"': torch.tensor(3.5), "none": torch.empty(0, 3), "last": torch.rand(2, 3, 4, 5)}
    return tensors | {
        "view": torch.rand(4, 6)[:, ::2],
        "a.b": torch.rand(3),
        "same": torch.ones(7),
        "odd": torch.ones(2, 5)[:1, :1],
    }


def test_the_bytes_are_those_of_the_library(tmp_path):
    tensors = every_kind()
    plain = {name: value.clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    wanted = safetensors.torch.save(plain, {"format": "x"})
    tensors["last"] = tensors["last"].to(memory_format=torch.channels_last).requires_grad_()
    save_tensors(tmp_path / "a", tensors, {"format": "x"})
    assert (tmp_path / "a").read_bytes() == wanted


def test_many_names_of_one_memory_are_written_each(tmp_path):
    one = torch.rand(3)
    save_tensors(tmp_path / "a", {"x": one, "y": one, "z": one[1:]}, {})
    found = safetensors.torch.load_file(tmp_path / "a")
    assert {name: value.tolist() for name, value in found.items()} == {
        "x": one.tolist(),
        "y": one.tolist(),
        "z": one[1:].tolist(),
    }


def test_the_metadata_arrives(tmp_path):
    given = {"format": "hida", "state": json.dumps({"ä": 0.1 + 0.2}), "plain": "ü\n\x1b"}
    save_tensors(tmp_path / "a", {}, given)
    with safetensors.safe_open(tmp_path / "a", "pt") as file:
        assert file.metadata() == given


def test_what_the_format_does_not_hold_is_named_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"tensor b is of the type torch.complex64"):
        save_tensors(tmp_path / "a", {"a": torch.ones(1), "b": torch.ones(1, dtype=torch.complex64)}, {})
    assert not (tmp_path / "a").exists()


def test_a_torch_file_is_what_torch_reads(tmp_path):
    save_torch(tmp_path / "a.ckpt", {"epoch": 1, "state_dict": every_kind()})
    found = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert found["epoch"] == 1
    assert all(torch.equal(found["state_dict"][name], value) for name, value in every_kind().items())


@contextmanager
def at_most(size):
    """Let the system refuse whatever grows a file beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


WRITERS = {
    "tensors": lambda path, tensors: save_tensors(path, tensors, {}),
    "torch": save_torch,
}


@pytest.mark.parametrize("size", [0, 1, 300, 5000, 100_000, 399_000])
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_whatever_byte_the_system_refuses_it_is_its_own_error(tmp_path, write, size):
    tensors = {f"n{k}": torch.rand(250) for k in range(400)}
    with at_most(size), pytest.raises(OSError, match="File too large") as caught:
        write(tmp_path / "a", tensors)
    assert caught.value.errno == errno.EFBIG


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_full_disk_is_told_as_one(write):
    with pytest.raises(OSError, match="No space left") as caught:
        write(Path("/dev/full"), {"a": torch.ones(3)})
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_an_interruption_while_it_is_written_stays_one(tmp_path, write):
    class Stops:
        def __init__(self, file):
            self.file, self.left = file, 3

        def write(self, data):
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt
            return self.file.write(data)

    class Interrupted(type(tmp_path)):
        @contextmanager
        def open(self, mode):
            with open(self, mode) as file:
                yield Stops(file)

    with pytest.raises(KeyboardInterrupt):
        write(Interrupted(tmp_path / "a"), {"a": torch.ones(9), "b": torch.ones(9)})


def test_nothing_else_of_the_package_writes_by_the_libraries_own_means():
    writers = re.compile(r"\b(torch\.save|save_file|save_model|serialize_file|np\.save|np\.savetxt|\.tofile)\(")
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sorted(ROOT.rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if writers.search(line)
    ]
    assert found == ["weights/saving.py: torch.save(content, cast(IO[bytes], kept))"]
