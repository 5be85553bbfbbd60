// Numbers as the products see them. A product's operands are vectors of 16 bytes; `M` names what multiplies them:
//   Bf16, Fp16, Tf32  tensor cores, sums in float          Fp32, Fp64  plain multiply-adds
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "device.h"

namespace hida {
namespace cuda {

struct alignas(16) Vec16 {
  uint32_t word[4];
};

HIDA_DEVICE Vec16 load16(const void* from) {
  const uint4 v = *static_cast<const uint4*>(from);
  return {{v.x, v.y, v.z, v.w}};
}
// The same of global memory that nobody writes meanwhile, where the compiler cannot see that it is.
HIDA_DEVICE Vec16 load16_global(const Vec16* from) {
#if defined(HIDA_EMULATE_CUDA)
  return *from;
#else
  Vec16 v;
  asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
      : "l"(__cvta_generic_to_global(from)));
  return v;
#endif
}
HIDA_DEVICE void store16(void* to, const Vec16& vec) {
  *static_cast<uint4*>(to) = make_uint4(vec.word[0], vec.word[1], vec.word[2], vec.word[3]);
}

// Each names its vector: numbers in it, what sums and coordinates are computed in, how memory holds it. A word of two
// numbers is written in one instruction where the chip has it.
struct Bf16 {
  using Real = float;
  using Bits = uint16_t;
  static constexpr Dtype dtype = Dtype::bf16;
  static constexpr bool tensor = true;
  static HIDA_DEVICE float read(uint32_t bits) { return widen_bf16(bits); }
  static HIDA_DEVICE uint32_t write(float x) { return narrow_bf16(x); }
  static HIDA_DEVICE uint32_t write(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    uint32_t word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
#else
    return write(low) | write(high) << 16;
#endif
  }
};
struct Fp16 {
  using Real = float;
  using Bits = uint16_t;
  static constexpr Dtype dtype = Dtype::f16;
  static constexpr bool tensor = true;
  static HIDA_DEVICE float read(uint32_t bits) { return widen_f16(bits); }
  static HIDA_DEVICE uint32_t write(float x) { return narrow_f16(x); }
  static HIDA_DEVICE uint32_t write(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    uint32_t word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
#else
    return write(low) | write(high) << 16;
#endif
  }
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

// DO(M) for what memory holds, and for everything that multiplies: to instantiate templates for each.
#define HIDA_FOR_STORED(DO) DO(Bf16) DO(Fp16) DO(Fp32) DO(Fp64)
#define HIDA_FOR_NUMBERS(DO) HIDA_FOR_STORED(DO) DO(Tf32)

template <class M>
constexpr int kPerVec = int(16 / sizeof(typename M::Bits));

template <class M>
HIDA_DEVICE void unpack(const Vec16& vec, typename M::Real (&x)[kPerVec<M>]) {
  if constexpr (kPerVec<M> == 8) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[2 * i] = M::read(vec.word[i] & 0xffffu);
      x[2 * i + 1] = M::read(vec.word[i] >> 16);
    }
  } else {
    memcpy(x, &vec, 16);
  }
}
template <class M>
HIDA_DEVICE Vec16 pack(const typename M::Real (&x)[kPerVec<M>]) {
  Vec16 vec;
  if constexpr (kPerVec<M> == 8) {
#pragma unroll
    for (int i = 0; i < 4; ++i) vec.word[i] = M::write(x[2 * i], x[2 * i + 1]);
  } else {
    memcpy(&vec, x, 16);
  }
  return vec;
}

// A number as memory holds it; `dtype` tells 16-bit ones apart.
template <class Real>
HIDA_DEVICE Real stored_to(float x, Dtype) {
  return Real(x);
}
template <class Real>
HIDA_DEVICE Real stored_to(double x, Dtype) {
  return Real(x);
}
template <class Real>
HIDA_DEVICE Real stored_to(uint16_t bits, Dtype dtype) {
  return Real(dtype == Dtype::bf16 ? widen_bf16(bits) : widen_f16(bits));
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
      return Real(widen_bf16(static_cast<const uint16_t*>(data)[index]));
    default:
      return Real(widen_f16(static_cast<const uint16_t*>(data)[index]));
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
      static_cast<uint16_t*>(data)[index] = uint16_t(narrow_bf16(float(x)));
      break;
    default:
      static_cast<uint16_t*>(data)[index] = uint16_t(narrow_f16(float(x)));
  }
}

// A vector from numbers of any dtype, the last `V − count` of them zero. Whole vectors of 16-byte aligned memory are
// read in vectors, float into half types, too.
template <class M>
HIDA_DEVICE Vec16 read16(const void* data, Dtype dtype, int64_t index, int count, bool aligned) {
  constexpr int V = kPerVec<M>;
  typename M::Real x[V];
  if (count >= V && aligned) {
    if (dtype == M::dtype) return load16(static_cast<const typename M::Bits*>(data) + index);
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
