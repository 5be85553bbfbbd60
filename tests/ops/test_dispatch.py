"""Choosing between the reference and the native kernels."""

from __future__ import annotations

import pytest
import torch

from hida import ops
from hida.errors import HidaError
from hida.ops import dispatch, library


def test_what_is_available_is_said_a_device():
    found = ops.available()
    assert set(found) == {"cpu", "cuda"}
    assert all(isinstance(value, bool) for value in found.values())


def test_the_innermost_choice_holds_and_ends_with_its_block(monkeypatch):
    monkeypatch.setenv("HIDA_OPS", "auto")
    outside = dispatch.selected()
    with ops.backend("reference"):
        assert dispatch.selected() == "reference"
        with ops.backend("auto"):
            assert dispatch.selected() == outside
        assert dispatch.selected() == "reference"
    with pytest.raises(KeyError), ops.backend("reference"):
        raise KeyError
    assert dispatch.selected() == outside


def test_auto_is_native_where_a_library_is_loaded(monkeypatch):
    monkeypatch.delenv("HIDA_OPS", raising=False)
    for built in (False, True):
        monkeypatch.setattr(dispatch, "available", lambda built=built: {"cpu": built, "cuda": False})
        assert dispatch.selected() == ("native" if built else "reference")


def test_native_is_refused_aloud_where_nothing_is_built(monkeypatch):
    monkeypatch.setattr(dispatch, "available", lambda: {"cpu": False, "cuda": False})
    with pytest.raises(HidaError, match=r"hida\.ops\.backend asks for native ops, but no native library"):
        ops.backend("native").__enter__()
    monkeypatch.setenv("HIDA_OPS", "native")
    with pytest.raises(HidaError, match="HIDA_OPS asks for native ops, but no native library"):
        dispatch.selected()
    with ops.backend("reference"):
        assert dispatch.selected() == "reference"


def test_unknown_names_are_refused(monkeypatch):
    with pytest.raises(HidaError, match=r"hida\.ops\.backend is 'fast'; choose one of auto, native, reference"):
        ops.backend("fast").__enter__()
    monkeypatch.setenv("HIDA_OPS", "fast")
    with pytest.raises(HidaError, match="HIDA_OPS is 'fast'"):
        dispatch.selected()


@pytest.mark.skipif(not library.loaded, reason=f"the native library is {library.why_not}")
def test_native_is_refused_where_there_is_none():
    x, slope = torch.ones(1, 2, 3, 4, device="meta"), torch.ones(1, 2, 1, 1, device="meta")
    with ops.backend("native"), pytest.raises(HidaError, match=r"no native ops for torch\.float32 on meta"):
        ops.info_acon(x, x, slope, slope)
    with ops.backend("auto"):
        assert ops.info_acon(x, x, slope, slope).shape == x.shape
