"""The face detector."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hida.depth.faceboxes import FaceBoxes, _priors, suppress
from hida.errors import HidaError


def test_the_size_is_the_published_one():
    assert sum(value.numel() for value in FaceBoxes().parameters()) == 1_007_330  # as counted in FaceBoxesProd.pth


def test_anchors_are_those_of_the_paper():
    """Section 3.2 and figure 3: 21,824 for a 1024x1024 image; 16 of side 32 in a cell, 8 pixels apart."""
    levels = [_priors(level, n, n).numpy() for level, n in enumerate((32, 16, 8))]
    assert sum(map(len, levels)) == 21_824
    first = levels[0][:21]
    assert [list(first[:, 2]).count(side) for side in (32, 64, 128)] == [16, 4, 1]
    assert first[[1, 4, 17], :2].tolist() == [[8, 0], [0, 8], [16, 0]]
    assert first[20].tolist() == [16, 16, 128, 128]
    assert levels[1][17].tolist() == [96, 96, 256, 256]
    assert levels[2][-1].tolist() == [960, 960, 512, 512]


@pytest.mark.parametrize("size", [(1, 1), (33, 31), (64, 97)])
def test_every_size_gives_as_many_boxes_as_scores(size):
    with torch.inference_mode():
        boxes, scores = FaceBoxes().eval()(torch.randn(1, 3, *size))
    rows = [[-(-side // step) for side in size] for step in (32, 64, 128)]
    assert len(boxes) == len(scores) == 21 * np.prod(rows[0]) + np.prod(rows[1]) + np.prod(rows[2])
    assert ((scores >= 0) & (scores <= 1)).all()


def test_suppression_keeps_the_best_of_those_that_overlap():
    rng = np.random.default_rng(0)
    for _ in range(20):
        corner = rng.uniform(0, 60, (40, 2))
        boxes, scores = np.concatenate((corner, corner + rng.uniform(5, 40, (40, 2))), 1), rng.random(40)
        kept = set(suppress(boxes, scores, 0.3).tolist())

        def overlap(i, j, boxes=boxes):
            a, b = boxes[i], boxes[j]
            shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
            return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)

        # This and nothing else: a box stays exactly if no better one that stays covers it.
        for i in range(40):
            covered = any(scores[j] > scores[i] and overlap(i, j) > 0.3 for j in kept if j != i)
            assert (i in kept) == (not covered)
    assert suppress(np.empty((0, 4)), np.empty(0), 0.3).tolist() == []


class Fixed(FaceBoxes):
    """Sees what it is told to, in pixels of the picture it is given, and remembers that picture."""

    def __init__(self, boxes, scores):
        super().__init__()
        self.found, self.scores = torch.tensor(boxes), torch.tensor(scores)

    def forward(self, x):
        self.seen = x
        return self.found, self.scores


def test_boxes_come_largest_first_and_over_the_threshold():
    network = Fixed([[0.0, 0, 10, 10], [50, 50, 90, 90], [20, 20, 40, 40], [0, 60, 30, 90]], [0.9, 0.6, 0.5, 0.51])
    boxes, scores = network.detect(np.zeros((100, 120, 3), np.uint8))
    assert boxes.tolist() == [[50, 50, 90, 90], [0, 60, 30, 90], [0, 0, 10, 10]]
    np.testing.assert_allclose(scores, [0.6, 0.51, 0.9], atol=1e-6)


def test_the_network_sees_blue_green_red_less_the_mean():
    network = Fixed([[0.0, 0, 1, 1]], [0.0])
    photo = np.full((40, 50, 3), (10, 20, 30), np.uint8)
    assert len(network.detect(photo)[0]) == 0
    assert network.seen.shape == (1, 3, 40, 50)
    assert network.seen[0, :, 7, 7].tolist() == [30 - 104, 20 - 117, 10 - 123]


@pytest.mark.parametrize("size", [(1440, 500), (200, 4320), (2880, 4320)])
def test_large_photos_are_reduced_and_the_boxes_mapped_back(size):
    network = Fixed([[10.0, 20, 30, 60]], [0.9])
    photo = np.full((*size, 3), 200, np.uint8)
    photo.flags.writeable = False
    boxes, _ = network.detect(photo)
    height, width = network.seen.shape[2:]
    scale = min(720 / size[0], 1080 / size[1])
    assert (height, width) == (round(size[0] * scale), round(size[1] * scale))
    np.testing.assert_allclose(boxes[0] * scale, [10, 20, 30, 60], rtol=1e-6)


@pytest.mark.parametrize(
    "photo",
    [*(np.zeros(s, np.uint8) for s in ((9, 9), (9, 9, 4), (0, 9, 3))), np.zeros((9, 9, 3), np.float32), None],
)
def test_what_is_no_photo_is_refused(photo):
    with pytest.raises(HidaError, match=r"a uint8 array of height x width x 3, not in |the photo is empty"):
        FaceBoxes().detect(photo)


def test_a_free_photo_has_one_face_at_its_place_also_when_three_times_as_large(weights_file, astronaut):
    network = FaceBoxes.from_file(weights_file("faceboxes"))
    boxes, scores = network.detect(astronaut)
    assert len(boxes) == 1
    assert scores[0] > 0.95
    assert (np.abs(boxes[0] - (180, 70, 270, 175)) < (20, 30, 20, 20)).all()
    large, _ = network.detect(astronaut.repeat(3, axis=0).repeat(3, axis=1))
    np.testing.assert_allclose(large[0] / 3, boxes[0], atol=8)
    assert len(network.detect(np.zeros((250, 250, 3), np.uint8))[0]) == 0
