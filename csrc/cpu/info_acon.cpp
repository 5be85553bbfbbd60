// info_acon: y = (p1 − p2)·x·σ(θ·(p1 − p2)·x) + p2·x, θ = σ(logits).
// Traffic: 3n forward (2n with one switch a channel), 5n backward. Two exponentials an element, so that it is bound
// by arithmetic on one core and by memory on many.
#include "activation.h"

namespace hida {
namespace HIDA_ISA {
namespace {

template <class Real>
void forward(const Acon& a, int64_t begin, int64_t end) {
  const Extent& e = a.planes.extent;
  const int64_t pixels = e.pixels(), groups = a.planes.groups();
  alignas(64) Real x_line[kLine], theta_line[kLine], y_line[kLine];
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t n = unit / groups, c0 = unit % groups * a.planes.abreast;
    const int64_t c1 = c0 + a.planes.abreast < e.c ? c0 + a.planes.abreast : e.c;
    for (int64_t first = 0; first < pixels; first += kLine) {
      const int64_t count = pixels - first < kLine ? pixels - first : kLine;
      for (int64_t c = c0; c < c1; ++c) {
        const Switch<Real> plane(a.logits, a.p1, a.p2, n, c);
        const Real* x = read_line(a.x, e, n, c, first, count, x_line);
        const Real* theta = plane.line(a.logits, e, n, c, first, count, theta_line);
        Real* y = target_line(a.y, e, n, c, first, count, y_line);
        for (int64_t i = 0; i < count; i += kLanes<Real>) store(y + i, plane.value(load(x + i), load(theta + i)));
        write_line(a.y, e, n, c, first, count, y, y_line);
      }
    }
  }
}

template <class Real>
void backward(const Acon& a, int64_t begin, int64_t end) {
  using V = Vec<Real>;
  const Extent& e = a.planes.extent;
  const int64_t pixels = e.pixels(), groups = a.planes.groups();
  alignas(64) Real x_line[kLine], theta_line[kLine], grad_line[kLine], dx_line[kLine], dlogits_line[kLine];
  struct Sums {
    double q, rest, logits;
  };
  Scratch<Sums> sums(a.planes.abreast);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t n = unit / groups, c0 = unit % groups * a.planes.abreast;
    const int64_t c1 = c0 + a.planes.abreast < e.c ? c0 + a.planes.abreast : e.c;
    for (int64_t c = c0; c < c1; ++c) sums[c - c0] = {0, 0, 0};
    for (int64_t first = 0; first < pixels; first += kLine) {
      const int64_t count = pixels - first < kLine ? pixels - first : kLine;
      for (int64_t c = c0; c < c1; ++c) {
        const Switch<Real> plane(a.logits, a.p1, a.p2, n, c);
        const Real* x = read_line(a.x, e, n, c, first, count, x_line);
        const Real* grad = read_line(a.grad, e, n, c, first, count, grad_line);
        const Real* theta = plane.line(a.logits, e, n, c, first, count, theta_line);
        Real* dx = a.dx.data ? target_line(a.dx, e, n, c, first, count, dx_line) : dx_line;
        Real* dlogits = a.dlogits.data ? target_line(a.dlogits, e, n, c, first, count, dlogits_line) : dlogits_line;
        V sum_q{}, sum_rest{}, sum_logits{};
        for (int64_t i = 0; i < count; i += kLanes<Real>) {
          const V x_i = load(x + i), g = load(grad + i);  // zeros behind the end: they add nothing
          const AconSlopes<V> s = plane.slopes(x_i, load(theta + i));
          const V gx = g * x_i, gl = g * s.tilt;
          store(dx + i, g * (plane.slope * s.q + plane.base));
          store(dlogits + i, gl);
          sum_q += gx * s.q;
          sum_rest += gx * (1 - s.q);
          sum_logits += gl;
        }
        Sums& total = sums[c - c0];
        total.q += sum<Real>(sum_q);
        total.rest += sum<Real>(sum_rest);
        total.logits += sum<Real>(sum_logits);
        write_line(a.dx, e, n, c, first, count, dx, dx_line);
        write_line(a.dlogits, e, n, c, first, count, dlogits, dlogits_line);
      }
    }
    for (int64_t c = c0; c < c1; ++c) {
      const Sums& total = sums[c - c0];
      if (a.dp1) static_cast<Real*>(a.dp1)[n * e.c + c] = Real(total.q);
      if (a.dp2) static_cast<Real*>(a.dp2)[n * e.c + c] = Real(total.rest);
      if (a.dlogits_sum) static_cast<Real*>(a.dlogits_sum)[n * e.c + c] = Real(total.logits);
    }
  }
}

}  // namespace

void info_acon(const Acon& a, int64_t begin, int64_t end) {
  a.planes.wide ? forward<double>(a, begin, end) : forward<float>(a, begin, end);
}
void info_acon_backward(const Acon& a, int64_t begin, int64_t end) {
  a.planes.wide ? backward<double>(a, begin, end) : backward<float>(a, begin, end);
}

}  // namespace HIDA_ISA
}  // namespace hida
