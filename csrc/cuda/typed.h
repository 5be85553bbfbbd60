// Eight elements of a dtype that the compiler knows: what the kernels for the usual case read and write at a time, one
// or two loads of 16 bytes. No branches and no address arithmetic besides; packs.h has the packs of any dtype.
#pragma once

#include <type_traits>

#include "packs.h"

namespace hida {
namespace cuda {

// The logits of a call: there are none, for there is no activation; one for each plane; one for each element.
enum class Logits { none, plane, whole };

template <Dtype D>
struct Eight {  // of 16 bits each
  static constexpr int kBytes = 2;
  uint4 words;

  HIDA_DEVICE Eight() : words(make_uint4(0, 0, 0, 0)) {}
  // At an element whose address is a multiple of 16 bytes.
  HIDA_DEVICE Eight(const void* data, int64_t at)
      : words(*reinterpret_cast<const uint4*>(static_cast<const char*>(data) + at * kBytes)) {}
  HIDA_DEVICE void unpack(float (&v)[8]) const {
    widen_two(words.x, D == Dtype::bf16, v[0], v[1]);
    widen_two(words.y, D == Dtype::bf16, v[2], v[3]);
    widen_two(words.z, D == Dtype::bf16, v[4], v[5]);
    widen_two(words.w, D == Dtype::bf16, v[6], v[7]);
  }
  HIDA_DEVICE static Eight narrowed(const float (&v)[8]) {
    constexpr bool bf16 = D == Dtype::bf16;
    Eight pack;
    pack.words = make_uint4(narrow_two(v[0], v[1], bf16), narrow_two(v[2], v[3], bf16), narrow_two(v[4], v[5], bf16),
                            narrow_two(v[6], v[7], bf16));
    return pack;
  }
  HIDA_DEVICE void store(void* to) const { *static_cast<uint4*>(to) = words; }
};

template <>
struct Eight<Dtype::f32> {
  static constexpr int kBytes = 4;
  uint4 low, high;

  HIDA_DEVICE Eight() : low(make_uint4(0, 0, 0, 0)), high(make_uint4(0, 0, 0, 0)) {}
  HIDA_DEVICE Eight(const void* data, int64_t at) {
    const uint4* from = reinterpret_cast<const uint4*>(static_cast<const char*>(data) + at * kBytes);
    low = from[0];
    high = from[1];
  }
  HIDA_DEVICE void unpack(float (&v)[8]) const {
    v[0] = __uint_as_float(low.x), v[1] = __uint_as_float(low.y), v[2] = __uint_as_float(low.z);
    v[3] = __uint_as_float(low.w), v[4] = __uint_as_float(high.x), v[5] = __uint_as_float(high.y);
    v[6] = __uint_as_float(high.z), v[7] = __uint_as_float(high.w);
  }
  HIDA_DEVICE static Eight narrowed(const float (&v)[8]) {
    Eight pack;
    pack.low = make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3]));
    pack.high = make_uint4(__float_as_uint(v[4]), __float_as_uint(v[5]), __float_as_uint(v[6]), __float_as_uint(v[7]));
    return pack;
  }
  HIDA_DEVICE void store(void* to) const {
    static_cast<uint4*>(to)[0] = low;
    static_cast<uint4*>(to)[1] = high;
  }
};

// Calls `f` with a dtype that Eight knows as a constant, decltype(d)::value. (On the host.)
template <class F>
auto with_dtype(Dtype dtype, F f) {
  if (dtype == Dtype::f32) return f(std::integral_constant<Dtype, Dtype::f32>());
  if (dtype == Dtype::bf16) return f(std::integral_constant<Dtype, Dtype::bf16>());
  return f(std::integral_constant<Dtype, Dtype::f16>());
}

// The same with a kind of logits.
template <class F>
auto with_logits(Logits logits, F f) {
  if (logits == Logits::none) return f(std::integral_constant<Logits, Logits::none>());
  if (logits == Logits::plane) return f(std::integral_constant<Logits, Logits::plane>());
  return f(std::integral_constant<Logits, Logits::whole>());
}

}  // namespace cuda
}  // namespace hida
