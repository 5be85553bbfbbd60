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
  const int plane = int(job.d.out.h * job.d.out.w), w = int(job.d.out.w);
  *tap = id / plane;
  const int pixel = id - *tap * plane, row = pixel / w;
  return {image, pixel, row, pixel - row * w, true};
}

int64_t cells_of(const Convolution&);
template <class Real>
void sort_points(const Sorting&, const Launch&);

}  // namespace cuda
}  // namespace hida
