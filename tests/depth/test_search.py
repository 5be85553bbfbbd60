"""Faces in photos turned by quarters, and small ones in large pictures: the built-in networks on a free photo."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hida.depth.builtin.network import BuiltinDepth
from hida.depth.faceboxes import FaceBoxes, _tiles
from hida.depth.search import find_faces, find_group

PHOTO = Path(__file__).parents[2] / "docs/images/astronaut.jpg"


@pytest.fixture(scope="module")
def model() -> BuiltinDepth:
    return BuiltinDepth.load()


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.asarray(Image.open(PHOTO).convert("RGB"))


def turned_points(points: np.ndarray, shape: tuple[int, ...], quarters: int) -> np.ndarray:
    """Where np.rot90 puts points: the brightest pixels of a picture that is black but for them."""
    found = []
    for x, y in np.rint(points).astype(int):
        picture = np.zeros(shape[:2])
        picture[y, x] = 1
        row, column = np.argwhere(np.rot90(picture, quarters))[0]
        found.append((column, row))
    return np.array(found)


def test_an_upright_face_is_what_the_detector_alone_gives(model, photo):
    alone = model._faces(photo, *model.detector.detect(photo))
    found = model.faces(photo)
    assert [face.box for face in found] == [face.box for face in alone]
    np.testing.assert_array_equal(found[0].points, alone[0].points)
    np.testing.assert_array_equal(found[0].depth((80, 80)), alone[0].depth((80, 80)))


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_photo_turned_by_quarters_has_the_same_face_turned(model, photo, quarters):
    upright = model.faces(photo)[0]
    turned = np.ascontiguousarray(np.rot90(photo, quarters))
    found = model.faces(turned)
    assert len(found) == 1
    np.testing.assert_allclose(found[0].points, turned_points(upright.points, photo.shape, quarters), atol=0.6)
    size = (photo.shape[1], photo.shape[0])
    expected = np.rot90(upright.depth(size), quarters)
    np.testing.assert_allclose(found[0].depth((turned.shape[1], turned.shape[0])), expected, atol=0.02)
    # The box is that of the upright face too: its corners turn with the photo.
    corners = turned_points(np.reshape(upright.box, (2, 2)), photo.shape, quarters)
    np.testing.assert_allclose(found[0].box, [*corners.min(axis=0), *corners.max(axis=0)], atol=0.6)


@pytest.mark.parametrize("angle", [-45, -38, 40, 50])
def test_a_tilted_face_is_found_by_the_points_that_bring_it_upright(model, photo, angle):
    base = model.faces(photo)[0].points
    picture = Image.fromarray(photo).rotate(angle, Image.Resampling.BILINEAR, expand=True, fillcolor=(128, 128, 128))
    turn = np.deg2rad(-angle)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    middle, new_middle = ((np.array(size) - 1) / 2 for size in (photo.shape[1::-1], picture.size))
    expected = (base - middle) @ matrix.T + new_middle
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = model.faces(np.asarray(picture))[0].points
    assert np.linalg.norm(found - expected, axis=1).max() < 0.1 * np.linalg.norm(base[0] - base[1])


def test_an_upright_face_goes_before_a_turned_one_beside_it(model, photo):
    base = model.faces(photo)[0].points
    large = np.asarray(Image.fromarray(photo).resize([round(1.2 * side) for side in photo.shape[1::-1]]))[::-1, ::-1]
    both = np.zeros((large.shape[0], photo.shape[1] + large.shape[1], 3), np.uint8)
    both[: photo.shape[0], : photo.shape[1]], both[:, photo.shape[1] :] = photo, large
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = model.faces(both)
    np.testing.assert_allclose(found[0].points, base, atol=1)


def surroundings(kind: str, size: tuple[int, int]) -> Image.Image:
    if kind == "noise":
        return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8))
    return Image.new("RGB", size, (90, 110, 140))


@pytest.mark.parametrize(
    ("side", "corner", "kind", "quarters"),
    [(40, (5, 1100), "flat", 0), (60, (1700, 900), "noise", 0), (80, (2500, 30), "flat", 1)],
)
def test_a_small_face_in_a_large_picture_is_found_at_its_place(model, photo, side, corner, kind, quarters):
    face = model.faces(photo)[0]
    factor = side / (face.box[2] - face.box[0])
    small = Image.fromarray(photo).resize([round(length * factor) for length in photo.shape[1::-1]])
    picture = surroundings(kind, (3000, 1500))
    picture.paste(small, corner)
    large = np.asarray(picture)
    expected = turned_points((face.points + 0.5) * factor - 0.5 + corner, large.shape, quarters)
    found = model.faces(np.ascontiguousarray(np.rot90(large, quarters)))
    assert len(found) == 1
    np.testing.assert_allclose(found[0].points, expected, atol=2)


@pytest.mark.parametrize(("length", "quarters"), [(40, 0), (60, 3)])
def test_a_face_is_found_in_a_picture_of_a_few_dozen_pixels(model, photo, length, quarters):
    face = model.faces(photo)[0]
    left, top = (round(start) for start in (face.box[0] - 30, face.box[1] - 30))
    shot = Image.fromarray(photo).crop((left, top, left + 150, top + 180))  # as of a pass
    small = np.asarray(shot.resize((length * 150 // 180, length), Image.Resampling.LANCZOS))
    assert not len(model.detector.detect(small)[0])
    found = model.faces(np.ascontiguousarray(np.rot90(small, quarters)))
    assert len(found) == 1
    expected = (face.points + 0.5 - (left, top)) * length / 180 - 0.5
    # A seventh of the distance of the eyes.
    np.testing.assert_allclose(found[0].points, turned_points(expected, small.shape, quarters), atol=0.1 * length / 3)


def test_pictures_without_a_face_have_none(model):
    for kind in ("noise", "flat"):
        for size in ((1300, 400), (49, 60)):
            assert model.faces(np.asarray(surroundings(kind, size))) == []


def test_what_does_not_look_like_a_face_again_is_given_with_a_warning_and_a_face_without(model, photo):
    class Mistaken(FaceBoxes):
        """Takes the upper left of every large picture for a face."""

        def detect(self, pixels):
            return (np.array([[5.0, 5, 95, 105]]), np.ones(1)) if pixels.shape[0] > 256 else (np.empty((0, 4)), [])

    with pytest.warns(UserWarning, match="may be no face"):
        found = find_faces(photo, Mistaken(), model._faces)
    assert [face.box for face in found] == [(5, 5, 95, 105)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.faces(photo)


@pytest.mark.parametrize("length", [1, 2047, 2048, 2049, 3840, 3841, 9000])
def test_every_place_belongs_to_one_tile_that_shows_what_is_around_it(length):
    for place in (*range(0, length, 7), length - 1):
        (start,) = (start for start, low, high in _tiles(length) if low <= place < high)
        assert max(place - 128, 0) >= start
        assert min(place + 128, length) <= start + 2048


def test_nothing_is_looked_for_twice_that_the_detector_saw_at_full_size():
    class Blind(FaceBoxes):
        def forward(self, x):
            raise AssertionError

    boxes, scores = Blind().detect_small(np.zeros((720, 1080, 3), np.uint8))
    assert boxes.shape == (0, 4)
    assert scores.shape == (0,)


def test_the_work_for_a_huge_picture_without_a_face_is_bounded(monkeypatch):
    seen = []

    def look(self, pixels, threshold):
        seen.append(pixels.shape[2] * pixels.shape[3])
        return np.empty((0, 4)), np.empty(0)

    monkeypatch.setattr(FaceBoxes, "_see", look)
    huge = np.broadcast_to(np.uint8(0), (6000, 9000, 3))
    assert find_faces(huge, FaceBoxes(), lambda photo, boxes, scores: list(boxes)) == []
    assert max(seen) <= 2048**2
    assert sum(seen) < 4 * 40e6  # 24 megapixels with what tiles share, four ways round


def test_a_group_has_the_largest_face_and_those_that_are_faces_when_seen_again(model, photo):
    head = np.asarray(Image.fromarray(photo[20:220, 130:330]).resize((110, 110)))
    group = photo.copy()
    group[380:490, 20:130] = group[380:490, 390:500] = head
    found = model.group(group)
    assert found[0].box == model.faces(group)[0].box
    assert len(found) == 3
    # The head's place: 110 pixels for 200, pixel centres at whole numbers.
    expected = (model.faces(photo)[0].points - (130, 20) + 0.5) * 0.55 - 0.5
    for face, corner in zip(sorted(found[1:], key=lambda face: face.box[0]), ((20, 380), (390, 380)), strict=True):
        np.testing.assert_allclose(face.points - corner, expected, atol=1.5)


def test_what_does_not_look_like_a_face_is_left_out_of_the_group(model, photo):
    class Eager:
        """Sees what the detector sees, and a face in a place where there is none."""

        def detect(self, picture, **options):
            boxes, scores = model.detector.detect(picture, **options)
            if picture.shape == photo.shape:
                boxes, scores = np.vstack([boxes, [(20, 20, 80, 90)]]), np.append(scores, 0.99)
            return boxes, scores

        detect_small = model.detector.detect_small

    assert len(find_faces(photo, Eager(), model._faces)) == 2
    assert len(find_group(photo, Eager(), model._faces)) == 1


def test_small_faces_of_a_group_are_found_at_twice_the_size(model, photo):
    head = Image.fromarray(photo[20:220, 130:330])
    group = np.full((160, 300, 3), 128, np.uint8)
    for left, side in ((0, 110), (130, 44), (200, 42)):
        group[20 : 20 + side, left : left + side] = np.asarray(head.resize((side, side), Image.Resampling.LANCZOS))
    assert len(model.faces(group)) < 3
    assert len(model.group(group)) == 3
