// One vector type for every instruction set: the compiler's own vectors, as wide as the file is compiled for.
// Everything lives in a namespace named after the instruction set, so that no inline function compiled for one
// can be linked into the code for another.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__AVX512F__)
#define HIDA_ISA avx512
#define HIDA_VECTOR_BYTES 64
#include <immintrin.h>
#elif defined(__AVX2__)
#define HIDA_ISA avx2
#define HIDA_VECTOR_BYTES 32
#include <immintrin.h>
#else
#define HIDA_ISA generic
#define HIDA_VECTOR_BYTES 16
#endif

namespace hida {
namespace HIDA_ISA {

#define HIDA_INLINE inline __attribute__((always_inline))

template <class Real>
struct Traits;
template <>
struct Traits<float> {
  typedef float V __attribute__((vector_size(HIDA_VECTOR_BYTES)));
  typedef int32_t I __attribute__((vector_size(HIDA_VECTOR_BYTES)));
};
template <>
struct Traits<double> {
  typedef double V __attribute__((vector_size(HIDA_VECTOR_BYTES)));
  typedef int64_t I __attribute__((vector_size(HIDA_VECTOR_BYTES)));
};
template <class Real>
using Vec = typename Traits<Real>::V;
template <class Real>
constexpr int kLanes = HIDA_VECTOR_BYTES / int(sizeof(Real));

template <class Real>
HIDA_INLINE Vec<Real> load(const Real* from) {
  Vec<Real> v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
template <class Real>
HIDA_INLINE void store(Real* to, Vec<Real> v) {
  std::memcpy(to, &v, sizeof v);
}
template <class Real>
HIDA_INLINE Vec<Real> splat(Real value) {
  return value - Vec<Real>{};  // −0 keeps its sign
}

// The first `count` lanes of memory, zeros behind them; and back.
template <class Real>
HIDA_INLINE Vec<Real> load_first(const Real* from, int64_t count) {
  if (count >= kLanes<Real>) return load(from);
  Real lanes[kLanes<Real>] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = from[i];
  return load(lanes);
}
template <class Real>
HIDA_INLINE void store_first(Real* to, Vec<Real> v, int64_t count) {
  if (count >= kLanes<Real>) return store(to, v);
  for (int64_t i = 0; i < count; ++i) to[i] = v[i];
}
// Zero the lanes from `count` on.
template <class Real>
HIDA_INLINE Vec<Real> keep_first(Vec<Real> v, int64_t count) {
  for (int64_t i = count; i < kLanes<Real>; ++i) v[i] = 0;
  return v;
}

// Fixed order: lane 0 to the last.
template <class Real>
HIDA_INLINE double sum(Vec<Real> v) {
  double total = 0;
  for (int i = 0; i < kLanes<Real>; ++i) total += v[i];
  return total;
}

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

// exp and reciprocal as math.h wants them. exp is within 2 ulp where its result is a normal number; arguments outside
// are clamped, so that it neither overflows nor vanishes: the logistic function needs no more.
struct Elementary {
  static HIDA_INLINE Vec<float> exp(Vec<float> x) {
    x = clamp(x, -87.33f, 88.0f);
    const float magic = 12582912.0f;  // 1.5·2²³: adding it rounds to an integer, kept in the low bits
    const Vec<float> shifted = x * 1.44269504f + magic;
    const Vec<float> whole = shifted - magic;
    Vec<float> r = x - whole * 0.693359375f;
    r = r + whole * 2.12194440e-4f;
    Vec<float> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    typedef Traits<float>::I I;
    return p * (Vec<float>)(((I)shifted << 23) + (127 << 23));
  }
  static HIDA_INLINE Vec<double> exp(Vec<double> x) {
    x = clamp(x, -708.0, 709.0);
    const double magic = 6755399441055744.0;  // 1.5·2⁵²
    const Vec<double> shifted = x * 1.4426950408889634 + magic;
    const Vec<double> whole = shifted - magic;
    Vec<double> r = x - whole * 6.93145751953125e-1;
    r = r - whole * 1.42860682030941723212e-6;
    Vec<double> p = r * (1.0 / 6227020800.0) + 1.0 / 479001600.0;  // Taylor, degree 13, |r| ≤ ln 2 / 2
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * (r * r) + r + 1.0;
    typedef Traits<double>::I I;
    return p * (Vec<double>)(((I)shifted << 52) + (int64_t(1023) << 52));
  }
  static HIDA_INLINE Vec<float> reciprocal(Vec<float> x) {
#if defined(__AVX512F__)  // a Newton step is cheaper than the division, and as good to an ulp
    const Vec<float> y = (Vec<float>)_mm512_rcp14_ps((__m512)x);
    return y + y * (1.0f - x * y);
#else
    return 1.0f / x;
#endif
  }
  static HIDA_INLINE Vec<double> reciprocal(Vec<double> x) { return 1.0 / x; }
};

// Scratch memory on cache lines. Not std::vector: its code, too, would be compiled for this instruction set and
// might then be the copy that the linker keeps for everybody.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count) {
    const size_t bytes = (size_t(count > 0 ? count : 1) * sizeof(T) + 63) / 64 * 64;
    data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
    if (data_ == nullptr) throw std::bad_alloc();
  }
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* get() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  T* data_;
};

}  // namespace HIDA_ISA
}  // namespace hida
