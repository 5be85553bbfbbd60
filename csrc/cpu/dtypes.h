// Arrays of any dtype, read and written as arrays of the computing type.
#pragma once

#include "../half.h"
#include "cpu_only.h"
#include "simd.h"

namespace hida {
namespace HIDA_ISA {

// A type for each dtype that C++ has none for.
struct Bf16 {
  uint16_t bits;
  static HIDA_INLINE float widen(Bf16 v) { return widen_bf16(v.bits); }
  static HIDA_INLINE Bf16 narrow(float value) { return {uint16_t(narrow_bf16(value))}; }
};
struct F16 {
  uint16_t bits;
  static HIDA_INLINE float widen(F16 v) { return widen_f16(v.bits); }
  static HIDA_INLINE F16 narrow(float value) { return {uint16_t(narrow_f16(value))}; }
};

HIDA_INLINE double value_of(double v) {
  return v;
}
HIDA_INLINE float value_of(float v) {
  return v;
}
HIDA_INLINE float value_of(Bf16 v) {
  return Bf16::widen(v);
}
HIDA_INLINE float value_of(F16 v) {
  return F16::widen(v);
}
template <class T>
HIDA_INLINE T cast_to(double v) {
  return T(v);
}
template <>
HIDA_INLINE Bf16 cast_to<Bf16>(double v) {
  return Bf16::narrow(float(v));
}
template <>
HIDA_INLINE F16 cast_to<F16>(double v) {
  return F16::narrow(float(v));
}
template <class T>
HIDA_INLINE T cast_to(float v) {
  return T(v);
}
template <>
HIDA_INLINE Bf16 cast_to<Bf16>(float v) {
  return Bf16::narrow(v);
}
template <>
HIDA_INLINE F16 cast_to<F16>(float v) {
  return F16::narrow(v);
}

#if defined(__AVX512BW__) && defined(__AVX512VL__)
// bfloat16 that is contiguous. Stores are whole ones: what a masked store wrote cannot be read back at once.
HIDA_INLINE void widen_all(const Bf16* from, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i)));
    _mm512_storeu_si512(to + i, _mm512_slli_epi32(bits, 16));
  }
  for (; i + 8 <= count; i += 8) {
    const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), _mm256_slli_epi32(bits, 16));
  }
  for (; i < count; ++i) to[i] = Bf16::widen(from[i]);
}
HIDA_INLINE __m256i narrowed(__m512 value) {
  const __m512i bits = _mm512_castps_si512(value);
  const __m512i even = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), even);
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(
      _mm512_srli_epi32(rounded, 16), _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc0)));
}
HIDA_INLINE void narrow_all(const float* from, int64_t count, Bf16* to) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), narrowed(_mm512_loadu_ps(from + i)));
  if (i + 8 <= count) {
    const __m256i eight = narrowed(_mm512_castps256_ps512(_mm256_loadu_ps(from + i)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm256_castsi256_si128(eight));
    i += 8;
  }
  for (; i < count; ++i) to[i] = Bf16::narrow(from[i]);
}
#endif

template <class T, class Real>
inline void gather(const T* from, int64_t step, int64_t count, Real* to) {
  if (step == 1) {
    int64_t i = 0;
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    if constexpr (sizeof(Real) == 4 && __is_same(T, Bf16)) return widen_all(from, count, to);
#endif
#if defined(__F16C__)
    if constexpr (sizeof(Real) == 4 && __is_same(T, F16))
      for (; i + 8 <= count; i += 8)
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
#endif
    for (; i < count; ++i) to[i] = Real(value_of(from[i]));
  } else if (step == 0) {
    const Real value = Real(value_of(*from));
    for (int64_t i = 0; i < count; ++i) to[i] = value;
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = Real(value_of(from[i * step]));
  }
}
template <class T, class Real>
inline void scatter(T* to, int64_t step, int64_t count, const Real* from) {
  if (step == 1) {
    int64_t i = 0;
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    if constexpr (sizeof(Real) == 4 && __is_same(T, Bf16)) return narrow_all(from, count, to);
#endif
#if defined(__F16C__)
    if constexpr (sizeof(Real) == 4 && __is_same(T, F16))
      for (; i + 8 <= count; i += 8)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), 0));
#endif
    for (; i < count; ++i) to[i] = cast_to<T>(from[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) to[i * step] = cast_to<T>(from[i]);
  }
}

template <class F>
HIDA_INLINE void with_type(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::f32:
      return f(float());
    case Dtype::f64:
      return f(double());
    case Dtype::bf16:
      return f(Bf16());
    case Dtype::f16:
      return f(F16());
  }
}

// One number of an image.
template <class Real>
HIDA_INLINE Real read_one(const Image& image, int64_t n, int64_t c) {
  Real value = 0;
  with_type(image.dtype, [&](auto type) {
    using T = decltype(type);
    value = Real(value_of(static_cast<const T*>(image.data)[n * image.n + c * image.c]));
  });
  return value;
}

}  // namespace HIDA_ISA
}  // namespace hida
