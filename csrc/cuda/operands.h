// Numbers as the products see them. A product's operands lie in units of 16 bytes; `M` names what multiplies them:
//   Bf16, Fp16, Tf32  tensor cores, sums in float          Fp32, Fp64  plain multiply-adds
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "device.h"

namespace hida {
namespace cuda {

struct alignas(16) Unit {
  uint32_t word[4];
};

HIDA_DEVICE Unit load_unit(const void* from) {
  const uint4 v = *static_cast<const uint4*>(from);
  return {{v.x, v.y, v.z, v.w}};
}
HIDA_DEVICE void store_unit(void* to, const Unit& unit) {
  *static_cast<uint4*>(to) = make_uint4(unit.word[0], unit.word[1], unit.word[2], unit.word[3]);
}

HIDA_DEVICE float from_bf16(uint32_t bits) {
  return __uint_as_float(bits << 16);
}
HIDA_DEVICE uint32_t to_bf16(float x) {  // to nearest, ties to even
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
#else
  const uint32_t bits = __float_as_uint(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;
  return (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
#endif
}

HIDA_DEVICE float from_fp16(uint32_t bits) {
#if defined(HIDA_EMULATE_CUDA)
  const uint32_t exponent = bits >> 10 & 31, fraction = bits & 1023;
  const float size = exponent == 0    ? float(fraction) * 0x1p-24f
                     : exponent == 31 ? (fraction ? NAN : INFINITY)
                                      : std::ldexp(float(fraction + 1024), int(exponent) - 25);
  return bits >> 15 ? -size : size;
#else
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(uint16_t(bits)));
  return x;
#endif
}
HIDA_DEVICE uint32_t to_fp16(float x) {
#if defined(HIDA_EMULATE_CUDA)
  const uint32_t sign = __float_as_uint(x) >> 16 & 0x8000u;
  const float size = std::fabs(x);
  if (std::isnan(x)) return 0x7fffu;
  if (size >= 65520.0f) return sign | 0x7c00u;
  if (size < 0x1p-14f) return sign | uint32_t(std::nearbyint(size * 0x1p24f));
  int exponent;
  const float fraction = std::frexp(size, &exponent);  // in [1/2, 1)
  return sign | ((uint32_t(exponent + 14) << 10) + uint32_t(std::nearbyint(fraction * 2048.0f)) - 1024u);
#else
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
#endif
}

// Each names its unit: numbers in it, what sums and coordinates are computed in, how memory holds it.
struct Bf16 {
  using Real = float;
  using Bits = uint16_t;
  static constexpr Dtype dtype = Dtype::bf16;
  static constexpr bool tensor = true;
  static HIDA_DEVICE float read(uint32_t bits) { return from_bf16(bits); }
  static HIDA_DEVICE uint32_t write(float x) { return to_bf16(x); }
};
struct Fp16 {
  using Real = float;
  using Bits = uint16_t;
  static constexpr Dtype dtype = Dtype::f16;
  static constexpr bool tensor = true;
  static HIDA_DEVICE float read(uint32_t bits) { return from_fp16(bits); }
  static HIDA_DEVICE uint32_t write(float x) { return to_fp16(x); }
};
struct Fp32 {
  using Real = float;
  using Bits = float;
  static constexpr Dtype dtype = Dtype::f32;
  static constexpr bool tensor = false;
};
struct Tf32 : Fp32 {
  static constexpr bool tensor = true;
};
struct Fp64 {
  using Real = double;
  using Bits = double;
  static constexpr Dtype dtype = Dtype::f64;
  static constexpr bool tensor = false;
};

// The same numbers, for what does not multiply.
template <class M>
using Stored = std::conditional_t<std::is_same_v<M, Tf32>, Fp32, M>;

template <class M>
constexpr int kUnit = int(16 / sizeof(typename M::Bits));

template <class M>
HIDA_DEVICE void unpack(const Unit& unit, typename M::Real (&x)[kUnit<M>]) {
  if constexpr (kUnit<M> == 8) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[2 * i] = M::read(unit.word[i] & 0xffffu);
      x[2 * i + 1] = M::read(unit.word[i] >> 16);
    }
  } else {
    memcpy(x, &unit, 16);
  }
}
template <class M>
HIDA_DEVICE Unit pack(const typename M::Real (&x)[kUnit<M>]) {
  Unit unit;
  if constexpr (kUnit<M> == 8) {
#pragma unroll
    for (int i = 0; i < 4; ++i) unit.word[i] = M::write(x[2 * i]) | M::write(x[2 * i + 1]) << 16;
  } else {
    memcpy(&unit, x, 16);
  }
  return unit;
}

// One number of any dtype.
template <class Real>
HIDA_DEVICE Real read_as(const void* data, Dtype dtype, int64_t index) {
  switch (dtype) {
    case Dtype::f32:
      return Real(static_cast<const float*>(data)[index]);
    case Dtype::f64:
      return Real(static_cast<const double*>(data)[index]);
    case Dtype::bf16:
      return Real(from_bf16(static_cast<const uint16_t*>(data)[index]));
    default:
      return Real(from_fp16(static_cast<const uint16_t*>(data)[index]));
  }
}
template <class Real>
HIDA_DEVICE void write_as(void* data, Dtype dtype, int64_t index, Real x) {
  switch (dtype) {
    case Dtype::f32:
      static_cast<float*>(data)[index] = float(x);
      break;
    case Dtype::f64:
      static_cast<double*>(data)[index] = double(x);
      break;
    case Dtype::bf16:
      static_cast<uint16_t*>(data)[index] = uint16_t(to_bf16(float(x)));
      break;
    default:
      static_cast<uint16_t*>(data)[index] = uint16_t(to_fp16(float(x)));
  }
}

// A unit from numbers of any dtype, the last `V − count` of them zero. Whole units of 16-byte aligned memory are read
// in vectors, float into half types, too.
template <class M>
HIDA_DEVICE Unit read_unit(const void* data, Dtype dtype, int64_t index, int count, bool aligned) {
  constexpr int V = kUnit<M>;
  typename M::Real x[V];
  if (count >= V && aligned) {
    if (dtype == M::dtype) return load_unit(static_cast<const typename M::Bits*>(data) + index);
    if (V == 8 && dtype == Dtype::f32) {
      const float4* from = reinterpret_cast<const float4*>(static_cast<const float*>(data) + index);
#pragma unroll
      for (int i = 0; i < V / 4; ++i) {
        const float4 v = from[i];
        x[4 * i] = v.x, x[4 * i + 1] = v.y, x[4 * i + 2] = v.z, x[4 * i + 3] = v.w;
      }
      return pack<M>(x);
    }
  }
#pragma unroll
  for (int i = 0; i < V; ++i) x[i] = i < count ? read_as<typename M::Real>(data, dtype, index + i) : 0;
  return pack<M>(x);
}

}  // namespace cuda
}  // namespace hida
