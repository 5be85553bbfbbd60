"""Numpy's files: what ordinary ones hold is read, and what a header promises is not believed."""

from __future__ import annotations

import io

import numpy as np
import pytest
from fuzzing import withstand

from hida.weights.arrays import read_npy


def npy(array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def with_header(text: str, rest: bytes = bytes(24), version: bytes = b"\x01\x00") -> bytes:
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text.encode() + rest


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "i1", "<u2", "?", "<c8"])
def test_arrays_are_read_as_numpy_reads_them(dtype):
    for array in (np.arange(6).reshape(2, 3), np.asfortranarray(np.eye(3)), np.zeros((0, 4)), np.float64(3)):
        given = array.astype(dtype)
        found, wanted = read_npy(npy(given)), np.load(io.BytesIO(npy(given)), allow_pickle=False)
        assert (found.dtype, found.shape, found.flags.writeable) == (wanted.dtype, wanted.shape, True)
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        npy(np.arange(6.0))[:-1],
        npy(np.arange(6.0)) + b"x",
        npy(np.array(["text"])),
        npy(np.zeros(2, [("a", "f4")])),
        with_header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}"),
        with_header("{'descr': '<f8', 'fortran_order': False, 'shape': (-3,)}"),
        with_header("{'descr': '<f8', 'fortran_order': False, 'shape': (0, 10**400)}"),
        with_header(f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({'9' * 400},)}}"),
        with_header("{'descr': '|S1000000000', 'fortran_order': False, 'shape': (3,)}"),
        with_header("{'descr': '|O', 'fortran_order': False, 'shape': (3,)}"),
        with_header("(" * 9000),
        with_header("[" * 60_000),
        with_header("{'descr': '''"),
        with_header("{'descr': __import__('os').getcwd(), 'fortran_order': False, 'shape': (3,)}"),
        with_header("{}", version=b"\x09\x00"),
    ],
    ids=lambda content: content[-40:].decode("latin-1").encode("unicode_escape").decode(),
)
def test_what_is_no_array_of_numbers_is_refused(content):
    assert withstand(read_npy, [content], allowed=(ValueError,), seconds=5, memory=50 << 20) == 0
