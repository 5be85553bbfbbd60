// ida and instance_norm_modulate: f = info_acon(x) or x; y = (1 + γ)·(f − μ)/√(var + eps) + β + residual.
// Traffic: 5n forward (read x, θ, γ, β; write y), 7n backward (read grad, x, θ, γ; write dx, dθ, dγ; dβ is grad).
// A plane is read once: what later passes need of it stays in a scratch plane, which the second-level cache holds up
// to 256×256 pixels. Statistics: mean and squares of each line around its own mean, merged in order (Chan), so that
// neither a large mean nor an outlier costs digits.
#include <cmath>

#include "activation.h"

namespace hida {
namespace HIDA_ISA {
namespace {

struct Statistics {
  double count = 0, mean = 0, squares = 0;

  // A line whose sum is known.
  template <class Real>
  HIDA_INLINE void add(const Real* line, int64_t size, Vec<Real> total) {
    using V = Vec<Real>;
    constexpr int L = kLanes<Real>;
    const Real around = Real(sum(total) / double(size));
    // A sum in Real is of 32 numbers: much smaller ones would not count in one of many more.
    constexpr int64_t kStretch = 64 * L;
    double rests = 0, spreads = 0;
    for (int64_t first = 0; first < size; first += kStretch) {
      const int64_t end = first + kStretch < size ? first + kStretch : size;
      V rest[2] = {}, spread[2] = {};
      int64_t i = first;
      for (; i + 2 * L <= end; i += 2 * L) {
        for (int k = 0; k < 2; ++k) {
          const V v = load(line + i + k * L) - around;
          rest[k] += v;
          spread[k] += v * v;
        }
      }
      for (; i < end; i += L) {
        const V v = keep_first<Real>(load(line + i) - around, end - i);
        rest[0] += v;
        spread[0] += v * v;
      }
      rests += sum(rest[0] + rest[1]);
      spreads += sum(spread[0] + spread[1]);
    }
    const double off = rests / double(size);  // what rounding left in `around`
    merge(double(size), double(around) + off, spreads - off * off * double(size));
  }

  HIDA_INLINE void merge(double n, double m, double s) {
    const double share = n / (count + n), gap = m - mean;
    squares += s + gap * gap * (count * share);
    mean += gap * share;
    count += n;
  }
};

// The first pass computes and reads two tensors, the second hardly computes and reads two others. So the first asks for
// the second's memory, and the second for that of the next plane, or the processor would wait in every other pass.
template <class Real>
void forward(const Adapt& a, int64_t begin, int64_t end) {
  using V = Vec<Real>;
  const Extent& e = a.planes.extent;
  const int64_t pixels = e.pixels(), size = padded<Real>(pixels);
  alignas(64) Real x_line[kLine], theta_line[kLine], gamma_line[kLine], beta_line[kLine], y_line[kLine];
  Scratch<Real> activated(size);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / e.c, c = item % e.c;
    Statistics s;
    for (int64_t first = 0; first < pixels; first += kLine) {
      const int64_t count = pixels - first < kLine ? pixels - first : kLine;
      Real* f = activated.get() + first;
      const Ahead gamma(a.gamma, e, n, c, first), beta(a.beta, e, n, c, first);
      V sum_f{};
      if (a.activate) {
        const Activation<Real> plane(a.logits, a.p1, a.p2, n, c);
        const Real* x = read_line(a.x, e, n, c, first, count, x_line);
        plane.for_line(a.logits, e, n, c, first, count, theta_line, [&](int64_t i, auto theta) HIDA_INLINED {
          gamma.touch(i, theta), beta.touch(i, theta);
          const auto value = plane.value(load_like(theta, x + i), theta);  // 0 behind the end, where x is
          store(f + i, value);
          sum_f += total(value);
        });
      } else {
        copy_line(a.x, e, n, c, first, count, f);
        for_vectors<Real>(count, [&](int64_t i, auto like) HIDA_INLINED {
          gamma.touch(i, like), beta.touch(i, like);
          sum_f += total(load_like(like, f + i));
        });
      }
      s.add(f, count, sum_f);
    }
    static_cast<Real*>(a.mean)[n * e.c + c] = Real(s.mean);
    static_cast<Real*>(a.rstd)[n * e.c + c] = Real(1 / std::sqrt(s.squares / s.count + a.eps));
    for (int64_t first = 0; first < pixels; first += kLine) {
      const int64_t count = pixels - first < kLine ? pixels - first : kLine;
      const Real mean = static_cast<Real*>(a.mean)[n * e.c + c], rstd = static_cast<Real*>(a.rstd)[n * e.c + c];
      const Real* f = activated.get() + first;
      const Real* gamma = read_line(a.gamma, e, n, c, first, count, gamma_line);
      const Real* beta = read_line(a.beta, e, n, c, first, count, beta_line);
      Real* y = target_line(a.y, e, n, c, first, count, y_line);
      const bool last = item + 1 == end;
      const int64_t next_n = last ? n : (item + 1) / e.c, next_c = last ? c : (item + 1) % e.c;
      const Ahead next_x(a.x, e, next_n, next_c, first), next_logits(a.logits, e, next_n, next_c, first);
      const auto write = [&](auto residual) HIDA_INLINED {
        for_vectors<Real>(count, [&](int64_t i, auto like) HIDA_INLINED {
          next_x.touch(i, like), next_logits.touch(i, like);
          const auto f_i = load_like(like, f + i);
          store(y + i,
                residual(modulate(normalise(f_i, mean, rstd), load_like(like, gamma + i), load_like(like, beta + i)),
                         f_i, i));
        });
      };
      if (a.residual == Residual::activated) {
        write([](auto value, auto f_i, int64_t) HIDA_INLINED { return value + f_i; });
      } else if (a.residual == Residual::tensor) {
        const Real* added = read_line(a.added, e, n, c, first, count, x_line);
        write([&](auto value, auto, int64_t i) HIDA_INLINED { return value + load_like(value, added + i); });
      } else {
        write([](auto value, auto, int64_t) HIDA_INLINED { return value; });
      }
      write_line(a.y, e, n, c, first, count, y, y_line);
    }
  }
}

template <class Real>
void backward(const Adapt& a, int64_t begin, int64_t end) {
  using V = Vec<Real>;
  const Extent& e = a.planes.extent;
  const int64_t pixels = e.pixels(), size = padded<Real>(pixels);
  alignas(64) Real x_line[kLine], theta_line[kLine], gamma_line[kLine], grad_line[kLine], out_line[kLine],
      out_line_2[kLine];
  // Scratch planes: the normalised value, its gradient, and the two slopes of the activation.
  Scratch<Real> normalised(size), slope_of(size), q(a.activate ? size : 0), tilt(a.activate ? size : 0);
  struct Sums {
    double d = 0, dx = 0;
    AconSums acon;
  };
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / e.c, c = item % e.c;
    const Out<Real> out_dx(a.dx, e, n, c), out_dlogits(a.dlogits, e, n, c), out_dgamma(a.dgamma, e, n, c);
    Sums sums;
    for (int64_t first = 0; first < pixels; first += kLine) {
      const int64_t count = pixels - first < kLine ? pixels - first : kLine;
      const Real mean = static_cast<Real*>(a.mean)[n * e.c + c], rstd = static_cast<Real*>(a.rstd)[n * e.c + c];
      const Real* x = read_line(a.x, e, n, c, first, count, x_line);
      const Real* grad = read_line(a.grad, e, n, c, first, count, grad_line);
      const Real* gamma = read_line(a.gamma, e, n, c, first, count, gamma_line);
      Real* dgamma = a.dgamma.data ? target_line(a.dgamma, e, n, c, first, count, out_line) : out_line;
      V sum_d{}, sum_dx{};
      const auto finish = [&](int64_t i, auto f) HIDA_INLINED {
        const auto g = load_like(f, grad + i), x_hat = normalise(f, mean, rstd);
        const auto d = g * (1 + load_like(f, gamma + i));
        store(normalised.get() + first + i, x_hat);
        store(slope_of.get() + first + i, d);
        out_dgamma.put(dgamma + i, g * x_hat);
        sum_d += total(d);  // grad is zero behind the end: nothing is added there
        sum_dx += total(d * x_hat);
      };
      if (a.activate) {
        const Activation<Real> plane(a.logits, a.p1, a.p2, n, c);
        plane.for_line(a.logits, e, n, c, first, count, theta_line, [&](int64_t i, auto theta) HIDA_INLINED {
          const auto s = plane.slopes(load_like(theta, x + i), theta);
          store(q.get() + first + i, s.q);
          store(tilt.get() + first + i, s.tilt);
          finish(i, s.value);
        });
      } else {
        for_vectors<Real>(count, [&](int64_t i, auto like) HIDA_INLINED { finish(i, load_like(like, x + i)); });
      }
      sums.d += sum(sum_d);
      sums.dx += sum(sum_dx);
      write_line(a.dgamma, e, n, c, first, count, dgamma, out_line);
    }
    for (int64_t first = 0; first < pixels; first += kLine) {
      const int64_t count = pixels - first < kLine ? pixels - first : kLine;
      const Real rstd = static_cast<Real*>(a.rstd)[n * e.c + c];
      const Real mean_d = Real(sums.d / double(pixels)), mean_dx = Real(sums.dx / double(pixels));
      const Real* grad = read_line(a.grad, e, n, c, first, count, grad_line);
      Real* dx = a.dx.data ? target_line(a.dx, e, n, c, first, count, out_line) : out_line;
      const auto upstream = [&](int64_t i, auto like) HIDA_INLINED {
        return normalise_gradient(load_like(like, slope_of.get() + first + i),
                                  load_like(like, normalised.get() + first + i), mean_d, mean_dx, rstd);
      };
      if (a.activate) {
        const Real base = read_one<Real>(a.p2, n, c), slope = read_one<Real>(a.p1, n, c) - base;
        const Real* x = read_line(a.x, e, n, c, first, count, x_line);
        Real* dlogits = a.dlogits.data ? target_line(a.dlogits, e, n, c, first, count, out_line_2) : out_line_2;
        // What of the upstream gradient goes past the norm: to f, or straight to x.
        const Real to_f = a.residual == Residual::activated ? 1 : 0, to_x = a.grad_to_x ? 1 : 0;
        AconLineSums<Real> line;
        for_vectors<Real>(count, [&](int64_t i, auto like) HIDA_INLINED {
          const auto g = load_like(like, grad + i), q_i = load_like(like, q.get() + first + i);
          const auto df = upstream(i, like) + to_f * g;
          out_dx.put(dx + i, df * (slope * q_i + base) + to_x * g);
          out_dlogits.put(dlogits + i,
                          line.add(df, load_like(like, x + i), q_i, load_like(like, tilt.get() + first + i)));
        });
        line.add_to(sums.acon);
        write_line(a.dlogits, e, n, c, first, count, dlogits, out_line_2);
      } else {
        for_vectors<Real>(count, [&](int64_t i, auto like) HIDA_INLINED { out_dx.put(dx + i, upstream(i, like)); });
      }
      write_line(a.dx, e, n, c, first, count, dx, out_line);
    }
    sums.acon.template write<Real>(a.dp1, a.dp2, a.dlogits_sum, n * e.c + c);
  }
  fence();
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
