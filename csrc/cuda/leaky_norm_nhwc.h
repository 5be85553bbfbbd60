// leaky_norm in the usual channels_last case (nhwc.h), what both directions share:
//   f = l₁(x);  x̂ = (f − μ)/√(var + eps);  y = l₂(x̂);   l the leaky ReLU, of slope `before` and `after`, 1 for none
//   d = grad·l₂'(x̂);  df = (d − mean(d) − x̂·mean(d·x̂))/√(var + eps);  dx = df·l₁'(x)
// What is read is read twice, and by two paths:
//   up to 2048 pixels   a block has some channels of a plane as a whole, and reads again from the first-level cache.
//   more                two kernels, the second backwards, so that it begins with what the second-level cache still
//   has.
// Always the same order, no atomics.
#pragma once

#include "moments.h"

namespace hida {
namespace cuda {
namespace nhwc {

// Threads of a block, at most.
constexpr unsigned kNormThreads = kMost / 2;

// Twice as many as where two tensors are read: x alone, forward, is 64 KB of 16 bits again.
constexpr int64_t kNormPixels = 2 * kWholePixels;

// `value` where x is positive, else slope·value.
HIDA_DEVICE float leaky(float x, float value, float slope) {
  return x > 0 ? value : value * slope;
}

// ---- on the host ------------------------------------------------------------------------------------------------

inline Tiling tiling_for(const LeakyNorm& a, const Launch& l) {
  return a.extent.pixels() <= kNormPixels ? whole_planes(a.extent, l, kNormThreads) : chunked(a.extent, l);
}

}  // namespace nhwc
}  // namespace cuda
}  // namespace hida
