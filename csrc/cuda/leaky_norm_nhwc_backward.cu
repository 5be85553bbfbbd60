// leaky_norm, backward, in the usual channels_last case. The formula and the paths: leaky_norm_nhwc.h.
// Traffic: 3n (read grad, x; write dx).
// Share of the floor: not measured.
#include "leaky_norm_nhwc.h"

namespace hida {
namespace cuda {
namespace nhwc {
namespace {

// Pixels that a thread has in flight at a time: four loads of 16 bytes.
template <Dtype D>
constexpr unsigned kReading = D == Dtype::f32 ? 1 : 2;
// Blocks that a multiprocessor has at a time.
constexpr unsigned kResident = 3;

// The operands of a pack of channels of some pixels.
template <Dtype D>
struct Operands {
  Eight<D> x, grad;
};

// What the gradient is made of: d, and how far f is off its mean, which has the sign of x̂.
struct Derived {
  float off[8], d[8];

  template <Dtype D>
  HIDA_DEVICE Derived(const Operands<D>& packs, float before, float after, const float (&mean)[8], float (&x)[8]) {
    packs.x.unpack(x);
    packs.grad.unpack(d);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      off[k] = leaky(x[k], x[k], before) - mean[k];
      d[k] = leaky(off[k], d[k], after);
    }
  }
};

// The sums of d and of d·(f − μ) of the thread's pixels.
template <Dtype D>
HIDA_DEVICE void sums_of_d(const View<D>& x, const View<D>& grad, const ThreadWork& p, float before, float after,
                           const float (&mean)[8], float (&sums)[2][8]) {
  for (unsigned pixel = p.first; p.has(pixel); pixel += kReading<D> * p.lanes) {
    Operands<D> packs[kReading<D>];
#pragma unroll
    for (unsigned u = 0; u < kReading<D>; ++u) {
      const unsigned at = p.has(pixel + u * p.lanes) ? pixel + u * p.lanes : pixel;
      packs[u] = {x.read(at), grad.read(at)};
    }
#pragma unroll
    for (unsigned u = 0; u < kReading<D>; ++u) {
      const bool has = p.has(pixel + u * p.lanes);  // no branch, behind which the loads would be moved
      float v[8];
      const Derived of(packs[u], before, after, mean, v);
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const float d = has ? of.d[k] : 0.0f;
        sums[0][k] += d;
        sums[1][k] += d * of.off[k];
      }
    }
  }
}

// dx of the block's pixels, from the two sums.
template <Dtype D>
HIDA_DEVICE void gradients(const LeakyNorm& a, const View<D>& x, const View<D>& grad, const Tiling& m,
                           const ThreadWork& p, float before, float after, const float (&mean)[8], float (&mean_d)[8],
                           float (&mean_dx)[8]) {
  float rstd[8] = {};
  if (p.valid) read_eight(a.rstd, m, p, rstd);
  const float share = 1 / float(m.pixels);
#pragma unroll
  for (int k = 0; k < 8; ++k) mean_d[k] *= share, mean_dx[k] *= share * rstd[k];
  const View<D> dx(a.dx, p);
  // Backwards, as forward does.
  for (unsigned left = p.count(); left > 0; left = left > kReading<D> ? left - kReading<D> : 0) {
    Operands<D> packs[kReading<D>];
    unsigned at[kReading<D>];
#pragma unroll
    for (unsigned u = 0; u < kReading<D>; ++u) {
      at[u] = p.first + (left - 1 - (u < left ? u : 0)) * p.lanes;
      packs[u] = {x.read_last(at[u]), grad.read_last(at[u])};
    }
#pragma unroll
    for (unsigned u = 0; u < kReading<D>; ++u) {
      float v[8];
      const Derived of(packs[u], before, after, mean, v);
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const float df = normalise_gradient(of.d[k], of.off[k] * rstd[k], mean_d[k], mean_dx[k], rstd[k]);
        v[k] = leaky(v[k], df, before);
      }
      dx.write(at[u], v);
    }
  }
}

// Planes of few pixels: a block has some channels of one as a whole.
template <Dtype D>
__global__ void __launch_bounds__(kNormThreads, kResident)
    whole(const __grid_constant__ LeakyNorm a, const __grid_constant__ Tiling m, float before, float after) {
  HIDA_DYNAMIC_SHARED(float, memory);
  const Shared s(memory, m);
  const ThreadWork p(m);
  const View<D> x(a.x, p), grad(a.grad, p);
  float mean[8] = {}, mean_d[8], mean_dx[8], sums[2][8] = {};
  if (p.valid) read_eight(a.mean, m, p, mean);
  sums_of_d(x, grad, p, before, after, mean, sums);
  tell_sums(sums, m, p, s, mean_d, mean_dx);
  gradients(a, x, grad, m, p, before, after, mean, mean_d, mean_dx);
}

// Planes of more, in chunks. means: (N, chunks, 2, C).
template <Dtype D>
__global__ void __launch_bounds__(kNormThreads, kResident)
    first_sweep(const __grid_constant__ LeakyNorm a, const __grid_constant__ Tiling m, float before, float after,
                float* means) {
  HIDA_DYNAMIC_SHARED(float, memory);
  const Shared s(memory, m);
  const ThreadWork p(m);
  float mean[8] = {}, sums[2][8] = {};
  if (p.valid) read_eight(a.mean, m, p, mean);
  sums_of_d(View<D>(a.x, p), View<D>(a.grad, p), p, before, after, mean, sums);
  write_sums(sums, m, p, s, means);
}
template <Dtype D>
__global__ void __launch_bounds__(kNormThreads, kResident)
    second_sweep(const __grid_constant__ LeakyNorm a, const __grid_constant__ Tiling m, float before, float after,
                 float* means) {
  HIDA_DYNAMIC_SHARED(float, memory);
  const Shared s(memory, m);
  const ThreadWork p(m, true);
  float mean[8] = {}, mean_d[8], mean_dx[8];
  if (p.valid) read_eight(a.mean, m, p, mean);
  tell_sums(means, m, p, s, mean_d, mean_dx);
  gradients(a, View<D>(a.x, p), View<D>(a.grad, p), m, p, before, after, mean, mean_d, mean_dx);
}

}  // namespace
}  // namespace nhwc

int64_t leaky_norm_backward_workspace(const LeakyNorm& a, const Launch& l) {
  const nhwc::Tiling m = nhwc::tiling_for(a, l);
  return m.chunks > 1 ? 2 * a.extent.n * a.extent.c * m.chunks : 0;
}

void leaky_norm_backward(const LeakyNorm& a, void* workspace, const Launch& l) {
  using namespace nhwc;
  const Tiling m = tiling_for(a, l);
  const float before = float(a.before), after = float(a.after);
  float* const means = static_cast<float*>(workspace);
  with_dtype(a.x.dtype, [&](auto d) {
    constexpr Dtype D = decltype(d)::value;
    if (m.chunks == 1) return run(whole<D>, m, shared_of(m), l, a, m, before, after);
    run(first_sweep<D>, m, shared_of(m), l, a, m, before, after, means);
    run(second_sweep<D>, m, shared_of(m), l, a, m, before, after, means);
  });
}

}  // namespace cuda
}  // namespace hida
