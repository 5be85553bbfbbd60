// Convolutions 3×3, stride 1, padding 1, in float, by minimal filtering F(4×4, 3×3): a tile of 4×4 outputs is seen at
// 36 points, where convolving is multiplying, 36 products instead of 144 (Winograd 1980; Lavin and Gray, CVPR 2016).
// The points are 0, ±√½, ±√2 and infinity: their powers stay near 1, and so does the rounding (1.5e-6 of the result
// instead of 0.3e-6; the customary 0, ±1, ±2 and infinity: 3.4e-6).
// Traffic: x once or nearly, the weights once a wave, y once; the spectra of a wave stay in the last cache.
#include "isa.h"
#include "multiply.h"

namespace hida {
namespace HIDA_ISA {
namespace {

using V = Vec<float>;
constexpr int L = kLanes<float>;
constexpr int kSide = 6, kPoints = kSide * kSide;  // of a tile's input, and of its spectrum
constexpr int kPad = 16;                           // rows of filters must not fall into the same sets of the cache
constexpr float kA = 0.70710678f, kB = 1.41421356f, kAA = 0.5f, kBB = 2.0f;
static_assert(kWinogradTiles % L == 0);

// Bᵀd
HIDA_INLINE void of_input(const V d[6], V out[6]) {
  const V even_a = d[4] - kBB * d[2], odd_a = kA * (d[3] - kBB * d[1]);
  const V even_b = d[4] - kAA * d[2], odd_b = kB * (d[3] - kAA * d[1]);
  out[0] = d[0] + d[4] - (kAA + kBB) * d[2];
  out[1] = even_a + odd_a;
  out[2] = even_a - odd_a;
  out[3] = even_b + odd_b;
  out[4] = even_b - odd_b;
  out[5] = d[1] + d[5] - (kAA + kBB) * d[3];
}

// Gg; a²b² = 1
HIDA_INLINE void of_filter(const V g[3], V out[6]) {
  constexpr float kNearA = 1 / (2 * kAA * (kAA - kBB)), kNearB = 1 / (2 * kBB * (kBB - kAA));
  const V even_a = kNearA * g[0] + (kNearA * kAA) * g[2], odd_a = (kNearA * kA) * g[1];
  const V even_b = kNearB * g[0] + (kNearB * kBB) * g[2], odd_b = (kNearB * kB) * g[1];
  out[0] = g[0];
  out[1] = even_a + odd_a;
  out[2] = even_a - odd_a;
  out[3] = even_b + odd_b;
  out[4] = even_b - odd_b;
  out[5] = g[2];
}

// Aᵀm
HIDA_INLINE void of_product(const V m[6], V out[4]) {
  const V sum_a = m[1] + m[2], difference_a = m[1] - m[2], sum_b = m[3] + m[4], difference_b = m[3] - m[4];
  out[0] = m[0] + sum_a + sum_b;
  out[1] = kA * difference_a + kB * difference_b;
  out[2] = kAA * sum_a + kBB * sum_b;
  out[3] = (kA * kAA) * difference_a + (kB * kBB) * difference_b + m[5];
}

// Apply a one-dimensional transform to the rows and then to the columns of a kFrom×kFrom arrangement of vectors.
template <int kFrom, int kTo, class Load, class Apply, class Store>
HIDA_INLINE void both_ways(Load from, Apply apply, Store to) {
  V half[kFrom][kTo];
#pragma GCC unroll 6
  for (int row = 0; row < kFrom; ++row) {
    V line[kFrom];
#pragma GCC unroll 6
    for (int i = 0; i < kFrom; ++i) line[i] = from(row, i);
    apply(line, half[row]);
  }
#pragma GCC unroll 6
  for (int column = 0; column < kTo; ++column) {
    V line[kFrom], out[kTo];
#pragma GCC unroll 6
    for (int row = 0; row < kFrom; ++row) line[row] = half[row][column];
    apply(line, out);
#pragma GCC unroll 6
    for (int row = 0; row < kTo; ++row) to(row, column, out[row]);
  }
}

struct Tile {
  int64_t n, y, x;  // image; first output row and column
};

Tile tile_at(const Winograd& w, int64_t number) {
  const int64_t across = (w.in.w + 3) / 4, down = (w.in.h + 3) / 4;
  return {number / (across * down), number / across % down * 4, number % across * 4};
}

int64_t tiles_in(const Winograd& w, int64_t first) {
  const int64_t left = w.in.n * ((w.in.h + 3) / 4) * ((w.in.w + 3) / 4) - first;
  return left < kWinogradTiles ? left : kWinogradTiles;
}

// The 6×6 inputs of the tiles of one channel, a tile in each lane; zeros outside the image.
void gather(const Winograd& w, const Tile* tiles, int64_t count, int64_t channel, float* to) {
  for (int64_t t = 0; t < count; ++t) {
    const Tile& tile = tiles[t];
    const float* plane = w.x + (tile.n * w.in.c + channel) * w.in.pixels();
    const bool inside = tile.y > 0 && tile.x > 0 && tile.y + 5 <= w.in.h && tile.x + 5 <= w.in.w;
    if (inside) {
      const float* corner = plane + (tile.y - 1) * w.in.w + tile.x - 1;
#pragma GCC unroll 6
      for (int row = 0; row < kSide; ++row) {
#pragma GCC unroll 6
        for (int i = 0; i < kSide; ++i) to[(row * kSide + i) * kWinogradTiles + t] = corner[row * w.in.w + i];
      }
    } else {
      for (int row = 0; row < kSide; ++row) {
        const int64_t y = tile.y - 1 + row;
        for (int i = 0; i < kSide; ++i) {
          const int64_t x = tile.x - 1 + i;
          const bool there = y >= 0 && y < w.in.h && x >= 0 && x < w.in.w;
          to[(row * kSide + i) * kWinogradTiles + t] = there ? plane[y * w.in.w + x] : 0.0f;
        }
      }
    }
  }
}

// (36, rows, C_in + kPad): the spectra of output channels [first, first + rows).
void filters(const Winograd& w, int64_t first, int64_t rows, float* to) {
  const int64_t inputs = w.in.c, row_size = inputs + kPad, plane = rows * row_size;
  alignas(64) float lanes[9][L] = {};
  for (int64_t row = 0; row < rows; ++row) {
    const float* from = w.weight + (first + row) * inputs * 9;
    for (int64_t c = 0; c < inputs; c += L) {
      const int64_t count = inputs - c < L ? inputs - c : L;
      for (int64_t lane = 0; lane < count; ++lane) {
#pragma GCC unroll 9
        for (int tap = 0; tap < 9; ++tap) lanes[tap][lane] = from[(c + lane) * 9 + tap];
      }
      both_ways<3, 6>([&](int r, int i) HIDA_INLINED { return load(lanes[3 * r + i]); }, of_filter,
                      [&](int r, int i, V v) HIDA_INLINED {
                        store(to + (r * kSide + i) * plane + row * row_size + c, v);
                      });
    }
  }
}

// One output channel's tiles into its planes.
void scatter(const Winograd& w, const Tile* tiles, int64_t count, int64_t channel, const float* from) {
  for (int64_t t = 0; t < count; ++t) {
    const Tile& tile = tiles[t];
    float* corner = w.y + ((tile.n * w.out.c + channel) * w.in.h + tile.y) * w.in.w + tile.x;
    if (tile.y + 4 <= w.in.h && tile.x + 4 <= w.in.w) {
#pragma GCC unroll 4
      for (int row = 0; row < 4; ++row) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) corner[row * w.in.w + i] = from[(row * 4 + i) * kWinogradTiles + t];
      }
    } else {
      for (int64_t row = 0; row < 4 && tile.y + row < w.in.h; ++row)
        for (int64_t i = 0; i < 4 && tile.x + i < w.in.w; ++i)
          corner[row * w.in.w + i] = from[(row * 4 + i) * kWinogradTiles + t];
    }
  }
}

}  // namespace

// A unit is kBlock input channels of one block of tiles of the wave.
void winograd_input(const Winograd& w, int64_t begin, int64_t end) {
  const int64_t inputs = w.in.c, groups = (inputs + kBlock - 1) / kBlock;
  Tile tiles[kWinogradTiles];
  alignas(64) float seen[kPoints * kWinogradTiles];
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t block = unit / groups, first = w.first + block * kWinogradTiles, count = tiles_in(w, first);
    for (int64_t t = 0; t < count; ++t) tiles[t] = tile_at(w, first + t);
    std::memset(seen, 0, sizeof(seen));
    const int64_t start = unit % groups * kBlock, stop = start + kBlock < inputs ? start + kBlock : inputs;
    for (int64_t c = start; c < stop; ++c) {
      gather(w, tiles, count, c, seen);
      float* to = w.spectra + (block * kPoints * inputs + c) * kWinogradTiles;
      for (int64_t v = 0; v < count; v += L)
        both_ways<6, 6>(
            [&](int r, int i) HIDA_INLINED { return load(seen + (r * kSide + i) * kWinogradTiles + v); }, of_input,
            [&](int r, int i, V out) HIDA_INLINED { store(to + (r * kSide + i) * inputs * kWinogradTiles + v, out); });
    }
  }
}

// A unit is w.channels output channels of every block of the wave.
void winograd_output(const Winograd& w, int64_t begin, int64_t end) {
  const int64_t inputs = w.in.c, row_size = inputs + kPad, together = kRows < w.channels ? kRows : w.channels;
  Scratch<float> spectra(kPoints * w.channels * row_size), products(kPoints * together * kWinogradTiles);
  Tile tiles[kWinogradTiles];
  alignas(64) float drawn[16 * kWinogradTiles];
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t channel = unit * w.channels, left = w.out.c - channel;
    const int64_t channels = left < w.channels ? left : w.channels, plane = channels * row_size;
    filters(w, channel, channels, spectra.get());
    for (int64_t block = 0; block < w.blocks; ++block) {
      const int64_t first = w.first + block * kWinogradTiles, count = tiles_in(w, first);
      for (int64_t t = 0; t < count; ++t) tiles[t] = tile_at(w, first + t);
      const int64_t width = (count + L - 1) / L * L;
      const float* inputs_seen = w.spectra + block * kPoints * inputs * kWinogradTiles;
      for (int64_t row = 0; row < channels; row += together) {
        const int64_t rows = channels - row < together ? channels - row : together, point = rows * kWinogradTiles;
        std::memset(products.get(), 0, size_t(kPoints * point) * sizeof(float));
        for (int64_t p = 0; p < kPoints; ++p)
          multiply(rows, width, inputs, spectra.get() + p * plane + row * row_size, row_size, int64_t(1),
                   inputs_seen + p * inputs * kWinogradTiles, kWinogradTiles, products.get() + p * point,
                   kWinogradTiles);
        for (int64_t r = 0; r < rows; ++r) {
          const V bias = splat(w.bias ? w.bias[channel + row + r] : 0.0f);
          for (int64_t v = 0; v < width; v += L)
            both_ways<6, 4>(
                [&](int y, int x) HIDA_INLINED {
                  return load(products.get() + (y * kSide + x) * point + r * kWinogradTiles + v);
                },
                of_product,
                [&](int y, int x, V out) HIDA_INLINED { store(drawn + (y * 4 + x) * kWinogradTiles + v, out + bias); });
          scatter(w, tiles, count, channel + row + r, drawn);
        }
      }
    }
  }
}

}  // namespace HIDA_ISA
}  // namespace hida
