// deform_conv2d, backward: dx by gathering. dx[c][q] = Σ share·G[c] over the sampling points that have q for a corner,
// where G is the columns' gradient, masked (deform_conv_backward.cu).
//
// The points are sorted by the cell that they lie in, that is by their top left corner; q then takes those of four
// cells. Counting sort: how many points a cell has, where its list begins (any order of the cells will do: nobody sees
// it), the lists, and each list in the order of its points. So sums are added in one order, whatever the order in which
// the counting went. 16 numbers a sampling point of traffic for the lists, once for all channels; G is read up to four
// times, from the first- and second-level cache. Share of the floor: not measured.
#include "deform_sampling.h"

namespace hida {
namespace cuda {
namespace {

struct Sorting : Job {
  Lists lists;
  int deformable, cells, points;  // cells, points of an image
  int64_t images;
};

struct At {
  int64_t image;
  int id;
  bool exists;
};
HIDA_DEVICE At thread_of(const Sorting& job, int each) {
  const int64_t id = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, image = id / each;
  return {image, int(id - image * each), image < job.images};
}
HIDA_DEVICE Place pixel_of(const Sorting& job, const At& at, int* tap) {
  const int plane = int(job.d.out.h * job.d.out.w);
  *tap = at.id / plane;
  const int pixel = at.id - *tap * plane, row = pixel / int(job.d.out.w);
  return {at.image, pixel, row, pixel - row * int(job.d.out.w), true};
}

// Its number in the cell is what the counter said: any order.
template <class Real>
__global__ void __launch_bounds__(kThreads) count_kernel(Sorting job) {
  const At at = thread_of(job, job.points);
  if (!at.exists) return;
  int tap;
  const Place place = pixel_of(job, at, &tap);
  const Cell<Real> cell = find_cell<Real>(job, job.deformable, tap, place);
  const int64_t i = at.image * job.points + at.id;
  const int number = cell.inside ? (cell.top + 1) * int(job.d.in.w + 1) + cell.left + 1 : -1;
  job.lists.cell[i] = number;
  if (number >= 0) job.lists.rank[i] = atomicAdd(&job.lists.count[at.image * job.cells + number], 1);
}

__global__ void __launch_bounds__(kThreads) clear_kernel(Sorting job) {
  const At at = thread_of(job, job.cells);
  if (!at.exists) return;
  job.lists.count[at.image * job.cells + at.id] = 0;
  if (at.id == 0) job.lists.cursor[at.image] = 0;
}

// A warp shares the cells of one image: `cells` is rounded up to whole warps for each.
__global__ void __launch_bounds__(kThreads) allocate_kernel(Sorting job) {
  const int rounded = (job.cells + kWarp - 1) / kWarp * kWarp, lane = int(threadIdx.x) % kWarp;
  const At at = thread_of(job, rounded);
  const bool is = at.exists && at.id < job.cells;
  const int own = is ? job.lists.count[at.image * job.cells + at.id] : 0;
  int before = own;
#pragma unroll
  for (int delta = 1; delta < kWarp; delta *= 2) {
    const int other = __shfl_up_sync(kAll, before, delta);
    if (lane >= delta) before += other;
  }
  int base = 0;
  if (lane == kWarp - 1 && before > 0) base = atomicAdd(&job.lists.cursor[at.image], before);
  base = __shfl_sync(kAll, base, kWarp - 1);
  if (is) job.lists.start[at.image * job.cells + at.id] = base + before - own;
}

__global__ void __launch_bounds__(kThreads) place_kernel(Sorting job) {
  const At at = thread_of(job, job.points);
  if (!at.exists) return;
  const int64_t first = at.image * job.points, i = first + at.id;
  const int cell = job.lists.cell[i];
  if (cell < 0) return;
  job.lists.list[first + job.lists.start[at.image * job.cells + cell] + job.lists.rank[i]] = uint32_t(at.id);
}

template <class Real>
__global__ void __launch_bounds__(kThreads) order_kernel(Sorting job) {
  const At at = thread_of(job, job.points);
  if (!at.exists) return;
  const int64_t first = at.image * job.points;
  const int number = job.lists.cell[first + at.id];
  if (number < 0) return;
  const int64_t c = at.image * job.cells + number, start = first + job.lists.start[c];
  const int count = job.lists.count[c];
  int before = 0;
  for (int i = 0; i < count; ++i) before += job.lists.list[start + i] < uint32_t(at.id);
  int tap;
  const Place place = pixel_of(job, at, &tap);
  const Cell<Real> cell = find_cell<Real>(job, job.deformable, tap, place);
  const int64_t row = tap * job.pixels + at.image * (job.d.out.h * job.d.out.w) + place.pixel;
  static_cast<Entry<Real>*>(job.lists.sorted)[start + before] = {uint32_t(row), cell.down, cell.right};
}

struct InputGradient : Job {
  Lists lists;
  const void* columns;
  int piece_number, position, width, cells, points;
};

// 64 pixels of the input by 64 channels; neighbouring lanes take 16 bytes of channels each.
template <class M>
__global__ void __launch_bounds__(kThreads) input_gradient_kernel(InputGradient job) {
  using Real = typename M::Real;
  constexpr int V = kUnit<M>, across = kTile64 / V, pitch = kTile64 + 1;
  HIDA_DYNAMIC_SHARED(Real, result);
  const int thread = int(threadIdx.x), u = thread % across, parts = (job.width + kTile64 - 1) / kTile64;
  const int w = int(job.d.in.w), plane = int(job.d.in.h) * w, tiles = (plane + kTile64 - 1) / kTile64;
  int64_t block = int64_t(blockIdx.x);
  const int from = int(block % parts) * kTile64;
  block /= parts;
  const int pixel0 = int(block % tiles) * kTile64;
  const int64_t image = block / tiles;
  const auto* columns = static_cast<const typename M::Bits*>(job.columns) + from + u * V;
  const auto* sorted = static_cast<const Entry<Real>*>(job.lists.sorted) + image * job.points;
#pragma unroll 1
  for (int line = thread / across; line < kTile64; line += kThreads / across) {
    Real sum[V], g[V];
#pragma unroll
    for (int i = 0; i < V; ++i) sum[i] = 0;
    const int pixel = pixel0 + line, row = pixel / w, column = pixel - row * w;
    if (pixel < plane && from + u * V < job.width) {
#pragma unroll 1
      for (int corner = 0; corner < 4; ++corner) {
        const int64_t cell = image * job.cells + (row + 1 - corner / 2) * (w + 1) + column + 1 - corner % 2;
        const int start = job.lists.start[cell], end = start + job.lists.count[cell];
#pragma unroll 2
        for (int i = start; i < end; ++i) {
          const Entry<Real> entry = sorted[i];
          unpack<M>(load_unit(columns + int64_t(entry.row) * job.width), g);
          const Real share = (corner / 2 ? entry.down : 1 - entry.down) * (corner % 2 ? entry.right : 1 - entry.right);
#pragma unroll
          for (int j = 0; j < V; ++j) sum[j] += share * g[j];
        }
      }
    }
#pragma unroll
    for (int i = 0; i < V; ++i) result[(u * V + i) * pitch + line] = sum[i];
  }
  __syncthreads();
  const bool last = job.d.dx.c == 1;  // channels last: write across channels
  for (int i = thread; i < kTile64 * kTile64; i += kThreads) {
    const int c = last ? i % kTile64 : i / kTile64, line = last ? i / kTile64 : i % kTile64;
    const int pixel = pixel0 + line, channel = job.position + from + c;
    if (pixel >= plane || from + c >= job.width || channel >= job.piece) continue;
    write_as(
        job.d.dx.data, job.d.dx.dtype,
        index_in(job.d.dx, job.first + image, int64_t(job.piece_number) * job.piece + channel, pixel / w, pixel % w),
        result[c * pitch + line]);
  }
}

}  // namespace

int64_t cells_of(const Convolution& d) {
  return (d.in.h + 1) * (d.in.w + 1);
}

Lists take_lists(Arena& arena, const Convolution& d, int64_t images) {
  const int64_t points = images * d.taps() * d.out.pixels(), cells = images * cells_of(d);
  Lists lists;
  lists.cell = arena.take<int>(points);
  lists.rank = arena.take<int>(points);
  lists.count = arena.take<int>(cells);
  lists.start = arena.take<int>(cells);
  lists.cursor = arena.take<int>(images);
  lists.list = arena.take<uint32_t>(points);
  lists.sorted = arena.take<char>(points * int64_t(d.wide ? sizeof(Entry<double>) : sizeof(Entry<float>)));
  return lists;
}

template <class M>
void sort_points(const Job& base, int deformable, const Lists& lists, const Launch& l) {
  using Real = typename M::Real;
  Sorting job;
  static_cast<Job&>(job) = base;
  job.lists = lists;
  job.deformable = deformable;
  job.cells = int(cells_of(base.d));
  job.points = int(base.taps * base.d.out.pixels());
  job.images = base.pixels / base.d.out.pixels();
  const dim3 points = grid_of(over(job.images * job.points, kThreads));
  launch(clear_kernel, grid_of(over(job.images * job.cells, kThreads)), kThreads, 0, l, job);
  launch(count_kernel<Real>, points, kThreads, 0, l, job);
  launch(allocate_kernel, grid_of(over(job.images * padded_to(job.cells, kWarp), kThreads)), kThreads, 0, l, job);
  launch(place_kernel, points, kThreads, 0, l, job);
  launch(order_kernel<Real>, points, kThreads, 0, l, job);
}

template <class M>
void gather_input_gradient(const Job& base, const Lists& lists, const void* columns, int piece, int position, int width,
                           const Launch& l) {
  InputGradient job;
  static_cast<Job&>(job) = base;
  job.lists = lists;
  job.columns = columns;
  job.piece_number = piece;
  job.position = position;
  job.width = width;
  job.cells = int(cells_of(base.d));
  job.points = int(base.taps * base.d.out.pixels());
  const int64_t images = base.pixels / base.d.out.pixels();
  const int64_t blocks = images * over(base.d.in.pixels(), kTile64) * over(width, kTile64);
  launch(input_gradient_kernel<M>, grid_of(blocks), kThreads, kTile64 * (kTile64 + 1) * sizeof(typename M::Real), l,
         job);
}

#define HIDA_INSTANTIATE(M)                                                   \
  template void sort_points<M>(const Job&, int, const Lists&, const Launch&); \
  template void gather_input_gradient<M>(const Job&, const Lists&, const void*, int, int, int, const Launch&);
HIDA_INSTANTIATE(Bf16)
HIDA_INSTANTIATE(Fp16)
HIDA_INSTANTIATE(Fp32)
HIDA_INSTANTIATE(Fp64)
#undef HIDA_INSTANTIATE

}  // namespace cuda
}  // namespace hida
