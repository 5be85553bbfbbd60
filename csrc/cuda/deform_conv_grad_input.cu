// deform_conv2d, backward: dx[c][q] = Σ_tap,o W[o][c][tap]·A[q][tap][o], A[q][tap] = Σ share·mask·dy[p] over the
// sampling points p of the tap that have the input's pixel q for a corner.
//
// An implicit product as forward is, with dy for x, and q's list of points for the four corners of a point: a block
// owns 64 pixels and 64 channels of dx, or 128, and gathers and adds up 128 bytes of dy's channels for each pixel and
// tap. Neither columns nor their gradient are written to memory. The points come sorted by cell (deform_conv_cells.cu).
// Traffic: dy read once, dx written once, and the lists. Share of the floor: not measured.
#include "deform_conv_cells.h"

namespace hida {
namespace cuda {
namespace {

struct InputGradient : Sorting {
  int in_tiles;
};

// A pixel of the input; none: image −1.
struct Target {
  int image, row, column;
};

// What a pixel gets of a tap's points in one of its four cells: the first few in the slot, the rest in the list.
template <class Real>
struct Slot {
  static constexpr int kept = sizeof(Real) == 8 ? 1 : 2;
  int first, count;
  uint32_t line[kept];  // where dy's line begins
  Real share[kept];
};

// Where dy's line of a point begins, and the point's share of a pixel. corner: of the cell, the one that the pixel is.
template <class M>
HIDA_DEVICE void share_of(const InputGradient& job, const CellPoint<typename M::Real>& point, int image, int corner,
                          uint32_t& line, typename M::Real& share) {
  int tap;
  line = uint32_t(line_of(job.grad, pixel_of(job, image, int(point.id), &tap)) / kPerVec<M>);
  share = (corner / 2 ? point.down : 1 - point.down) * (corner % 2 ? point.right : 1 - point.right) * point.mask;
}

// Weights of a tap, a line of input channels for each output channel.
template <class M>
struct InputWeights {
  const Job& job;
  int64_t number, first;  // of the piece, without a tap; output channel
  int position, left, chunks;
  int tap = 0, output = 0;
  HIDA_DEVICE void at(int chunk) {
    tap = chunk / chunks;
    output = (chunk - tap * chunks) * kDepth<M>;
  }
  HIDA_DEVICE Vec16 vec(int o, int u) const {
    if (output + o >= job.outputs || u * kPerVec<M> >= left) return Vec16{};
    return load16_global(
        weight_at<M>(job, int64_t(tap) * job.per_group + number, first + output + o, position + u * kPerVec<M>));
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
    now = slots + tap % 2 * (4 * kTileSide);
  }
  HIDA_DEVICE void add(const Vec16& vec, Real share, Real (&sum)[kPerVec<M>]) const {
    Real v[kPerVec<M>];
    unpack<M>(vec, v);
#pragma unroll
    for (int i = 0; i < kPerVec<M>; ++i) sum[i] += share * v[i];
  }
  HIDA_DEVICE Vec16 vec(int line, int u) const {
    Real sum[kPerVec<M>];
#pragma unroll
    for (int i = 0; i < kPerVec<M>; ++i) sum[i] = 0;
    const int o = position + u * kPerVec<M>;
    if (o >= job.grad_padded) return pack<M>(sum);
    Vec16 first[4];  // in flight together
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      const Slot<Real>& slot = now[corner * kTileSide + line];
      first[corner] = Vec16{};
      if (slot.count > 0) first[corner] = load16(from + int64_t(slot.line[0]) * kPerVec<M> + o);
    }
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      const Slot<Real>& slot = now[corner * kTileSide + line];
      if (slot.count > 0) add(first[corner], slot.share[0], sum);
    }
#pragma unroll 1
    for (int corner = 0; corner < 4; ++corner) {
      const Slot<Real>& slot = now[corner * kTileSide + line];
#pragma unroll 1
      for (int i = 1; i < slot.count; ++i) {
        uint32_t where;
        Real share;
        if (i < Slot<Real>::kept) {
          where = slot.line[Slot<Real>::kept - 1], share = slot.share[Slot<Real>::kept - 1];
        } else {
          const int image = targets[line].image;
          share_of<M>(job, points_of<Real>(job, image)[slot.first + i], image, corner, where, share);
        }
        add(load16(from + int64_t(where) * kPerVec<M> + o), share, sum);
      }
    }
    return pack<M>(sum);
  }
};

// The slots of tap after tap. A thread keeps where it is in the lists of its pixels and corners.
template <class M, int Rows>
struct Walk {
  using Real = typename M::Real;
  static constexpr int threads = kGemmThreadsOf<Rows>, each = 4 * kTileSide / threads;
  int at[each], end[each];

  HIDA_DEVICE Walk(const InputGradient& job, const Target* targets) {
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const int pair = int(threadIdx.x) + i * threads, corner = pair / kTileSide;
      const Target& target = targets[pair % kTileSide];
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
      const Target& target = targets[pair % kTileSide];
      const CellPoint<Real>* sorted = points_of<Real>(job, target.image);
      Slot<Real>& slot = slots[tap % 2 * (4 * kTileSide) + pair];
      slot.first = at[i];
      int count = 0;
#pragma unroll 1
      for (; at[i] < end[i]; ++at[i], ++count) {
        const CellPoint<Real> point = sorted[at[i]];
        if (point.id >= behind) break;
        if (count < Slot<Real>::kept)
          share_of<M>(job, point, target.image, pair / kTileSide, slot.line[count], slot.share[count]);
      }
      slot.count = count;
    }
  }
};

template <class M, int Rows>
__global__ void __launch_bounds__(kGemmThreadsOf<Rows>, kResident<M, Rows>)
    input_gradient_kernel(const __grid_constant__ InputGradient job) {
  using Real = typename M::Real;
  HIDA_DYNAMIC_SHARED(char, shared);
  auto* slots = reinterpret_cast<Slot<Real>*>(shared + kTileBytes<M, Rows>);
  auto* targets = reinterpret_cast<Target*>(slots + 8 * kTileSide);
  const int channel0 = int(blockIdx.x % job.in_tiles) * Rows, rest = int(blockIdx.x / job.in_tiles);
  const int piece = job.deformable * job.per_deformable + rest % job.per_deformable, group = piece / job.per_group;
  const int64_t pixel0 = int64_t(rest / job.per_deformable) * kTileSide;
  const int chunks = (job.outputs + kDepth<M> - 1) / kDepth<M>;  // of a tap
  const int w = int(job.d.in.w), plane = int(job.d.in.h) * w;
  if (threadIdx.x < kTileSide) {
    const int64_t image = (pixel0 + threadIdx.x) / plane;
    const int pixel = int(pixel0 + threadIdx.x - image * plane), row = pixel / w;
    targets[threadIdx.x] = {image < job.images ? int(image) : -1, row, pixel - row * w};
  }
  __syncthreads();
  Walk<M, Rows> walk(job, targets);
  InputWeights<M> weights{job,      piece % job.per_group, int64_t(group) * job.outputs,
                          channel0, job.padded - channel0, chunks};
  Gathered<M> gathered{job, static_cast<const typename M::Bits*>(job.grad.data) + int64_t(group) * job.grad_padded,
                       slots, targets, chunks};
  GemmTile<M, true, false, Rows> tile;
  tile.clear();
  multiply(tile, shared, 0, job.taps * chunks, weights, gathered, [&](int chunk) {
    if (chunk % chunks == 0) walk.next(job, targets, chunk / chunks, slots);
  });
  const Real* result = spread(tile, shared);
  const bool last = job.d.dx.c == 1;  // channels last: write across channels
  for (int i = int(threadIdx.x); i < Rows * kTileSide; i += kGemmThreadsOf<Rows>) {
    const int row = last ? i % Rows : i / kTileSide, line = last ? i / Rows : i % kTileSide, c = channel0 + row;
    const Target& target = targets[line];
    if (target.image < 0 || c >= job.piece) continue;
    write_as(job.d.dx.data, job.d.dx.dtype,
             index_in(job.d.dx, job.first + target.image, int64_t(piece) * job.piece + c, target.row, target.column),
             result[row * kResultPitch<M> + line]);
  }
}

template <class M, int Rows>
void launch_rows(InputGradient& job, int64_t tiles, const Launch& l) {
  job.in_tiles = int(over(job.padded, Rows));
  constexpr size_t shared =
      kTileBytes<M, Rows> + 8 * kTileSide * sizeof(Slot<typename M::Real>) + kTileSide * sizeof(Target);
  launch(input_gradient_kernel<M, Rows>, grid_of(tiles * job.in_tiles), kGemmThreadsOf<Rows>, shared, l, job);
}

}  // namespace

template <class M>
void add_input_gradient(const Job& base, const CellLists& lists, const Launch& l) {
  InputGradient job;
  static_cast<Job&>(job) = base;
  job.lists = lists;
  job.cells = int(cells_of(base.d));
  job.points = int(base.taps * base.d.out.pixels());
  job.images = base.pixels / base.d.out.pixels();
  const int64_t tiles = over(job.images * base.d.in.pixels(), kTileSide) * job.per_deformable;
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

#define HIDA_INSTANTIATE(M) template void add_input_gradient<M>(const Job&, const CellLists&, const Launch&);
HIDA_FOR_NUMBERS(HIDA_INSTANTIATE)

}  // namespace cuda
}  // namespace hida
