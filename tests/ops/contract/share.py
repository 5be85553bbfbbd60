"""A share of the cases, for runs in which each takes long: HIDA_TESTS_EVERY=3 keeps about a third."""

from __future__ import annotations

import os
import zlib

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the first case of every test and back end and one in HIDA_TESTS_EVERY of the others, always the same."""
    every, seen, kept = int(os.environ.get("HIDA_TESTS_EVERY", "1")), set(), []
    for item in items:
        parameters = getattr(item, "callspec", None)
        test = item.nodeid.split("[")[0], parameters and str(parameters.params.get("backend"))
        if test not in seen or zlib.crc32(item.nodeid.encode()) % every == 0:
            kept.append(item)
        seen.add(test)
    items[:] = kept
