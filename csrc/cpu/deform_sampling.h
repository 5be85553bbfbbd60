// Sampling points and channel blocks of the deformable convolution.
//
// The input is rearranged into blocks of kBlock channels, pixel by pixel: (block, H·W + 1, kBlock). A corner of a
// sampling point is then one cache line for sixteen channels, where it would be sixteen gathers in NCHW; the last pixel
// of a block is zero and stands for everything outside the image.
#pragma once

#include "../math.h"
#include "nchw.h"

namespace hida {
namespace HIDA_ISA {

// Channels [channel, channel + count) of one group and one deformable group.
struct ChannelBlock {
  int64_t channel, count, group, deformable;
};

inline ChannelBlock block_at(const Deform& d, int64_t index) {
  const int64_t per_group = d.in.c / d.groups, per_deformable = d.in.c / d.deformable;
  for (int64_t c = 0;;) {
    const int64_t group = c / per_group, deformable = c / per_deformable;
    const int64_t a = (group + 1) * per_group, b = (deformable + 1) * per_deformable, end = a < b ? a : b;
    const int64_t blocks = (end - c + kBlock - 1) / kBlock;
    if (index < blocks) {
      const int64_t first = c + index * kBlock;
      return {first, end - first < kBlock ? end - first : kBlock, group, deformable};
    }
    index -= blocks;
    c = end;
  }
}

inline int64_t blocked_image(const Deform& d) {
  return (d.in.pixels() + 1) * kBlock;
}

// Rearrange one block of one image.
template <class Real>
inline void block_image(const Deform& d, const ChannelBlock& block, int64_t n, Real* to) {
  alignas(64) Real line[kLine];
  const int64_t pixels = d.in.pixels();
  std::memset(to + pixels * kBlock, 0, kBlock * sizeof(Real));
  for (int64_t first = 0; first < pixels; first += kLine) {
    const int64_t count = pixels - first < kLine ? pixels - first : kLine;
    for (int64_t c = 0; c < kBlock; ++c) {
      Real* column = to + first * kBlock + c;
      if (c >= block.count) {
        for (int64_t i = 0; i < count; ++i) column[i * kBlock] = 0;
        continue;
      }
      const Real* from = read_line(d.x, d.in, n, block.channel + c, first, count, line);
      for (int64_t i = 0; i < count; ++i) column[i * kBlock] = from[i];
    }
  }
}

// And back, for the input's gradient.
template <class Real>
inline void unblock_image(const Deform& d, const ChannelBlock& block, int64_t n, const Real* from) {
  alignas(64) Real line[kLine];
  const int64_t pixels = d.in.pixels();
  for (int64_t first = 0; first < pixels; first += kLine) {
    const int64_t count = pixels - first < kLine ? pixels - first : kLine;
    for (int64_t c = 0; c < block.count; ++c) {
      const Real* column = from + first * kBlock + c;
      for (int64_t i = 0; i < count; ++i) line[i] = column[i * kBlock];
      write_line(d.dx, d.in, n, block.channel + c, first, count, line, line);
    }
  }
}

// Pixels [first, first + count) of the batch's output, image by image: f(image, pixel in it, pixels done, run).
template <class F>
HIDA_INLINE void for_images(const Deform& d, int64_t first, int64_t count, F f) {
  const int64_t pixels = d.out.pixels();
  for (int64_t done = 0; done < count;) {
    const int64_t n = (first + done) / pixels, pixel = (first + done) % pixels;
    const int64_t run = pixels - pixel < count - done ? pixels - pixel : count - done;
    f(n, pixel, done, run);
    done += run;
  }
}

template <class Real>
struct Sample {
  int64_t at[4];  // elements from the block's beginning
  Real share[4], down, right, mask;
};

// The sampling points of up to kPixelsAtATime output pixels: samples[tap·kPixelsAtATime + pixel]. Images are
// `image_stride` elements apart, the one numbered `first_image` first.
template <class Real>
inline void find_samples(const Deform& d, int64_t deformable, int64_t first, int64_t count, int64_t first_image,
                         int64_t image_stride, Sample<Real>* samples) {
  Real down[kPixelsAtATime + 64], right[kPixelsAtATime + 64], mask[kPixelsAtATime + 64];  // copy_line pads to a vector
  const int64_t taps = d.taps(), pixels = d.in.pixels();
  const Extent spread = d.out;
  for_images(d, first, count, [&](int64_t n, int64_t pixel, int64_t done, int64_t run) {
    const int64_t base = (n - first_image) * image_stride;
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t k = deformable * taps + tap;
      copy_line(d.offset, spread, n, 2 * k, pixel, run, down);
      copy_line(d.offset, spread, n, 2 * k + 1, pixel, run, right);
      if (d.mask.data) copy_line(d.mask, spread, n, k, pixel, run, mask);
      const int64_t tap_row = tap / d.kernel_w * d.dilation_h - d.pad_h;
      const int64_t tap_column = tap % d.kernel_w * d.dilation_w - d.pad_w;
      int64_t row = pixel / d.out.w, column = pixel % d.out.w;
      for (int64_t i = 0; i < run; ++i) {
        const Point<Real> point = locate(down[i] + Real(row * d.stride_h + tap_row),
                                         right[i] + Real(column * d.stride_w + tap_column), d.in.h, d.in.w, pixels);
        Sample<Real>& sample = samples[tap * kPixelsAtATime + done + i];
        for (int corner = 0; corner < 4; ++corner) sample.at[corner] = base + point.pixel[corner] * kBlock;
        shares(point, sample.share);
        sample.down = point.down;
        sample.right = point.right;
        sample.mask = d.mask.data ? mask[i] : Real(1);
        if (++column == d.out.w) column = 0, ++row;
      }
    }
  });
}

// to[c][i] = from[i][c] for a kBlock × kBlock square.
template <class Real>
HIDA_INLINE void transpose(const Real* from, int64_t from_row, Real* to, int64_t to_row) {
#if defined(__AVX512F__)
  if constexpr (sizeof(Real) == 4) {
    __m512 a[16], b[16];
    for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_ps(from + i * from_row);
    for (int i = 0; i < 16; i += 2) {
      b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
      b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
      for (int j = 0; j < 2; ++j) {
        const __m512d low = _mm512_castps_pd(b[i + j]), high = _mm512_castps_pd(b[i + j + 2]);
        a[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
        a[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
      }
    }
    // a[4r + c] holds in its quarter q column 4q + c of rows 4r..4r+3: what is left is to transpose quarters.
    for (int c = 0; c < 4; ++c) {
      const __m512 even = _mm512_shuffle_f32x4(a[c], a[4 + c], 0x88), odd = _mm512_shuffle_f32x4(a[c], a[4 + c], 0xdd);
      const __m512 even2 = _mm512_shuffle_f32x4(a[8 + c], a[12 + c], 0x88),
                   odd2 = _mm512_shuffle_f32x4(a[8 + c], a[12 + c], 0xdd);
      _mm512_storeu_ps(to + c * to_row, _mm512_shuffle_f32x4(even, even2, 0x88));
      _mm512_storeu_ps(to + (4 + c) * to_row, _mm512_shuffle_f32x4(odd, odd2, 0x88));
      _mm512_storeu_ps(to + (8 + c) * to_row, _mm512_shuffle_f32x4(even, even2, 0xdd));
      _mm512_storeu_ps(to + (12 + c) * to_row, _mm512_shuffle_f32x4(odd, odd2, 0xdd));
    }
    return;
  }
#endif
  for (int64_t c = 0; c < kBlock; ++c)
    for (int64_t i = 0; i < kBlock; ++i) to[c * to_row + i] = from[i * from_row + c];
}

}  // namespace HIDA_ISA
}  // namespace hida
