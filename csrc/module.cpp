// hida._C: what the build was, and the z-buffer rasteriser on numpy arrays. No tensors here: the operators are in
// the operator library, which needs no Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <utility>

namespace py = pybind11;

namespace {

using Points = py::array_t<double, py::array::c_style | py::array::forcecast>;
using Indices = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;

struct Corner {
  double x, y, z;
};

// Twice the signed area of (a, b, pixel). Triangles that share an edge order its ends alike and so get the very same
// number: a pixel on the edge cannot fall between the two. The file is compiled without fused multiply-add for that.
double edge(const Corner& a, const Corner& b, double column, double row) {
  return (b.x - a.x) * (row - a.y) - (b.y - a.y) * (column - a.x);
}

void draw(double* buffer, int64_t width, int64_t height, const Corner (&p)[3]) {
  for (const Corner& corner : p)
    if (!std::isfinite(corner.x) || !std::isfinite(corner.y) || !std::isfinite(corner.z)) return;
  const double area = (p[1].x - p[0].x) * (p[2].y - p[0].y) - (p[1].y - p[0].y) * (p[2].x - p[0].x);
  if (!(area > 0 || area < 0)) return;
  const double sign = area > 0 ? 1 : -1;
  const double left = std::fmax(std::ceil(std::fmin(std::fmin(p[0].x, p[1].x), p[2].x)), 0);
  const double right = std::fmin(std::floor(std::fmax(std::fmax(p[0].x, p[1].x), p[2].x)), double(width - 1));
  const double top = std::fmax(std::ceil(std::fmin(std::fmin(p[0].y, p[1].y), p[2].y)), 0);
  const double bottom = std::fmin(std::floor(std::fmax(std::fmax(p[0].y, p[1].y), p[2].y)), double(height - 1));
  for (double row = top; row <= bottom; ++row) {
    double* line = buffer + int64_t(row) * width;
    for (double column = left; column <= right; ++column) {
      // Weight of each corner: the edge opposite to it.
      const double w0 = edge(p[1], p[2], column, row) * sign, w1 = -edge(p[0], p[2], column, row) * sign,
                   w2 = edge(p[0], p[1], column, row) * sign;
      if (!(w0 >= 0 && w1 >= 0 && w2 >= 0)) continue;
      const double z = (w0 * p[0].z + w1 * p[1].z + w2 * p[2].z) / (w0 + w1 + w2);
      double& nearest = line[int64_t(column)];
      if (z > nearest) nearest = z;
    }
  }
}

// (V, 3) vertices, (T, 3) triangles -> (height, width) z, -inf where nothing is drawn.
py::array_t<double> z_buffer(const Points& vertices, const Indices& triangles, int64_t width, int64_t height) {
  if (vertices.ndim() != 2 || vertices.shape(1) != 3 || triangles.ndim() != 2 || triangles.shape(1) != 3)
    throw std::invalid_argument("a mesh is (V, 3) vertices and (T, 3) triangles");
  width = width > 0 ? width : 0;
  height = height > 0 ? height : 0;
  py::array_t<double> result({height, width});
  double* buffer = result.mutable_data();
  const Corner* points = reinterpret_cast<const Corner*>(vertices.data());
  const int64_t* indices = triangles.data();
  const int64_t count = triangles.shape(0), known = vertices.shape(0);
  for (int64_t i = 0; i < 3 * count; ++i)
    if (indices[i] < 0 || indices[i] >= known)
      throw std::invalid_argument("a triangle names a vertex that is not there");
  py::gil_scoped_release release;
  for (int64_t i = 0; i < width * height; ++i) buffer[i] = -std::numeric_limits<double>::infinity();
  for (int64_t i = 0; i < count; ++i) {
    int64_t a = indices[3 * i], b = indices[3 * i + 1], c = indices[3 * i + 2];
    if (a > b) std::swap(a, b);
    if (b > c) std::swap(b, c);
    if (a > b) std::swap(a, b);
    const Corner corners[3] = {points[a], points[b], points[c]};
    draw(buffer, width, height, corners);
  }
  return result;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build information, and the z-buffer rasteriser.";
  m.attr("compiler") = HIDA_COMPILER " " __VERSION__;
  m.attr("torch_built") = HIDA_TORCH_BUILT;
  m.def("z_buffer", &z_buffer, py::arg("vertices"), py::arg("triangles"), py::arg("width"), py::arg("height"),
        "Nearest z of a mesh, float64 (height, width), -inf where nothing is drawn.");
}
