// One vector type for every instruction set: the compiler's own vectors, as wide as the file is compiled for.
// Everything is in a namespace named after the instruction set, so that no inline function compiled for one
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
#define HIDA_INLINED __attribute__((always_inline))  // behind a lambda's parameters

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
// Past the caches, to an aligned address. Other threads see it after fence().
HIDA_INLINE void stream(float* to, Vec<float> v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(to, (__m512)v);
#elif defined(__AVX2__)
  _mm256_stream_ps(to, (__m256)v);
#else
  store(to, v);
#endif
}
HIDA_INLINE void stream(double* to, Vec<double> v) {
#if defined(__AVX512F__)
  _mm512_stream_pd(to, (__m512d)v);
#elif defined(__AVX2__)
  _mm256_stream_pd(to, (__m256d)v);
#else
  store(to, v);
#endif
}
HIDA_INLINE void fence() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}
template <class Real>
HIDA_INLINE Vec<Real> splat(Real value) {
  return value - Vec<Real>{};  // −0 keeps its sign
}

// Vectors computed side by side. A chain of dependent operations as long as two exponentials fills the processor's
// schedulers with operations that wait; several chains side by side keep its items busy.
template <class Real, int kCount>
struct Several {
  Vec<Real> part[kCount];
};
#if defined(__AVX512F__)
constexpr int kAbreast = 4;
#else
constexpr int kAbreast = 2;  // of sixteen registers
#endif

template <class Real, int K, class F>
HIDA_INLINE Several<Real, K> each(F f) {
  Several<Real, K> result;
#pragma GCC unroll 8
  for (int k = 0; k < K; ++k) result.part[k] = f(k);
  return result;
}
#define HIDA_SEVERAL(op)                                                                           \
  template <class Real, int K>                                                                     \
  HIDA_INLINE Several<Real, K> operator op(const Several<Real, K>& a, const Several<Real, K>& b) { \
    return each<Real, K>([&](int k) HIDA_INLINED { return a.part[k] op b.part[k]; });              \
  }                                                                                                \
  template <class Real, int K>                                                                     \
  HIDA_INLINE Several<Real, K> operator op(Real a, const Several<Real, K>& b) {                    \
    return each<Real, K>([&](int k) HIDA_INLINED { return a op b.part[k]; });                      \
  }                                                                                                \
  template <class Real, int K>                                                                     \
  HIDA_INLINE Several<Real, K> operator op(const Several<Real, K>& a, Real b) {                    \
    return each<Real, K>([&](int k) HIDA_INLINED { return a.part[k] op b; });                      \
  }                                                                                                \
  template <class Real, int K>                                                                     \
  HIDA_INLINE Several<Real, K> operator op(int a, const Several<Real, K>& b) {                     \
    return Real(a) op b;                                                                           \
  }
HIDA_SEVERAL(+)
HIDA_SEVERAL(-)
HIDA_SEVERAL(*)
#undef HIDA_SEVERAL
template <class Real, int K>
HIDA_INLINE Several<Real, K> operator-(const Several<Real, K>& a) {
  return each<Real, K>([&](int k) HIDA_INLINED { return -a.part[k]; });
}

// Loads and stores of either, by the type of the value or of one like it.
HIDA_INLINE Vec<float> load_like(Vec<float>, const float* from) {
  return load(from);
}
HIDA_INLINE Vec<double> load_like(Vec<double>, const double* from) {
  return load(from);
}
template <class Real, int K>
HIDA_INLINE Several<Real, K> load_like(const Several<Real, K>&, const Real* from) {
  return each<Real, K>([&](int k) HIDA_INLINED { return load(from + k * kLanes<Real>); });
}
template <class Real, int K>
HIDA_INLINE void store(Real* to, const Several<Real, K>& v) {
#pragma GCC unroll 8
  for (int k = 0; k < K; ++k) store(to + k * kLanes<Real>, v.part[k]);
}
template <class Real, int K>
HIDA_INLINE void stream(Real* to, const Several<Real, K>& v) {
#pragma GCC unroll 8
  for (int k = 0; k < K; ++k) stream(to + k * kLanes<Real>, v.part[k]);
}
HIDA_INLINE Vec<float> repeat_like(Vec<float>, Vec<float> v) {
  return v;
}
HIDA_INLINE Vec<double> repeat_like(Vec<double>, Vec<double> v) {
  return v;
}
template <class Real, int K>
HIDA_INLINE Several<Real, K> repeat_like(const Several<Real, K>&, Vec<Real> v) {
  return each<Real, K>([&](int) HIDA_INLINED { return v; });
}
HIDA_INLINE Vec<float> total(Vec<float> v) {
  return v;
}
HIDA_INLINE Vec<double> total(Vec<double> v) {
  return v;
}
template <class Real, int K>
HIDA_INLINE Vec<Real> total(const Several<Real, K>& v) {
  Vec<Real> sum = v.part[0];
#pragma GCC unroll 8
  for (int k = 1; k < K; ++k) sum += v.part[k];
  return sum;
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

// Sum of the lanes in double, always in the same order.
HIDA_INLINE double sum(Vec<double> v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_pd((__m512d)v);
#else
  double total = 0;
  for (int i = 0; i < kLanes<double>; ++i) total += v[i];
  return total;
#endif
}
HIDA_INLINE double sum(Vec<float> v) {
#if defined(__AVX512F__)
  const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256((__m512)v));
  const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)v, 1));
  return sum((Vec<double>)_mm512_add_pd(low, high));
#elif defined(__AVX2__)
  const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128((__m256)v));
  const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps((__m256)v, 1));
  return sum((Vec<double>)_mm256_add_pd(low, high));
#else
  double total = 0;
  for (int i = 0; i < kLanes<float>; ++i) total += double(v[i]);
  return total;
#endif
}

// f(i, like) for `count` numbers from 0 on: by several vectors, then by one; `like` is a value of the type.
template <class Real, class F>
HIDA_INLINE void for_vectors(int64_t count, F f) {
  constexpr int64_t L = kLanes<Real>;
  int64_t i = 0;
  for (; i + kAbreast * L <= count; i += kAbreast * L) f(i, Several<Real, kAbreast>{});
  for (; i < count; i += L) f(i, Vec<Real>{});
}

template <class Real>
constexpr int64_t padded(int64_t count) {
  return (count + kLanes<Real> - 1) / kLanes<Real> * kLanes<Real>;
}

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
