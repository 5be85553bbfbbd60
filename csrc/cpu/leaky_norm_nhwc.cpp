// leaky_norm of channels_last tensors: y = l₂((f − μ)/√(var + eps)), f = l₁(x); l is the leaky ReLU, of slope `before`
// and `after` (1: none). Traffic: 3n forward (the second read from a cache where an image fits), 5n backward.
// And plane_sums, the sum of each plane.
#include "elementary.h"
#include "nhwc.h"

namespace hida {
namespace HIDA_ISA {
namespace {

// `value` where x is positive, else slope·value.
HIDA_INLINE Vec<float> leaky(Vec<float> x, Vec<float> value, float slope) {
  return x > 0 ? value : value * slope;
}
HIDA_INLINE Vec<double> leaky(Vec<double> x, Vec<double> value, double slope) {
  return x > 0 ? value : value * slope;
}
template <class Real, int K>
HIDA_INLINE Several<Real, K> leaky(const Several<Real, K>& x, const Several<Real, K>& value, Real slope) {
  return each<Real, K>([&](int k) HIDA_INLINED { return leaky(x.part[k], value.part[k], slope); });
}

template <class Real>
void forward(const LeakyNorm& a, int64_t begin, int64_t end) {
  Tile<Real> x, mean, rstd;
  const Real before = Real(a.before), after = Real(a.after);
  Real *means = static_cast<Real*>(a.mean), *rstds = static_cast<Real*>(a.rstd);
  for (int64_t item = begin; item < end; ++item) {
    const Strip strip(a.extent, item);
    const auto value = [&](int64_t first, int64_t count, Tile<Real>& to) {
      strip.read(a.x, first, count, to.at);
      for_vectors<Real>(count * strip.width, [&](int64_t i, auto like) HIDA_INLINED {
        const auto x_i = load_like(like, to + i);
        store(to + i, leaky(x_i, x_i, before));
      });
    };
    strip_statistics(strip, a.eps, means, rstds, value);
    const int64_t at = strip.n * strip.extent.c + strip.c;
    strip.repeat(mean.at, [&](int64_t k) { return means[at + k]; });
    strip.repeat(rstd.at, [&](int64_t k) { return rstds[at + k]; });
    strip.for_tiles([&](int64_t first, int64_t count) {
      value(first, count, x);
      for_vectors<Real>(count * strip.width, [&](int64_t i, auto like) HIDA_INLINED {
        const auto x_hat = normalise(load_like(like, x + i), load_like(like, mean + i), load_like(like, rstd + i));
        store(x + i, leaky(x_hat, x_hat, after));
      });
      strip.write(a.y, first, count, x.at);
    });
  }
}

template <class Real>
void backward(const LeakyNorm& a, int64_t begin, int64_t end) {
  Tile<Real> x, grad, mean, rstd, sum_d, sum_dx, mean_d, mean_dx;
  const Real before = Real(a.before), after = Real(a.after);
  const Real *means = static_cast<Real*>(a.mean), *rstds = static_cast<Real*>(a.rstd);
  for (int64_t item = begin; item < end; ++item) {
    const Strip strip(a.extent, item);
    const int64_t at = strip.n * strip.extent.c + strip.c;
    strip.repeat(mean.at, [&](int64_t k) { return means[at + k]; });
    strip.repeat(rstd.at, [&](int64_t k) { return rstds[at + k]; });
    // f(i, x, the normalised value, its gradient) for a tile.
    const auto for_tile = [&](int64_t first, int64_t count, auto f) HIDA_INLINED {
      strip.read(a.x, first, count, x.at);
      strip.read(a.grad, first, count, grad.at);
      for_vectors<Real>(count * strip.width, [&](int64_t i, auto like) HIDA_INLINED {
        const auto x_i = load_like(like, x + i);
        const auto x_hat = normalise(leaky(x_i, x_i, before), load_like(like, mean + i), load_like(like, rstd + i));
        f(i, x_i, x_hat, leaky(x_hat, load_like(like, grad + i), after));
      });
    };
    sum_d.clear(), sum_dx.clear();
    strip.for_tiles([&](int64_t first, int64_t count) {
      for_tile(first, count, [&](int64_t i, auto, auto x_hat, auto d) HIDA_INLINED {
        sum_d.add(i, d);  // zero behind the end, as grad is
        sum_dx.add(i, d * x_hat);
      });
    });
    const double pixels = double(strip.extent.pixels());
    strip.repeat(mean_d.at, [&](int64_t k) { return Real(strip.sum_of(sum_d.at, k) / pixels); });
    strip.repeat(mean_dx.at, [&](int64_t k) { return Real(strip.sum_of(sum_dx.at, k) / pixels); });
    strip.for_tiles([&](int64_t first, int64_t count) {
      for_tile(first, count, [&](int64_t i, auto x_i, auto x_hat, auto d) HIDA_INLINED {
        const auto df =
            normalise_gradient(d, x_hat, load_like(d, mean_d + i), load_like(d, mean_dx + i), load_like(d, rstd + i));
        store(grad + i, leaky(x_i, df, before));
      });
      strip.write(a.dx, first, count, grad.at);
    });
  }
}

template <class Real>
void sum_planes(const PlaneSums& a, int64_t begin, int64_t end) {
  Tile<Real> x, sums;
  for (int64_t item = begin; item < end; ++item) {
    const Strip strip(a.extent, item);
    sums.clear();
    strip.for_tiles([&](int64_t first, int64_t count) {
      strip.read(a.x, first, count, x.at);
      for_vectors<Real>(count * strip.width,
                        [&](int64_t i, auto like) HIDA_INLINED { sums.add(i, load_like(like, x + i)); });
    });
    for (int64_t k = 0; k < strip.width; ++k)
      static_cast<Real*>(a.sums)[strip.n * a.extent.c + strip.c + k] = Real(strip.sum_of(sums.at, k));
  }
}

}  // namespace

void plane_sums_nhwc(const PlaneSums& a, int64_t begin, int64_t end) {
  a.wide ? sum_planes<double>(a, begin, end) : sum_planes<float>(a, begin, end);
}
void leaky_norm_nhwc(const LeakyNorm& a, int64_t begin, int64_t end) {
  a.wide ? forward<double>(a, begin, end) : forward<float>(a, begin, end);
}
void leaky_norm_nhwc_backward(const LeakyNorm& a, int64_t begin, int64_t end) {
  a.wide ? backward<double>(a, begin, end) : backward<float>(a, begin, end);
}

}  // namespace HIDA_ISA
}  // namespace hida
