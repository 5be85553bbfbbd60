// deform_conv2d, backward, on large maps. No floating-point atomics: the same bits every time.
//
// Gradients of offsets and mask (here): the columns' gradient, G[p][c] = mask·Σ_o W[o][c][tap]·dy[o][p], is made 64
// pixels × 64 channels of a tap at a time, and meets the corners of its sampling points while in shared memory. It is
// never written out. dx is a product of its own, from dy (deform_conv_grad_input.cu); so is dW
// (deform_conv_grad_weight.cu). Images are done a few at a time (aim_of). Traffic: x, dy, offsets and mask read once,
// twice that where x and dy have to be rearranged, dx, doffset, dmask written once; corners come from the second-level
// cache. Share of the floor: not measured.
#include "deform_launch.h"

namespace hida {
namespace cuda {
namespace {

// dy of some pixels, a line each.
template <class M>
struct Upstream {
  const int64_t* lines;  // where the tile's pixels begin; −1: none
  const typename M::Bits* from;
  int outputs, position = 0;
  HIDA_DEVICE void at(int chunk) { position = chunk * kDepth<M>; }
  HIDA_DEVICE Vec16 vec(int line, int u) const {
    const int o = position + u * kPerVec<M>;
    if (o >= outputs || lines[line] < 0) return Vec16{};
    return load16(from + lines[line] + o);
  }
};

// Weights of one tap, a line for each output channel.
template <class M>
struct TapWeights {
  const typename M::Bits* from;
  int line, outputs, left, output = 0;
  HIDA_DEVICE void at(int chunk) { output = chunk * kDepth<M>; }
  HIDA_DEVICE Vec16 vec(int o, int u) const {
    if (output + o >= outputs || u * kPerVec<M> >= left) return Vec16{};
    return load16(from + int64_t(output + o) * line + u * kPerVec<M>);
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
__global__ void __launch_bounds__(kGemmThreads, kResident<M>) sample_gradient_kernel(const __grid_constant__ Job job) {
  using Real = typename M::Real;
  constexpr int V = kPerVec<M>, across = kTileSide / V;  // lanes that share a pixel
  HIDA_DYNAMIC_SHARED(char, shared);
  auto* lines = reinterpret_cast<int64_t*>(shared + kTileBytes<M>);
  auto* samples = reinterpret_cast<Sample<Real>*>(lines + kTileSide);
  auto* sums = reinterpret_cast<Real*>(samples + kTileSide);
  const int thread = int(threadIdx.x), tap = int(blockIdx.x % job.taps), rest = int(blockIdx.x / job.taps);
  const int deformable = rest % int(job.d.deformable);
  const int64_t pixel0 = int64_t(rest / int(job.d.deformable)) * kTileSide;
  const OutputPixel place = place_of(job, pixel0 + thread % kTileSide);
  if (thread < kTileSide) {
    samples[thread] = find_sample<Real>(job, deformable, tap, place);
    lines[thread] = line_of(job.grad, place);
#pragma unroll
    for (int i = 0; i < 3; ++i) sums[i * kTileSide + thread] = 0;
  }
  __syncthreads();
#pragma unroll 1
  for (int piece = deformable * job.per_deformable; piece < (deformable + 1) * job.per_deformable; ++piece) {
    const int group = piece / job.per_group;
    const auto* grad = static_cast<const typename M::Bits*>(job.grad.data) + int64_t(group) * job.grad_padded;
    const auto* weight = static_cast<const typename M::Bits*>(job.weight) +
                         (tap * job.d.out.c + int64_t(group) * job.outputs) * job.line() +
                         piece % job.per_group * job.padded;
#pragma unroll 1
    for (int from = 0; from < job.padded; from += kTileSide) {
      const int left = job.padded - from < kTileSide ? job.padded - from : kTileSide;
      Upstream<M> upstream{lines, grad, job.outputs};
      TapWeights<M> weights{weight + from, job.line(), job.outputs, left};
      GemmTile<M, false, true> tile;
      tile.clear();
      multiply(tile, shared, 0, (job.outputs + kDepth<M> - 1) / kDepth<M>, upstream, weights, [](int) {});
      const Real* result = spread(tile, shared);
#pragma unroll 1
      for (int pixel = thread / across; pixel < kTileSide; pixel += kGemmThreads / across) {
        const Sample<Real>& s = samples[pixel];
        const int u = thread % across;
        Real to_row = 0, to_column = 0, to_mask = 0;
        if (u * V < left && pixel0 + pixel < job.pixels) {
          Vec16 vec[4];
          load_corners<M>(job.x, s, piece * job.padded + from + u * V, vec);
          Real v[4][V], share[4];
#pragma unroll
          for (int corner = 0; corner < 4; ++corner) unpack<M>(vec[corner], v[corner]);
          shares_of(s.down, s.right, share);
#pragma unroll
          for (int i = 0; i < V; ++i) {
            const Real a = v[0][i], b = v[1][i], c = v[2][i], d = v[3][i];
            const Real g = result[pixel * kResultPitch<M> + u * V + i], masked = g * s.mask;
            to_mask += g * (share[0] * a + share[1] * b + share[2] * c + share[3] * d);
            to_row += masked * ((c - a) * (1 - s.right) + (d - b) * s.right);
            to_column += masked * ((b - a) * (1 - s.down) + (d - c) * s.down);
          }
        }
        to_row = lanes_sum<across>(to_row);
        to_column = lanes_sum<across>(to_column);
        to_mask = lanes_sum<across>(to_mask);
        if (u == 0) {
          sums[pixel] += to_row;
          sums[kTileSide + pixel] += to_column;
          sums[2 * kTileSide + pixel] += to_mask;
        }
      }
      __syncthreads();
    }
  }
  if (thread >= kTileSide || !place.exists) return;
  const int64_t n = job.first + place.n, k = int64_t(deformable) * job.taps + tap;
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    const Image& to = i < 2 ? job.d.doffset : job.d.dmask;
    if (to.data)
      write_as(to.data, to.dtype, index_in(to, n, i < 2 ? 2 * k + i : k, place.row, place.column),
               sums[i * kTileSide + thread]);
  }
}

template <class M>
void sample_gradients(const Job& job, const Launch& l) {
  constexpr size_t shared =
      kTileBytes<M> + kTileSide * (sizeof(int64_t) + sizeof(Sample<typename M::Real>) + 3 * sizeof(typename M::Real));
  const int64_t blocks = over(job.pixels, kTileSide) * job.taps * job.d.deformable;
  launch(sample_gradient_kernel<M>, grid_of(blocks), kGemmThreads, shared, l, job);
}

struct BackwardMemory {
  void *x, *grad, *weight, *weights;
  CellLists lists;
};

bool wants_samples(const Convolution& d) {
  return d.doffset.data != nullptr || d.dmask.data != nullptr;
}

BackwardMemory take_backward(Arena& arena, const Convolution& d, const DeformPlan& plan) {
  const int64_t weight = bytes_of_weight(d, plan);
  BackwardMemory m{};
  if (plan.pack_x && (wants_samples(d) || d.dweight)) m.x = arena.take<char>(bytes_of_x(d, plan, plan.images));
  if (plan.pack_grad) m.grad = arena.take<char>(bytes_of_grad(d, plan, plan.images));
  if (d.dx.data || wants_samples(d)) m.weight = arena.take<char>(weight);
  if (d.dx.data) m.lists = take_lists(arena, d, plan.images);
  if (d.dweight) m.weights = arena.take<char>(plan.splits * weight / size_of(d.math) * (d.wide ? 8 : 4));
  return m;
}

}  // namespace

DeformPlan plan_backward(const Convolution& d, const Launch& l, const Choice& choice) {
  DeformPlan plan = plan_forward(d, l, choice);
  if (plan.tiny) {
    plan.bytes = tiny_bytes(d, plan, true);
    return plan;
  }
  const int64_t plane = d.out.pixels(), taps = d.taps(), pieces = d.in.c / plan.piece, aim = aim_of(d, choice);
  const auto used = [&](int64_t images) {
    plan.images = images;
    Arena arena(nullptr);
    take_backward(arena, d, plan);
    return arena.used();
  };
  // Blocks share the pixels of dW, if their sums leave room for images.
  const int64_t blocks =
      taps * pieces * over(plan.padded, kTileSide) * over(d.out.c / d.groups, rows_of_weights(d, plan));
  const int64_t sums = bytes_of_weight(d, plan) / size_of(d.math) * (d.wide ? 8 : 4);
  plan.splits = std::max<int64_t>(1, std::min(over(2 * l.multiprocessors, blocks), aim / 4 / sums));
  const int64_t one = used(1), each = std::max<int64_t>(used(2) - one, 1);
  const int64_t most = std::min(d.in.n, (int64_t(1) << 31) / std::max(plane * taps, d.in.pixels()) - 1);
  const int64_t images = std::max<int64_t>(1, std::min(most, 1 + (aim - one) / each));
  plan.images = over(d.in.n, over(d.in.n, images));
  plan.splits = std::max<int64_t>(1, std::min(plan.splits, over(plan.images * plane, 128 / size_of(d.math)) / 8));
  plan.bytes = used(plan.images);
  return plan;
}

void deform_backward(const Convolution& d, const DeformPlan& plan, void* workspace, const Launch& l) {
  if (plan.tiny) return tiny_backward(d, plan, workspace, l);
  Arena arena(workspace);
  const BackwardMemory m = take_backward(arena, d, plan);
  with_math(d, [&](auto math) {
    using M = decltype(math);
    Job job = start_job(d, plan);
    job.weight = m.weight;
    if (m.weight) pack_weight<Stored<M>>(job, m.weight, l);
    for_lots(job, plan, [&](int64_t count) {
      if (wants_samples(d) || d.dweight)
        job.x = lines_of<Stored<M>>(d.x, d.in, job.first, count, plan.piece, plan.padded, m.x, l);
      job.grad = lines_of<Stored<M>>(d.grad, d.out, job.first, count, job.outputs, plan.grad_padded, m.grad, l);
      if (wants_samples(d)) sample_gradients<M>(job, l);
      if (d.dx.data) add_input_gradient<M>(job, m.lists, l);
      if (d.dweight) add_weight_gradient<M>(job, plan, m.weights, l);
    });
    if (d.dweight) finish_weight_gradient<M>(job, plan, m.weights, l);
  });
}

}  // namespace cuda
}  // namespace hida
