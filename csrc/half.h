// bfloat16 and float16 to float and back: to nearest, ties to even. For the CPU, for a chip and for its emulation.
#pragma once

#include <cstring>

#include "math.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace hida {

HIDA_MATH float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
HIDA_MATH uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}

// NaN stays NaN: the one that a chip's own instructions make, or, on the CPU, torch's.
#if defined(__CUDACC__) || defined(HIDA_EMULATE_CUDA)
constexpr uint32_t kNanBf16 = 0x7fffu, kNanF16 = 0x7fffu;
#else
constexpr uint32_t kNanBf16 = 0x7fc0u, kNanF16 = 0x7e00u;
#endif

HIDA_MATH float widen_bf16(uint32_t bits) {
  return float_of(bits << 16);
}
HIDA_MATH uint32_t narrow_bf16(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
#else
  const uint32_t bits = bits_of(value);
  return value != value ? kNanBf16 : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
#endif
}

HIDA_MATH float widen_f16(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(uint16_t(bits)));
  return value;
#elif defined(__F16C__)
  return _cvtsh_ss(uint16_t(bits));
#else
  const uint32_t sign = (bits & 0x8000u) << 16, rest = bits & 0x7fffu;
  // 2¹¹² moves the exponent's origin, also for subnormal numbers; all ones stay all ones.
  const float magnitude = float_of(rest << 13) * float_of(0x77800000u);
  return float_of((rest >= 0x7c00u ? rest << 13 | 0x7f800000u : bits_of(magnitude)) | sign);
#endif
}
HIDA_MATH uint32_t narrow_f16(float value) {
#if defined(__CUDA_ARCH__)
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
#elif defined(__F16C__)
  return _cvtss_sh(value, 0);
#else
  const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return sign | kNanF16;
  if (rest >= 0x477ff000u) return sign | 0x7c00u;
  if (rest < 0x38800000u)  // subnormal: adding ½ aligns the last bit, and rounds to even
    return sign | (bits_of(float_of(rest) + 0.5f) - 0x3f000000u);
  return sign | (rest - 0x38000000u + 0xfffu + (rest >> 13 & 1u)) >> 13;
#endif
}

}  // namespace hida
