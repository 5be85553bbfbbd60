// Reading and writing tensors: a pack of elements per thread at a time, converted to and from the computing type.
#pragma once

#include <initializer_list>

#include "device.h"

namespace hida {
namespace cuda {

// Elements that a thread takes at a time; eight of a 16-bit dtype are 16 bytes.
template <class Real>
constexpr int kPack = 32 / int(sizeof(Real));

// ---- 16-bit floats ----------------------------------------------------------------------------------------------

// Two floats as one word of a 16-bit dtype, and back. `low` comes first in memory.
HIDA_DEVICE uint32_t narrow_two(float low, float high, bool bf16) {
#if defined(__CUDA_ARCH__)
  uint32_t word;
  if (!bf16) {
    asm("{.reg .b16 l, h;\n cvt.rn.f16.f32 l, %1;\n cvt.rn.f16.f32 h, %2;\n mov.b32 %0, {l, h};}"
        : "=r"(word)
        : "f"(low), "f"(high));
    return word;
  }
#if __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
#endif
#endif
  return bf16 ? narrow_bf16(low) | narrow_bf16(high) << 16 : narrow_f16(low) | narrow_f16(high) << 16;
}
HIDA_DEVICE void widen_two(uint32_t word, bool bf16, float& low, float& high) {
  low = bf16 ? widen_bf16(word) : widen_f16(word & 0xffffu);
  high = bf16 ? __uint_as_float(word & 0xffff0000u) : widen_f16(word >> 16);
}

// ---- single elements --------------------------------------------------------------------------------------------

template <class Real>
HIDA_DEVICE Real read_element(const void* data, Dtype dtype, int64_t at) {
  if (sizeof(Real) == 8 && dtype == Dtype::f64) return Real(static_cast<const double*>(data)[at]);
  if (dtype == Dtype::f32) return Real(static_cast<const float*>(data)[at]);
  const uint32_t bits = static_cast<const uint16_t*>(data)[at];
  return Real(dtype == Dtype::bf16 ? widen_bf16(bits) : widen_f16(bits));
}

template <class Real>
HIDA_DEVICE void write_element(void* data, Dtype dtype, int64_t at, Real value) {
  if (sizeof(Real) == 8 && dtype == Dtype::f64) {
    static_cast<double*>(data)[at] = double(value);
  } else if (dtype == Dtype::f32) {
    static_cast<float*>(data)[at] = float(value);
  } else {
    static_cast<uint16_t*>(data)[at] =
        uint16_t(dtype == Dtype::bf16 ? narrow_bf16(float(value)) : narrow_f16(float(value)));
  }
}

// One number of an image that has one for each plane.
template <class Real>
HIDA_DEVICE Real read_one(const Image& image, int64_t n, int64_t c) {
  return read_element<Real>(image.data, image.dtype, n * image.n + c * image.c);
}

// ---- packs ------------------------------------------------------------------------------------------------------

// A plane of an image, as one thread goes through it.
struct Plane {
  char* data;
  Dtype dtype;
  int64_t row, step;
  int width;  // 0: pixels are at equal distances

  HIDA_DEVICE Plane(const Image& image, const Extent& e, int64_t n, int64_t c)
      : dtype(image.dtype), row(image.row), step(image.step), width(image.row == e.w * image.step ? 0 : int(e.w)) {
    data = static_cast<char*>(image.data) + (n * image.n + c * image.c) * size_of(dtype);
  }
  HIDA_DEVICE bool present() const { return data != nullptr; }

  HIDA_DEVICE int64_t offset(int64_t pixel) const {
    if (width == 0) return pixel * step;
    int64_t y, x;
    if (pixel <= 0x7fffffff) {
      y = unsigned(pixel) / unsigned(width), x = unsigned(pixel) % unsigned(width);
    } else {
      y = pixel / width, x = pixel % width;
    }
    return y * row + x * step;
  }
};

// The pixels of a thread's pack: neighbours that are contiguous in every operand, or every `stride`-th.
template <class Real, bool Vector>
struct Pixels;
template <>
struct Pixels<float, true> {
  int64_t first;
  bool any;
  HIDA_DEVICE Pixels(int64_t begin, int64_t end, int lane, int)
      : first(begin + lane * kPack<float>), any(first < end) {}
  HIDA_DEVICE bool has(int) const { return any; }
  HIDA_DEVICE int count() const { return any ? kPack<float> : 0; }
};
template <class Real>
struct Pixels<Real, false> {
  int64_t first, end;
  int stride;
  HIDA_DEVICE Pixels(int64_t begin, int64_t end_, int lane, int lanes)
      : first(begin + lane), end(end_), stride(lanes) {}
  HIDA_DEVICE int64_t at(int k) const { return first + int64_t(k) * stride; }
  HIDA_DEVICE bool has(int k) const { return at(k) < end; }
  HIDA_DEVICE int count() const {
    const int64_t left = end - first;
    if (left <= 0) return 0;
    return left > int64_t(kPack<Real> - 1) * stride ? kPack<Real> : int((left + stride - 1) / stride);
  }
};

// A pack as it comes from memory: loads are issued where a pack is made, and waited for where it is
// unpacked. What a thread does not have is zero.
template <class Real, bool Vector>
struct Pack;

template <>
struct Pack<float, true> {
  uint4 low, high;
  HIDA_DEVICE Pack() : low(make_uint4(0, 0, 0, 0)), high(make_uint4(0, 0, 0, 0)) {}
  HIDA_DEVICE Pack(const Plane& plane, const Pixels<float, true>& pixels) : Pack() {
    if (!pixels.any) return;
    if (plane.dtype == Dtype::f32) {
      const uint4* from = reinterpret_cast<const uint4*>(plane.data + pixels.first * 4);
      low = from[0];
      high = from[1];
    } else {
      low = *reinterpret_cast<const uint4*>(plane.data + pixels.first * 2);
    }
  }
  // To shared memory, in 16 or 32 bytes, the halves `apart` uint4s apart; returns where the next may go.
  HIDA_DEVICE uint4* keep(Dtype dtype, uint4* to, int apart) const {
    *to = low;
    if (dtype != Dtype::f32) return to + apart;
    to[apart] = high;
    return to + 2 * apart;
  }
  HIDA_DEVICE const uint4* fetch(Dtype dtype, const uint4* from, int apart) {
    low = *from;
    if (dtype != Dtype::f32) return from + apart;
    high = from[apart];
    return from + 2 * apart;
  }
  HIDA_DEVICE void unpack(Dtype dtype, float (&v)[kPack<float>]) const {
    const uint32_t words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    if (dtype == Dtype::f32) {
#pragma unroll
      for (int k = 0; k < 8; ++k) v[k] = __uint_as_float(words[k]);
    } else if (dtype == Dtype::bf16) {
#pragma unroll
      for (int k = 0; k < 4; ++k) widen_two(words[k], true, v[2 * k], v[2 * k + 1]);
    } else {
#pragma unroll
      for (int k = 0; k < 4; ++k) widen_two(words[k], false, v[2 * k], v[2 * k + 1]);
    }
  }
};

template <class Real>
struct Pack<Real, false> {
  Real values[kPack<Real>];
  HIDA_DEVICE Pack() {
#pragma unroll
    for (int k = 0; k < kPack<Real>; ++k) values[k] = 0;
  }
  HIDA_DEVICE Pack(const Plane& plane, const Pixels<Real, false>& pixels) : Pack() {
#pragma unroll
    for (int k = 0; k < kPack<Real>; ++k)
      if (pixels.has(k)) values[k] = read_element<Real>(plane.data, plane.dtype, plane.offset(pixels.at(k)));
  }
  HIDA_DEVICE uint4* keep(Dtype, uint4* to, int apart) const {
#pragma unroll
    for (int i = 0; i < 8; i += 4)
      to[i / 4 * apart] = make_uint4(__float_as_uint(values[i]), __float_as_uint(values[i + 1]),
                                     __float_as_uint(values[i + 2]), __float_as_uint(values[i + 3]));
    return to + 2 * apart;
  }
  HIDA_DEVICE const uint4* fetch(Dtype, const uint4* from, int apart) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint4 words = from[i * apart];
      values[4 * i] = __uint_as_float(words.x), values[4 * i + 1] = __uint_as_float(words.y);
      values[4 * i + 2] = __uint_as_float(words.z), values[4 * i + 3] = __uint_as_float(words.w);
    }
    return from + 2 * apart;
  }
  HIDA_DEVICE void unpack(Dtype, Real (&v)[kPack<Real>]) const {
#pragma unroll
    for (int k = 0; k < kPack<Real>; ++k) v[k] = values[k];
  }
};

HIDA_DEVICE void write_pack(const Plane& plane, const Pixels<float, true>& pixels, const float (&v)[kPack<float>]) {
  if (!pixels.any) return;
  if (plane.dtype == Dtype::f32) {
    uint4* to = reinterpret_cast<uint4*>(plane.data + pixels.first * 4);
    to[0] = make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3]));
    to[1] = make_uint4(__float_as_uint(v[4]), __float_as_uint(v[5]), __float_as_uint(v[6]), __float_as_uint(v[7]));
  } else {
    uint4* to = reinterpret_cast<uint4*>(plane.data + pixels.first * 2);
    if (plane.dtype == Dtype::bf16)
      *to = make_uint4(narrow_two(v[0], v[1], true), narrow_two(v[2], v[3], true), narrow_two(v[4], v[5], true),
                       narrow_two(v[6], v[7], true));
    else
      *to = make_uint4(narrow_two(v[0], v[1], false), narrow_two(v[2], v[3], false), narrow_two(v[4], v[5], false),
                       narrow_two(v[6], v[7], false));
  }
}
template <class Real>
HIDA_DEVICE void write_pack(const Plane& plane, const Pixels<Real, false>& pixels, const Real (&v)[kPack<Real>]) {
#pragma unroll
  for (int k = 0; k < kPack<Real>; ++k)
    if (pixels.has(k)) write_element(plane.data, plane.dtype, plane.offset(pixels.at(k)), v[k]);
}

// Whether an image may be read in packs: its planes are contiguous, on 16-byte boundaries. (On the host.)
inline bool is_packable(const Image& image, const Extent& e) {
  if (image.data == nullptr) return true;
  if (image.dtype == Dtype::f64 || e.pixels() % kPack<float> != 0 || image.step != 1 || image.row != e.w) return false;
  const int64_t size = size_of(image.dtype);
  return reinterpret_cast<uintptr_t>(image.data) % 16 == 0 && image.n * size % 16 == 0 && image.c * size % 16 == 0;
}
inline bool all_packable(const Extent& e, const Image& logits, std::initializer_list<const Image*> others) {
  for (const Image* image : others)
    if (!is_packable(*image, e)) return false;
  return (logits.row == 0 && logits.step == 0) || is_packable(logits, e);
}

}  // namespace cuda
}  // namespace hida
