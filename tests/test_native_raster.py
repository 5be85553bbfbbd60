"""The compiled z-buffer draws what the numpy one draws, to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from hida.depth import raster

native = pytest.importorskip("hida._C", reason="the module hida._C is not built")


def plain(vertices, triangles, size):
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


def test_nothing_to_draw_and_wrong_indices():
    vertices, none = np.zeros((3, 3)), np.zeros((0, 3), np.int64)
    assert (native.z_buffer(vertices, none, 4, 3) == -np.inf).all()
    assert native.z_buffer(vertices, none, 0, 3).shape == (3, 0)
    for wrong in (3, -1):
        with pytest.raises(ValueError, match="a vertex that is not there"):
            native.z_buffer(vertices, np.array([[0, 1, wrong]]), 4, 3)
    with pytest.raises(ValueError, match="a mesh is"):
        native.z_buffer(vertices[:, :2].copy(), none, 4, 3)


def test_it_says_what_built_it():
    assert native.compiler
    assert native.torch_built[0].isdigit()
