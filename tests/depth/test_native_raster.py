"""The compiled z-buffer draws what the numpy one draws, to the bit."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from test_raster import face

from hida.depth import raster

native = pytest.importorskip("hida._C", reason="the module hida._C is not built")


def plain(vertices, triangles, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(raster, "_native", None)
        return raster.z_buffer(vertices, triangles, size)


def test_a_mesh_of_every_kind_of_triangle():
    generator = np.random.default_rng(7)
    vertices = generator.uniform(-5, 45, (300, 3))
    vertices[::3, :2] = vertices[::3, :2].round()  # corners on pixel centres
    vertices[5] = np.nan
    vertices[6, 0] = np.inf
    vertices[7, :2] = 1e12
    triangles = generator.integers(0, 300, (800, 3))
    triangles[3] = triangles[3, 0]  # no area
    found = native.z_buffer(vertices, triangles, 40, 31)
    np.testing.assert_array_equal(found, plain(vertices, triangles, (40, 31)))
    assert np.isfinite(found).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shift", [(0, 0), (-120, 90), (400, 0)])
def test_a_mesh_like_a_face_in_the_frame_across_its_edge_and_outside(shift, dtype):
    vertices, triangles = face()
    vertices = (vertices + np.array((*shift, 0))).astype(dtype)
    found = native.z_buffer(vertices, triangles, 250, 250)
    np.testing.assert_array_equal(found, plain(vertices, triangles, (250, 250)))
    assert np.isfinite(found).any() == (shift[0] < 250)


@pytest.mark.parametrize("scale", [1e-320, 1e-160, 1e20, 1e160, 1e300])
def test_numbers_near_the_limits_of_the_format(scale):
    generator = np.random.default_rng(3)
    vertices = generator.normal(0, 1, (90, 3)) * [scale, scale, 1] + [4, 4, 0]
    vertices[::7, 2] *= 1e300
    triangles = generator.integers(0, 90, (200, 3))
    np.testing.assert_array_equal(native.z_buffer(vertices, triangles, 9, 8), plain(vertices, triangles, (9, 8)))


def test_the_depth_map_uses_it(monkeypatch):
    vertices, triangles = face(20)
    calls = []
    counted = SimpleNamespace(z_buffer=lambda *a: calls.append(a) or native.z_buffer(*a))
    monkeypatch.setattr(raster, "_native", counted)
    drawn = raster.depth_map(vertices, triangles, (250, 250))
    assert len(calls) == 1
    monkeypatch.setattr(raster, "_native", None)
    np.testing.assert_array_equal(drawn, raster.depth_map(vertices, triangles, (250, 250)))


def test_wrong_indices_and_shapes_are_refused_here_too():
    vertices, none = np.zeros((3, 3)), np.zeros((0, 3), np.int64)
    for wrong in (3, -1):
        with pytest.raises(ValueError, match="a vertex that is not there"):
            native.z_buffer(vertices, np.array([[0, 1, wrong]]), 4, 3)
    with pytest.raises(ValueError, match="a mesh is"):
        native.z_buffer(vertices[:, :2].copy(), none, 4, 3)


def test_it_says_what_built_it():
    assert native.compiler
    assert native.torch_built[0].isdigit()
