"""A numpy file is data: whatever is in it, it becomes a map or one sentence, and takes no more memory than a map."""

from __future__ import annotations

import io
import struct
import tracemalloc

import numpy as np
import pytest
from fuzzing import mutations, withstand

from hida.depth.maps import depth_from_file
from hida.errors import HidaError

SIZE = (7, 5)


def saved(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def with_header(text, data=b""):
    header = text.encode("latin-1") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


RAMP = np.linspace(0, 1, 35).reshape(5, 7)


@pytest.mark.parametrize("dtype", ["<f8", ">f8", "<f4", ">f4", "f2", "longdouble"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_floats_of_any_layout_are_read_as_they_are(tmp_path, dtype, order):
    (tmp_path / "a.npy").write_bytes(saved(np.asarray(RAMP, dtype, order=order)))
    np.testing.assert_allclose(depth_from_file(tmp_path / "a.npy", SIZE), RAMP, atol=1e-3)


def test_the_largest_numbers_are_scaled_and_not_lost(tmp_path):
    (tmp_path / "a.npy").write_bytes(saved((RAMP - 0.5) * 1.7e308 * 2))
    np.testing.assert_allclose(depth_from_file(tmp_path / "a.npy", SIZE), RAMP, atol=1e-6)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "numpy array"),
        (b"PK\x03\x04", "numpy array"),
        (with_header("{'descr': '<f8', 'fortran_order': False, 'shape': (5, 7), }"), "numpy array"),  # no data
        (with_header("{'descr': '<f8', 'fortran_order': False, 'shape': (5, 7"), "numpy array"),
        (with_header("("), "numpy array"),
        (with_header("'''"), "numpy array"),
        (with_header("(" * 9000 + ")" * 9000), "numpy array"),
        (with_header("{'descr': '<f8', 'fortran_order': False, 'shape': (-5, 7)}", b"x" * 280), "numpy array"),
        (with_header("{'descr': '<f8', 'fortran_order': False, 'shape': (10**9, 10**9)}"), "numpy array"),
        (with_header("{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999, 99999999999)}"), "numpy array"),
        (saved(np.array([[{}]], object), allow_pickle=True), "numpy array"),
        (saved(np.array([["a"]])), "values of type"),
        (saved(np.array([[1j]])), "values of type"),
        (saved(np.array([[(1, 2)]], "i4,i4")), "values of type"),
        (saved(np.array([[np.nan]])), "not finite"),
        (saved(np.full((2, 2), np.finfo(np.longdouble).max, np.longdouble)), "not finite"),
        (saved(np.zeros((0, 3))), "shape|numpy array"),
        (saved(np.float64(1)), "shape"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_is_no_map_is_one_sentence(tmp_path, data, says):
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(HidaError, match=says) as caught:
        depth_from_file(tmp_path / "a.npy", SIZE)
    assert "a.npy" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_is_none_is_one_sentence(tmp_path):
    (tmp_path / "folder.npy").mkdir()
    for name in ("gone.npy", "folder.npy"):
        with pytest.raises(HidaError, match=name):
            depth_from_file(tmp_path / name, SIZE)


def test_a_file_of_holes_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "a.npy").open("wb") as file:
        file.write(with_header("{'descr': '|u1', 'fortran_order': False, 'shape': (16777217, 2)}"))  # above 32 Mi
        file.truncate(3 << 25)
    tracemalloc.start()
    with pytest.raises(HidaError, match="scale it down"):
        depth_from_file(tmp_path / "a.npy", SIZE)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mutated_arrays_are_maps_or_sentences(tmp_path):
    path = tmp_path / "a.npy"
    kinds = ("<f8", ">f4", "u1", "<i2", "?", "longdouble", "<U2", "<c8", "<M8[s]")
    samples = [saved(np.asarray(RAMP, kind) if kind != "<M8[s]" else np.zeros((5, 7), kind)) for kind in kinds]

    def read(data):
        path.write_bytes(data)
        depth_from_file(path, SIZE)

    assert withstand(read, mutations(samples, 900)) > 50
