// deform_conv2d, backward: dW[o][c][tap] = Σ_p dy[o][p]·column[p][c] of each tap.
//
// Rows C_out, columns channels of one tap, depth the pixels: both operands are stored by depth, channels last. The
// columns are gathered again, C_out/128 times (float: C_out/64). Blocks share the pixels between them, and
// the images at work come one lot after the other: partial sums are added in order, the same bits every time.
// Traffic: x, dy, offsets and mask read once, and the partial sums. Share of the floor: not measured.
#include "deform_launch.h"

namespace hida {
namespace cuda {
namespace {

struct WeightGradient : Job {
  void* out;  // Real (splits, taps, C_out, line), sums of the images so far
  int splits, out_tiles, in_tiles;
};

// Columns and dy of a chunk's pixels, a line each; chunk after chunk.
template <class M>
struct PixelColumns : Columns<M> {
  HIDA_DEVICE void at(int) { this->now += kDepth<M>; }
};
// Rows of the tile that are none are the first ones once more: nobody asks for their sums.
template <class M>
struct PixelUpstream {
  int left;                           // vectors
  const Vec16* const* now = nullptr;  // the lines of the chunk
  HIDA_DEVICE void at(int) { now += kDepth<M>; }
  HIDA_DEVICE Vec16 vec(int line, int u) const { return load16_global(now[line] + (u < left ? u : 0)); }
};

// TF32, whose operands by depth ldmatrix cannot transpose, needs more registers.
template <class M, int Rows>
constexpr int kResidentWeights = std::is_same_v<M, Tf32> ? 2 : kResident<M, Rows>;

template <class M, int Rows>
__global__ void __launch_bounds__(kGemmThreadsOf<Rows>, kResidentWeights<M, Rows>)
    weight_gradient_kernel(const __grid_constant__ WeightGradient job) {
  using Real = typename M::Real;
  HIDA_DYNAMIC_SHARED(char, shared);
  auto* samples = reinterpret_cast<Sample<Real>*>(shared + kTileBytes<M, Rows>);
  auto* lines = reinterpret_cast<const Vec16**>(samples + (job.run + 1) * kTileSide);
  const int thread = int(threadIdx.x);
  int64_t block = int64_t(blockIdx.x);
  const auto digit = [&block](int64_t base) {
    const int64_t d = block % base;
    block /= base;
    return int(d);
  };
  const int output0 = digit(job.out_tiles) * Rows, within = digit(job.in_tiles) * kTileSide;
  const int piece = digit(job.per_group * job.d.groups), tap = digit(job.taps), split = int(block);
  const int group = piece / job.per_group, deformable = piece / job.per_deformable;

  const int64_t chunks = (job.pixels + kDepth<M> - 1) / kDepth<M>;
  const int begin = int(chunks * split / job.splits), end = int(chunks * (split + 1) / job.splits);
  PixelUpstream<M> upstream{(job.grad_padded - output0) / kPerVec<M>};
  PixelColumns<M> columns;
  auto* none = samples + job.run * kTileSide;
  columns.none = none;
  columns.end = (job.padded - within) / kPerVec<M>;
  const int rows = job.outputs - output0;
  Real* to = static_cast<Real*>(job.out) +
             ((int64_t(split) * job.taps + tap) * job.d.out.c + int64_t(group) * job.outputs + output0) * job.line() +
             piece % job.per_group * job.padded + within + thread % kTileSide;
  GemmTile<M, true, true, Rows> tile;
  tile.clear();
#pragma unroll 1
  for (int chunk = begin; chunk < end;) {
    // Samples of up to `run` times 64 pixels at once: one chunk of half numbers, several of others.
    const int most = (end - chunk) * kDepth<M>, room = job.run * kTileSide, found = most < room ? most : room;
    const int64_t pixel0 = int64_t(chunk) * kDepth<M>;
    const auto place_of_number = [&](int i) {
      const OutputPixel place = place_of(job, pixel0 + i * kTileSide + thread % kTileSide);
      return TapPlace{place, deformable, tap, piece * job.padded + within};
    };
    find_columns<M, kGemmThreadsOf<Rows>>(job, (found + kTileSide - 1) / kTileSide, place_of_number, samples, none);
    for (int i = thread; i < found; i += kGemmThreadsOf<Rows>)
      lines[i] = grad_line<M>(job, place_of(job, pixel0 + i), group * job.grad_padded + output0);
    columns.now = samples - kDepth<M>;
    upstream.now = lines - kDepth<M>;
    multiply(tile, shared, chunk, chunk + found / kDepth<M>, upstream, columns);
    chunk += found / kDepth<M>;
  }
  const Real* result = spread(tile, shared);
  if (within + thread % kTileSide >= job.padded) return;
  for (int row = thread / kTileSide; row < Rows && row < rows; row += kGemmThreadsOf<Rows> / kTileSide) {
    Real* at = to + int64_t(row) * job.line();
    const Real sum = result[row * kResultPitch<M> + thread % kTileSide];
    *at = job.first == 0 ? sum : *at + sum;
  }
}

// The blocks' sums in order, and from positions to channels: one number of dW per thread.
template <class Real>
__global__ void __launch_bounds__(kGemmThreads)
    finish_weight_kernel(const __grid_constant__ Job job, const void* sums, int splits) {
  const int64_t id = int64_t(blockIdx.x) * kGemmThreads + threadIdx.x, inputs = int64_t(job.per_group) * job.piece;
  const int64_t row = id / job.taps, tap = id - row * job.taps, o = row / inputs;
  if (o >= job.d.out.c) return;
  const int64_t c = row - o * inputs, position = c / job.piece * job.padded + c % job.piece;
  Real sum = 0;
  for (int split = 0; split < splits; ++split)
    sum +=
        static_cast<const Real*>(sums)[((int64_t(split) * job.taps + tap) * job.d.out.c + o) * job.line() + position];
  static_cast<Real*>(job.d.dweight)[id] = sum;
}

template <class M, int Rows>
void launch_rows(WeightGradient& job, int64_t blocks, const Launch& l) {
  constexpr int line = kTileSide * int(sizeof(const Vec16*));
  const int64_t chunks = over(over(job.pixels, kDepth<M>), job.splits);
  job.run = run_of<M, Rows>(over(chunks * kDepth<M>, kTileSide), line, l);
  const size_t shared = kTileBytes<M, Rows> + job.run * (bytes_of_samples<M> + line) + bytes_of_samples<M>;
  launch(weight_gradient_kernel<M, Rows>, grid_of(blocks), kGemmThreadsOf<Rows>, shared, l, job);
}

}  // namespace

// Float needs more registers than a tall tile leaves it.
int rows_of_weights(const Convolution& d, const DeformPlan& plan) {
  return d.math == Dtype::f32 ? kTileSide : plan.rows;
}

template <class M>
void add_weight_gradient(const Job& base, const DeformPlan& plan, void* sums, const Launch& l) {
  WeightGradient job;
  static_cast<Job&>(job) = base;
  const int rows = rows_of_weights(job.d, plan);
  job.out = sums;
  job.splits = int(plan.splits);
  job.out_tiles = int(over(job.outputs, rows));
  job.in_tiles = int(over(job.padded, kTileSide));
  const int64_t blocks = plan.splits * job.taps * (job.d.in.c / plan.piece) * job.in_tiles * job.out_tiles;
  if constexpr (kPerVec<M> == 8) {
    if (rows == 128) return launch_rows<M, 128>(job, blocks, l);
  }
  launch_rows<M, 64>(job, blocks, l);
}

template <class M>
void finish_weight_gradient(const Job& job, const DeformPlan& plan, const void* sums, const Launch& l) {
  const int64_t numbers = job.d.out.c * (job.d.in.c / job.d.groups) * job.taps;
  launch(finish_weight_kernel<typename M::Real>, grid_of(over(numbers, kGemmThreads)), kGemmThreads, 0, l, job, sums,
         int(plan.splits));
}

#define HIDA_INSTANTIATE(M)                                                                  \
  template void add_weight_gradient<M>(const Job&, const DeformPlan&, void*, const Launch&); \
  template void finish_weight_gradient<M>(const Job&, const DeformPlan&, const void*, const Launch&);
HIDA_FOR_NUMBERS(HIDA_INSTANTIATE)

}  // namespace cuda
}  // namespace hida
