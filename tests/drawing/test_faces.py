"""Which faces are chosen, and the depth of several in one map."""

import numpy as np
import pytest
from faces import Cone

from hida.drawing.faces import SMALLEST, choose, common_depth
from hida.images.alignment import IDENTITY


class Square(Cone):
    """A face whose depth is one value in its box."""

    def depth(self, size, matrix=None):
        assert np.array_equal(matrix[:, :2], np.eye(2))
        left, top = np.rint(self.box[:2] + matrix[:, 2]).astype(int)
        result = np.zeros((size[1], size[0]), np.float32)
        side = round(self.box[2] - self.box[0])
        result[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = self.score
        return result


def boxes(*sides):
    return [Square((0, 0, side, side), 0.5) for side in sides]


@pytest.mark.parametrize(("faces", "count"), [("all", 3), ("largest", 1), (1, 1), (2, 2), (9, 3), (np.int64(2), 2)])
def test_the_largest_are_chosen_and_small_ones_left_out(faces, count):
    found = boxes(90, 50, SMALLEST, SMALLEST - 1)
    assert choose(found, faces) == found[:count]


def test_the_largest_is_chosen_however_small_and_none_is_none():
    assert len(choose(boxes(9, 8), "all")) == 1
    assert choose([], "all") == []


def test_the_nearest_value_counts_where_faces_overlap():
    faces = [Square((10, 10, 40, 40), 0.5), Square((30, 20, 50, 40), 0.9), Square((500, 0, 520, 20), 0.7)]
    expected = np.zeros((60, 80), np.float32)
    expected[10:40, 10:40] = 0.5
    expected[20:40, 30:50] = 0.9
    np.testing.assert_array_equal(common_depth(faces, (80, 60), IDENTITY), expected)
    far = common_depth(faces, (80, 60), np.array([[1.0, 0, -480], [0, 1, 0]]))
    assert far[:20, 20:40].min() == far.max() == np.float32(0.7)
