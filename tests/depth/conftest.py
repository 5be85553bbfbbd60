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


@pytest.fixture(scope="session")
def astronaut():
    """A free photo of 512×512; pupils at (203, 101) and (247, 103), mouth at (224, 145), chin at (221, 179)."""
    return pytest.importorskip("skimage.data", reason="scikit-image brings the astronaut's photo").astronaut()
