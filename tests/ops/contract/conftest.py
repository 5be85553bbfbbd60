"""The back end of each test of the contract."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

pytest.register_assert_rewrite("checking")  # its assertions tell as much as a test's own

import backends  # noqa: E402
from share import pytest_collection_modifyitems  # noqa: E402, F401


@pytest.fixture
def backend(request, monkeypatch) -> Iterator[backends.Backend]:
    """The back end by name, with outputs and workspaces full of NaN before they are written."""
    chosen = backends.BACKENDS[request.param]
    chosen.skip()
    for key, value in chosen.environment.items():
        monkeypatch.setenv(key, value)
    torch.use_deterministic_algorithms(True, warn_only=chosen.name == "cuda")  # fills new memory with NaN
    with chosen.use():
        yield chosen
    torch.use_deterministic_algorithms(False)
