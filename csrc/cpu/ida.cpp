// ida and instance_norm_modulate: f = info_acon(x) or x; y = (1 + γ)·(f − μ)/√(var + eps) + β + residual.
// Traffic: 5n forward (read x, θ, γ, β; write y), 7n backward (read grad, x, θ, γ; write dx, dθ, dγ; dβ is grad).
// A plane is read once: what later passes need of it stays in a scratch plane, which the second-level cache holds up
// to 256×256 pixels. Statistics: mean and squares of each line around its own mean, merged in order (Chan), so that
// a large mean costs no digits.
#include <cmath>

#include "activation.h"

namespace hida {
namespace HIDA_ISA {
namespace {

struct Statistics {
  double count = 0, mean = 0, squares = 0;

  template <class Real>
  HIDA_INLINE void add(const Real* line, int64_t size) {
    using V = Vec<Real>;
    V total{};
    for (int64_t i = 0; i < size; i += kLanes<Real>) {
      V v = load(line + i);
      if (i + kLanes<Real> > size) v = keep_first<Real>(v, size - i);
      total += v;
    }
    const Real around = Real(sum<Real>(total) / double(size));
    V rest{}, spread{};
    for (int64_t i = 0; i < size; i += kLanes<Real>) {
      V v = load(line + i) - around;
      if (i + kLanes<Real> > size) v = keep_first<Real>(v, size - i);
      rest += v;
      spread += v * v;
    }
    const double off = sum<Real>(rest) / double(size);  // what rounding left in `around`
    merge(double(size), double(around) + off, sum<Real>(spread) - off * off * double(size));
  }

  HIDA_INLINE void merge(double n, double m, double s) {
    const double both = count + n, gap = m - mean;
    squares += s + gap * gap * (count * n / both);
    mean += gap * (n / both);
    count = both;
  }
};

template <class Real>
void forward(const Adapt& a, int64_t begin, int64_t end) {
  using V = Vec<Real>;
  const Extent& e = a.planes.extent;
  const int64_t pixels = e.pixels(), groups = a.planes.groups(), size = padded<Real>(pixels);
  alignas(64) Real x_line[kLine], theta_line[kLine], gamma_line[kLine], beta_line[kLine], y_line[kLine];
  Scratch<Real> activated(size * a.planes.abreast);
  Scratch<Statistics> statistics(a.planes.abreast);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t n = unit / groups, c0 = unit % groups * a.planes.abreast;
    const int64_t c1 = c0 + a.planes.abreast < e.c ? c0 + a.planes.abreast : e.c;
    for (int64_t c = c0; c < c1; ++c) statistics[c - c0] = Statistics();
    for (int64_t first = 0; first < pixels; first += kLine) {
      const int64_t count = pixels - first < kLine ? pixels - first : kLine;
      for (int64_t c = c0; c < c1; ++c) {
        Real* f = activated.get() + (c - c0) * size + first;
        if (a.activate) {
          const Switch<Real> plane(a.logits, a.p1, a.p2, n, c);
          const Real* x = read_line(a.x, e, n, c, first, count, x_line);
          const Real* theta = plane.line(a.logits, e, n, c, first, count, theta_line);
          for (int64_t i = 0; i < count; i += kLanes<Real>) store(f + i, plane.value(load(x + i), load(theta + i)));
        } else {
          copy_line(a.x, e, n, c, first, count, f);
        }
        statistics[c - c0].add(f, count);
      }
    }
    for (int64_t c = c0; c < c1; ++c) {
      const Statistics& s = statistics[c - c0];
      static_cast<Real*>(a.mean)[n * e.c + c] = Real(s.mean);
      static_cast<Real*>(a.rstd)[n * e.c + c] = Real(1 / std::sqrt(s.squares / s.count + a.eps));
    }
    for (int64_t first = 0; first < pixels; first += kLine) {
      const int64_t count = pixels - first < kLine ? pixels - first : kLine;
      for (int64_t c = c0; c < c1; ++c) {
        const Real mean = static_cast<Real*>(a.mean)[n * e.c + c], rstd = static_cast<Real*>(a.rstd)[n * e.c + c];
        const Real* f = activated.get() + (c - c0) * size + first;
        const Real* gamma = read_line(a.gamma, e, n, c, first, count, gamma_line);
        const Real* beta = read_line(a.beta, e, n, c, first, count, beta_line);
        const Real* added = a.residual == Residual::none        ? nullptr
                            : a.residual == Residual::activated ? f
                                                                : read_line(a.added, e, n, c, first, count, x_line);
        Real* y = target_line(a.y, e, n, c, first, count, y_line);
        for (int64_t i = 0; i < count; i += kLanes<Real>) {
          V value = modulate(normalise(load(f + i), mean, rstd), load(gamma + i), load(beta + i));
          if (added) value += load(added + i);
          store(y + i, value);
        }
        write_line(a.y, e, n, c, first, count, y, y_line);
      }
    }
  }
}

template <class Real>
void backward(const Adapt& a, int64_t begin, int64_t end) {
  using V = Vec<Real>;
  const Extent& e = a.planes.extent;
  const int64_t pixels = e.pixels(), groups = a.planes.groups(), size = padded<Real>(pixels);
  alignas(64) Real x_line[kLine], theta_line[kLine], gamma_line[kLine], grad_line[kLine], out_line[kLine],
      out_line_2[kLine];
  // Scratch planes: the normalised value, its gradient, and the two slopes of the activation.
  Scratch<Real> normalised(size * a.planes.abreast), slope_of(size * a.planes.abreast),
      q(a.activate ? size * a.planes.abreast : 0), tilt(a.activate ? size * a.planes.abreast : 0);
  struct Sums {
    double d, dx, q, rest, logits;
  };
  Scratch<Sums> sums(a.planes.abreast);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t n = unit / groups, c0 = unit % groups * a.planes.abreast;
    const int64_t c1 = c0 + a.planes.abreast < e.c ? c0 + a.planes.abreast : e.c;
    for (int64_t c = c0; c < c1; ++c) sums[c - c0] = {0, 0, 0, 0, 0};
    for (int64_t first = 0; first < pixels; first += kLine) {
      const int64_t count = pixels - first < kLine ? pixels - first : kLine;
      for (int64_t c = c0; c < c1; ++c) {
        const Real mean = static_cast<Real*>(a.mean)[n * e.c + c], rstd = static_cast<Real*>(a.rstd)[n * e.c + c];
        const int64_t at = (c - c0) * size + first;
        const Real* x = read_line(a.x, e, n, c, first, count, x_line);
        const Real* grad = read_line(a.grad, e, n, c, first, count, grad_line);
        const Real* gamma = read_line(a.gamma, e, n, c, first, count, gamma_line);
        Real* dgamma = a.dgamma.data ? target_line(a.dgamma, e, n, c, first, count, out_line) : out_line;
        V sum_d{}, sum_dx{};
        const auto finish = [&](int64_t i, V f) {
          const V g = load(grad + i), unit_f = normalise(f, mean, rstd), d = g * (1 + load(gamma + i));
          store(normalised.get() + at + i, unit_f);
          store(slope_of.get() + at + i, d);
          store(dgamma + i, g * unit_f);
          sum_d += d;  // grad is zero behind the end: nothing is added there
          sum_dx += d * unit_f;
        };
        if (a.activate) {
          const Switch<Real> plane(a.logits, a.p1, a.p2, n, c);
          const Real* theta = plane.line(a.logits, e, n, c, first, count, theta_line);
          for (int64_t i = 0; i < count; i += kLanes<Real>) {
            const AconSlopes<V> s = plane.slopes(load(x + i), load(theta + i));
            store(q.get() + at + i, s.q);
            store(tilt.get() + at + i, s.tilt);
            finish(i, s.value);
          }
        } else {
          for (int64_t i = 0; i < count; i += kLanes<Real>) finish(i, load(x + i));
        }
        sums[c - c0].d += sum<Real>(sum_d);
        sums[c - c0].dx += sum<Real>(sum_dx);
        write_line(a.dgamma, e, n, c, first, count, dgamma, out_line);
      }
    }
    for (int64_t first = 0; first < pixels; first += kLine) {
      const int64_t count = pixels - first < kLine ? pixels - first : kLine;
      for (int64_t c = c0; c < c1; ++c) {
        Sums& total = sums[c - c0];
        const Real rstd = static_cast<Real*>(a.rstd)[n * e.c + c];
        const Real mean_d = Real(total.d / double(pixels)), mean_dx = Real(total.dx / double(pixels));
        const int64_t at = (c - c0) * size + first;
        const Real* grad = read_line(a.grad, e, n, c, first, count, grad_line);
        Real* dx = a.dx.data ? target_line(a.dx, e, n, c, first, count, out_line) : out_line;
        const auto upstream = [&](int64_t i) {
          V df =
              normalise_gradient(load(slope_of.get() + at + i), load(normalised.get() + at + i), mean_d, mean_dx, rstd);
          if (a.residual == Residual::activated) df += load(grad + i);
          return df;
        };
        if (a.activate) {
          const Real base = read_one<Real>(a.p2, n, c), slope = read_one<Real>(a.p1, n, c) - base;
          const Real* x = read_line(a.x, e, n, c, first, count, x_line);
          Real* dlogits = a.dlogits.data ? target_line(a.dlogits, e, n, c, first, count, out_line_2) : out_line_2;
          V sum_q{}, sum_rest{}, sum_logits{};
          for (int64_t i = 0; i < count; i += kLanes<Real>) {
            const V df = upstream(i), x_i = load(x + i), q_i = load(q.get() + at + i);
            const V gx = df * x_i;  // x and tilt are zero behind the end
            const V gl = df * load(tilt.get() + at + i);
            V to_x = df * (slope * q_i + base);
            if (a.grad_to_x) to_x += load(grad + i);
            store(dx + i, to_x);
            store(dlogits + i, gl);
            sum_q += gx * q_i;
            sum_rest += gx * (1 - q_i);
            sum_logits += gl;
          }
          total.q += sum<Real>(sum_q);
          total.rest += sum<Real>(sum_rest);
          total.logits += sum<Real>(sum_logits);
          write_line(a.dlogits, e, n, c, first, count, dlogits, out_line_2);
        } else {
          for (int64_t i = 0; i < count; i += kLanes<Real>) store(dx + i, upstream(i));
        }
        write_line(a.dx, e, n, c, first, count, dx, out_line);
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

void adapt(const Adapt& a, int64_t begin, int64_t end) {
  a.planes.wide ? forward<double>(a, begin, end) : forward<float>(a, begin, end);
}
void adapt_backward(const Adapt& a, int64_t begin, int64_t end) {
  a.planes.wide ? backward<double>(a, begin, end) : backward<float>(a, begin, end);
}

}  // namespace HIDA_ISA
}  // namespace hida
