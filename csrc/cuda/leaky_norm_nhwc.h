// leaky_norm in the usual channels_last case (nhwc.h), what both directions share:
//   f = l₁(x);  x̂ = (f − μ)/√(var + eps);  y = l₂(x̂);   l the leaky ReLU, of slope `before` and `after`, 1 for none
//   d = grad·l₂'(x̂);  df = (d − mean(d) − x̂·mean(d·x̂))/√(var + eps);  dx = df·l₁'(x)
// What is read is read twice, and by two paths:
//   up to 2048 pixels   a block has some channels of a plane as a whole, and reads again from the first-level cache.
//   more                two kernels: sums of chunks first, the result second, which begins with the chunks that were
//                       read last, so that it has from the second-level cache what that holds of them.
// Always the same order, no atomics.
#pragma once

#include "nhwc.h"

namespace hida {
namespace cuda {
namespace nhwc {

enum Stage { kSums = 1, kApply = 2, kBoth = 3 };

// Threads of a block, at most.
constexpr unsigned kNormThreads = kMost / 2;

// Twice as many as where two tensors are read: x alone, forward, is 64 KB of 16 bits again.
constexpr int64_t kNormPixels = 2 * kWholePixels;

// `value` where x is positive, else slope·value.
HIDA_DEVICE float leaky(float x, float value, float slope) {
  return x > 0 ? value : value * slope;
}

// partial: (kinds, N, chunks, C), what is known of each chunk. Here: kind 0 of the first chunk, first channel of a
// tile.
HIDA_DEVICE float* partial_of(float* partial, const Tiling& m, const ThreadWork& p) {
  return partial + int64_t(p.n) * m.chunks * m.channels + p.tile;
}
HIDA_DEVICE int64_t kinds_apart(const LeakyNorm& a, const Tiling& m) {
  return a.extent.n * int64_t(m.chunks) * m.channels;
}

// Adds two numbers over the chunks of each channel: of(where kind 0 is, chunk, sums) adds those of a chunk,
// take(channel of the tile, sums) gets the totals.
template <class Of, class Take>
HIDA_DEVICE void merge_chunks(const Tiling& m, const ThreadWork& p, const Shared& s, const float* here, Of of,
                              Take take) {
  const unsigned t = threadIdx.x, threads = m.threads(), width = m.width();
  const unsigned parts = threads < 2 * width ? 1 : threads / width;
  for (unsigned job = t; job < width * parts; job += threads) {
    const unsigned c = job % width;
    float sums[2] = {0, 0};
    if (p.tile + c < m.channels) {
#pragma unroll 4
      for (unsigned i = job / width; i < m.chunks; i += parts) of(here + c, i, sums);
    }
    s.jobs[job] = sums[0];
    s.jobs[s.apart + job] = sums[1];
  }
  __syncthreads();
  for (unsigned c = t; c < width; c += threads) {
    float sums[2] = {0, 0};
    for (unsigned i = 0; i < parts; ++i) sums[0] += s.jobs[i * width + c], sums[1] += s.jobs[s.apart + i * width + c];
    take(c, sums);
  }
}

// ---- on the host ------------------------------------------------------------------------------------------------

inline Tiling tiling_for(const LeakyNorm& a, const Launch& l) {
  return a.extent.pixels() <= kNormPixels ? whole_planes(a.extent, l, kNormThreads) : chunked(a.extent, l);
}

inline int64_t workspace_for(const LeakyNorm& a, const Launch& l, int kinds) {
  const Tiling m = tiling_for(a, l);
  return m.chunks > 1 ? kinds * a.extent.n * a.extent.c * m.chunks : 0;
}

using NormKernel = void (*)(const LeakyNorm, const Tiling, float, float, int, float*);
inline void run_stages(NormKernel kernel, const LeakyNorm& a, void* workspace, const Launch& l) {
  const Tiling m = tiling_for(a, l);
  float* const partial = static_cast<float*>(workspace);
  const auto stage = [&](int which) {
    run(kernel, m, shared_of(m), l, a, m, float(a.before), float(a.after), which, partial);
  };
  if (m.chunks == 1) return stage(kBoth);
  stage(kSums);
  stage(kApply);
}

}  // namespace nhwc
}  // namespace cuda
}  // namespace hida
