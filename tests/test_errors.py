"""Sentences and warnings: numbers with their nouns, and whose line a warning names."""

import warnings
from inspect import currentframe

import numpy as np
import pytest
import torch
from PIL import Image

from hida.errors import HidaWarning, counted, warn
from hida.images.io import read_image


def test_a_number_of_one_has_a_noun_of_one():
    assert [counted(number, "photo") for number in (0, 1, 2, 1200)] == [
        "0 photos",
        "1 photo",
        "2 photos",
        "1,200 photos",
    ]


def test_a_warning_names_the_line_that_called_this_package(tmp_path):
    frames = [Image.fromarray(np.full((9, 9, 3), level, np.uint8)) for level in (0, 99)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    with pytest.warns(HidaWarning, match="holds 2 frames") as found:
        read_image(tmp_path / "film.gif")
    line = currentframe().f_lineno - 1
    assert (found[0].filename, found[0].lineno) == (__file__, line)


def test_a_warning_passes_over_the_decorators_of_torch():
    # As a module of the package would do it.
    code = "import torch\n@torch.inference_mode()\ndef inner():\n    warn('odd')\ndef outer():\n    inner()\n"
    space = {"__name__": "hida.somewhere", "warn": warn}
    exec(code, space)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        space["outer"]()
        line = currentframe().f_lineno - 1
    assert (found[0].filename, found[0].lineno) == (__file__, line)
    assert torch.is_inference_mode_enabled() is False
