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
