// deform_conv2d, backward: dx[c][q] = Σ_tap,o W[o][c][tap]·A[q][tap][o], A[q][tap] = Σ share·mask·dy[p] over the
// sampling points p of the tap that have the input's pixel q for a corner.
//
// An implicit product as forward is, with dy for x, and q's list of points for the four corners of a point: a block
// owns 64 pixels and 64 channels of dx, or 128, and gathers and adds up 128 bytes of dy's channels for each pixel and
// tap. Neither columns nor their gradient are written to memory.
//
// The points are sorted by the cell that they lie in, that is by their top left corner; q takes those of four cells.
// Counting sort: how many points a cell has, where its list begins (any order of the cells will do: nobody sees it),
// the lists, and each list in the order of its points, taps first. So sums are added in one order, whatever the order
// in which the counting went. A list holds numbers of points, four bytes each; shares are computed again from offset
// and mask, which the first-level cache holds.
// Traffic: dy read once, dx written once, and 24 bytes a sampling point for the lists, once for all channels. Share of
// the floor: not measured.
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

HIDA_DEVICE Place pixel_of(const Job& job, int64_t image, int id, int* tap) {
  const int plane = int(job.d.out.h * job.d.out.w), w = int(job.d.out.w);
  *tap = id / plane;
  const int pixel = id - *tap * plane, row = pixel / w;
  return {image, pixel, row, pixel - row * w, true};
}

// Which of an image's cells the point of this thread lies in; −1: in none.
template <class Real>
HIDA_DEVICE int cell_number(const Sorting& job, const At& at) {
  if (!at.exists) return -1;
  int tap;
  const Place place = pixel_of(job, at.image, at.id, &tap);
  const Cell<Real> cell = find_cell<Real>(job, job.deformable, tap, place);
  return cell.inside ? (cell.top + 1) * int(job.d.in.w + 1) + cell.left + 1 : -1;
}

__global__ void __launch_bounds__(kThreads) clear_kernel(const __grid_constant__ Sorting job) {
  const At at = thread_of(job, job.cells);
  if (!at.exists) return;
  job.lists.count[at.image * job.cells + at.id] = 0;
  if (at.id == 0) job.lists.cursor[at.image] = 0;
}

template <class Real>
__global__ void __launch_bounds__(kThreads) count_kernel(const __grid_constant__ Sorting job) {
  const At at = thread_of(job, job.points);
  const int number = cell_number<Real>(job, at);
  if (number >= 0) atomicAdd(&job.lists.count[at.image * job.cells + number], 1);
}

// A warp shares the cells of one image: `cells` is rounded up to whole warps for each. `start` is the end, until
// place_kernel has counted it down.
__global__ void __launch_bounds__(kThreads) allocate_kernel(const __grid_constant__ Sorting job) {
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
__global__ void __launch_bounds__(kThreads) place_kernel(const __grid_constant__ Sorting job) {
  const At at = thread_of(job, job.points);
  const int number = cell_number<Real>(job, at);
  if (number < 0) return;
  const int to = atomicAdd(&job.lists.start[at.image * job.cells + number], -1) - 1;
  job.lists.list[at.image * job.points + to] = uint32_t(at.id);
}

template <class Real>
__global__ void __launch_bounds__(kThreads) order_kernel(const __grid_constant__ Sorting job) {
  const At at = thread_of(job, job.points);
  const int number = cell_number<Real>(job, at);
  if (number < 0) return;
  const int64_t c = at.image * job.cells + number, start = at.image * job.points + job.lists.start[c];
  const int count = job.lists.count[c];
  int before = 0;
  for (int i = 0; i < count; ++i) before += job.lists.list[start + i] < uint32_t(at.id);
  job.lists.sorted[start + before] = uint32_t(at.id);
}

struct InputGradient : Sorting {
  int in_tiles;
};

// A pixel of the input; none: image −1.
struct Target {
  int image, row, column;
};

// What a pixel gets of a tap's points in one of its four cells: the first few at hand, the rest in the list.
template <class Real>
struct Slot {
  static constexpr int kept = sizeof(Real) == 8 ? 1 : 2;
  int first, count;
  uint32_t unit[kept];  // where dy's line begins
  Real share[kept];
};

template <class M>
HIDA_DEVICE void point_of(const InputGradient& job, const Target& target, uint32_t id, uint32_t& unit,
                          typename M::Real& share) {
  using Real = typename M::Real;
  int tap;
  const Place place = pixel_of(job, target.image, int(id), &tap);
  const Spot<Real> spot = find_spot<Real>(job, job.deformable, tap, place);
  const Real down = spot.row - Real(target.row), right = spot.column - Real(target.column);
  share = (1 - (down < 0 ? -down : down)) * (1 - (right < 0 ? -right : right)) * spot.mask;
  unit = uint32_t(line_of(job.grad, place) / kUnit<M>);
}

// Weights of a tap, a line of input channels for each output channel.
template <class M>
struct InputWeights {
  const Job& job;
  const typename M::Bits* from;  // of the group and the first channel
  int left, chunks;
  const typename M::Bits* now = nullptr;
  int outputs = 0;
  HIDA_DEVICE void at(int chunk) {
    const int tap = chunk / chunks, output = (chunk - tap * chunks) * kDepth<M>;
    outputs = job.outputs - output;
    now = from + (tap * job.d.out.c + output) * job.line();
  }
  HIDA_DEVICE Unit unit(int o, int u) const {
    if (o >= outputs || u * kUnit<M> >= left) return Unit{};
    return load_unit(now + int64_t(o) * job.line() + u * kUnit<M>);
  }
};

template <class M>
struct Gathered {
  using Real = typename M::Real;
  const InputGradient& job;
  const typename M::Bits* from;  // dy, the group's channels
  const Slot<Real>* slots;       // two buffers of (corner, pixel)
  const Target* targets;
  int chunks;
  const Slot<Real>* now = nullptr;
  int position = 0;
  HIDA_DEVICE void at(int chunk) {
    const int tap = chunk / chunks;
    position = (chunk - tap * chunks) * kDepth<M>;
    now = slots + tap % 2 * (4 * kTile64);
  }
  HIDA_DEVICE void add(const Unit& unit, Real share, Real (&sum)[kUnit<M>]) const {
    Real v[kUnit<M>];
    unpack<M>(unit, v);
#pragma unroll
    for (int i = 0; i < kUnit<M>; ++i) sum[i] += share * v[i];
  }
  HIDA_DEVICE Unit unit(int line, int u) const {
    Real sum[kUnit<M>];
#pragma unroll
    for (int i = 0; i < kUnit<M>; ++i) sum[i] = 0;
    const int o = position + u * kUnit<M>;
    if (o >= job.grad_padded) return pack<M>(sum);
    Unit first[4];  // on their way together
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      const Slot<Real>& slot = now[corner * kTile64 + line];
      first[corner] = Unit{};
      if (slot.count > 0) first[corner] = load_unit(from + int64_t(slot.unit[0]) * kUnit<M> + o);
    }
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      const Slot<Real>& slot = now[corner * kTile64 + line];
      if (slot.count > 0) add(first[corner], slot.share[0], sum);
    }
#pragma unroll 1
    for (int corner = 0; corner < 4; ++corner) {
      const Slot<Real>& slot = now[corner * kTile64 + line];
#pragma unroll 1
      for (int i = 1; i < slot.count; ++i) {
        uint32_t where;
        Real share;
        if (i < Slot<Real>::kept) {
          where = slot.unit[Slot<Real>::kept - 1], share = slot.share[Slot<Real>::kept - 1];
        } else {
          const Target& target = targets[line];
          const uint32_t* sorted = job.lists.sorted + int64_t(target.image) * job.points;
          point_of<M>(job, target, sorted[slot.first + i], where, share);
        }
        add(load_unit(from + int64_t(where) * kUnit<M> + o), share, sum);
      }
    }
    return pack<M>(sum);
  }
};

// The slots of tap after tap. A thread keeps where it is in the lists of its pixels and corners.
template <class M, int Rows>
struct Walk {
  using Real = typename M::Real;
  static constexpr int threads = kThreadsOf<Rows>, each = 4 * kTile64 / threads;
  int at[each], end[each];

  HIDA_DEVICE Walk(const InputGradient& job, const Target* targets) {
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const int pair = int(threadIdx.x) + i * threads, corner = pair / kTile64;
      const Target& target = targets[pair % kTile64];
      at[i] = end[i] = 0;
      if (target.image < 0) continue;
      const int64_t cell = int64_t(target.image) * job.cells + (target.row + 1 - corner / 2) * int(job.d.in.w + 1) +
                           target.column + 1 - corner % 2;
      at[i] = job.lists.start[cell];
      end[i] = at[i] + job.lists.count[cell];
    }
  }
  HIDA_DEVICE void next(const InputGradient& job, const Target* targets, int tap, Slot<Real>* slots) {
    const uint32_t behind = uint32_t(tap + 1) * uint32_t(job.d.out.h * job.d.out.w);
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const int pair = int(threadIdx.x) + i * threads;
      const Target& target = targets[pair % kTile64];
      const uint32_t* sorted = job.lists.sorted + int64_t(target.image) * job.points;
      Slot<Real>& slot = slots[tap % 2 * (4 * kTile64) + pair];
      slot.first = at[i];
      int count = 0;
#pragma unroll 1
      for (; at[i] < end[i]; ++at[i], ++count) {
        const uint32_t id = sorted[at[i]];
        if (id >= behind) break;
        if (count < Slot<Real>::kept) point_of<M>(job, target, id, slot.unit[count], slot.share[count]);
      }
      slot.count = count;
    }
  }
};

template <class M, int Rows>
__global__ void __launch_bounds__(kThreadsOf<Rows>, kResident<M, Rows>)
    input_gradient_kernel(const __grid_constant__ InputGradient job) {
  using Real = typename M::Real;
  HIDA_DYNAMIC_SHARED(char, shared);
  auto* slots = reinterpret_cast<Slot<Real>*>(shared + kTileBytes<M, Rows>);
  auto* targets = reinterpret_cast<Target*>(slots + 8 * kTile64);
  const int channel0 = int(blockIdx.x % job.in_tiles) * Rows, rest = int(blockIdx.x / job.in_tiles);
  const int piece = job.deformable * job.per_deformable + rest % job.per_deformable, group = piece / job.per_group;
  const int64_t pixel0 = int64_t(rest / job.per_deformable) * kTile64;
  const int chunks = (job.outputs + kDepth<M> - 1) / kDepth<M>;  // of a tap
  const int w = int(job.d.in.w), plane = int(job.d.in.h) * w;
  if (threadIdx.x < kTile64) {
    const int64_t image = (pixel0 + threadIdx.x) / plane;
    const int pixel = int(pixel0 + threadIdx.x - image * plane), row = pixel / w;
    targets[threadIdx.x] = {image < job.images ? int(image) : -1, row, pixel - row * w};
  }
  __syncthreads();
  Walk<M, Rows> walk(job, targets);
  InputWeights<M> weights{job,
                          static_cast<const typename M::Bits*>(job.weight) + int64_t(group) * job.outputs * job.line() +
                              piece % job.per_group * job.padded + channel0,
                          job.padded - channel0, chunks};
  Gathered<M> gathered{job, static_cast<const typename M::Bits*>(job.grad.data) + int64_t(group) * job.grad_padded,
                       slots, targets, chunks};
  Tile<M, true, false, Rows> tile;
  tile.clear();
  multiply(tile, shared, 0, job.taps * chunks, weights, gathered, [&](int chunk) {
    if (chunk % chunks == 0) walk.next(job, targets, chunk / chunks, slots);
  });
  const Real* result = spread(tile, shared);
  const bool last = job.d.dx.c == 1;  // channels last: write across channels
  for (int i = int(threadIdx.x); i < Rows * kTile64; i += kThreadsOf<Rows>) {
    const int row = last ? i % Rows : i / kTile64, line = last ? i / Rows : i % kTile64, c = channel0 + row;
    const Target& target = targets[line];
    if (target.image < 0 || c >= job.piece) continue;
    write_as(job.d.dx.data, job.d.dx.dtype,
             index_in(job.d.dx, job.first + target.image, int64_t(piece) * job.piece + c, target.row, target.column),
             result[row * kResultPitch<M> + line]);
  }
}

int64_t cells_of(const Convolution& d) {
  return (d.in.h + 1) * (d.in.w + 1);
}

template <class Real>
void sort_points(const Sorting& job, const Launch& l) {
  const dim3 points = grid_of(over(job.images * job.points, kThreads));
  launch(clear_kernel, grid_of(over(job.images * job.cells, kThreads)), kThreads, 0, l, job);
  launch(count_kernel<Real>, points, kThreads, 0, l, job);
  launch(allocate_kernel, grid_of(over(job.images * padded_to(job.cells, kWarp), kThreads)), kThreads, 0, l, job);
  launch(place_kernel<Real>, points, kThreads, 0, l, job);
  launch(order_kernel<Real>, points, kThreads, 0, l, job);
}

template <class M, int Rows>
void launch_rows(InputGradient& job, int64_t tiles, const Launch& l) {
  job.in_tiles = int(over(job.padded, Rows));
  constexpr size_t shared =
      kTileBytes<M, Rows> + 8 * kTile64 * sizeof(Slot<typename M::Real>) + kTile64 * sizeof(Target);
  launch(input_gradient_kernel<M, Rows>, grid_of(tiles * job.in_tiles), kThreadsOf<Rows>, shared, l, job);
}

}  // namespace

Lists take_lists(Arena& arena, const Convolution& d, int64_t images) {
  const int64_t points = images * d.taps() * d.out.pixels(), cells = images * cells_of(d);
  Lists lists;
  lists.count = arena.take<int>(cells);
  lists.start = arena.take<int>(cells);
  lists.cursor = arena.take<int>(images);
  lists.list = arena.take<uint32_t>(points);
  lists.sorted = arena.take<uint32_t>(points);
  return lists;
}

template <class M>
void add_input_gradient(const Job& base, const Lists& lists, const Launch& l) {
  InputGradient job;
  static_cast<Job&>(job) = base;
  job.lists = lists;
  job.cells = int(cells_of(base.d));
  job.points = int(base.taps * base.d.out.pixels());
  job.images = base.pixels / base.d.out.pixels();
  const int64_t tiles = over(job.images * base.d.in.pixels(), kTile64) * job.per_deformable;
  // Taller tiles gather less often, where they are full and enough.
  const bool tall = (job.piece - 1) % 128 >= 64 && tiles * over(job.padded, 128) >= l.multiprocessors;
  for (job.deformable = 0; job.deformable < int(base.d.deformable); ++job.deformable) {
    sort_points<typename M::Real>(job, l);
    if constexpr (M::tensor) {
      if (tall) {
        launch_rows<M, 128>(job, tiles, l);
        continue;
      }
    }
    launch_rows<M, 64>(job, tiles, l);
  }
}

#define HIDA_INSTANTIATE(M) template void add_input_gradient<M>(const Job&, const Lists&, const Launch&);
HIDA_INSTANTIATE(Bf16)
HIDA_INSTANTIATE(Fp16)
HIDA_INSTANTIATE(Fp32)
HIDA_INSTANTIATE(Tf32)
HIDA_INSTANTIATE(Fp64)
#undef HIDA_INSTANTIATE

}  // namespace cuda
}  // namespace hida
