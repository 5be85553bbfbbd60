// exp and the reciprocal of vectors: what the formulas of math.h are made of here.
#pragma once

#include "../math.h"
#include "simd.h"

namespace hida {
namespace HIDA_ISA {

HIDA_INLINE Vec<float> clamp(Vec<float> x, float low, float high) {  // keeps NaN
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_min_ps(_mm512_set1_ps(high), _mm512_max_ps(_mm512_set1_ps(low), (__m512)x));
#elif defined(__AVX2__)
  return (Vec<float>)_mm256_min_ps(_mm256_set1_ps(high), _mm256_max_ps(_mm256_set1_ps(low), (__m256)x));
#else
  x = x < low ? splat(low) : x;
  return x > high ? splat(high) : x;
#endif
}
HIDA_INLINE Vec<double> clamp(Vec<double> x, double low, double high) {
  x = x < low ? splat(low) : x;
  return x > high ? splat(high) : x;
}

template <class Real, int K>
HIDA_INLINE Several<Real, K> clamp(const Several<Real, K>& x, Real low, Real high) {
  return each<Real, K>([&](int k) HIDA_INLINED { return clamp(x.part[k], low, high); });
}

// 2^(k − 1) of numbers whose low bits hold the integer k, as rounding by a large addend leaves it; 0 for the least k,
// of which no number is normal.
HIDA_INLINE Vec<float> half_power_of_two(Vec<float> shifted) {
  typedef Traits<float>::I I;
  return (Vec<float>)(((I)shifted << 23) + (126 << 23));
}
HIDA_INLINE Vec<double> half_power_of_two(Vec<double> shifted) {
  typedef Traits<double>::I I;
  return (Vec<double>)(((I)shifted << 52) + (int64_t(1022) << 52));
}
template <class Real, int K>
HIDA_INLINE Several<Real, K> half_power_of_two(const Several<Real, K>& shifted) {
  return each<Real, K>([&](int k) HIDA_INLINED { return half_power_of_two(shifted.part[k]); });
}

// Within 2 ulp where the result is a normal number. Never infinite: arguments are clamped to what nearly is, of which
// reciprocal() makes 0, so that the logistic function is 0 where it vanishes, but no product of the two is NaN. The
// least argument gives 0. p is twice the polynomial.
template <class V>
HIDA_INLINE V exp_float(V x) {
  x = clamp(x, -87.33f, 88.72f);
  const float magic = 12582912.0f;  // 1.5·2²³: adding it rounds to an integer, kept in the low bits
  const V shifted = x * 1.44269504f + magic;
  const V whole = shifted - magic;
  V r = x - whole * 0.693359375f;
  r = r + whole * 2.12194440e-4f;
  // Minimax on |r| ≤ ln 2 / 2: relative error 3e-9 before rounding.
  V p = r * (2 * 1.3814110128e-3f) + 2 * 8.3687113714e-3f;
  p = p * r + 2 * 4.1668394716e-2f;
  p = p * r + 2 * 1.6666520710e-1f;
  p = p * r + 2 * 4.9999993440e-1f;
  p = p * r + 2.0f;
  p = p * r + 2.0f;
  return p * half_power_of_two(shifted);
}
template <class V>
HIDA_INLINE V exp_double(V x) {
  x = clamp(x, -708.5, 709.78);
  const double magic = 6755399441055744.0;  // 1.5·2⁵²
  const V shifted = x * 1.4426950408889634 + magic;
  const V whole = shifted - magic;
  V r = x - whole * 6.93145751953125e-1;
  r = r - whole * 1.42860682030941723212e-6;
  V p = r * (2.0 / 6227020800.0) + 2.0 / 479001600.0;  // Taylor, degree 13, |r| ≤ ln 2 / 2
  p = p * r + 2.0 / 39916800.0;
  p = p * r + 2.0 / 3628800.0;
  p = p * r + 2.0 / 362880.0;
  p = p * r + 2.0 / 40320.0;
  p = p * r + 2.0 / 5040.0;
  p = p * r + 2.0 / 720.0;
  p = p * r + 2.0 / 120.0;
  p = p * r + 2.0 / 24.0;
  p = p * r + 2.0 / 6.0;
  p = p * r + 1.0;
  p = p * r + 2.0;
  p = p * r + 2.0;
  return p * half_power_of_two(shifted);
}

// exp and reciprocal for the templates of math.h; the reciprocal of the largest exponential is 0.
struct Elementary {
  static HIDA_INLINE Vec<float> exp(Vec<float> x) { return exp_float(x); }
  static HIDA_INLINE Vec<double> exp(Vec<double> x) { return exp_double(x); }
  template <int K>
  static HIDA_INLINE Several<float, K> exp(const Several<float, K>& x) {
    return exp_float(x);
  }
  template <int K>
  static HIDA_INLINE Several<double, K> exp(const Several<double, K>& x) {
    return exp_double(x);
  }
  static HIDA_INLINE Vec<float> reciprocal(Vec<float> x) {
#if defined(__AVX512F__)  // a Newton step is cheaper than the division, and as good to an ulp
    const __mmask16 counts = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(kLargest), _CMP_NGE_UQ);
    const Vec<float> y = (Vec<float>)_mm512_maskz_rcp14_ps(counts, (__m512)x);
    return y + y * (1.0f - x * y);
#else
    return x >= kLargest ? Vec<float>{} : 1.0f / x;
#endif
  }
  static HIDA_INLINE Vec<double> reciprocal(Vec<double> x) { return x >= 1.79e308 ? Vec<double>{} : 1.0 / x; }
  template <class Real, int K>
  static HIDA_INLINE Several<Real, K> reciprocal(const Several<Real, K>& x) {
    return each<Real, K>([&](int k) HIDA_INLINED { return reciprocal(x.part[k]); });
  }

 private:
  static constexpr float kLargest = 3.3e38f;
};

}  // namespace HIDA_ISA
}  // namespace hida
