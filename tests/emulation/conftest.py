"""The emulated library, built once a run; HIDA_EMULATION=sanitized takes the one with sanitizers in it."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

pytest.register_assert_rewrite("adaptations")  # its assertions tell as much as a test's own

# capability, multiprocessors (few, so that small tensors fill the chip), bytes of shared memory a block may have
CHIPS = {
    "turing": (75, 8, 65536),
    "ampere": (80, 8, 166912),
    "hopper": (90, 16, 232448),
    "small": (75, 1, 49152),
    "small hopper": (90, 2, 49152),
    "H100": (90, 132, 232448),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the first case of every emulated test and one in HIDA_EMULATION_EVERY of the others, always the same."""
    every, seen, kept = int(os.environ.get("HIDA_EMULATION_EVERY", "1")), set(), []
    for item in items:
        test = item.nodeid.split("[")[0]
        if test not in seen or zlib.crc32(item.nodeid.encode()) % every == 0:
            kept.append(item)
        seen.add(test)
    items[:] = kept


class Launches(NamedTuple):
    count: int
    cluster: int
    shared: int


class Emulation:
    """The operators on CPU tensors, and the chip that they believe they run on."""

    def __init__(self, library: Path) -> None:
        torch.ops.load_library(library)
        self._library = ctypes.CDLL(str(library))
        self.ops = torch.ops.hida_emulation

    def chip(self, name: str, order: int = 0) -> None:
        """Choose the chip, and the order of threads and blocks: 0 first to last, 1 last to first, 2 shuffled."""
        self._library.hida_emulation_chip(*CHIPS[name], order)

    def launches(self) -> Launches:
        """Return what was launched since the last call."""
        result = (ctypes.c_int * 3)()
        self._library.hida_emulation_launches(result)
        return Launches(*result)

    def usual(self) -> int:
        """Return how many of the launches since the last call were of kernels for usual cases."""
        return self._library.hida_emulation_usual()

    def deform_plan(self, n: int, c: int, c_out: int, side: int, dtype: int, last: bool) -> dict[str, tuple[int, int]]:
        """Return bytes of workspace and images at a time of a 3×3 deform_conv2d; ``dtype``: 0 float32, 2 bfloat16."""
        result = (ctypes.c_int64 * 4)()
        self._library.hida_emulation_deform_plan(
            dtype, int(last), *map(ctypes.c_int64, (n, c, c_out, side, side)), result
        )
        return {"forward": (result[0], result[1]), "backward": (result[2], result[3])}


@pytest.fixture(scope="session")
def builder():
    """The module build.py."""
    spec = importlib.util.spec_from_file_location("hida_emulation_build", Path(__file__).with_name("build.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if shutil.which(module.compiler()[0]) is None:
        pytest.skip("the emulation needs a C++ compiler")
    if not module.stable_headers():
        pytest.skip("this torch has no stable C++ interface (2.11 or later has)")
    return module


@pytest.fixture(scope="session")
def library(builder) -> Emulation:
    return Emulation(builder.build(os.environ.get("HIDA_EMULATION") == "sanitized"))


@pytest.fixture
def emulated(library) -> Iterator[Emulation]:
    """The emulation on a Turing chip, with outputs and workspaces full of NaN before they are written."""
    library.chip("turing")
    library.launches()
    library.usual()
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    yield library
    torch.use_deterministic_algorithms(False)
