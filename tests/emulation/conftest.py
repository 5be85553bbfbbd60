"""The emulated back end of the contract suite (tests/ops/contract), for tests of which kernels run on which chip."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

pytest.register_assert_rewrite("checking")  # its assertions tell as much as a test's own

import backends  # noqa: E402
from share import pytest_collection_modifyitems  # noqa: E402, F401


@pytest.fixture(scope="session")
def builder():
    """The module build.py."""
    return backends.builder()


@pytest.fixture
def emulated() -> Iterator[backends.Emulated]:
    """The emulation on a Turing chip, with outputs and workspaces full of NaN before they are written."""
    chosen = backends.BACKENDS["emulated"]
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    with chosen.use():
        yield chosen
    torch.use_deterministic_algorithms(False)
