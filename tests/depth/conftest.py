from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hida.errors import HidaError
from hida.weights import find


@pytest.fixture(scope="session")
def weights_file() -> Callable[[str], Path]:
    """Gives the file of an asset, or skips the test with the sentence that says what is missing."""

    def file(name: str) -> Path:
        try:
            return find(name)
        except HidaError as error:
            pytest.skip(str(error))

    return file
