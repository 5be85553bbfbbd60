// ida and instance_norm_modulate, forward, in the usual channels_last case (nhwc.h).
// Traffic: 5n (read x, logits, γ, β; write y), n more for a residual of its own; x and logits are read twice:
//   up to 1024 pixels   a block has some channels of a plane as a whole, and reads again from the first-level cache; γ
//                       and β are on their way to the second-level cache meanwhile.
//   more                the images in turns (turns.h): statistics of an image's chunks while y of an earlier one is
//   made
//                       of what the second-level cache still has of its x and logits.
// What is read for the last time is marked as not wanted any more. f is computed twice: 14 instructions per element
// cost less than its bytes. Statistics: moments.h. Always the same order, no atomics in a result.
// Share of the floor (ida, bfloat16, 16 images on an H100): two kernels, statistics of all images before y of all, had
// 58 % of it for 64 channels of 128×128, 58 % for 128 of 64×64 (blocks of a cluster, of a plane each, took 24 to 29 %
// longer); in turns, and instance_norm_modulate: not measured.
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

// y of the block's pixels, with the mean in two floats. Past: the caches, which are for other images.
template <bool Past, Dtype D, Logits L>
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
      y.write(p.first + (left - 1 - u) * p.lanes, v, Past);
    }
  }
}

// Planes of few pixels: a block has some channels of one as a whole.
template <Dtype D, Logits L>
__global__ void __launch_bounds__(kMost, 1) whole(const __grid_constant__ Adapt a, const __grid_constant__ Tiling m) {
  HIDA_DYNAMIC_SHARED(float, memory);
  const Shared s(memory, m);
  const ThreadWork p(m);
  const View<D> x(a.x, p), logits(a.logits, p), gamma(a.gamma, p), beta(a.beta, p);
  for (unsigned pixel = p.first; p.has(pixel); pixel += p.lanes) gamma.prefetch(pixel), beta.prefetch(pixel);
  const Slopes<D, L> slopes(a.logits, a.p1, a.p2, p);
  Moments own = moments(x, logits, slopes, p);
  const PlaneStatistics to{static_cast<float*>(a.mean), static_cast<float*>(a.rstd), a.eps};
  float mean[8], rest[8], rstd[8];
  to.find(own, m, p, s, mean, rest, rstd);
  apply<false>(a, x, logits, slopes, m, p, mean, rest, rstd);
}

// Blocks that a multiprocessor has at a time, so that one loads while another computes.
constexpr unsigned kResident = 2;

// Planes of more.
template <Dtype D, Logits L>
__global__ void __launch_bounds__(kTurnThreads, kResident)
    in_turns(const __grid_constant__ Adapt a, const __grid_constant__ Tiling m,
             const __grid_constant__ TurnStatistics statistics, const __grid_constant__ Turns t) {
  HIDA_DYNAMIC_SHARED(float, memory);
  const Shared s(memory, m);
  do_jobs(t, m, [&](const Job& job, const ThreadWork& p, const Tickets&) {
    const View<D> x(a.x, p), logits(a.logits, p);
    const Slopes<D, L> slopes(a.logits, a.p1, a.p2, p);
    if (job.first) {
      Moments own = moments(x, logits, slopes, p);
      statistics.write(own, t, job, m, p, s);
    } else {
      wait_until_open(t.done(true, job.unit), t.jobs);
      float mean[8] = {}, rest[8] = {}, rstd[8] = {};
      statistics.template read<D == Dtype::f32>(m, p, mean, rest, rstd);
      apply<true>(a, x, logits, slopes, m, p, mean, rest, rstd);
    }
  });
}

template <Dtype D>
auto whole_for(Logits logits) {
  return with_logits(logits, [](auto kind) { return whole<D, decltype(kind)::value>; });
}
template <Dtype D>
auto turns_for(Logits logits) {
  return with_logits(logits, [](auto kind) { return in_turns<D, decltype(kind)::value>; });
}

bool is_whole(const Adapt& a) {
  return a.planes.extent.pixels() <= kWholePixels;
}
Tiling turns_tiling(const Adapt& a, const Launch& l) {
  return turn_tiling(a.planes.extent, size_of(a.x.dtype) * (kind_of(a.logits) == Logits::whole ? 2 : 1), l);
}

}  // namespace

int64_t adapt_workspace(const Adapt& a, const Launch& l) {
  if (is_whole(a)) return 0;
  const Tiling m = turns_tiling(a, l);
  return counters_of(m) + statistics_of(m, a.planes.extent);
}

void adapt(const Adapt& a, void* workspace, const Launch& l) {
  const Extent& e = a.planes.extent;
  const Logits logits = kind_of(a.logits);
  Tiling m = is_whole(a) ? whole_planes(e, l) : turns_tiling(a, l);
  m.joins = a.residual == Residual::activated ? 1.0f : 0.0f;
  if (is_whole(a))
    return run(with_dtype(a.x.dtype, [&](auto d) { return whole_for<decltype(d)::value>(logits); }), m, shared_of(m), l,
               a, m);
  run_turns(with_dtype(a.x.dtype, [&](auto d) { return turns_for<decltype(d)::value>(logits); }), m, kResident,
            shared_of(m), workspace, l, a, m, turn_statistics(m, e, a.mean, a.rstd, a.eps, workspace));
}

}  // namespace nhwc
}  // namespace cuda
}  // namespace hida
