// Lines: stretches of a plane as plain arrays of the computing type. Every kernel works on lines and so knows neither
// dtypes nor strides; a line that already is such an array in memory is used where it lies.
#pragma once

#include "kernels.h"
#include "vectors.h"

namespace hida {
namespace HIDA_ISA {

constexpr int64_t kLine = 2048;  // pixels; a handful of lines stay in the first-level cache

template <class Real>
constexpr int64_t padded(int64_t count) {
  return (count + kLanes<Real> - 1) / kLanes<Real> * kLanes<Real>;
}

HIDA_INLINE float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
HIDA_INLINE uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

struct Bf16 {
  uint16_t bits;
  static HIDA_INLINE float widen(Bf16 v) { return from_bits(uint32_t(v.bits) << 16); }
  static HIDA_INLINE Bf16 narrow(float value) {  // to nearest even; NaN stays NaN
    const uint32_t bits = to_bits(value);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return {uint16_t(value != value ? 0x7fc0u : rounded)};
  }
};

struct F16 {
  uint16_t bits;
#if defined(__F16C__)
  static HIDA_INLINE float widen(F16 v) { return _cvtsh_ss(v.bits); }
  static HIDA_INLINE F16 narrow(float value) { return {uint16_t(_cvtss_sh(value, 0))}; }
#else
  static HIDA_INLINE float widen(F16 v) {
    const uint32_t sign = uint32_t(v.bits & 0x8000u) << 16, rest = v.bits & 0x7fffu;
    // 2¹¹² moves the exponent's origin, also for subnormal numbers; all ones stay all ones.
    const float magnitude = from_bits(rest << 13) * from_bits(0x77800000u);
    return from_bits((rest >= 0x7c00u ? (rest << 13) | 0x7f800000u : to_bits(magnitude)) | sign);
  }
  static HIDA_INLINE F16 narrow(float value) {
    const uint32_t bits = to_bits(value), sign = (bits >> 16) & 0x8000u, rest = bits & 0x7fffffffu;
    if (rest > 0x7f800000u) return {uint16_t(sign | 0x7e00u)};
    if (rest >= 0x477ff000u) return {uint16_t(sign | 0x7c00u)};
    if (rest < 0x38800000u)  // subnormal: adding ½ aligns the last bit, and rounds to even
      return {uint16_t(sign | (to_bits(from_bits(rest) + 0.5f) - 0x3f000000u))};
    return {uint16_t(sign | ((rest - 0x38000000u + 0xfffu + ((rest >> 13) & 1u)) >> 13))};
  }
#endif
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
// bfloat16 that lies in one piece. Stores are whole ones: what a masked store wrote cannot be read back at once.
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

// Visit the runs of equal step that `count` pixels from `first` on consist of: f(element offset, pixels done, count).
template <class F>
HIDA_INLINE void for_runs(const Image& image, const Extent& e, int64_t n, int64_t c, int64_t first, int64_t count,
                          F f) {
  const int64_t plane = n * image.n + c * image.c;
  if (image.row == e.w * image.step) return f(plane + first * image.step, int64_t(0), count);
  for (int64_t done = 0; done < count;) {
    const int64_t row = (first + done) / e.w, column = (first + done) % e.w;
    const int64_t run = e.w - column < count - done ? e.w - column : count - done;
    f(plane + row * image.row + column * image.step, done, run);
    done += run;
  }
}

// Copy `count` pixels of plane (n, c) from pixel `first` on into `to`, with zeros up to whole vectors.
template <class Real>
inline void copy_line(const Image& image, const Extent& e, int64_t n, int64_t c, int64_t first, int64_t count,
                      Real* to) {
  with_type(image.dtype, [&](auto type) {
    using T = decltype(type);
    for_runs(image, e, n, c, first, count, [&](int64_t at, int64_t done, int64_t run) {
      gather(static_cast<const T*>(image.data) + at, image.step, run, to + done);
    });
  });
  for (int64_t i = count; i < padded<Real>(count); ++i) to[i] = 0;
}

template <class Real>
HIDA_INLINE bool lies_ready(const Image& image, const Extent& e, int64_t count) {
  return image.dtype == (sizeof(Real) == 4 ? Dtype::f32 : Dtype::f64) && image.step == 1 && image.row == e.w &&
         count % kLanes<Real> == 0;
}

// As copy_line, but no copy where the plane is an array of Real already.
template <class Real>
HIDA_INLINE const Real* read_line(const Image& image, const Extent& e, int64_t n, int64_t c, int64_t first,
                                  int64_t count, Real* buffer) {
  if (lies_ready<Real>(image, e, count))
    return static_cast<const Real*>(image.data) + n * image.n + c * image.c + first;
  copy_line(image, e, n, c, first, count, buffer);
  return buffer;
}

// Where to write a line, and putting it there.
template <class Real>
HIDA_INLINE Real* target_line(const Image& image, const Extent& e, int64_t n, int64_t c, int64_t first, int64_t count,
                              Real* buffer) {
  return lies_ready<Real>(image, e, count) ? static_cast<Real*>(image.data) + n * image.n + c * image.c + first
                                           : buffer;
}
template <class Real>
inline void write_line(const Image& image, const Extent& e, int64_t n, int64_t c, int64_t first, int64_t count,
                       const Real* line, const Real* buffer) {
  if (image.data == nullptr || line != buffer) return;
  with_type(image.dtype, [&](auto type) {
    using T = decltype(type);
    for_runs(image, e, n, c, first, count, [&](int64_t at, int64_t done, int64_t run) {
      scatter(static_cast<T*>(image.data) + at, image.step, run, line + done);
    });
  });
}

// Stores to a plane's lines: past the caches where the plane is an array of Real in a tensor that they would not hold
// anyway. Then no line is read in order to be overwritten, and what is still needed stays.
template <class Real>
class Out {
 public:
  HIDA_INLINE Out(const Image& image, const Extent& e, int64_t n, int64_t c) {
    constexpr int64_t kLarge = int64_t(1) << 20;  // bytes of a tensor
    past_ =
        image.data != nullptr && lies_ready<Real>(image, e, e.pixels()) &&
        e.n * e.c * e.pixels() * int64_t(sizeof(Real)) >= kLarge &&
        reinterpret_cast<uintptr_t>(static_cast<Real*>(image.data) + n * image.n + c * image.c) % HIDA_VECTOR_BYTES ==
            0;
  }
  template <class V>
  HIDA_INLINE void put(Real* to, const V& v) const {
    past_ ? stream(to, v) : store(to, v);
  }

 private:
  bool past_;
};

// Ask for memory before it is needed: touch(i) fetches pixel i of a line into the second-level cache. Does nothing for
// a plane that does not lie in one piece.
class Ahead {
 public:
  Ahead() = default;
  HIDA_INLINE Ahead(const Image& image, const Extent& e, int64_t n, int64_t c, int64_t first) {
    if (image.data == nullptr || image.step != 1 || image.row != e.w) return;
    step_ = image.dtype == Dtype::f64 ? 8 : image.dtype == Dtype::f32 ? 4 : 2;
    from_ = static_cast<const char*>(image.data) + (n * image.n + c * image.c + first) * step_;
  }
  template <class V>
  HIDA_INLINE void touch(int64_t i, const V&) const {
    __builtin_prefetch(from_ + i * step_, 0, 2);
  }
  template <class Real, int K>
  HIDA_INLINE void touch(int64_t i, const Several<Real, K>&) const {
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) __builtin_prefetch(from_ + (i + k * kLanes<Real>)*step_, 0, 2);
  }

 private:
  const char* from_ = reinterpret_cast<const char*>(this);
  int64_t step_ = 0;
};

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
