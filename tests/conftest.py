"""What tests of several folders share."""

from __future__ import annotations

import pytest
from small_set import prepared


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Five pairs for training (one of them held out) and one for testing, in three styles."""
    folder = tmp_path_factory.mktemp("prepared")
    prepared(folder, 6, "white")
    return folder
