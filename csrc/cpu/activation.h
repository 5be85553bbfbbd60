// InfoACON on lines, shared by info_acon and ida.
#pragma once

#include "elementary.h"
#include "nchw.h"

namespace hida {
namespace HIDA_ISA {

// The slopes of one plane, and its θ = σ(logits): one number, or a line computed as it is needed.
template <class Real>
struct Activation {
  using V = Vec<Real>;
  Real slope, base;
  bool uniform;

  HIDA_INLINE Activation(const Image& logits, const Image& p1, const Image& p2, int64_t n, int64_t c) {
    base = read_one<Real>(p2, n, c);
    slope = read_one<Real>(p1, n, c) - base;
    uniform = logits.row == 0 && logits.step == 0;
    if (uniform) one_ = sigmoid<Elementary>(splat(read_one<Real>(logits, n, c)));
  }

  // f(i, θ) for the vectors of a line, θ being a vector or several; `buffer` holds kLine numbers.
  template <class F>
  HIDA_INLINE void for_line(const Image& logits, const Extent& e, int64_t n, int64_t c, int64_t first, int64_t count,
                            Real* buffer, F f) const {
    if (uniform)
      return for_vectors<Real>(count, [&](int64_t i, auto like) HIDA_INLINED { f(i, repeat_like(like, one_)); });
    const Real* from = read_line(logits, e, n, c, first, count, buffer);
    for_vectors<Real>(count,
                      [&](int64_t i, auto like) HIDA_INLINED { f(i, sigmoid<Elementary>(load_like(like, from + i))); });
  }

  template <class T>
  HIDA_INLINE T value(const T& x, const T& theta) const {
    return acon<Elementary>(x, theta, slope, base);
  }
  template <class T>
  HIDA_INLINE AconSlopes<T> slopes(const T& x, const T& theta) const {
    return acon_slopes<Elementary>(x, theta, slope, base);
  }

 private:
  V one_{};
};

// Sums over a plane that the gradients of p1, p2 and of a θ that a plane shares are.
struct AconSums {
  double q = 0, rest = 0, logits = 0;

  // Put them where the caller wants them, (N, C) arrays of Real.
  template <class Real>
  HIDA_INLINE void write(void* dp1, void* dp2, void* dlogits, int64_t at) const {
    if (dp1) static_cast<Real*>(dp1)[at] = Real(q);
    if (dp2) static_cast<Real*>(dp2)[at] = Real(rest);
    if (dlogits) static_cast<Real*>(dlogits)[at] = Real(logits);
  }
};

// The same sums over a line, in vectors.
template <class Real>
struct AconLineSums {
  using V = Vec<Real>;
  V q{}, rest{}, logits{};

  // Take the gradient df of the activation's value at x; returns the gradient of the logits. Zeros behind a line's end
  // add nothing.
  template <class T>
  HIDA_INLINE T add(const T& df, const T& x, const T& slope_q, const T& tilt) {
    const T gx = df * x, gl = df * tilt;
    q += total(gx * slope_q);
    rest += total(gx * (1 - slope_q));
    logits += total(gl);
    return gl;
  }
  HIDA_INLINE void add_to(AconSums& sums) const {
    sums.q += sum(q);
    sums.rest += sum(rest);
    sums.logits += sum(logits);
  }
};

}  // namespace HIDA_ISA
}  // namespace hida
