"""Weights are read whatever bytes the names of their folders are made of."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
import torch

from hida.config import Config
from hida.weights import checkpoint
from hida.weights.foreign import load_state
from hida.weights.opened import readable_name

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only some systems take any bytes for a name")


@pytest.fixture
def file(tmp_path):
    return tmp_path / os.fsdecode(b"caf\xe9") / os.fsdecode(b"n\xff.safetensors")


def test_a_checkpoint_is_read_again_and_known_to_be_one(file):
    checkpoint.save(file, checkpoint.CHECKPOINT, Config(), {"iteration": 3}, {"ema.a": torch.arange(4.0)})
    loaded = checkpoint.load(file)
    assert loaded.path == file
    assert loaded.iteration == 3
    assert torch.equal(loaded.tensors["ema.a"], torch.arange(4.0))
    with pytest.raises(checkpoint.CheckpointError, match="a checkpoint of a run"):
        checkpoint.require_target(file, (".safetensors",), ())
    assert torch.equal(load_state(file)["ema.a"], torch.arange(4.0))


def test_a_damaged_one_is_named_as_it_was_given(file):
    file.parent.mkdir()
    file.write_bytes(b"\x08" + b"\0" * 7 + b"{}      ")
    with pytest.raises(checkpoint.CheckpointError, match=re.escape("caf\udce9/n\udcff.safetensors' is ")):
        checkpoint.load(file)


def test_the_name_leads_to_the_file_only_where_it_must_be_another(file, tmp_path):
    file.parent.mkdir()
    file.write_bytes(b"content")
    with readable_name(file) as name:
        assert name.isascii()
        assert Path(name).read_bytes() == b"content"
    usual = tmp_path / "é.safetensors"
    with readable_name(usual) as name:
        assert name == str(usual)
