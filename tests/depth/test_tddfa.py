"""From a photo to a face's points and depth."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from faces import Detector
from PIL import Image

from hida.depth.face import largest_face
from hida.depth.mobilenet import MobileNet
from hida.depth.morphable import MorphableModel
from hida.depth.raster import depth_map
from hida.depth.tddfa import TDDFA, region
from hida.errors import HidaError


class Regressor(MobileNet):
    """Always the mean face; counts how often it is asked."""

    def __init__(self):
        super().__init__()
        self.asked = 0

    def forward(self, x):
        self.asked += 1
        assert x.shape == (1, 3, 120, 120)
        return torch.zeros(1, 62)


def pyramid():
    """A square pyramid in the crop: base from 21 to 101 at z = 10, apex at (61, 60), z = 50; all keypoints stand at
    (61, 60) but the eyes, at (41, 80) and (81, 80), and the mouth, at (61, 30)."""
    base = [[21, 20, 10], [101, 20, 10], [101, 100, 10], [21, 100, 10], [61, 60, 50]]
    keypoints = np.full(68, 4)
    keypoints[36:42], keypoints[42:48], keypoints[48:68] = 5, 6, 7
    vertices = np.array([*base, [41, 80, 0], [81, 80, 0], [61, 30, 0]], np.float32)
    mean = np.zeros(62, np.float32)
    mean[[0, 5, 10]] = 1  # the identity as pose
    return MorphableModel(
        u=vertices.ravel(),
        w=np.zeros((vertices.size, 50), np.float32),
        keypoints=keypoints,
        triangles=np.array([[0, 1, 4], [1, 2, 4], [2, 3, 4], [3, 0, 4]], np.int32),
        mean=mean,
        std=np.ones(62, np.float32),
    )


# Whose region is a square of 240 pixels with corner (0, 0): one pixel of the crop is two of the photo.
BOX = (43.8, 22.52, 196.2, 174.92)


def test_the_region_is_lower_and_larger_than_the_box():
    np.testing.assert_allclose(region(np.array([10, 20, 110, 140])), (60 - 86.5, 95.4 - 86.5, 60 + 86.5, 95.4 + 86.5))
    left, top, right, bottom = region(np.array(BOX))
    assert right - left == bottom - top == pytest.approx(240)
    np.testing.assert_allclose((left, top), 0, atol=0.1)


def test_points_and_depth_are_in_pixels_of_the_photo():
    face = largest_face(np.zeros((240, 240, 3), np.uint8), TDDFA(Detector(BOX), Regressor(), pyramid()))
    assert face.box == BOX
    assert face.score == pytest.approx(0.9)
    # The crop counts from 1 with y up: x = (u - 1) * 2, y = (120 - v) * 2.
    np.testing.assert_allclose(face.points, [[80, 80], [160, 80], [120, 180]], atol=0.2)
    depth = face.depth((240, 240))
    assert depth.dtype == np.float32
    assert depth.shape == (240, 240)
    assert depth[120, 120] == pytest.approx(1, abs=0.01)
    # Halfway down the pyramid z is 30 of 0 to 50: the keypoints below the base count in the range.
    assert depth[120, 160] == pytest.approx(30 / 50, abs=0.01)
    assert depth[120, 80] == pytest.approx(30 / 50, abs=0.01)
    assert not depth[:38].any()
    assert not depth[:, :38].any()
    assert (depth[42:198, 42:198] > 0).all()


def test_a_matrix_draws_into_another_frame():
    face = TDDFA(Detector(BOX), Regressor(), pyramid()).faces(np.zeros((240, 240, 3), np.uint8))[0]
    whole = face.depth((240, 240))
    moved = face.depth((100, 80), np.array([[1, 0, -60], [0, 1, -90]]))
    np.testing.assert_allclose(moved, whole[90:170, 60:160], atol=1e-6)
    turned = face.depth((240, 240), np.array([[0, -1, 239], [1, 0, 0]]))
    np.testing.assert_allclose(turned, np.rot90(whole, -1), atol=1e-6)
    # Half the size is drawn anew, not resampled: pixel (i, j) is the point (2i, 2j) exactly.
    half = face.depth((120, 120), np.array([[0.5, 0, 0], [0, 0.5, 0]]))
    np.testing.assert_allclose(half, whole[::2, ::2], atol=1e-6)


def test_only_faces_that_are_used_are_fitted_and_once():
    regressor = Regressor()
    faces = TDDFA(Detector(BOX, (0, 0, 40, 40)), regressor, pyramid()).faces(np.zeros((240, 240, 3), np.uint8))
    assert [face.box for face in faces] == [BOX, (0, 0, 40, 40)]
    assert largest_face(np.zeros((240, 240, 3), np.uint8), faces[0].model).box == BOX
    assert regressor.asked == 0
    for _ in range(2):
        assert faces[1].points.shape == (3, 2)
        assert faces[1].depth((50, 40)).shape == (40, 50)
    assert regressor.asked == 1


@pytest.mark.parametrize(
    ("box", "count"),
    [((-90, -90, 30, 20), 1), ((200, 200, 600, 600), 1), ((5, 5, 5.4, 5.3), 0), ((900, 900, 990, 990), 1)],
)
def test_boxes_over_the_edge_or_of_no_size_do_no_harm(box, count):
    faces = TDDFA(Detector(box), Regressor(), pyramid()).faces(np.zeros((240, 240, 3), np.uint8))
    assert len(faces) == count
    for face in faces:
        assert np.isfinite(face.points).all()
        assert np.isfinite(face.depth((240, 240))).all()


def test_no_face_is_one_sentence():
    model = TDDFA(Detector(), Regressor(), pyramid())
    photo = np.zeros((9, 9, 3), np.uint8)
    assert model.faces(photo) == []
    with pytest.raises(HidaError, match="no face was found"):
        largest_face(photo, model)
    with pytest.raises(HidaError, match="uint8"):
        model.faces(photo[..., 0])


@pytest.fixture(scope="module")
def published(weights_file):
    for name in ("faceboxes", "mb05", "param_mean_std", "tri", "bfm"):
        weights_file(name)
    return TDDFA.load()


def sound(face, photo):
    """What the depth of a frontal face must show."""
    depth = face.depth((photo.shape[1], photo.shape[0]))
    left, right, mouth = face.points
    row, column = np.nonzero(depth)
    x0, y0, x1, y1 = face.box
    inside = (column > x0 - 25) & (column < x1 + 25) & (row > y0 - 25) & (row < y1 + 25)
    assert inside.all()
    assert 0.5 < depth.astype(bool).sum() / ((x1 - x0) * (y1 - y0)) < 1.2
    nose = np.array(np.unravel_index(depth.argmax(), depth.shape))[::-1]
    assert left[0] < nose[0] < right[0]
    assert max(left[1], right[1]) < nose[1] < mouth[1]
    assert depth.max() > 0.98
    return depth


def test_a_free_photo_gets_its_points_and_depth(published, astronaut):
    photo, morphable = astronaut, published.morphable
    assert (morphable.u.shape, morphable.triangles.shape) == ((115_095,), (76_073, 3))
    face = largest_face(photo, published)
    np.testing.assert_allclose(face.points, [[203, 101], [246.6, 103.5], [224, 145]], atol=4)
    depth = sound(face, photo)
    assert depth[300:].max() == 0
    # Mirrored, nearly the same face is found on the other side.
    mirrored = largest_face(np.ascontiguousarray(photo[:, ::-1]), published)
    points = mirrored.points[[1, 0, 2]]
    points[:, 0] = 511 - points[:, 0]
    np.testing.assert_allclose(points, face.points, atol=4)
    again = depth_map(face.vertices, morphable.triangles, (512, 512))
    np.testing.assert_array_equal(depth, again)


@pytest.mark.fs2k
@pytest.mark.parametrize("name", ["photo1/image1508", "photo1/image1081", "photo3/image0161"])
def test_fs2k_photos_give_the_published_look(published, name):
    root = os.environ.get("HIDA_FS2K")
    if not root:
        pytest.skip("HIDA_FS2K is not set to the FS2K folder")
    path = next(Path(root, "photo").glob(f"{name}.*"))
    photo = np.asarray(Image.open(path).convert("RGB"))
    face = largest_face(photo, published)
    depth = sound(face, photo)
    # Open lips leave background between them; image1081's are closed.
    x0, y0 = np.floor(face.landmarks[48:, :2].min(axis=0)).astype(int)
    x1, y1 = np.ceil(face.landmarks[48:, :2].max(axis=0)).astype(int)
    slit = int((depth[y0:y1, x0:x1] == 0).sum())
    assert slit > 15 if name != "photo1/image1081" else slit == 0
    if name.startswith("photo1"):
        np.testing.assert_allclose(face.points, [[94.7, 107.4], [152.2, 106.7], [123.6, 169.1]], atol=9)
