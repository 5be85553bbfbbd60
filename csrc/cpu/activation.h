// InfoACON on lines, shared by info_acon and ida.
#pragma once

#include "../math.h"
#include "lines.h"

namespace hida {
namespace HIDA_ISA {

// The slopes of one plane, and its switch θ = σ(logits): one number, or lines computed as they are needed.
template <class Real>
struct Switch {
  using V = Vec<Real>;
  Real slope, base;
  bool uniform;

  HIDA_INLINE Switch(const Image& logits, const Image& p1, const Image& p2, int64_t n, int64_t c) {
    base = read_one<Real>(p2, n, c);
    slope = read_one<Real>(p1, n, c) - base;
    uniform = logits.row == 0 && logits.step == 0;
    if (uniform) one_ = sigmoid<Elementary>(splat(read_one<Real>(logits, n, c)));
  }

  // θ of a line; `buffer` holds kLine numbers.
  HIDA_INLINE const Real* line(const Image& logits, const Extent& e, int64_t n, int64_t c, int64_t first, int64_t count,
                               Real* buffer) const {
    if (uniform) {
      for (int64_t i = 0; i < count; i += kLanes<Real>) store(buffer + i, one_);
      return buffer;
    }
    const Real* from = read_line(logits, e, n, c, first, count, buffer);
    for (int64_t i = 0; i < count; i += kLanes<Real>) store(buffer + i, sigmoid<Elementary>(load(from + i)));
    return buffer;
  }

  HIDA_INLINE V value(V x, V theta) const { return acon<Elementary>(x, theta, slope, base); }
  HIDA_INLINE AconSlopes<V> slopes(V x, V theta) const { return acon_slopes<Elementary>(x, theta, slope, base); }

 private:
  V one_{};
};

}  // namespace HIDA_ISA
}  // namespace hida
