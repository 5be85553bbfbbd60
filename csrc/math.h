// Every formula of the native ops, once. V is float, double or a vector of them; no state, no memory.
// E, a back end's, supplies exp() and reciprocal() for its V.
#pragma once

#include <cstdint>

#if defined(__CUDACC__) || defined(HIDA_EMULATE_CUDA)
#define HIDA_MATH __host__ __device__ __forceinline__
#else
#define HIDA_MATH inline __attribute__((always_inline))
#endif

namespace hida {

// Logistic function; E supplies exp and reciprocal.
template <class E, class V>
HIDA_MATH V sigmoid(V z) {
  return E::reciprocal(1 + E::exp(-z));
}

// InfoACON: y = (p1 − p2)·x·σ(θ·(p1 − p2)·x) + p2·x, with slope = p1 − p2 and base = p2.
template <class E, class V, class S>
HIDA_MATH V acon(V x, V theta, S slope, S base) {
  const V linear = slope * x;
  return linear * sigmoid<E>(theta * linear) + base * x;
}

// What the derivatives of InfoACON are made of.
//   q = ∂y/∂u at u = slope·x with θ fixed; ∂y/∂x = slope·q + base; ∂y/∂p1 = x·q; ∂y/∂p2 = x − x·q
//   tilt = ∂y/∂logit, where θ = σ(logit)
template <class V>
struct AconSlopes {
  V value, q, tilt;
};

template <class E, class V, class S>
HIDA_MATH AconSlopes<V> acon_slopes(V x, V theta, S slope, S base) {
  const V linear = slope * x;
  const V power = E::exp(-(theta * linear));
  const V gate = E::reciprocal(1 + power);
  const V bend = linear * (gate * (power * gate));  // u·s·(1 − s); 1 − s would lose its digits near s = 1
  return {linear * gate + base * x, gate + theta * bend, linear * bend * theta * (1 - theta)};
}

// Normalised value, and the modulation of it.
template <class V, class S>
HIDA_MATH V normalise(V f, S mean, S rstd) {
  return (f - mean) * rstd;
}
template <class V>
HIDA_MATH V modulate(V normalised, V gamma, V beta) {
  return (1 + gamma) * normalised + beta;
}

// Gradient of a normalised plane: rstd·(d − mean(d) − x̂·mean(d·x̂)), d being the gradient of x̂.
template <class V, class S>
HIDA_MATH V normalise_gradient(V d, V normalised, S mean_d, S mean_dx, S rstd) {
  return (d - mean_d - normalised * mean_dx) * rstd;
}

// A sampling point of the deformable convolution: the four pixels around it (row-major: top left, top right, bottom
// left, bottom right) and their shares. A pixel outside the image, and each of a point that is not finite or
// is more than a pixel outside, is `nowhere`.
template <class Real>
struct Point {
  int64_t pixel[4];
  Real down, right;  // fractions of the cell
};

// Whether a point may have a pixel of the image around it; not if it is not finite.
template <class Real, class Int>
HIDA_MATH bool is_near(Real row, Real column, Int height, Int width) {
  return row >= -1 && row < Real(height) && column >= -1 && column < Real(width);
}

template <class Real>
HIDA_MATH Point<Real> locate(Real row, Real column, int64_t height, int64_t width, int64_t nowhere) {
  Point<Real> point{{nowhere, nowhere, nowhere, nowhere}, 0, 0};
  // A point at −1 reads zero, too, but its slope there is that of the first pixel.
  if (!is_near(row, column, height, width)) return point;
  // Truncation of a number above −1, shifted to be positive, is the floor.
  const int64_t top = int64_t(row + 1) - 1 - (Real(int64_t(row + 1) - 1) > row);
  const int64_t left = int64_t(column + 1) - 1 - (Real(int64_t(column + 1) - 1) > column);
  point.down = row - Real(top);
  point.right = column - Real(left);
  const bool up = top >= 0, low = top + 1 < height, west = left >= 0, east = left + 1 < width;
  const int64_t corner = top * width + left;
  if (up && west) point.pixel[0] = corner;
  if (up && east) point.pixel[1] = corner + 1;
  if (low && west) point.pixel[2] = corner + width;
  if (low && east) point.pixel[3] = corner + width + 1;
  return point;
}

// Shares of the four pixels.
template <class Real>
HIDA_MATH void shares(const Point<Real>& point, Real (&share)[4]) {
  share[0] = (1 - point.down) * (1 - point.right);
  share[1] = (1 - point.down) * point.right;
  share[2] = point.down * (1 - point.right);
  share[3] = point.down * point.right;
}

}  // namespace hida
