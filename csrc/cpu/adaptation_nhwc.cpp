// info_acon, ida and instance_norm_modulate of channels_last tensors, in tiles: info_acon.cpp and ida.cpp say what they
// compute. A plane is not contiguous here, and a block of planes is too large to be kept: what the second pass
// needs of the activation it computes again, two exponentials being cheaper than a float32 copy of the block.
#include "activation.h"
#include "nhwc.h"

namespace hida {
namespace HIDA_ISA {
namespace {

// The activation of a strip: slopes, and θ = σ(logits), once if there is one a channel.
template <class Real>
class StripActivation {
 public:
  // Not `active`: there is no activation, and nothing may be asked of this.
  StripActivation(bool active, const Strip& strip, const Image& logits, const Image& p1, const Image& p2)
      : logits_(logits) {
    if (!active) return;
    const int64_t n = strip.n, c = strip.c;
    strip.repeat(base.at, [&](int64_t k) { return read_one<Real>(p2, n, c + k); });
    strip.repeat(slope.at, [&](int64_t k) { return read_one<Real>(p1, n, c + k) - base[k]; });
    uniform = logits.row == 0 && logits.step == 0;
    if (!uniform) return;
    strip.repeat(theta_.at, [&](int64_t k) { return read_one<Real>(logits, n, c + k); });
    for_vectors<Real>(kTileNumbers, [&](int64_t i, auto like) HIDA_INLINED {
      store(theta_ + i, sigmoid<Elementary>(load_like(like, theta_ + i)));
    });
  }

  // f(i, θ) for the vectors of a tile.
  template <class F>
  HIDA_INLINE void for_tile(const Strip& strip, int64_t first, int64_t count, F f) {
    if (uniform)
      return for_vectors<Real>(count * strip.width,
                               [&](int64_t i, auto like) HIDA_INLINED { f(i, load_like(like, theta_ + i)); });
    strip.read(logits_, first, count, theta_.at);
    for_vectors<Real>(count * strip.width, [&](int64_t i, auto like) HIDA_INLINED {
      f(i, sigmoid<Elementary>(load_like(like, theta_ + i)));
    });
  }
  template <class T>
  HIDA_INLINE T value(int64_t i, const T& x, const T& theta) const {
    return acon<Elementary>(x, theta, load_like(x, slope + i), load_like(x, base + i));
  }
  template <class T>
  HIDA_INLINE AconSlopes<T> slopes(int64_t i, const T& x, const T& theta) const {
    return acon_slopes<Elementary>(x, theta, load_like(x, slope + i), load_like(x, base + i));
  }

  Tile<Real> slope, base;
  bool uniform = false;

 private:
  Image logits_;
  Tile<Real> theta_;
};

// The sums that the gradients of p1, p2 and of one θ per channel are.
template <class Real>
struct StripAconSums {
  Tile<Real> q, rest, logits;

  StripAconSums() { q.clear(), rest.clear(), logits.clear(); }
  // As AconLineSums::add: takes the gradient of the activation's value, returns that of the logits.
  template <class T>
  HIDA_INLINE T add(int64_t i, const T& df, const T& x, const T& slope_q, const T& tilt) {
    const T gx = df * x, gl = df * tilt;
    q.add(i, gx * slope_q);
    rest.add(i, gx * (1 - slope_q));
    logits.add(i, gl);
    return gl;
  }
  void write(const Strip& strip, void* dp1, void* dp2, void* dlogits) const {
    for (int64_t k = 0; k < strip.width; ++k) {
      AconSums sums;
      sums.q = strip.sum_of(q.at, k), sums.rest = strip.sum_of(rest.at, k), sums.logits = strip.sum_of(logits.at, k);
      sums.template write<Real>(dp1, dp2, dlogits, strip.n * strip.extent.c + strip.c + k);
    }
  }
};

template <class Real>
void info_acon_forward(const InfoAcon& a, int64_t begin, int64_t end) {
  Tile<Real> x, y;
  for (int64_t item = begin; item < end; ++item) {
    const Strip strip(a.planes.extent, item);
    StripActivation<Real> activation(true, strip, a.logits, a.p1, a.p2);
    strip.for_tiles([&](int64_t first, int64_t count) {
      strip.read(a.x, first, count, x.at);
      activation.for_tile(strip, first, count, [&](int64_t i, auto theta) HIDA_INLINED {
        store(y + i, activation.value(i, load_like(theta, x + i), theta));
      });
      strip.write(a.y, first, count, y.at);
    });
  }
}

template <class Real>
void acon_backward(const InfoAcon& a, int64_t begin, int64_t end) {
  Tile<Real> x, grad, dx, dlogits;
  for (int64_t item = begin; item < end; ++item) {
    const Strip strip(a.planes.extent, item);
    StripActivation<Real> activation(true, strip, a.logits, a.p1, a.p2);
    StripAconSums<Real> sums;
    strip.for_tiles([&](int64_t first, int64_t count) {
      strip.read(a.x, first, count, x.at);
      strip.read(a.grad, first, count, grad.at);
      activation.for_tile(strip, first, count, [&](int64_t i, auto theta) HIDA_INLINED {
        const auto x_i = load_like(theta, x + i), g = load_like(theta, grad + i);
        const auto s = activation.slopes(i, x_i, theta);
        store(dx + i, g * (load_like(theta, activation.slope + i) * s.q + load_like(theta, activation.base + i)));
        store(dlogits + i, sums.add(i, g, x_i, s.q, s.tilt));
      });
      strip.write(a.dx, first, count, dx.at);
      strip.write(a.dlogits, first, count, dlogits.at);
    });
    sums.write(strip, a.dp1, a.dp2, a.dlogits_sum);
  }
}

template <class Real>
void adapt_forward(const Adapt& a, int64_t begin, int64_t end) {
  Tile<Real> x, f, mean, rstd, gamma, beta, added, y;
  Real *means = static_cast<Real*>(a.mean), *rstds = static_cast<Real*>(a.rstd);
  for (int64_t item = begin; item < end; ++item) {
    const Strip strip(a.planes.extent, item);
    StripActivation<Real> activation(a.activate, strip, a.logits, a.p1, a.p2);
    const auto value = [&](int64_t first, int64_t count, Tile<Real>& to) {
      if (!a.activate) return strip.read(a.x, first, count, to.at);
      strip.read(a.x, first, count, x.at);
      activation.for_tile(strip, first, count, [&](int64_t i, auto theta) HIDA_INLINED {
        store(to + i, activation.value(i, load_like(theta, x + i), theta));
      });
    };
    strip_statistics(strip, a.eps, means, rstds, value);
    const int64_t at = strip.n * strip.extent.c + strip.c;
    strip.repeat(mean.at, [&](int64_t k) { return means[at + k]; });
    strip.repeat(rstd.at, [&](int64_t k) { return rstds[at + k]; });
    strip.for_tiles([&](int64_t first, int64_t count) {
      value(first, count, f);
      strip.read(a.gamma, first, count, gamma.at);
      strip.read(a.beta, first, count, beta.at);
      if (a.residual == Residual::tensor) strip.read(a.added, first, count, added.at);
      const auto write = [&](auto residual) HIDA_INLINED {
        for_vectors<Real>(count * strip.width, [&](int64_t i, auto like) HIDA_INLINED {
          const auto f_i = load_like(like, f + i);
          const auto x_hat = normalise(f_i, load_like(like, mean + i), load_like(like, rstd + i));
          store(y + i, residual(modulate(x_hat, load_like(like, gamma + i), load_like(like, beta + i)), f_i, i));
        });
      };
      if (a.residual == Residual::activated)
        write([](auto v, auto f_i, int64_t) HIDA_INLINED { return v + f_i; });
      else if (a.residual == Residual::tensor)
        write([&](auto v, auto, int64_t i) HIDA_INLINED { return v + load_like(v, added + i); });
      else
        write([](auto v, auto, int64_t) HIDA_INLINED { return v; });
      strip.write(a.y, first, count, y.at);
    });
  }
}

template <class Real>
void adapt_backward(const Adapt& a, int64_t begin, int64_t end) {
  Tile<Real> x, grad, gamma, mean, rstd, mean_d, mean_dx, dx, dlogits, dgamma, sum_d, sum_dx;
  const Real *means = static_cast<Real*>(a.mean), *rstds = static_cast<Real*>(a.rstd);
  // What of the upstream gradient goes past the norm: to f, or straight to x.
  const Real to_f = a.residual == Residual::activated ? 1 : 0, to_x = a.grad_to_x ? 1 : 0;
  for (int64_t item = begin; item < end; ++item) {
    const Strip strip(a.planes.extent, item);
    const int64_t at = strip.n * strip.extent.c + strip.c;
    StripActivation<Real> activation(a.activate, strip, a.logits, a.p1, a.p2);
    StripAconSums<Real> sums;
    strip.repeat(mean.at, [&](int64_t k) { return means[at + k]; });
    strip.repeat(rstd.at, [&](int64_t k) { return rstds[at + k]; });
    const auto read = [&](int64_t first, int64_t count) {
      strip.read(a.x, first, count, x.at);
      strip.read(a.grad, first, count, grad.at);
      strip.read(a.gamma, first, count, gamma.at);
    };
    // d is the gradient of the normalised value.
    const auto x_hat_at = [&](int64_t i, auto f)
                              HIDA_INLINED { return normalise(f, load_like(f, mean + i), load_like(f, rstd + i)); };
    const auto d_at = [&](int64_t i, auto like)
                          HIDA_INLINED { return load_like(like, grad + i) * (1 + load_like(like, gamma + i)); };
    sum_d.clear(), sum_dx.clear();
    strip.for_tiles([&](int64_t first, int64_t count) {
      read(first, count);
      const auto sum_up = [&](int64_t i, auto f) HIDA_INLINED {
        const auto x_hat = x_hat_at(i, f), d = d_at(i, f);
        store(dgamma + i, load_like(f, grad + i) * x_hat);
        sum_d.add(i, d);  // grad is zero behind the end: nothing is added there
        sum_dx.add(i, d * x_hat);
      };
      if (a.activate)
        activation.for_tile(strip, first, count, [&](int64_t i, auto theta) HIDA_INLINED {
          sum_up(i, activation.value(i, load_like(theta, x + i), theta));
        });
      else
        for_vectors<Real>(count * strip.width,
                          [&](int64_t i, auto like) HIDA_INLINED { sum_up(i, load_like(like, x + i)); });
      strip.write(a.dgamma, first, count, dgamma.at);
    });
    const double pixels = double(strip.extent.pixels());
    strip.repeat(mean_d.at, [&](int64_t k) { return Real(strip.sum_of(sum_d.at, k) / pixels); });
    strip.repeat(mean_dx.at, [&](int64_t k) { return Real(strip.sum_of(sum_dx.at, k) / pixels); });
    strip.for_tiles([&](int64_t first, int64_t count) {
      read(first, count);
      const auto upstream = [&](int64_t i, auto f) HIDA_INLINED {
        return normalise_gradient(d_at(i, f), x_hat_at(i, f), load_like(f, mean_d + i), load_like(f, mean_dx + i),
                                  load_like(f, rstd + i));
      };
      if (a.activate) {
        activation.for_tile(strip, first, count, [&](int64_t i, auto theta) HIDA_INLINED {
          const auto x_i = load_like(theta, x + i), g = load_like(theta, grad + i);
          const auto s = activation.slopes(i, x_i, theta);
          const auto df = upstream(i, s.value) + to_f * g;
          const auto steep = load_like(theta, activation.slope + i) * s.q + load_like(theta, activation.base + i);
          store(dx + i, df * steep + to_x * g);
          store(dlogits + i, sums.add(i, df, x_i, s.q, s.tilt));
        });
        strip.write(a.dlogits, first, count, dlogits.at);
      } else {
        for_vectors<Real>(count * strip.width, [&](int64_t i, auto like) HIDA_INLINED {
          store(dx + i, upstream(i, load_like(like, x + i)));
        });
      }
      strip.write(a.dx, first, count, dx.at);
    });
    sums.write(strip, a.dp1, a.dp2, a.dlogits_sum);
  }
}

}  // namespace

void info_acon_nhwc(const InfoAcon& a, int64_t begin, int64_t end) {
  a.planes.wide ? info_acon_forward<double>(a, begin, end) : info_acon_forward<float>(a, begin, end);
}
void info_acon_nhwc_backward(const InfoAcon& a, int64_t begin, int64_t end) {
  a.planes.wide ? acon_backward<double>(a, begin, end) : acon_backward<float>(a, begin, end);
}
void adapt_nhwc(const Adapt& a, int64_t begin, int64_t end) {
  a.planes.wide ? adapt_forward<double>(a, begin, end) : adapt_forward<float>(a, begin, end);
}
void adapt_nhwc_backward(const Adapt& a, int64_t begin, int64_t end) {
  a.planes.wide ? adapt_backward<double>(a, begin, end) : adapt_backward<float>(a, begin, end);
}

}  // namespace HIDA_ISA
}  // namespace hida
