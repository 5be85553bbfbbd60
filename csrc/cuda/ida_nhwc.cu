// ida and instance_norm_modulate, forward, in the usual channels_last case (nhwc.h).
// Traffic: 5n (read x, logits, γ, β; write y), n more for a residual of its own; x and logits are read twice:
//   up to 1024 pixels   a block has some channels of a plane as a whole, and reads again from the first-level cache; γ
//                       and β are on their way to the second-level cache meanwhile.
//   more                two kernels: statistics of chunks first, y second. 7n; the second begins with the chunks that
//                       were read last, so that it has from the second-level cache what that holds of x and logits.
//                       (Blocks of a cluster, of a plane each, took 24 to 29 % longer; one kernel, in which the images
//                       took turns and y was made of what the cache still had, 21 and 31 % longer.)
// What is read for the last time is marked as not wanted any more, and read backwards, so that caches have more of it.
// f is computed twice: 14 instructions per element cost less than its bytes. Statistics: moments.h. Always the same
// order, no atomics. Share of the floor (ida, bfloat16, 16 images): 58 % for 64 channels of 128×128 on an H100, 58 %
// for 128 of 64×64; 50 and 50 % on an H200 (when both sweeps were of one kernel); instance_norm_modulate: not measured.
#include "moments.h"

namespace hida {
namespace cuda {
namespace nhwc {
namespace {

// Packs of a tensor that a thread has in flight at a time.
template <Dtype D>
constexpr unsigned kReading = D == Dtype::f32 ? 2 : 4;
template <Dtype D>
constexpr unsigned kWriting = D == Dtype::f32 ? 1 : 2;

// Of the thread's pixels.
template <Dtype D, Logits L>
HIDA_DEVICE Moments moments(const View<D>& x, const View<D>& logits, const Slopes<D, L>& slopes, const ThreadWork& p) {
  Moments own;
  for (unsigned pixel = p.first; p.has(pixel); pixel += kReading<D> * p.lanes) {
    Eight<D> x_packs[kReading<D>], packs[kReading<D>];
#pragma unroll
    for (unsigned u = 0; u < kReading<D>; ++u) {
      const unsigned at = p.has(pixel + u * p.lanes) ? pixel + u * p.lanes : pixel;
      x_packs[u] = x.read(at);
      if (L == Logits::whole) packs[u] = logits.read(at);
    }
#pragma unroll
    for (unsigned u = 0; u < kReading<D>; ++u) {
      float f[8];
      slopes.value(x_packs[u], packs[u], f);
      own.add(f, u == 0, p.has(pixel + u * p.lanes));
    }
  }
  return own;
}

// y of the block's pixels, with the mean in two floats.
template <Dtype D, Logits L>
HIDA_DEVICE void apply(const Adapt& a, const View<D>& x, const View<D>& logits, const Slopes<D, L>& slopes,
                       const Tiling& m, const ThreadWork& p, float (&mean)[8], const float (&rest)[8],
                       const float (&rstd)[8]) {
  // Where the result has 16 bits, one float has enough of the mean.
#pragma unroll
  for (int k = 0; k < 8; ++k)
    if (D != Dtype::f32) mean[k] += rest[k];
  const View<D> gamma(a.gamma, p), beta(a.beta, p), added(a.added, p), y(a.y, p);
  const bool adds = a.residual == Residual::tensor;
  // Backwards: what was read last is in the nearest cache.
  for (unsigned left = p.count(); left > 0; left = left > kWriting<D> ? left - kWriting<D> : 0) {
    Eight<D> x_packs[kWriting<D>], packs[kWriting<D>], gammas[kWriting<D>], betas[kWriting<D>], more[kWriting<D>];
#pragma unroll
    for (unsigned u = 0; u < kWriting<D>; ++u) {
      const unsigned at = p.first + (left - 1 - (u < left ? u : 0)) * p.lanes;
      x_packs[u] = x.read_last(at);
      if (L == Logits::whole) packs[u] = logits.read_last(at);
      gammas[u] = gamma.read_last(at);
      betas[u] = beta.read_last(at);
      if (adds) more[u] = added.read_last(at);
    }
#pragma unroll
    for (unsigned u = 0; u < kWriting<D>; ++u) {
      if (u >= left) break;
      float f[8], v[8], w[8];
      slopes.value(x_packs[u], packs[u], f);
      gammas[u].unpack(v);
      betas[u].unpack(w);
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const float off = D == Dtype::f32 ? f[k] - mean[k] - rest[k] : f[k] - mean[k];
        v[k] = modulate(off * rstd[k], v[k], w[k]) + m.joins * f[k];  // if f is not finite, nor is y
      }
      if (adds) {
        more[u].unpack(w);
#pragma unroll
        for (int k = 0; k < 8; ++k) v[k] += w[k];
      }
      y.write(p.first + (left - 1 - u) * p.lanes, v);
    }
  }
}

// Planes of few pixels: a block has some channels of one as a whole.
template <Dtype D, Logits L>
__global__ void __launch_bounds__(kMost, 1)
    whole(const __grid_constant__ Adapt a, const __grid_constant__ Tiling m, const __grid_constant__ Statistics to) {
  HIDA_DYNAMIC_SHARED(float, memory);
  const Shared s(memory, m);
  const ThreadWork p(m);
  const View<D> x(a.x, p), logits(a.logits, p), gamma(a.gamma, p), beta(a.beta, p);
  for (unsigned pixel = p.first; p.has(pixel); pixel += p.lanes) gamma.prefetch(pixel), beta.prefetch(pixel);
  const Slopes<D, L> slopes(a.logits, a.p1, a.p2, p);
  Moments own = moments(x, logits, slopes, p);
  to.find(own, m, p, s);
  float mean[8], rest[8], rstd[8];
  to.tell(m, p, s, mean, rest, rstd);
  apply(a, x, logits, slopes, m, p, mean, rest, rstd);
}

// Planes of more, in chunks.
template <Dtype D, Logits L>
__global__ void __launch_bounds__(kMost, 1)
    first_sweep(const __grid_constant__ Adapt a, const __grid_constant__ Tiling m,
                const __grid_constant__ Statistics to) {
  HIDA_DYNAMIC_SHARED(float, memory);
  const Shared s(memory, m);
  const ThreadWork p(m);
  const View<D> x(a.x, p), logits(a.logits, p);
  Moments own = moments(x, logits, Slopes<D, L>(a.logits, a.p1, a.p2, p), p);
  to.write_chunk(own, m, p, s);
}
template <Dtype D, Logits L>
__global__ void __launch_bounds__(kMost, 1)
    second_sweep(const __grid_constant__ Adapt a, const __grid_constant__ Tiling m,
                 const __grid_constant__ Statistics of) {
  HIDA_DYNAMIC_SHARED(float, memory);
  const Shared s(memory, m);
  const ThreadWork p(m, true);
  const View<D> x(a.x, p), logits(a.logits, p);
  const Slopes<D, L> slopes(a.logits, a.p1, a.p2, p);
  of.find_of_chunks(m, p, s);
  float mean[8], rest[8], rstd[8];
  of.tell(m, p, s, mean, rest, rstd);
  apply(a, x, logits, slopes, m, p, mean, rest, rstd);
}

Tiling tiling_for(const Adapt& a, const Launch& l) {
  const Extent& e = a.planes.extent;
  return e.pixels() <= kWholePixels ? whole_planes(e, l) : chunked(e, l);
}

}  // namespace

int64_t adapt_workspace(const Adapt& a, const Launch& l) {
  return statistics_of(tiling_for(a, l), a.planes.extent);
}

void adapt(const Adapt& a, void* workspace, const Launch& l) {
  Tiling m = tiling_for(a, l);
  m.joins = a.residual == Residual::activated ? 1.0f : 0.0f;
  const Statistics to(a.mean, a.rstd, a.eps, workspace);
  with_dtype(a.x.dtype, [&](auto d) {
    with_logits(kind_of(a.logits), [&](auto kind) {
      constexpr Dtype D = decltype(d)::value;
      constexpr Logits L = decltype(kind)::value;
      if (m.chunks == 1) return run(whole<D, L>, m, shared_of(m), l, a, m, to);
      run(first_sweep<D, L>, m, shared_of(m), l, a, m, to);
      run(second_sweep<D, L>, m, shared_of(m), l, a, m, to);
    });
  });
}

}  // namespace nhwc
}  // namespace cuda
}  // namespace hida
