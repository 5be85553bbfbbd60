"""What is done to a drawn sketch: each option alone, and nothing by default."""

import numpy as np
import pytest
from PIL import Image

from hida.drawing.finish import WALL, Finish, before_wall, finish
from hida.errors import HidaError


@pytest.fixture
def sketch():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80), np.uint8))


@pytest.fixture
def disc():
    """A person's matte: a disc with a soft edge 8 pixels wide, 18 pixels in the middle of it."""
    y, x = np.mgrid[:60, :80]
    return np.rint(255 * np.clip((22 - np.hypot(x - 40, y - 30)) / 8, 0, 1)).astype(np.uint8)


def test_nothing_is_changed_by_default(sketch, disc):
    assert finish(sketch, Finish()).tobytes() == sketch.tobytes()
    assert finish(sketch, Finish(tone=1, line=1.0), grain=3.0).mode == "L"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"background": "blue"}, "background is 'blue'"),
        ({"tone": -0.1}, "tone is -0.1"),
        ({"line": 3.1}, "line is 3.1"),
        ({"tone": float("nan")}, "tone is nan"),
        ({"tone": True}, "tone is True"),
        ({"line": "1"}, "line is '1'"),
        ({"paper": "nocolour"}, "paper is 'nocolour'"),
        ({"paper": "#ffffff80"}, "paper is '#ffffff80'"),
        ({"paper": (1, 2, 3)}, "paper is"),
    ],
)
def test_what_is_of_no_use_is_named(options, named):
    with pytest.raises(HidaError, match="give") as caught:
        Finish(**options)
    assert str(caught.value).startswith(named)


@pytest.mark.parametrize(("paper", "meant"), [("f4ecd8", "#f4ecd8"), ("FFF", "#FFF"), ("ivroy", "ivory")])
def test_the_colour_that_may_be_meant_is_said(paper, meant):
    with pytest.raises(HidaError, match=f"paper is '{paper}', which is no colour; did you mean {meant}"):
        Finish(paper=paper)


def test_white_paper_around_a_person(sketch, disc):
    inside, outside = disc == 255, disc == 0
    sketch = np.asarray(sketch).copy()
    sketch[disc < 255] = 217
    found = np.asarray(finish(Image.fromarray(sketch), Finish("white"), disc), int)
    assert (found[outside] == 255).all()
    np.testing.assert_allclose(found[inside], np.minimum(sketch[inside] * (255 / 217), 255), atol=0.5)


def test_no_grey_fringe(disc):
    """Paper that was drawn grey is white inside of a person, outside, and over the edge; a stroke on it fades once."""
    grey = np.full((60, 80), 231, np.uint8)
    grey[30] = 0
    grey[:18] = grey[42:] = 255  # most of what is beside the person was not drawn at all
    found = np.asarray(finish(Image.fromarray(grey), Finish("white"), disc))
    assert (np.delete(found, 30, 0) == 255).all()
    assert found[30, 40] == 0
    assert (np.diff(found[30, 40:].astype(int)) >= 0).all()


def test_a_person_cut_out(sketch, disc):
    found = finish(sketch, Finish("transparent"), disc)
    level, alpha = (np.asarray(channel, int) for channel in found.split())
    assert found.mode == "LA"
    assert (alpha[disc == 0] == 0).all()
    assert (alpha[disc == 255] == 255).all()
    assert (level[alpha == 0] == 255).all()
    assert (np.diff(alpha[30, 40:]) <= 0).all()
    kept = finish(sketch, Finish("transparent"))
    assert kept.mode == "LA"
    assert kept.getchannel("L").tobytes() == sketch.tobytes()
    assert kept.getchannel("A").getextrema() == (255, 255)


def test_the_colour_of_the_paper(disc):
    sketch = Image.fromarray(np.array([[0, 128, 255]], np.uint8))
    found = np.asarray(finish(sketch, Finish(paper="#f4ecd8")))
    assert found.tolist() == [[[0, 0, 0], [122, 118, 108], [0xF4, 0xEC, 0xD8]]]
    cut = finish(Image.new("L", (80, 60)), Finish("transparent", "ivory"), disc)
    assert cut.mode == "RGBA"
    assert cut.getpixel((0, 0)) == (255, 255, 240, 0)
    assert finish(Image.new("L", (80, 60)), Finish("white", "ivory"), disc).getpixel((0, 0)) == (255, 255, 240)


def test_tone_is_the_darkness_of_masses_and_line_that_of_strokes():
    mass = np.full((64, 64), 155, np.uint8)  # ink of 100
    for tone, level in ((0, 255), (0.5, 205), (2, 55), (3, 0)):
        found = np.asarray(finish(Image.fromarray(mass), Finish(tone=tone, line=2.0)))
        assert (found == level).all()
    strokes = mass.copy()
    strokes[::4] = 95  # ink of 160; 115 on average
    for line, level in ((0.0, 140), (0.5, 117.5), (2.0, 50)):
        found = np.asarray(finish(Image.fromarray(strokes), Finish(line=line), grain=1.0), float)[16:48, 16:48]
        assert np.abs(found[::4] - level).max() <= 6
        assert np.abs(np.delete(found, np.s_[::4], 0) - 155).max() <= 1


def test_no_shadow_and_no_halo_around_a_mass():
    square = np.full((64, 64), 255, np.uint8)
    square[20:44, 20:44] = 60
    for how in (Finish(tone=3.0), Finish(tone=0.0), Finish(line=3.0), Finish(tone=3.0, line=0.0)):
        found = np.asarray(finish(Image.fromarray(square), how))
        assert (found[square == 255] == 255).all()


def test_the_wall_is_behind_the_person_only(disc):
    photo = np.random.default_rng(2).integers(0, 256, (60, 80, 3), np.uint8)
    assert before_wall(photo, None) is photo
    found = before_wall(photo, disc)
    np.testing.assert_array_equal(found[disc == 255], photo[disc == 255])
    assert (found[disc == 0] == WALL).all()
