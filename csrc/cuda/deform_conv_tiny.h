// What the files of deform_conv2d for small, few planes share: launches, sampling points, and what is brought into
// shared memory, several loads of a thread being in flight at a time.
#pragma once

#include "deform_launch.h"

namespace hida {
namespace cuda {

// Writes what the products read, in one launch; null: not wanted.
//   columns   M, (pixels, `pitch`): C_in·taps numbers of each output pixel, channel·taps + tap
//   grad      M, (pixels, groups · grad_padded): dy, channels last
template <class M>
void tiny_operands(const Job&, void* columns, int64_t pitch, void* grad, const Launch&);

// dx, and the gradients of offsets and mask, in one launch, from the columns' gradient: float, (pixels, C_in·taps).
template <class M>
void tiny_gradients(const Job&, const float* gradient, const Launch&);

constexpr int kSlice = 32;  // channels of a block, where it has not all of a deformable group

// corners: pixels of the input, eight bits each; H·W where outside.
struct alignas(16) TinyPoint {
  uint32_t corners;
  float down, right, mask;
  HIDA_DEVICE int corner(int i) const { return int(corners >> 8 * i & 0xffu); }
};

// Divides by the same number again and again, in two instructions: what is divided, times that number, is below 2^32.
struct Divider {
  unsigned by, inverse;
  HIDA_DEVICE explicit Divider(int number) : by(unsigned(number)), inverse(0xffffffffu / by + 1) {}
  HIDA_DEVICE int operator()(int x) const { return by == 1 ? x : int(uint64_t(unsigned(x)) * inverse >> 32); }
};

template <class M>
HIDA_DEVICE float value_of(typename M::Bits bits) {
  if constexpr (kPerVec<M> == 8)
    return M::read(bits);
  else
    return bits;
}
template <class M>
HIDA_DEVICE typename M::Bits bits_of(float value) {
  if constexpr (kPerVec<M> == 8)
    return typename M::Bits(M::write(value));
  else
    return value;
}

// Number j of a vector.
template <class M>
HIDA_DEVICE typename M::Bits bits_of_vec(const Vec16& vec, int j) {
  if constexpr (kPerVec<M> == 8)
    return typename M::Bits(vec.word[j / 2] >> j % 2 * 16 & 0xffffu);
  else
    return __uint_as_float(vec.word[j]);
}

// A number of float or of a 16-bit dtype: as it is in memory, so that nothing waits for it yet; and its value.
HIDA_DEVICE uint32_t bits_at(const Image& image, int64_t index) {
  if (image.dtype == Dtype::f32) return static_cast<const uint32_t*>(image.data)[index];
  return static_cast<const uint16_t*>(image.data)[index];
}
HIDA_DEVICE float value_of(Dtype dtype, uint32_t bits) {
  return dtype == Dtype::f32 ? __uint_as_float(bits) : dtype == Dtype::bf16 ? widen_bf16(bits) : widen_f16(bits);
}

// keep(i, point) for points first + i of an image's (pixel, tap)s, i < count, a thread each. meanwhile(): while the
// first are awaited.
template <class Keep, class F>
HIDA_DEVICE void find_points(const Job& job, int n, int deformable, int first, int count, Keep keep, F meanwhile) {
  const Deform& d = job.d;
  int pixel = 0, tap = 0, i = int(threadIdx.x);
  uint32_t down = 0, right = 0, mask = 0;
  const auto fetch = [&] {
    if (i >= count) return;
    pixel = (first + i) / job.taps, tap = first + i - pixel * job.taps;
    const int row = pixel / int(d.out.w), column = pixel - row * int(d.out.w), k = deformable * job.taps + tap;
    const int64_t offset = index_in(d.offset, n, 2 * k, row, column);
    down = bits_at(d.offset, offset);
    right = bits_at(d.offset, offset + d.offset.c);
    if (d.mask.data) mask = bits_at(d.mask, index_in(d.mask, n, k, row, column));
  };
  fetch();
  meanwhile();
  while (i < count) {
    const int h = int(d.in.h), w = int(d.in.w), row = pixel / int(d.out.w), column = pixel - row * int(d.out.w);
    const int across = int(d.kernel_w), tap_row = tap / across, tap_column = tap - tap_row * across;
    const Point<float> point =
        locate(float(row * d.stride_h - d.pad_h + tap_row * d.dilation_h) + value_of(d.offset.dtype, down),
               float(column * d.stride_w - d.pad_w + tap_column * d.dilation_w) + value_of(d.offset.dtype, right), h, w,
               h * w);
    uint32_t corners = 0;
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) corners |= uint32_t(point.pixel[corner]) << 8 * corner;
    keep(i, TinyPoint{corners, point.down, point.right, d.mask.data ? value_of(d.mask.dtype, mask) : 1.0f});
    i += int(blockDim.x);
    fetch();
  }
}

// Channels [first, first + count) of an image to shared memory, (channel, H·W and a zero), as they are in memory: in
// vectors where these are whole and aligned, be it of a plane's pixels or of a pixel's channels.
template <class M>
HIDA_DEVICE void bring_x(const Job& job, int n, int first, int count, typename M::Bits* to) {
  using Bits = typename M::Bits;
  constexpr int V = kPerVec<M>, ahead = 4;
  const Image& x = job.d.x;
  const int w = int(job.d.in.w), plane = int(job.d.in.h) * w, total = count * plane, threads = int(blockDim.x);
  const int channel = int(x.c), below = int(x.row), step = int(x.step);
  const auto* from = static_cast<const Bits*>(x.data) + n * x.n + first * x.c;
  const bool last = channel == 1 && plane > 1, flat = step == 1 && below == w && channel == plane;
  const bool aligned = reinterpret_cast<uintptr_t>(from) % 16 == 0;
  const int inner = last ? count : plane;
  if (aligned && (last ? count % V == 0 && below % V == 0 && step % V == 0 : flat && total % V == 0)) {
    const Divider by_inner(inner), by_row(w);
    for (int i = int(threadIdx.x) * V; i < total; i += ahead * threads * V) {
      Vec16 v[ahead];
#pragma unroll
      for (int k = 0; k < ahead; ++k) {  // never a branch, so that all are in flight
        const int e = i + k * threads * V < total ? i + k * threads * V : i, q = by_inner(e), row = by_row(q);
        v[k] = load16(from + (last ? row * below + (q - row * w) * step + e - q * inner : e));
      }
#pragma unroll
      for (int k = 0; k < ahead; ++k) {
        const int e = i + k * threads * V, slow = by_inner(e);
        if (e >= total) continue;
        if (inner % V == 0) {  // one line
          const int fast = e - slow * inner, place = last ? fast * (plane + 1) + slow : slow * (plane + 1) + fast;
#pragma unroll
          for (int j = 0; j < V; ++j) to[place + j * (last ? plane + 1 : 1)] = bits_of_vec<M>(v[k], j);
        } else {
#pragma unroll
          for (int j = 0; j < V; ++j) to[e + j + by_inner(e + j)] = bits_of_vec<M>(v[k], j);
        }
      }
    }
  } else {
    const Divider by_inner(inner), by_row(w);
#pragma unroll 4
    for (int i = int(threadIdx.x); i < total; i += threads) {
      const int slow = by_inner(i), fast = i - slow * inner, c = last ? fast : slow, q = last ? slow : fast;
      const int row = by_row(q);
      to[c * (plane + 1) + q] = from[c * channel + row * below + (q - row * w) * step];
    }
  }
  for (int c = int(threadIdx.x); c < count; c += threads) to[c * (plane + 1) + plane] = 0;
}

// `lines` lines of `length` floats, `apart` apart, to shared memory, `pitch` apart. vectors: all are multiples of four.
HIDA_DEVICE void bring_lines(const float* from, int apart, int lines, int length, bool vectors, float* to, int pitch) {
  constexpr int ahead = 4;
  const int size = vectors ? 4 : 1, each = length / size, total = lines * each, threads = int(blockDim.x);
  const Divider by_line(each);
  for (int i = int(threadIdx.x); i < total; i += ahead * threads) {
    Vec16 v[ahead];
    int place[ahead];
#pragma unroll
    for (int k = 0; k < ahead; ++k) {
      const int e = i + k * threads < total ? i + k * threads : i, line = by_line(e), at = (e - line * each) * size;
      place[k] = line * pitch + at;
      if (vectors)
        v[k] = load16(from + (line * apart + at));
      else
        v[k].word[0] = __float_as_uint(from[line * apart + at]);
    }
#pragma unroll
    for (int k = 0; k < ahead; ++k) {
      if (i + k * threads >= total) continue;
      if (vectors)
        store16(to + place[k], v[k]);
      else
        to[place[k]] = __uint_as_float(v[k].word[0]);
    }
  }
}

}  // namespace cuda
}  // namespace hida
