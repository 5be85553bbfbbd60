// Tiles: a few pixels of a block of channels as one dense array of the computing type, channels side by side, which is
// how a channels_last tensor is in memory. What belongs to a channel (slopes, mean ...) is repeated for every pixel of
// a tile, and a sum over pixels is a tile of sums: so that a kernel is a loop over two or more arrays of equal length,
// whatever the number of channels, and every number is added in the same order in each run.
#pragma once

#include "nchw.h"

namespace hida {
namespace HIDA_ISA {

constexpr int64_t kTileNumbers = 384;  // at most; the two dozen tiles of a kernel stay in the first-level cache

// Channels c … c + width − 1 of image n, in tiles of `pixels` pixels.
struct Strip {
  Extent extent;
  int64_t n, c, width, pixels;

  HIDA_INLINE Strip(const Extent& e, int64_t item) : extent(e) {
    const int64_t blocks = channel_blocks(e.c);
    n = item / blocks, c = item % blocks * kChannels;
    width = e.c - c < kChannels ? e.c - c : kChannels;
    pixels = kTileNumbers / width;
  }

  // f(first pixel, pixels) for each tile.
  template <class F>
  HIDA_INLINE void for_tiles(F f) const {
    const int64_t all = extent.pixels();
    for (int64_t first = 0; first < all; first += pixels) f(first, all - first < pixels ? all - first : pixels);
  }

  // f(channel of the block) repeated over a tile.
  template <class Real, class F>
  HIDA_INLINE void repeat(Real* to, F f) const {
    for (int64_t k = 0; k < width; ++k) to[k] = f(k);
    for (int64_t i = width; i < kTileNumbers; ++i) to[i] = to[i - width];
  }

  // The sum of channel k over a tile of sums.
  template <class Real>
  HIDA_INLINE double sum_of(const Real* sums, int64_t k) const {
    double total = 0;
    for (int64_t p = 0; p < pixels; ++p) total += double(sums[p * width + k]);
    return total;
  }

  // Copy `count` pixels from pixel `first` on into `to`, with zeros up to whole vectors.
  template <class Real>
  inline void read(const Image& image, int64_t first, int64_t count, Real* to) const {
    with_type(image.dtype, [&](auto type) {
      using T = decltype(type);
      const T* data = static_cast<const T*>(image.data);
      if (image.c == 1) {
        for_runs(image, extent, n, c, first, count, [&](int64_t at, int64_t done, int64_t run) {
          if (image.step == width) return gather(data + at, 1, run * width, to + done * width);
          for (int64_t p = 0; p < run; ++p) gather(data + at + p * image.step, 1, width, to + (done + p) * width);
        });
      } else {
        for (int64_t k = 0; k < width; ++k)
          for_runs(image, extent, n, c + k, first, count, [&](int64_t at, int64_t done, int64_t run) {
            for (int64_t p = 0; p < run; ++p) to[(done + p) * width + k] = Real(value_of(data[at + p * image.step]));
          });
      }
    });
    for (int64_t i = count * width; i < padded<Real>(count * width); ++i) to[i] = 0;
  }

  template <class Real>
  inline void write(const Image& image, int64_t first, int64_t count, const Real* from) const {
    if (image.data == nullptr) return;
    with_type(image.dtype, [&](auto type) {
      using T = decltype(type);
      T* data = static_cast<T*>(image.data);
      if (image.c == 1) {
        for_runs(image, extent, n, c, first, count, [&](int64_t at, int64_t done, int64_t run) {
          if (image.step == width) return scatter(data + at, 1, run * width, from + done * width);
          for (int64_t p = 0; p < run; ++p) scatter(data + at + p * image.step, 1, width, from + (done + p) * width);
        });
      } else {
        for (int64_t k = 0; k < width; ++k)
          for_runs(image, extent, n, c + k, first, count, [&](int64_t at, int64_t done, int64_t run) {
            for (int64_t p = 0; p < run; ++p) data[at + p * image.step] = cast_to<T>(from[(done + p) * width + k]);
          });
      }
    });
  }
};

// A tile on cache lines.
template <class Real>
struct Tile {
  alignas(64) Real at[kTileNumbers];

  HIDA_INLINE void clear() { std::memset(at, 0, sizeof at); }
  HIDA_INLINE operator Real*() { return at; }
  HIDA_INLINE operator const Real*() const { return at; }
  // Add to the sums from number i on.
  template <class V>
  HIDA_INLINE void add(int64_t i, const V& v) {
    store(at + i, load_like(v, at + i) + v);
  }
};

// Zero what is behind the end of a tile, `left` numbers away: only a single vector can reach beyond it.
template <class Real, int K>
HIDA_INLINE Several<Real, K> keep_inside(const Several<Real, K>& v, int64_t) {
  return v;
}
HIDA_INLINE Vec<float> keep_inside(Vec<float> v, int64_t left) {
  return left < kLanes<float> ? keep_first<float>(v, left) : v;
}
HIDA_INLINE Vec<double> keep_inside(Vec<double> v, int64_t left) {
  return left < kLanes<double> ? keep_first<double>(v, left) : v;
}

// Mean and 1/√(var + eps) of each channel over a strip, to (N, C) arrays; value(first, count, tile) computes a tile of
// what is normalised. One pass, in stretches of 1, 4, 16 and then 64 tiles: sums in Real of differences from the mean
// of all before, merged in double (Chan). Where those differences are large beside the spread of a stretch, so is what
// they add to the plane's: no digits are lost, however large the mean and wherever an outlier is.
template <class Real, class Value>
HIDA_INLINE void strip_statistics(const Strip& strip, double eps, Real* mean, Real* rstd, Value value) {
  Tile<Real> f, shift, sums, squares;
  double means[kChannels] = {}, spreads[kChannels] = {}, off[kChannels], around[kChannels];
  const int64_t pixels = strip.extent.pixels(), width = strip.width;
  value(0, pixels < strip.pixels ? pixels : strip.pixels, f);
  for (int64_t p = 0; p < strip.pixels && p < pixels; ++p)
    for (int64_t k = 0; k < width; ++k) means[k] += double(f[p * width + k]);
  for (int64_t k = 0; k < width; ++k) means[k] /= double(pixels < strip.pixels ? pixels : strip.pixels);
  int64_t stretch = strip.pixels;
  for (int64_t begin = 0, size; begin < pixels; begin += size) {
    size = pixels - begin < stretch ? pixels - begin : stretch;
    if (stretch < 64 * strip.pixels) stretch *= 4;
    strip.repeat(shift.at, [&](int64_t k) { return Real(means[k]); });
    sums.clear(), squares.clear();
    for (int64_t first = begin; first < begin + size; first += strip.pixels) {
      const int64_t count = begin + size - first < strip.pixels ? begin + size - first : strip.pixels;
      value(first, count, f);
      for_vectors<Real>(count * width, [&](int64_t i, auto like) HIDA_INLINED {
        const auto v = keep_inside(load_like(like, f + i) - load_like(like, shift + i), count * width - i);
        sums.add(i, v);
        squares.add(i, v * v);
      });
    }
    for (int64_t k = 0; k < width; ++k) off[k] = around[k] = 0;
    for (int64_t p = 0; p < strip.pixels; ++p)
      for (int64_t k = 0; k < width; ++k) {
        off[k] += double(sums[p * width + k]);
        around[k] += double(squares[p * width + k]);
      }
    const double each = 1 / double(size), share = double(size) / double(begin + size);
    for (int64_t k = 0; k < width; ++k) {
      const double o = off[k] * each, gap = double(shift[k]) - means[k] + o;
      spreads[k] += around[k] - off[k] * o + gap * gap * (double(begin) * share);
      means[k] += gap * share;
    }
  }
  for (int64_t k = 0; k < width; ++k) {
    const int64_t at = strip.n * strip.extent.c + strip.c + k;
    const double variance = spreads[k] / double(pixels);
    mean[at] = Real(means[k]);
    rstd[at] = Real(1 / __builtin_sqrt((variance < 0 ? 0 : variance) + eps));
  }
}

}  // namespace HIDA_ISA
}  // namespace hida
