// The sampling points of a deformable convolution, sorted by the cell that they are in: what dx is gathered from.
#pragma once

#include "deform_launch.h"

namespace hida {
namespace cuda {

struct Sorting : Job {
  CellLists lists;
  int deformable, cells, points;  // cells, points of an image
  int64_t images;
};

// A point of a cell: its number, tap · pixels of an image + pixel, and where in the cell it is.
template <class Real>
struct alignas(16) CellPoint {
  uint32_t id;
  Real down, right, mask;
};

template <class Real>
HIDA_DEVICE CellPoint<Real>* points_of(const Sorting& job, int64_t image) {
  return static_cast<CellPoint<Real>*>(job.lists.sorted) + image * job.points;
}

HIDA_DEVICE OutputPixel pixel_of(const Job& job, int64_t image, int id, int* tap) {
  *tap = divide(id, job.plane);
  const int pixel = id - *tap * int(job.plane.number), row = divide(pixel, job.width);
  return {image, pixel, row, pixel - row * int(job.width.number), true};
}

int64_t cells_of(const Convolution&);
template <class Real>
void sort_points(const Sorting&, const Launch&);

}  // namespace cuda
}  // namespace hida
