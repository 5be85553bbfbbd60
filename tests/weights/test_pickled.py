"""Pickles as data: what ordinary ones hold is read, and no instruction takes memory or time that the file has not."""

from __future__ import annotations

import argparse
import collections
import copy
import io
import pickle
import struct
import zipfile
from zlib import crc32 as zlib_crc32

import numpy as np
import pytest
import torch
from fuzzing import withstand

from hida.errors import HidaError
from hida.weights import torch_file
from hida.weights.foreign import load_arrays, load_state
from hida.weights.pickled import LONGEST, PickleError, read_pickle
from hida.weights.released.importing import read
from hida.weights.torch_file import Stored, TorchFile

PLAIN = {
    "a": [1, 2.5, None, True, "ü", b"\xff", (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    "n": {1: -(2**70)},
    "e": [{}, ()],
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_of_every_protocol_are_read(protocol):
    value = {**PLAIN, "a": [item for item in PLAIN["a"] if protocol > 2 or not isinstance(item, bytes)]}
    stream = io.BytesIO(pickle.dumps(value, protocol) + b"rest")
    assert read_pickle(stream, {}) == value
    assert stream.read() == b"rest"


@pytest.mark.parametrize("old", [False, True], ids=["zip", "stream"])
def test_what_torch_saves_is_read_bit_for_bit(tmp_path, old):
    path = tmp_path / "a.pt"
    base = torch.randn(6, 5)
    state = {
        "whole": base,
        "part": base[1:4, ::2],  # of the same storage, with steps
        "turned": base.t(),
        "empty": torch.zeros(0, 3),
        "number": torch.tensor(7),
        "flags": torch.tensor([True, False, True]),
        "byte": torch.arange(3, dtype=torch.uint8),  # what follows it in a stream is not aligned
        "double": torch.randn(3, dtype=torch.float64),
        "half": torch.randn(3).half(),
        "bf16": torch.randn(3).bfloat16(),
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }
    more = {
        "args": argparse.Namespace(width=3),
        "score": np.float64(1.5),
        "step": collections.Counter({3: 1}),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "size": base.shape,
    }
    torch.save({"state_dict": collections.OrderedDict(state), **more}, path, _use_new_zipfile_serialization=not old)
    file = TorchFile(path)
    assert file.content["args"].attributes == {"width": 3}
    assert file.content["score"] == 1.5
    assert file.content["size"] == (6, 5)
    found = file.tensors(file.content["state_dict"])
    assert list(found) == list(state)
    for name, value in state.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
        assert torch.equal(found[name], value.detach())
    before = path.read_bytes()
    found["whole"].zero_()
    assert path.read_bytes() == before


def torch_zip(path, pickled, storages=(), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression, compresslevel=1) as file:
        file.writestr("archive/data.pkl", pickled)
        for key, content in dict(storages).items():
            file.writestr(f"archive/data/{key}", content)
    return path


class Call:
    """Pickles as a call of a name in a module."""

    def __init__(self, module, name, *arguments):
        self.name, self.arguments = f"{module}\n{name}\n", arguments


class Writer(pickle._Pickler):
    """Writes calls of names that need not be importable, and storages."""

    def save(self, value, **more):
        if isinstance(value, Call):
            self.write(b"c" + value.name.encode())
            if value.arguments != (None,):
                super().save(value.arguments)
                self.write(b"R")
            return None
        return super().save(value, **more)

    def persistent_id(self, value):
        return (
            ("storage", Call("torch", f"{value.kind}Storage", None), value.key, "cpu", value.count)
            if isinstance(value, Storage)
            else None
        )


class Storage:
    def __init__(self, count, key="0", kind="Float"):
        self.count, self.key, self.kind = count, key, kind


def pickled(value):
    stream = io.BytesIO()
    Writer(stream, 2).dump(value)
    return stream.getvalue()


def tensor(count, size, stride, offset=0, **more):
    storage = Storage(count, **more)
    return Call("torch._utils", "_rebuild_tensor_v2", storage, offset, size, stride, False, collections.OrderedDict())


FOUR = {"0": bytes(16)}
TENSORS = {
    "more values than its storage": ({"a": tensor(2**40, (2,), (1,))}, FOUR),
    "larger than its storage": ({"a": tensor(4, (5,), (1,))}, FOUR),
    "beyond its storage": ({"a": tensor(4, (2,), (1,), 3)}, FOUR),
    "before its storage": ({"a": tensor(4, (2,), (1,), -3)}, FOUR),
    "backwards": ({"a": tensor(4, (2,), (-1,), 3)}, FOUR),
    "a step of nothing": ({"a": tensor(4, (2**35,), (0,))}, FOUR),
    "impossible": ({"a": tensor(4, (2**62, 2**62), (0, 0))}, FOUR),
    "of no size": ({"a": tensor(4, ("x",), (1,))}, FOUR),
    "of an unknown type": ({"a": tensor(4, (4,), (1,), kind="QInt8")}, FOUR),
    "without its storage": ({"a": tensor(4, (4,), (1,), key="1")}, FOUR),
    "of a storage elsewhere": ({"a": tensor(4, (4,), (1,), key="../data.pkl")}, FOUR),
    "one storage by many names": ({f"a{k}": tensor(2**18, (2**18,), (1,)) for k in range(5000)}, {"0": bytes(2**20)}),
    "sparse": ({"a": Call("torch._utils", "_rebuild_sparse_tensor", 1, 2)}, FOUR),
    "without memory": ({"a": Call("torch._utils", "_rebuild_meta_tensor_no_storage", 1, (2**40,), (1,), False)}, FOUR),
}


@pytest.mark.parametrize(("state", "storages"), TENSORS.values(), ids=TENSORS.keys())
def test_a_tensor_that_its_file_does_not_hold_is_refused(tmp_path, state, storages):
    path = torch_zip(tmp_path / "a.pth", pickled(state), storages)
    assert withstand(load_state, [path], memory=200 << 20) == 0


def test_a_tensor_that_its_file_holds_is_read(tmp_path):
    path = torch_zip(tmp_path / "a.pth", pickled({"a": tensor(4, (2, 2), (2, 1))}), FOUR)
    assert torch.equal(load_state(path)["a"], torch.zeros(2, 2))


@pytest.mark.parametrize("kind", ["Bool", "Float"])
def test_members_of_an_archive_do_not_overlap(tmp_path, kind):
    # 160 names of the same 8 MB: every storage of flags is a copy.
    count, size = 160, 8 << 20
    state = {
        f"a{k}": tensor(size // (1 if kind == "Bool" else 4), (1,), (1,), key=str(k), kind=kind) for k in range(count)
    }
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled(state))
        file.writestr("archive/data/0", bytes(size))
        for k in range(1, count):
            again = copy.copy(file.NameToInfo["archive/data/0"])
            again.filename = f"archive/data/{k}"
            file.filelist.append(again)
    assert withstand(load_state, [path], seconds=2, memory=100 << 20) == 0
    with pytest.raises(HidaError, match="members that overlap"):
        load_state(path)


@pytest.mark.parametrize("kinds", [("Float", "Int"), ("Float",), ("Bool",)])
def test_a_storage_is_checked_and_copied_once(tmp_path, monkeypatch, kinds):
    size, sums = 8 << 20, []
    state = {}
    for k in range(3000):
        kind = kinds[k % len(kinds)]
        state[f"a{k}"] = tensor(size // (1 if kind == "Bool" else 4), (1,), (1,), kind=kind)
    path = torch_zip(tmp_path / "a.pth", pickled(state), {"0": bytes(size)})
    monkeypatch.setattr(torch_file.zlib, "crc32", lambda data: sums.append(len(data)) or zlib_crc32(data))
    taken = withstand(load_state, [path], seconds=3, memory=100 << 20)
    assert taken == (len(kinds) == 1)
    assert sums.count(size) == taken


MUCH = b"X" + struct.pack("<I", 1 << 20) + b"x" * (1 << 20) + b"q\x00"
"""a megabyte of text, remembered as 0"""
BOMBS = {
    "marks": b"(" * (LONGEST * 2),
    "a place in memory": b"Nr\xff\xff\xff\x7f.",
    "bytes that are not there": b"\x8e" + struct.pack("<Q", 2**40) + b".",
    "text that is not there": b"X\xff\xff\xff\x7f.",
    "a long number": b"\x8b" + struct.pack("<I", 2**31 - 1) + b"\x01.",
    "a bytearray": b"cbuiltins\nbytearray\n(\x8a\x06\x00\x00\x00\x00\x00\x01tR.",
    "bytes": b"cbuiltins\nbytes\n(\x8a\x06\x00\x00\x00\x00\x00\x01tR.",
    "a deep key": b"}" + b"N" + b"\x85" * 250_000 + b"Ns.",
    "deep tuples": b"N" + b"\x85" * 290_000 + b".",
    "deep lists": b"]" * 140_000 + b"a" * 139_999 + b".",
    "encoded text": MUCH + b"(" + b"c_codecs\nencode\nh\x00\x85R" * 10_000 + b"l.",
    "sizes": b"(" + b"N" * 100_000 + b"lq\x00(" + b"ctorch\nSize\nh\x00\x85R" * 40_000 + b"l.",
    "dictionaries": b"}q\x00(" + b"".join(b"K%cM\x00%cN" % (0, k) for k in range(9)) + b"u."
    b"(" + b"ccollections\nOrderedDict\nh\x00\x85R" * 40_000 + b"l.",
    "attributes": b"}q\x00(" + b"cargparse\nNamespace\n)\x81h\x00b" * 40_000 + b"l.",
    "long names": b"(" + b"\x8c\x01a" + b"".join([MUCH, b"\x93"]) * 3 + b"l.",
    "no stop": b"N" * 1000,
    "an empty stack": b"0000.",
    "no mark": b"Nt.",
    "a foreign extension": b"\x82\x01.",
    "an object outside": b"NQ.",
}


LONG = ("marks", "a deep key", "deep tuples", "deep lists")


@pytest.mark.parametrize(
    "content", [pytest.param(c, id=n, marks=[pytest.mark.slow] * (n in LONG)) for n, c in BOMBS.items()]
)
def test_no_instruction_takes_what_the_file_has_not(tmp_path, content):
    paths = [torch_zip(tmp_path / "a.ckpt", content), tmp_path / "b.pkl"]
    paths[1].write_bytes(content)
    assert withstand(read, paths, seconds=30, memory=400 << 20) == 0
    assert withstand(load_arrays, paths[1:], seconds=30, memory=400 << 20) == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"h\x00.", "its instructions do not fit together"),
        (b"0.", "its instructions do not fit together"),
        (b"N)R.", "it calls what is no name"),
        (b"ctorch\nSize\nNN\x86R.", "its instructions do not fit together"),
        (b"I" + b"9" * 5000 + b"\n.", "it has a number of too many digits"),
        (b"L" + b"9" * 5000 + b"L\n.", "it has a number of too many digits"),
        (b"X\x01\x00\x00\x00\xff.", "its instructions do not fit together"),
    ],
)
def test_what_is_wrong_with_a_pickle_is_said_in_words(content, said):
    with pytest.raises(PickleError, match=f"^{said}"):
        read_pickle(io.BytesIO(content), {"torch.Size": lambda value=(): value})


def test_a_compressed_list_of_tensors_is_refused_before_it_is_unpacked(tmp_path):
    # 0.7 MB of this kind unpack to 700 MB.
    path = torch_zip(tmp_path / "a.ckpt", b"(" * (100 << 20), {}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    assert withstand(read, [path], seconds=1, memory=20 << 20) == 0
    with pytest.raises(HidaError, match=r"a\.ckpt' cannot be read as a checkpoint \(its tensors are compressed"):
        read(path)


def test_an_array_that_is_repeated_is_one_array(tmp_path):
    array, path = np.arange(100_000.0), tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({str(k): array for k in range(10_000)}, 4))
    found = load_arrays(path)
    assert len({id(value) for value in found.values()}) == 1
    content = pickle.dumps([np.arange(100_000.0)], 4)
    with pytest.raises(PickleError, match="refers to numpy"):
        read_pickle(io.BytesIO(content), {})


def test_a_name_is_admitted_whole_or_by_its_beginning():
    make = {"a.b": lambda *given: ("b", given), "__torch__*": lambda *given: ("t", given)}
    assert read_pickle(io.BytesIO(b"ca\nb\n(K\x01tR."), make) == ("b", (1,))
    assert read_pickle(io.BytesIO(b"c__torch__.x\ny\n)R."), make) == ("t", ())
    for name in (b"a\nb.c", b"a\nbc", b"x.a\nb", b"torch\n__torch__"):
        with pytest.raises(PickleError, match="it refers to"):
            read_pickle(io.BytesIO(b"c" + name + b"\n)R."), make)


def test_tensors_are_read_only_where_they_are_asked_for(tmp_path, monkeypatch):
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": {"a": torch.ones(3)}, "optimizer_states": [{"m": torch.zeros(10**6)}]}, path)
    file = TorchFile(path)
    read_storages = []
    original = TorchFile._read
    monkeypatch.setattr(
        TorchFile, "_read", lambda self, storage: read_storages.append(storage) or original(self, storage)
    )
    assert isinstance(file.content["optimizer_states"][0]["m"], Stored)
    assert torch.equal(file.tensors(file.content["state_dict"])["a"], torch.ones(3))
    assert len(read_storages) == 1
