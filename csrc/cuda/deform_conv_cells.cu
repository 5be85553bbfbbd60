// The sampling points of a deformable group, sorted by the cell that they are in, that is by their top left corner: a
// pixel of the input is a corner of those of four cells.
//
// Counting sort: how many points a cell has, where its list begins (any order of the cells will do: nobody sees it),
// the lists, and each list in the order of its points, taps first. So sums are added in one order, whatever the order
// in which the counting went. The last kernel writes each point with its place in the cell and its mask, so that
// whoever gathers does not compute them again. Traffic: 36 bytes per sampling point, once for all channels. Share of
// the floor: not measured.
#include "deform_conv_cells.h"

namespace hida {
namespace cuda {
namespace {

struct At {
  int64_t image;
  int id;
  bool exists;
};
HIDA_DEVICE At thread_of(const Sorting& job, int each) {
  const int64_t id = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, image = id / each;
  return {image, int(id - image * each), image < job.images};
}

// Which of an image's cells the point of this thread is in; −1: in none.
template <class Real>
HIDA_DEVICE int cell_number(const Sorting& job, const At& at, CellPoint<Real>* point = nullptr) {
  if (!at.exists) return -1;
  int tap;
  const OutputPixel place = pixel_of(job, at.image, at.id, &tap);
  const Cell<Real> cell = find_cell<Real>(job, job.deformable, tap, place);
  if (point) *point = {uint32_t(at.id), cell.down, cell.right, cell.mask};
  return cell.inside ? (cell.top + 1) * int(job.d.in.w + 1) + cell.left + 1 : -1;
}

__global__ void __launch_bounds__(kGemmThreads) clear_kernel(const __grid_constant__ Sorting job) {
  const At at = thread_of(job, job.cells);
  if (!at.exists) return;
  job.lists.count[at.image * job.cells + at.id] = 0;
  if (at.id == 0) job.lists.cursor[at.image] = 0;
}

template <class Real>
__global__ void __launch_bounds__(kGemmThreads) count_kernel(const __grid_constant__ Sorting job) {
  const At at = thread_of(job, job.points);
  const int number = cell_number<Real>(job, at);
  if (number >= 0) atomicAdd(&job.lists.count[at.image * job.cells + number], 1);
}

// A warp shares the cells of one image: `cells` is rounded up to whole warps for each. `start` is the end, until
// place_kernel has counted it down.
__global__ void __launch_bounds__(kGemmThreads) allocate_kernel(const __grid_constant__ Sorting job) {
  const int rounded = (job.cells + kWarp - 1) / kWarp * kWarp, lane = int(threadIdx.x) % kWarp;
  const At at = thread_of(job, rounded);
  const bool is = at.exists && at.id < job.cells;
  int before = is ? job.lists.count[at.image * job.cells + at.id] : 0;
#pragma unroll
  for (int delta = 1; delta < kWarp; delta *= 2) {
    const int other = __shfl_up_sync(kAll, before, delta);
    if (lane >= delta) before += other;
  }
  int base = 0;
  if (lane == kWarp - 1 && before > 0) base = atomicAdd(&job.lists.cursor[at.image], before);
  base = __shfl_sync(kAll, base, kWarp - 1);
  if (is) job.lists.start[at.image * job.cells + at.id] = base + before;
}

template <class Real>
__global__ void __launch_bounds__(kGemmThreads) place_kernel(const __grid_constant__ Sorting job) {
  const At at = thread_of(job, job.points);
  const int number = cell_number<Real>(job, at);
  if (number < 0) return;
  const int to = atomicAdd(&job.lists.start[at.image * job.cells + number], -1) - 1;
  job.lists.list[at.image * job.points + to] = uint32_t(at.id);
}

template <class Real>
__global__ void __launch_bounds__(kGemmThreads) order_kernel(const __grid_constant__ Sorting job) {
  const At at = thread_of(job, job.points);
  CellPoint<Real> point;
  const int number = cell_number<Real>(job, at, &point);
  if (number < 0) return;
  const int64_t c = at.image * job.cells + number;
  const int start = job.lists.start[c], count = job.lists.count[c];
  const uint32_t* list = job.lists.list + at.image * job.points + start;
  int before = 0;
  for (int i = 0; i < count; ++i) before += list[i] < uint32_t(at.id);
  points_of<Real>(job, at.image)[start + before] = point;
}

}  // namespace

int64_t cells_of(const Convolution& d) {
  return (d.in.h + 1) * (d.in.w + 1);
}

template <class Real>
void sort_points(const Sorting& job, const Launch& l) {
  const dim3 points = grid_of(over(job.images * job.points, kGemmThreads));
  launch(clear_kernel, grid_of(over(job.images * job.cells, kGemmThreads)), kGemmThreads, 0, l, job);
  launch(count_kernel<Real>, points, kGemmThreads, 0, l, job);
  launch(allocate_kernel, grid_of(over(job.images * padded_to(job.cells, kWarp), kGemmThreads)), kGemmThreads, 0, l,
         job);
  launch(place_kernel<Real>, points, kGemmThreads, 0, l, job);
  launch(order_kernel<Real>, points, kGemmThreads, 0, l, job);
}

CellLists take_lists(Arena& arena, const Convolution& d, int64_t images) {
  const int64_t points = images * d.taps() * d.out.pixels(), cells = images * cells_of(d);
  CellLists lists;
  lists.count = arena.take<int>(cells);
  lists.start = arena.take<int>(cells);
  lists.cursor = arena.take<int>(images);
  lists.list = arena.take<uint32_t>(points);
  lists.sorted = d.wide ? static_cast<void*>(arena.take<CellPoint<double>>(points))
                        : static_cast<void*>(arena.take<CellPoint<float>>(points));
  return lists;
}

template void sort_points<float>(const Sorting&, const Launch&);
template void sort_points<double>(const Sorting&, const Launch&);

}  // namespace cuda
}  // namespace hida
