"""The z-buffer against a loop over every pixel and triangle."""

from __future__ import annotations

import time

import numpy as np
import pytest

from hida.depth import raster
from hida.depth.raster import depth_map, z_buffer


@pytest.fixture(autouse=True, params=["compiled", "numpy"])
def implementation(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(raster, "_native", None)
    elif raster._native is None:
        pytest.skip("the module hida._C is not built")


def naive(vertices, triangles, size):
    """Solve for the barycentric coordinates of every pixel centre in every triangle."""
    width, height = size
    buffer = np.full((height, width), -np.inf)
    for triangle in triangles:
        corners = np.asarray(vertices, np.float64)[triangle]
        if not np.isfinite(corners).all():
            continue
        system = np.vstack((corners[:, :2].T, np.ones(3)))
        if abs(np.linalg.det(system)) < 1e-12:
            continue
        for row in range(height):
            for column in range(width):
                weights = np.linalg.solve(system, (column, row, 1))
                if (weights >= -1e-12).all():
                    buffer[row, column] = max(buffer[row, column], weights @ corners[:, 2])
    return buffer


def grid(count):
    """Return the triangles of count² vertices, row by row."""
    first = (np.arange(count - 1)[:, None] * count + np.arange(count - 1)).ravel()
    corner = np.stack((first, first + 1, first + count, first + count + 1), 1)
    return np.concatenate((corner[:, [0, 1, 2]], corner[:, [3, 1, 2]])).astype(np.int32)


def face(count=196):
    """About 76,000 triangles of a pixel or less, curved and jittered, partly hidden by themselves."""
    u, v = np.meshgrid(np.linspace(-1.9, 1.9, count), np.linspace(-1, 1, count))
    vertices = np.stack((125 + 70 * np.sin(u), 130 + 90 * v, 70 * np.cos(u) - 20 * v**2), -1).reshape(-1, 3)
    return vertices + np.random.default_rng(1).normal(0, 0.2, vertices.shape), grid(count)


def same(got, expected):
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(expected))
    drawn = np.isfinite(expected)
    np.testing.assert_allclose(got[drawn], expected[drawn], rtol=0, atol=1e-9)


@pytest.mark.parametrize("batch", [1, 50, 1 << 20])
@pytest.mark.parametrize("spread", [0.7, 6, 60])
def test_random_triangles_of_any_size_equal_the_loop(spread, batch, monkeypatch):
    """Both windings, partly and wholly outside, overlapping; the batch size has no influence."""
    monkeypatch.setattr(raster, "_BATCH", batch)
    rng = np.random.default_rng(int(spread * 10))
    centres = rng.uniform(-8, 24, (40, 1, 2))
    corners = np.concatenate((centres + rng.normal(0, spread, (40, 3, 2)), rng.normal(0, 5, (40, 3, 1))), axis=2)
    vertices, triangles = corners.reshape(-1, 3), np.arange(120).reshape(-1, 3)
    expected = naive(vertices, triangles, (17, 13))
    assert np.isfinite(expected).any()
    same(z_buffer(vertices, triangles, (17, 13)), expected)


def test_pixel_centres_lie_on_whole_numbers_and_edges_count():
    vertices = np.array([[2, 1, 0], [5, 1, 0], [2, 4, 0]], np.float32)
    expected = np.zeros((6, 7), np.float32)
    expected[1, 2:6] = expected[2, 2:5] = expected[3, 2:4] = expected[4, 2:3] = 1
    np.testing.assert_array_equal(depth_map(vertices, np.array([[0, 1, 2]]), (7, 6)), expected)
    shifted = vertices + np.array([0.01, 0.01, 0], np.float32)
    expected[:] = 0
    expected[2, 3:5] = expected[3, 3:4] = 1
    np.testing.assert_array_equal(depth_map(shifted, np.array([[0, 1, 2]]), (7, 6)), expected)


def test_no_holes_along_shared_edges():
    """Edges through pixel centres, up to rounding: one of the two triangles must take each."""
    rng = np.random.default_rng(0)
    for _ in range(500):
        pixel = rng.integers(20, 30, 2).astype(np.float64)
        along = rng.normal(0, 5, 2)
        ends = np.stack((pixel - along * rng.uniform(0.1, 3), pixel + along * rng.uniform(0.1, 3)))
        across = np.array([-along[1], along[0]])
        apexes = np.stack((ends.mean(0) + across * rng.uniform(0.3, 4), ends.mean(0) - across * rng.uniform(0.3, 4)))
        vertices = np.column_stack((np.concatenate((ends, apexes)), np.ones(4)))
        rotation = rng.permutation(4)
        place = np.argsort(rotation)
        triangles = place[np.array([[0, 1, 2], [0, 1, 3]])]
        triangles[1] = rng.permutation(triangles[1])
        assert z_buffer(vertices[rotation], triangles, (50, 50))[int(pixel[1]), int(pixel[0])] == 1


def test_a_mesh_covers_its_square_and_keeps_a_plane():
    """A jittered grid: every pixel inside is drawn, and z is the plane's."""
    rng = np.random.default_rng(3)
    count, size = 60, 40
    x, y = np.meshgrid(np.linspace(-1, size, count), np.linspace(-1, size, count))
    x[1:-1, 1:-1] += rng.uniform(-0.2, 0.2, (count - 2, count - 2))
    y[1:-1, 1:-1] += rng.uniform(-0.2, 0.2, (count - 2, count - 2))
    vertices = np.stack((x, y, 0.3 * x - 0.7 * y + 2), -1).reshape(-1, 3)
    row, column = np.mgrid[:size, :size]
    np.testing.assert_allclose(z_buffer(vertices, grid(count), (size, size)), 0.3 * column - 0.7 * row + 2, atol=1e-9)


def test_triangles_without_area_are_not_drawn():
    vertices = np.array([[1, 1, 5], [4, 1, 5], [7, 1, 5], [1, 1, 6], [1, 7, 1], [9, 9, 1]], np.float64)
    for triangle in ([0, 1, 2], [0, 0, 1], [1, 1, 1], [0, 3, 5]):
        assert not depth_map(vertices, np.array([triangle]), (10, 10)).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_vertex_that_is_not_finite_takes_only_its_triangles_away(bad, axis):
    vertices = np.array([[0, 0, 0], [8, 0, 1], [0, 8, 2], [8, 8, 3], [4, 4, 9]], np.float64)
    vertices[4, axis] = bad
    with np.errstate(all="raise"):
        got = depth_map(vertices, np.array([[0, 1, 2], [1, 3, 4]]), (9, 9))
    expected = depth_map(vertices[:4], np.array([[0, 1, 2]]), (9, 9))
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(got, expected)


def test_far_vertices_do_not_overflow():
    vertices = np.array([[-1e30, -1e30, 0], [1e30, -1e30, 0], [0, 1e30, 1]], np.float64)
    assert (depth_map(vertices, np.array([[0, 1, 2]]), (6, 4)) > 0).all()
    assert not depth_map(vertices + [[1e31, 0, 0]] * 3, np.array([[0, 1, 2]]), (6, 4)).any()
    with np.errstate(all="raise"):
        assert np.isfinite(depth_map(vertices * 1e200, np.array([[0, 1, 2]]), (6, 4))).all()


def test_depth_is_relative_to_the_whole_mesh():
    """Cutting the frame does not change the depth of what remains in it."""
    rng = np.random.default_rng(5)
    vertices = np.column_stack((rng.uniform(0, 30, (30, 2)), rng.uniform(-400, 900, 30)))
    triangles = rng.permutation(30).reshape(-1, 3)
    whole = depth_map(vertices, triangles, (31, 31))
    assert whole.dtype == np.float32
    assert whole.min() == 0
    assert whole.max() <= 1
    np.testing.assert_array_equal(depth_map(vertices - [[9, 4, 0]], triangles, (12, 15)), whole[4:19, 9:21])
    z = z_buffer(vertices, triangles, (31, 31))
    low, high = vertices[:, 2].min(), vertices[:, 2].max()
    np.testing.assert_allclose(whole, np.where(np.isfinite(z), (z - low) / (high - low), 0), atol=1e-6)


def test_empty_frames_and_meshes():
    triangle = np.array([[0, 1, 2]])
    vertices = np.array([[0, 0, 0], [8, 0, 1], [0, 8, 2]], np.float64)
    assert depth_map(vertices, triangle, (0, 5)).shape == z_buffer(vertices, triangle, (0, 5)).shape == (5, 0)
    assert not depth_map(vertices, np.empty((0, 3), int), (4, 3)).any()
    assert depth_map(np.full((3, 3), np.nan), triangle, (4, 3)).shape == (3, 4)


def test_what_is_no_mesh_is_refused():
    vertices = np.zeros((3, 3))
    for wrong in (3, -1):
        with pytest.raises(ValueError, match=r"0\.\.2"):
            depth_map(vertices, np.array([[0, 1, wrong]]), (4, 4))
    with pytest.raises(ValueError, match="mesh"):
        depth_map(vertices[:, :2], np.array([[0, 1, 2]]), (4, 4))


def test_a_mesh_of_the_faces_size_is_fast():
    """76,000 triangles of about a pixel: 10 ms on one core; the limit leaves room for a busy machine."""
    vertices, triangles = face()
    times = []
    for _ in range(6):
        start = time.perf_counter()
        depth_map(vertices, triangles, (250, 250))
        times.append(time.perf_counter() - start)
    assert min(times) < 0.2
