// deform_conv2d, backward, on large maps, in three steps. No floating-point atomics: the same bits every time.
//
// 1. The columns' gradient, G[p][c] = mask·Σ_o W[o][c][tap]·dy[o][p], 64 pixels × 64 channels of a tap at a time. While
//    it is in shared memory it meets the corners of its sampling points: the gradients of offsets and mask. Where dx
//    is wanted it is also written, for a few images and channels at a time (Choice::budget).
// 2. dx, gathered: deform_conv_gather.cu.
// 3. dW: deform_conv_weight.cu.
// Traffic: forward's, and 2·taps·n of G, in the dtype of x, where dx is wanted; what is in the second-level cache is
// no traffic of memory. Share of the floor: not measured.
#include "deform_sampling.h"

namespace hida {
namespace cuda {
namespace {

struct ColumnGradient : Job {
  int chunk_piece, position, width;  // channels [position, position + width) of a piece
  void* out;                         // (taps, pixels, width); null: not wanted
  void* sums;         // Real (3, taps, pixels): row, column, mask, of the pieces so far; null: not wanted
  bool begins, ends;  // the first, the last of its deformable group
};

// dy of some pixels, a line each.
template <class M>
struct Upstream {
  const int64_t* lines;  // where the tile's pixels begin; −1: none
  const typename M::Bits* from;
  int outputs, position = 0;
  HIDA_DEVICE void at(int chunk) { position = chunk * kDepth<M>; }
  HIDA_DEVICE Unit unit(int line, int u) const {
    const int o = position + u * kUnit<M>;
    if (o >= outputs || lines[line] < 0) return Unit{};
    return load_unit(from + lines[line] + o);
  }
};

// Weights of one tap, a line for each output channel.
template <class M>
struct TapWeights {
  const typename M::Bits* from;
  int line, outputs, left, output = 0;
  HIDA_DEVICE void at(int chunk) { output = chunk * kDepth<M>; }
  HIDA_DEVICE Unit unit(int o, int u) const {
    if (output + o >= outputs || u * kUnit<M> >= left) return Unit{};
    return load_unit(from + int64_t(output + o) * line + u * kUnit<M>);
  }
};

// Adds up over the `Width` neighbouring lanes that share a pixel.
template <int Width, class Real>
HIDA_DEVICE Real lanes_sum(Real x) {
#pragma unroll
  for (int bits = Width / 2; bits > 0; bits /= 2) x += __shfl_xor_sync(kAll, x, bits);
  return x;
}

template <class M>
__global__ void __launch_bounds__(kThreads, kResident<M>) column_gradient_kernel(ColumnGradient job) {
  using Real = typename M::Real;
  constexpr int V = kUnit<M>, across = kTile64 / V;  // lanes that share a pixel
  HIDA_DYNAMIC_SHARED(char, shared);
  auto* lines = reinterpret_cast<int64_t*>(shared + kTileBytes<M>);
  auto* samples = reinterpret_cast<Sample<Real>*>(lines + kTile64);
  auto* sums = reinterpret_cast<Real*>(samples + kTile64);
  const int thread = int(threadIdx.x), tap = int(blockIdx.x % job.taps);
  const int64_t pixel0 = int64_t(blockIdx.x / job.taps) * kTile64;
  const int group = job.chunk_piece / job.per_group, deformable = job.chunk_piece / job.per_deformable;
  const Place place = place_of(job, pixel0 + thread % kTile64);
  if (thread < kTile64) {
    samples[thread] = find_sample<Real>(job, deformable, tap, place);
    lines[thread] = line_of(job.grad, place);
#pragma unroll
    for (int i = 0; i < 3; ++i) sums[i * kTile64 + thread] = 0;
  }
  __syncthreads();
  const auto* grad = static_cast<const typename M::Bits*>(job.grad.data) + int64_t(group) * job.grad_padded;
  const auto* weight = static_cast<const typename M::Bits*>(job.weight) +
                       (tap * job.d.out.c + int64_t(group) * job.outputs) * job.line() +
                       job.chunk_piece % job.per_group * job.padded;
  for (int from = 0; from < job.width; from += kTile64) {
    const int left = job.width - from < kTile64 ? job.width - from : kTile64;
    Upstream<M> upstream{lines, grad, job.outputs};
    TapWeights<M> weights{weight + job.position + from, job.line(), job.outputs, left};
    Tile<M, false, true> tile;
    tile.clear();
    multiply(tile, shared, 0, (job.outputs + kDepth<M> - 1) / kDepth<M>, upstream, weights, [](int) {});
    const Real* result = spread(tile, shared);
#pragma unroll 1
    for (int pixel = thread / across; pixel < kTile64; pixel += kThreads / across) {
      const Sample<Real>& s = samples[pixel];
      const int u = thread % across;
      const bool is = u * V < left && pixel0 + pixel < job.pixels;
      Real g[V], v[4][V], to_row = 0, to_column = 0, to_mask = 0;
      if (is) {
#pragma unroll
        for (int i = 0; i < V; ++i) g[i] = result[pixel * kResultPitch<M> + u * V + i];
        if (job.sums) {
          Unit unit[4];
          load_corners<M>(job.x, s, job.chunk_piece * job.padded + job.position + from + u * V, unit);
#pragma unroll
          for (int corner = 0; corner < 4; ++corner) unpack<M>(unit[corner], v[corner]);
          Real share[4];
          shares_of(s.down, s.right, share);
#pragma unroll
          for (int i = 0; i < V; ++i) {
            const Real a = v[0][i], b = v[1][i], c = v[2][i], d = v[3][i], masked = g[i] * s.mask;
            to_mask += g[i] * (share[0] * a + share[1] * b + share[2] * c + share[3] * d);
            to_row += masked * ((c - a) * (1 - s.right) + (d - b) * s.right);
            to_column += masked * ((b - a) * (1 - s.down) + (d - c) * s.down);
          }
        }
        if (job.out) {
#pragma unroll
          for (int i = 0; i < V; ++i) g[i] *= s.mask;
          store_unit(
              static_cast<typename M::Bits*>(job.out) + (tap * job.pixels + pixel0 + pixel) * job.width + from + u * V,
              pack<M>(g));
        }
      }
      if (job.sums) {
        to_row = lanes_sum<across>(to_row);
        to_column = lanes_sum<across>(to_column);
        to_mask = lanes_sum<across>(to_mask);
        if (u == 0) {
          sums[pixel] += to_row;
          sums[kTile64 + pixel] += to_column;
          sums[2 * kTile64 + pixel] += to_mask;
        }
      }
    }
    __syncthreads();
  }
  if (!job.sums || thread >= kTile64 || !place.exists) return;
  const int64_t n = job.first + place.n, k = int64_t(deformable) * job.taps + tap;
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    Real* sofar = static_cast<Real*>(job.sums) + (int64_t(i) * job.taps + tap) * job.pixels + pixel0 + thread;
    const Real sum = sums[i * kTile64 + thread] + (job.begins ? Real(0) : *sofar);
    const Image& to = i < 2 ? job.d.doffset : job.d.dmask;
    if (!job.ends)
      *sofar = sum;
    else if (to.data)
      write_as(to.data, to.dtype, index_in(to, n, i < 2 ? 2 * k + i : k, place.row, place.column), sum);
  }
}

struct BackwardMemory {
  void *x, *grad, *weight, *columns, *sums, *weights;
  Lists lists;
};

bool wants_samples(const Convolution& d) {
  return d.doffset.data != nullptr || d.dmask.data != nullptr;
}

BackwardMemory take_backward(Arena& arena, const Convolution& d, const Plan& plan) {
  const int64_t size = d.math == Dtype::f64 ? 8 : d.math == Dtype::f32 ? 4 : 2, real = d.wide ? 8 : 4;
  const int64_t pieces = d.in.c / plan.piece, taps = d.taps(), pixels = plan.images * d.out.pixels();
  const int64_t line = taps * d.out.c * (pieces / d.groups) * plan.padded;
  BackwardMemory m{};
  if (plan.pack_x) m.x = arena.take<char>(plan.images * d.in.pixels() * pieces * plan.padded * size);
  if (plan.pack_grad) m.grad = arena.take<char>(pixels * d.groups * plan.grad_padded * size);
  if (d.dx.data || wants_samples(d)) m.weight = arena.take<char>(line * size);
  if (d.dx.data) {
    m.columns = arena.take<char>(taps * pixels * plan.width * size);
    m.lists = take_lists(arena, d, plan.images);
  }
  if (wants_samples(d)) m.sums = arena.take<char>(3 * taps * pixels * real);
  if (d.dweight) m.weights = arena.take<char>(plan.splits * line * real);
  return m;
}

template <class M>
void samples_backward(const Job& base, const Plan& plan, const BackwardMemory& m, const Launch& l) {
  const Convolution& d = base.d;
  ColumnGradient job;
  static_cast<Job&>(job) = base;
  job.out = m.columns;
  job.sums = m.sums;
  constexpr size_t shared =
      kTileBytes<M> + kTile64 * (sizeof(int64_t) + sizeof(Sample<typename M::Real>) + 3 * sizeof(typename M::Real));
  const int64_t blocks = over(job.pixels, kTile64) * job.taps;
  for (int deformable = 0; deformable < int(d.deformable); ++deformable) {
    if (d.dx.data) sort_points<Stored<M>>(job, deformable, m.lists, l);
    for (int piece = 0; piece < job.per_deformable; ++piece) {
      job.chunk_piece = deformable * job.per_deformable + piece;
      for (job.position = 0; job.position < job.padded; job.position += job.width) {
        job.width = int(std::min<int64_t>(plan.width, job.padded - job.position));
        job.begins = piece == 0 && job.position == 0;
        job.ends = piece + 1 == job.per_deformable && job.position + job.width >= job.padded;
        launch(column_gradient_kernel<M>, grid_of(blocks), kThreads, shared, l, job);
        if (d.dx.data)
          gather_input_gradient<Stored<M>>(job, m.lists, job.out, job.chunk_piece, job.position, job.width, l);
      }
    }
  }
}

}  // namespace

Plan plan_backward(const Convolution& d, const Launch& l, const Choice& choice) {
  Plan plan = plan_forward(d, l, choice);
  if (plan.tiny) {
    plan.bytes = tiny_bytes(d, plan, true);
    return plan;
  }
  const int64_t size = d.math == Dtype::f64 ? 8 : d.math == Dtype::f32 ? 4 : 2;
  const int64_t plane = d.out.pixels(), taps = d.taps(), pieces = d.in.c / plan.piece;
  const auto used = [&] {
    Arena arena(nullptr);
    take_backward(arena, d, plan);
    return arena.used();
  };
  // As many channels at a time as one image leaves room for, then as many images.
  plan.images = plan.splits = 1;
  plan.width = plan.padded;
  while (plan.width > kTile64 && used() > choice.budget) plan.width = padded_to(plan.width / 2, kTile64);
  const int64_t fixed = taps * d.out.c * (pieces / d.groups) * plan.padded * (size + (d.wide ? 8 : 4));
  const int64_t each = std::max<int64_t>(used() - fixed, 1);
  plan.images = std::max<int64_t>(1, std::min(d.in.n, choice.budget / each));
  plan.images = std::max<int64_t>(1, std::min(plan.images, (int64_t(1) << 31) / (plane * taps) - 1));
  plan.images = over(d.in.n, over(d.in.n, plan.images));
  const int64_t blocks =
      taps * pieces * over(plan.padded, kTile64) * over(d.out.c / d.groups, rows_of_weights(d, plan));
  const int64_t chunks = over(plan.images * plane, 128 / size);
  const int64_t most = std::max<int64_t>(1, choice.budget / 2 / std::max<int64_t>(fixed, 1));
  plan.splits = std::max<int64_t>(1, std::min({over(2 * l.multiprocessors, blocks), chunks / 8, most}));
  plan.bytes = used();
  return plan;
}

void deform_backward(const Convolution& d, const Plan& plan, void* workspace, const Launch& l) {
  if (plan.tiny) return tiny_backward(d, plan, workspace, l);
  Arena arena(workspace);
  const BackwardMemory m = take_backward(arena, d, plan);
  with_math(d, [&](auto math) {
    using M = decltype(math);
    Job job = start_job(d, plan);
    job.weight = m.weight;
    if (m.weight) pack_weight<Stored<M>>(job, m.weight, l);
    const int64_t positions = d.in.c / plan.piece * plan.padded, upstream = d.groups * plan.grad_padded;
    for (job.first = 0; job.first < d.in.n; job.first += plan.images) {
      const int64_t count = std::min(plan.images, d.in.n - job.first);
      job.pixels = count * d.out.pixels();
      if (plan.pack_x) {
        pack_lines<Stored<M>>(d.x, d.in, job.first, count, plan.piece, plan.padded, m.x, l);
        job.x = {m.x, d.in.pixels() * positions, d.in.w * positions, positions};
      } else {
        job.x = {static_cast<const typename M::Bits*>(d.x.data) + job.first * d.x.n, d.x.n, d.x.row, d.x.step};
      }
      if (plan.pack_grad) {
        pack_lines<Stored<M>>(d.grad, d.out, job.first, count, job.outputs, plan.grad_padded, m.grad, l);
        job.grad = {m.grad, d.out.pixels() * upstream, d.out.w * upstream, upstream};
      } else {
        job.grad = {static_cast<const typename M::Bits*>(d.grad.data) + job.first * d.grad.n, d.grad.n, d.grad.row,
                    d.grad.step};
      }
      if (m.weight) samples_backward<M>(job, plan, m, l);
      if (d.dweight) add_weight_gradient<M>(job, plan, m.weights, l);
    }
    if (d.dweight) finish_weight_gradient<M>(job, plan, m.weights, l);
  });
}

}  // namespace cuda
}  // namespace hida
