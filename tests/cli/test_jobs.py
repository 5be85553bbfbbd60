"""Photos side by side in processes: as one by one, and nothing stays behind."""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import pytest

from hida.cli.jobs import cores_each, run_side_by_side
from hida.cli.photos import for_each
from hida.errors import HidaError


def begin(kind=""):
    """Return work that does what the photo's name says; it runs in the processes."""
    if kind:
        raise HidaError(kind)

    def work(photo):
        name = photo.read().decode() if hasattr(photo, "read") else str(photo)
        if name.startswith("bad"):
            raise HidaError(f"{name} is bad")
        if name == "huge":
            raise MemoryError
        if name == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "odd":
            warnings.warn("it looks strange", stacklevel=1)
        if name.startswith("slow"):
            time.sleep(60)
        return name, os.getpid()

    return work


def test_results_failures_warnings_and_deaths_are_told_photo_by_photo(monkeypatch, capsys):
    class Stdin:
        class buffer:
            read = staticmethod(lambda most: b"piped")

    monkeypatch.setattr(sys, "stdin", Stdin)
    photos = [Path(name) for name in ("a", "bad1", "dies", "odd", "b", "huge", "-", "c")]
    done = {}
    failed = for_each(photos, outcomes=run_side_by_side(photos, begin, done.__setitem__, 2))
    assert failed == 3
    assert {str(photo): value[0] for photo, value in done.items()} == {
        "a": "a", "odd": "odd", "b": "b", "-": "piped", "c": "c"
    }  # fmt: skip
    assert os.getpid() not in {value[1] for value in done.values()}
    said = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line.startswith("hida: ")]
    assert sorted(said) == [
        "hida: bad1 is bad",
        "hida: dies: its process ended, perhaps for lack of memory; use fewer --jobs.",
        "hida: huge: it does not fit in memory; scale it down.",
        "hida: odd: it looks strange",
    ]


@pytest.mark.slow
def test_what_is_wrong_for_all_ends_the_command_and_an_interrupt_the_processes():
    with pytest.raises(HidaError, match="no weights"):
        list(run_side_by_side([Path("a"), Path("b")], partial(begin, "no weights"), {}.__setitem__, 2))

    def stop(*_):
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(run_side_by_side([Path("a"), Path("slow")], begin, stop, 2))
    assert time.monotonic() - began < 30


def test_cores_are_shared():
    assert cores_each(1) >= cores_each(2) >= cores_each(1000) == 1
