"""What tests of several folders share."""

from __future__ import annotations

import signal

import pytest
from small_set import prepared

# A script that runs the tests in the background, or nohup, has these ignored, in all processes that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Five pairs for training (one of them held out) and one for testing, in three styles."""
    folder = tmp_path_factory.mktemp("prepared")
    prepared(folder, 6, "white")
    return folder
