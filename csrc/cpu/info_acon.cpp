// info_acon: y = (p1 − p2)·x·σ(θ·(p1 − p2)·x) + p2·x, θ = σ(logits).
// Traffic: 3n forward (2n with one θ per channel), 5n backward. Two exponentials per element, so that it is bound
// by arithmetic on one core and by memory on many.
#include "activation.h"

namespace hida {
namespace HIDA_ISA {
namespace {

template <class Real>
void forward(const InfoAcon& a, int64_t begin, int64_t end) {
  const Extent& e = a.planes.extent;
  const int64_t pixels = e.pixels();
  alignas(64) Real x_line[kLine], theta_line[kLine], y_line[kLine];
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / e.c, c = item % e.c;
    for (int64_t first = 0; first < pixels; first += kLine) {
      const int64_t count = pixels - first < kLine ? pixels - first : kLine;
      const Activation<Real> plane(a.logits, a.p1, a.p2, n, c);
      const Real* x = read_line(a.x, e, n, c, first, count, x_line);
      Real* y = target_line(a.y, e, n, c, first, count, y_line);
      plane.for_line(a.logits, e, n, c, first, count, theta_line, [&](int64_t i, auto theta) HIDA_INLINED {
        store(y + i, plane.value(load_like(theta, x + i), theta));
      });
      write_line(a.y, e, n, c, first, count, y, y_line);
    }
  }
}

template <class Real>
void backward(const InfoAcon& a, int64_t begin, int64_t end) {
  const Extent& e = a.planes.extent;
  const int64_t pixels = e.pixels();
  alignas(64) Real x_line[kLine], theta_line[kLine], grad_line[kLine], dx_line[kLine], dlogits_line[kLine];
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / e.c, c = item % e.c;
    AconSums sums;
    for (int64_t first = 0; first < pixels; first += kLine) {
      const int64_t count = pixels - first < kLine ? pixels - first : kLine;
      const Activation<Real> plane(a.logits, a.p1, a.p2, n, c);
      const Real* x = read_line(a.x, e, n, c, first, count, x_line);
      const Real* grad = read_line(a.grad, e, n, c, first, count, grad_line);
      Real* dx = a.dx.data ? target_line(a.dx, e, n, c, first, count, dx_line) : dx_line;
      Real* dlogits = a.dlogits.data ? target_line(a.dlogits, e, n, c, first, count, dlogits_line) : dlogits_line;
      AconLineSums<Real> line;
      plane.for_line(a.logits, e, n, c, first, count, theta_line, [&](int64_t i, auto theta) HIDA_INLINED {
        const auto x_i = load_like(theta, x + i), g = load_like(theta, grad + i);
        const auto s = plane.slopes(x_i, theta);
        store(dx + i, g * (plane.slope * s.q + plane.base));
        store(dlogits + i, line.add(g, x_i, s.q, s.tilt));
      });
      line.add_to(sums);
      write_line(a.dx, e, n, c, first, count, dx, dx_line);
      write_line(a.dlogits, e, n, c, first, count, dlogits, dlogits_line);
    }
    sums.write<Real>(a.dp1, a.dp2, a.dlogits_sum, n * e.c + c);
  }
}

}  // namespace

void info_acon(const InfoAcon& a, int64_t begin, int64_t end) {
  a.planes.wide ? forward<double>(a, begin, end) : forward<float>(a, begin, end);
}
void info_acon_backward(const InfoAcon& a, int64_t begin, int64_t end) {
  a.planes.wide ? backward<double>(a, begin, end) : backward<float>(a, begin, end);
}

}  // namespace HIDA_ISA
}  // namespace hida
