// The kernels without torch: ida on plain arrays, against its formula in double.
#include <cmath>
#include <cstdio>
#include <exception>
#include <vector>

#include "cpu/kernels.h"

namespace {

hida::Image image(std::vector<float>& data, const hida::Extent& e) {
  hida::Image made;
  made.data = data.data();
  made.n = e.c * e.pixels();
  made.c = e.pixels();
  made.row = e.w;
  made.step = 1;
  return made;
}

std::vector<float> numbers(int64_t count, double seed) {
  std::vector<float> made(count);
  for (int64_t i = 0; i < count; ++i) made[i] = float(2 * std::sin(seed + 1.7 * double(i)));
  return made;
}

double logistic(double z) {
  return 1 / (1 + std::exp(-z));
}

}  // namespace

int main() {
  const hida::Extent e{2, 3, 9, 11};
  const int64_t plane = e.pixels(), size = e.n * e.c * plane;
  std::vector<float> h = numbers(size, 1), logits = numbers(size, 2), gamma = numbers(size, 3), beta = numbers(size, 4),
                     p1 = numbers(e.c, 5), p2 = numbers(e.c, 6), y(size, NAN), mean(e.n * e.c), rstd(e.n * e.c);
  hida::Adapt a;
  a.planes.extent = e;
  a.activate = true;
  a.residual = hida::Residual::activated;
  a.eps = 1e-5;
  a.x = image(h, e), a.logits = image(logits, e), a.gamma = image(gamma, e), a.beta = image(beta, e), a.y = image(y, e);
  a.p1.data = p1.data(), a.p1.c = 1;
  a.p2.data = p2.data(), a.p2.c = 1;
  a.mean = mean.data(), a.rstd = rstd.data();
  try {
    std::printf("kernels: %s\n", hida::kernels().isa);
  } catch (const std::exception& error) {
    std::printf("skipped: %s\n", error.what());
    return 77;
  }
  hida::kernels().adapt(a, 0, e.n * e.c);
  double worst = 0;
  for (int64_t p = 0; p < e.n * e.c; ++p) {
    std::vector<double> f(plane);
    double m = 0, v = 0;
    for (int64_t i = 0; i < plane; ++i) {
      const double x = h[p * plane + i], d = double(p1[p % e.c]) - p2[p % e.c];
      f[i] = d * x * logistic(logistic(logits[p * plane + i]) * d * x) + p2[p % e.c] * x;
      m += f[i] / double(plane);
    }
    for (double value : f) v += (value - m) * (value - m) / double(plane);
    for (int64_t i = 0; i < plane; ++i) {
      const int64_t at = p * plane + i;
      const double k = (1 + double(gamma[at])) * (f[i] - m) / std::sqrt(v + a.eps) + beta[at] + f[i];
      const double error = std::fabs(k - y[at]);
      if (!(error <= worst)) worst = error;  // NaN too
    }
  }
  std::printf("worst error %.2e\n", worst);
  return worst <= 2e-5 ? 0 : 1;
}
