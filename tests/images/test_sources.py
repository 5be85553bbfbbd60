"""A picture from a path, from bytes in memory, and from files of all kinds."""

from __future__ import annotations

import io
import sys
import zipfile
from types import SimpleNamespace

import pytest
from picture_files import STRIPES, encoded, same
from PIL import Image

from hida.depth import predict
from hida.images.io import ImageError, read_image

DATA = encoded(Image.fromarray(STRIPES), "PNG")


def in_a_zip():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a.png", DATA)
    return zipfile.ZipFile(buffer).open("a.png")


@pytest.mark.parametrize(
    "make",
    [
        lambda: DATA,
        lambda: bytearray(DATA),
        lambda: memoryview(DATA),
        lambda: memoryview(bytes(b for byte in DATA for b in (byte, 0)))[::2],
        lambda: io.BytesIO(DATA),
        lambda: io.BufferedReader(io.BytesIO(DATA)),
        in_a_zip,
        lambda: SimpleNamespace(read=io.BytesIO(DATA).read, seekable=lambda: False),
        lambda: SimpleNamespace(read=io.BytesIO(DATA).read),
    ],
)
def test_bytes_and_files_hold_the_picture_of_their_path(make):
    same(read_image(make()), STRIPES)


def test_what_may_change_afterwards_is_read_before():
    data = bytearray(DATA)
    found = read_image(data)
    data[:] = bytes(len(data))
    same(found, STRIPES)


def test_a_text_is_a_path_whatever_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImageError, match="'no such picture' cannot be read"):
        read_image("no such picture")
    (tmp_path / "-").write_bytes(DATA)
    same(read_image("-"), STRIPES)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (b"", "the bytes given are empty"),
        (bytearray(), "the bytes given are empty"),
        (b"no picture", "what the bytes hold is not a picture in a known format"),
        (DATA[:100], "what the bytes hold is truncated or damaged"),
        (io.BytesIO(), r"the file given is empty \(0 bytes\)"),
        (io.StringIO("a"), 'open it with mode "rb"'),
        (SimpleNamespace(read=lambda most: "text"), "the file given holds text"),
        (5, "a picture cannot be of the type int: give a path, the bytes of a file"),
    ],
)
def test_what_holds_no_picture_is_named(source, sentence):
    with pytest.raises(ImageError, match=sentence):
        read_image(source)


def test_a_closed_file_is_one_sentence():
    file = io.BytesIO(DATA)
    file.close()
    with pytest.raises(ImageError, match="the file given cannot be read"):
        read_image(file)


def test_standard_input_is_called_so(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"no picture"), encoding="utf-8"))
    with pytest.raises(ImageError, match=r"^stdin is not a picture"):
        read_image(sys.stdin.buffer)


@pytest.mark.filterwarnings("ignore:depth 'none'")
def test_a_depth_is_predicted_of_bytes():
    assert predict(DATA, "none").shape == STRIPES.shape[:2]
