"""Draw a triangle mesh by a z-buffer: compiled, in ``hida._C``, where that is built, else in numpy, to the same bits.

The centre of pixel (column i, row j) is the point (i, j). A triangle covers the pixels whose centres are inside it or
on its edge; z is interpolated linearly there, and the largest z wins.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

try:
    from hida import _C as _native
except ImportError:  # a package without native code
    _native = None

# Candidate pixels examined at a time: bounds the memory (about 100 bytes each) whatever the triangles' size.
_BATCH = 1 << 20


def depth_map(vertices: np.ndarray, triangles: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Draw a mesh's relative depth: float32 (height, width), nearest vertex 1, farthest vertex and background 0.

    z is scaled by the range over the finite vertices of the mesh, drawn or not, so that a face keeps its depth when
    the frame cuts it; a mesh without extent in z is drawn as 1. Triangles without area or with a vertex that is not
    finite are not drawn, and either side of a triangle counts.

    Args:
        vertices: (V, 3) x, y in pixels and z growing towards the viewer.
        triangles: (T, 3) integer.
        size: (width, height).

    Raises:
        ValueError: other shapes or bad indices.
    """
    depth = z_buffer(vertices, triangles, size)
    drawn = depth > -np.inf
    z = np.asarray(vertices, np.float64)[:, 2]
    z = z[np.isfinite(np.asarray(vertices)).all(axis=1)]
    if not drawn.any():
        return np.zeros(depth.shape, np.float32)
    low, high = z.min(), z.max()
    scaled = (depth - low) / (high - low) if high > low else np.ones_like(depth)
    return np.where(drawn, scaled.clip(0, 1), 0).astype(np.float32)


def z_buffer(vertices: np.ndarray, triangles: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Draw as :func:`depth_map`, but float64 z itself, and -inf where nothing is drawn."""
    width, height = (max(side, 0) for side in size)
    vertices, triangles = np.asarray(vertices, np.float64), np.asarray(triangles)
    if vertices.ndim != 2 or vertices.shape[1] != 3 or triangles.ndim != 2 or triangles.shape[1] != 3:
        raise ValueError(f"a mesh is (V, 3) vertices and (T, 3) triangles, not {vertices.shape} and {triangles.shape}")
    if triangles.size and not (triangles.min() >= 0 and triangles.max() < len(vertices)):
        raise ValueError(f"a triangle names a vertex outside 0..{len(vertices) - 1}")
    if _native is not None:
        return _native.z_buffer(vertices, triangles, width, height)
    buffer = np.full(width * height, -np.inf)
    if buffer.size and triangles.size:
        for part in _Corners.of(vertices, triangles, width, height).batches():
            with np.errstate(over="ignore", invalid="ignore"):  # far vertices
                _draw(buffer, part, width)
    return buffer.reshape(height, width)


class _Corners:
    """Triangles that may cover a pixel: x, y, z are (3, K); left, top, columns, rows are (K,), their box of pixels.

    The corners of each triangle are ordered by vertex number. Triangles that share an edge then compute the very same
    number for it, so that a pixel on it cannot fall between the two through rounding.
    """

    def __init__(
        self,
        x: np.ndarray,
        y: np.ndarray,
        z: np.ndarray,
        left: np.ndarray,
        top: np.ndarray,
        columns: np.ndarray,
        rows: np.ndarray,
    ) -> None:
        self.x, self.y, self.z = x, y, z
        self.left, self.top, self.columns, self.rows = left, top, columns, rows

    @classmethod
    def of(cls, vertices: np.ndarray, triangles: np.ndarray, width: int, height: int) -> _Corners:
        a, b, c = triangles.T
        lower, upper = np.minimum(a, b), np.maximum(a, b)
        rest = np.maximum(lower, c)
        order = np.stack((np.minimum(lower, c), np.minimum(rest, upper), np.maximum(rest, upper)))
        points = np.where(np.isfinite(vertices).all(axis=1)[:, None], vertices, np.nan)
        x, y = points[:, 0][order], points[:, 1][order]
        # Limits are cut to the frame while still floats: a far vertex must not overflow an integer. NaN fails every
        # comparison below and so drops its triangle.
        left = np.maximum(np.ceil(np.minimum(np.minimum(x[0], x[1]), x[2])), 0)
        right = np.minimum(np.floor(np.maximum(np.maximum(x[0], x[1]), x[2])), width - 1)
        top = np.maximum(np.ceil(np.minimum(np.minimum(y[0], y[1]), y[2])), 0)
        bottom = np.minimum(np.floor(np.maximum(np.maximum(y[0], y[1]), y[2])), height - 1)
        some = np.flatnonzero((left <= right) & (top <= bottom))
        left, top = left[some].astype(np.int64), top[some].astype(np.int64)
        columns, rows = right[some].astype(np.int64) - left + 1, bottom[some].astype(np.int64) - top + 1
        z = points[:, 2][order[:, some]]
        return cls(x[:, some], y[:, some], z, left, top, columns, rows)

    def batches(self) -> Iterator[_Corners]:
        """Yield parts of at most ``_BATCH`` candidate pixels (or of one triangle)."""
        ends = np.cumsum(self.columns * self.rows)
        start = 0
        while start < ends.size:
            before = ends[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, before + _BATCH, side="right")))
            yield self[start:stop]
            start = stop

    def __getitem__(self, part: slice) -> _Corners:
        return _Corners(
            self.x[:, part],
            self.y[:, part],
            self.z[:, part],
            self.left[part],
            self.top[part],
            self.columns[part],
            self.rows[part],
        )


def _draw(buffer: np.ndarray, corners: _Corners, width: int) -> None:
    counts = corners.columns * corners.rows
    owner = np.repeat(np.arange(counts.size), counts)
    rank = np.arange(owner.size) - np.repeat(np.cumsum(counts) - counts, counts)
    row, column = np.divmod(rank, corners.columns[owner])
    column += corners.left[owner]
    row += corners.top[owner]
    x, y, z = corners.x, corners.y, corners.z

    def edge(start: int, end: int) -> np.ndarray:
        """Return twice the signed area of (start, end, pixel)."""
        dx, dy = x[end] - x[start], y[end] - y[start]
        return dx[owner] * (row - y[start][owner]) - dy[owner] * (column - x[start][owner])

    area = (x[1] - x[0]) * (y[2] - y[0]) - (y[1] - y[0]) * (x[2] - x[0])
    sign = np.sign(area)[owner]
    # Weight of each corner: the edge opposite to it. The edge 0-2 runs against the other two.
    w0, w1, w2 = edge(1, 2) * sign, -edge(0, 2) * sign, edge(0, 1) * sign
    inside = np.flatnonzero((w0 >= 0) & (w1 >= 0) & (w2 >= 0) & (sign != 0))
    owner, w0, w1, w2 = owner[inside], w0[inside], w1[inside], w2[inside]
    # Dividing by their own sum, not by the area, keeps the result between the corners' z.
    value = (w0 * z[0][owner] + w1 * z[1][owner] + w2 * z[2][owner]) / (w0 + w1 + w2)
    np.fmax.at(buffer, row[inside] * width + column[inside], value)  # no number, from an overflow, is not drawn
