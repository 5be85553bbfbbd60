// Convolutions of many pixels, in float, by minimal filtering: a tile of outputs is computed from its 6×6 inputs at 36
// points, where convolving is multiplying (Winograd 1980; Lavin and Gray, CVPR 2016).
//
//   3×3, stride 1        F(4×4, 3×3): 36 products for 144
//   transposed 4×4       four convolutions 2×2, one for each parity of the output: F(5×5, 2×2), 36 for 100. The windows
//                        of odd outputs begin one earlier, so that all four see the same inputs
//
// (4×4 with stride 2 is as many 2×2, summed, but here it was no faster than a direct convolution.)
//
// The points are 0, ±√½, ±√2 and infinity: their powers stay near 1, and so does the rounding (1.5e-6 of the result of
// 256 channels instead of 0.3e-6; the customary 0, ±1, ±2 and infinity: 3.4e-6).
// Traffic: x once or nearly, the weights once a wave, y once; the spectra of a wave stay in the last cache.
#include "gemm.h"
#include "kernels.h"

namespace hida {
namespace HIDA_ISA {
namespace {

using V = Vec<float>;
constexpr int L = kLanes<float>;
constexpr int kSide = 6, kPoints = kSide * kSide;  // of a tile's input, and of its spectrum
constexpr int kPad = 16;                           // rows of filters must not map to the same sets of the cache
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

// Gg, of two or three taps; a²b² = 1
template <int kTaps>
HIDA_INLINE void of_filter(const V g[kTaps], V out[6]) {
  constexpr float kNearA = 1 / (2 * kAA * (kAA - kBB)), kNearB = 1 / (2 * kBB * (kBB - kAA));
  V even_a = kNearA * g[0], even_b = kNearB * g[0];
  if constexpr (kTaps == 3) even_a += (kNearA * kAA) * g[2], even_b += (kNearB * kBB) * g[2];
  const V odd_a = (kNearA * kA) * g[1], odd_b = (kNearB * kB) * g[1];
  out[0] = g[0];
  out[1] = even_a + odd_a;
  out[2] = even_a - odd_a;
  out[3] = even_b + odd_b;
  out[4] = even_b - odd_b;
  out[5] = g[kTaps - 1];
}

// Aᵀm, to four or five outputs
template <int kOutputs>
HIDA_INLINE void of_product(const V m[6], V out[kOutputs]) {
  const V sum_a = m[1] + m[2], difference_a = m[1] - m[2], sum_b = m[3] + m[4], difference_b = m[3] - m[4];
  out[0] = m[0] + sum_a + sum_b;
  out[1] = kA * difference_a + kB * difference_b;
  out[2] = kAA * sum_a + kBB * sum_b;
  out[3] = (kA * kAA) * difference_a + (kB * kBB) * difference_b;
  if constexpr (kOutputs == 5) out[4] = (kAA * kAA) * sum_a + (kBB * kBB) * sum_b;
  out[kOutputs - 1] += m[5];
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

using Index = int32_t __attribute__((vector_size(sizeof(V))));

// Lane i of the result is lane first + i·step, or half + i/2 of either in turn, of (a, b).
HIDA_INLINE V every_second(V a, V b, int first) {
  Index from;
  for (int i = 0; i < L; ++i) from[i] = first + 2 * i;
  return __builtin_shuffle(a, b, from);
}
HIDA_INLINE V in_turn(V a, V b, int half) {
  Index from;
  for (int i = 0; i < L; ++i) from[i] = half + i / 2 + i % 2 * L;
  return __builtin_shuffle(a, b, from);
}

// 4·L numbers in a row: those of each place in their four, and back.
HIDA_INLINE void deal(const V row[4], V places[4]) {
  const V even[2] = {every_second(row[0], row[1], 0), every_second(row[2], row[3], 0)};
  const V odd[2] = {every_second(row[0], row[1], 1), every_second(row[2], row[3], 1)};
  places[0] = every_second(even[0], even[1], 0), places[1] = every_second(odd[0], odd[1], 0);
  places[2] = every_second(even[0], even[1], 1), places[3] = every_second(odd[0], odd[1], 1);
}
HIDA_INLINE void collect(const V places[4], V row[4]) {
  const V low_even = in_turn(places[0], places[2], 0), low_odd = in_turn(places[1], places[3], 0);
  const V high_even = in_turn(places[0], places[2], L / 2), high_odd = in_turn(places[1], places[3], L / 2);
  row[0] = in_turn(low_even, low_odd, 0), row[1] = in_turn(low_even, low_odd, L / 2);
  row[2] = in_turn(high_even, high_odd, 0), row[3] = in_turn(high_even, high_odd, L / 2);
}

struct OutputTile {
  int64_t n, y, x;  // image, row and column of its first output; of the first even one, where outputs are doubled
};

struct TileBlock {
  OutputTile tiles[kWinogradTiles];
  int64_t count;
  int64_t width() const { return (count + L - 1) / L * L; }
  // Whether the tiles of the lanes from `first` on are four numbers wide and follow each other in a row.
  bool in_a_row(int64_t first, int64_t step) const {
    if (step != 4 || first + L > count) return false;
    const OutputTile &a = tiles[first], &b = tiles[first + L - 1];
    return a.n == b.n && a.y == b.y && b.x - a.x == 4 * (L - 1);
  }
};

TileBlock block_at(const Winograd& w, int64_t number) {
  const int64_t first = (w.first + number) * kWinogradTiles, left = w.tiles() - first;
  TileBlock block;
  block.count = left < kWinogradTiles ? left : kWinogradTiles;
  for (int64_t t = 0; t < block.count; ++t) {
    const int64_t tile = first + t, step = w.step();
    block.tiles[t] = {tile / (w.down() * w.across()), tile / w.across() % w.down() * step, tile % w.across() * step};
  }
  return block;
}

// L tiles that follow each other in a row of the image.
void gather_row(const Winograd& w, const OutputTile& tile, const float* plane, float* to) {
  constexpr int kLength = 4 * L + 2;
  alignas(64) float line[(kLength + L - 1) / L * L] = {};
  for (int row = 0; row < kSide; ++row) {
    const int64_t y = tile.y - 1 + row, left = tile.x == 0, first = tile.x - 1 + left;
    if (y < 0 || y >= w.in.h) {
      std::memset(line, 0, sizeof(line));
    } else {
      const int64_t inside = w.in.w - first, count = inside < kLength - left ? inside : kLength - left;
      line[0] = 0;
      std::memcpy(line + left, plane + y * w.in.w + first, size_t(count) * sizeof(float));
      for (int64_t i = left + count; i < kLength; ++i) line[i] = 0;
    }
    V four[4], places[4];
    for (int i = 0; i < 4; ++i) four[i] = load(line + i * L);
    deal(four, places);
    float* lanes = to + row * kSide * kWinogradTiles;
    for (int i = 0; i < 4; ++i) store(lanes + i * kWinogradTiles, places[i]);
    // The fifth and sixth are the first and second of the next tile.
    for (int i = 0; i < 2; ++i) {
      Index next;
      for (int k = 0; k < L; ++k) next[k] = k + 1;
      store(lanes + (4 + i) * kWinogradTiles, __builtin_shuffle(places[i], splat(line[4 * L + i]), next));
    }
  }
}

// The 6×6 inputs of a block's tiles in one channel, a tile in each lane; zeros outside the image.
void gather(const Winograd& w, const TileBlock& block, int64_t channel, float* to) {
  for (int64_t t = 0; t < block.count; ++t) {
    if (t % L == 0 && block.in_a_row(t, w.step())) {
      const OutputTile& first = block.tiles[t];
      gather_row(w, first, w.x + (first.n * w.in.c + channel) * w.in.pixels(), to + t);
      t += L - 1;
      continue;
    }
    const OutputTile& tile = block.tiles[t];
    const float* plane = w.x + (tile.n * w.in.c + channel) * w.in.pixels();
    float* lane = to + t;
    if (tile.y > 0 && tile.x > 0 && tile.y + kSide - 1 <= w.in.h && tile.x + kSide - 1 <= w.in.w) {
      const float* corner = plane + (tile.y - 1) * w.in.w + tile.x - 1;
#pragma GCC unroll 6
      for (int row = 0; row < kSide; ++row) {
#pragma GCC unroll 6
        for (int i = 0; i < kSide; ++i) lane[(row * kSide + i) * kWinogradTiles] = corner[row * w.in.w + i];
      }
    } else {
      for (int row = 0; row < kSide; ++row) {
        const int64_t y = tile.y - 1 + row;
        for (int i = 0; i < kSide; ++i) {
          const int64_t x = tile.x - 1 + i;
          const bool there = y >= 0 && y < w.in.h && x >= 0 && x < w.in.w;
          lane[(row * kSide + i) * kWinogradTiles] = there ? plane[y * w.in.w + x] : 0.0f;
        }
      }
    }
  }
}

// Where the two taps of a parity are among four, in the order in which they meet their inputs.
constexpr int kDoubled[2][2] = {{3, 1}, {2, 0}};

// The filters between `count` input channels, one in a lane, and one row of the products: their spectra.
template <int kTaps>
HIDA_INLINE void filter(const float (*lanes)[L], const int (&tap)[kTaps][kTaps], int64_t count, int64_t plane,
                        float* to) {
  both_ways<kTaps, kSide>([&](int r, int i) HIDA_INLINED { return load(lanes[tap[r][i]]); }, of_filter<kTaps>,
                          [&](int r, int i, V v) HIDA_INLINED {
                            float* at = to + (r * kSide + i) * plane;
                            count == L ? store(at, v) : store_first(at, v, count);
                          });
}

// (36, rows, C_in + kPad): the spectra of rows [first, first + rows) of the products, of whole output channels.
void filters(const Winograd& w, int64_t first, int64_t rows, float* to) {
  const int64_t inputs = w.in.c, row_size = inputs + kPad, plane = rows * row_size;
  const int taps = w.transposed ? 16 : 9;
  const int64_t apart = w.transposed ? taps * w.out.c : taps;  // the weights of two input channels
  alignas(64) float lanes[16][L] = {};
  for (int64_t row = 0; row < rows; row += w.phases()) {
    const int64_t channel = (first + row) / w.phases();
    const float* weight = w.weight + channel * (w.transposed ? taps : inputs * taps);
    for (int64_t c = 0; c < inputs; c += L) {
      const int64_t count = inputs - c < L ? inputs - c : L;
      for (int64_t lane = 0; lane < count; ++lane)
        for (int i = 0; i < taps; ++i) lanes[i][lane] = weight[(c + lane) * apart + i];
      float* at = to + row * row_size + c;
      if (!w.transposed) {
        constexpr int kTaps[3][3] = {{0, 1, 2}, {3, 4, 5}, {6, 7, 8}};
        filter(lanes, kTaps, count, plane, at);
        continue;
      }
      for (int phase = 0; phase < 4; ++phase) {
        const int (&y)[2] = kDoubled[phase / 2], (&x)[2] = kDoubled[phase % 2];
        const int tap[2][2] = {{4 * y[0] + x[0], 4 * y[0] + x[1]}, {4 * y[1] + x[0], 4 * y[1] + x[1]}};
        filter(lanes, tap, count, plane, at + phase * row_size);
      }
    }
  }
}

// One row of the products, transformed back, into its output channel's planes.
template <int kOutputs, int kStep>
void scatter(const Winograd& w, const TileBlock& block, int64_t row, const float* from) {
  const int64_t channel = row / w.phases(), phase = row % w.phases(), odd_y = phase / 2, odd_x = phase % 2;
  for (int64_t t = 0; t < block.count; ++t) {
    const OutputTile& tile = block.tiles[t];
    float* plane = w.y + (tile.n * w.out.c + channel) * w.out.pixels();
    if (kOutputs == 4 && t % L == 0 && tile.y + 4 <= w.out.h && tile.x + 4 * L <= w.out.w && block.in_a_row(t, 4)) {
      for (int r = 0; r < 4; ++r) {
        V places[4], row[4];
        for (int i = 0; i < 4; ++i) places[i] = load(from + (r * 4 + i) * kWinogradTiles + t);
        collect(places, row);
        for (int i = 0; i < 4; ++i) store(plane + (tile.y + r) * w.out.w + tile.x + i * L, row[i]);
      }
      t += L - 1;
      continue;
    }
    const int64_t y0 = tile.y * kStep - odd_y, x0 = tile.x * kStep - odd_x, size = kStep * (kOutputs - 1);
    const float* lane = from + t;
    if (y0 >= 0 && x0 >= 0 && y0 + size < w.out.h && x0 + size < w.out.w) {
      float* corner = plane + y0 * w.out.w + x0;
#pragma GCC unroll 5
      for (int r = 0; r < kOutputs; ++r) {
#pragma GCC unroll 5
        for (int i = 0; i < kOutputs; ++i)
          corner[r * kStep * w.out.w + i * kStep] = lane[(r * kOutputs + i) * kWinogradTiles];
      }
    } else {
      for (int64_t r = 0; r < kOutputs; ++r) {
        for (int64_t i = 0; i < kOutputs; ++i) {
          const int64_t y = y0 + r * kStep, x = x0 + i * kStep;
          if (y >= 0 && y < w.out.h && x >= 0 && x < w.out.w)
            plane[y * w.out.w + x] = lane[(r * kOutputs + i) * kWinogradTiles];
        }
      }
    }
  }
}

// Transform back `rows` rows of products, from `first` on, and put them where they belong.
template <int kOutputs, int kStep>
void finish(const Winograd& w, const TileBlock& block, int64_t first, int64_t rows, const float* products) {
  alignas(64) float drawn[kOutputs * kOutputs * kWinogradTiles];
  const int64_t point = rows * kWinogradTiles;
  for (int64_t r = 0; r < rows; ++r) {
    const V bias = splat(w.bias ? w.bias[(first + r) / w.phases()] : 0.0f);
    for (int64_t v = 0; v < block.width(); v += L)
      both_ways<kSide, kOutputs>(
          [&](int y, int x) HIDA_INLINED { return load(products + (y * kSide + x) * point + r * kWinogradTiles + v); },
          of_product<kOutputs>,
          [&](int y, int x, V out)
              HIDA_INLINED { store(drawn + (y * kOutputs + x) * kWinogradTiles + v, out + bias); });
    scatter<kOutputs, kStep>(w, block, first + r, drawn);
  }
}

}  // namespace

// A work item is kBlock input channels of one block of the wave.
void winograd_input(const Winograd& w, int64_t begin, int64_t end) {
  const int64_t inputs = w.in.c, groups = (inputs + kBlock - 1) / kBlock;
  alignas(64) float seen[kPoints * kWinogradTiles] = {};
  for (int64_t item = begin; item < end; ++item) {
    const TileBlock block = block_at(w, item / groups);
    const int64_t start = item % groups * kBlock, stop = start + kBlock < inputs ? start + kBlock : inputs;
    for (int64_t c = start; c < stop; ++c) {
      gather(w, block, c, seen);
      float* to = w.spectra + (item / groups * kPoints * inputs + c) * kWinogradTiles;
      for (int64_t v = 0; v < block.width(); v += L)
        both_ways<kSide, kSide>(
            [&](int r, int i) HIDA_INLINED { return load(seen + (r * kSide + i) * kWinogradTiles + v); }, of_input,
            [&](int r, int i, V out) HIDA_INLINED { store(to + (r * kSide + i) * inputs * kWinogradTiles + v, out); });
    }
  }
}

// A work item is w.rows rows of the products of every block of the wave.
void winograd_output(const Winograd& w, int64_t begin, int64_t end) {
  const int64_t inputs = w.in.c, row_size = inputs + kPad, total = w.out.c * w.phases();
  Scratch<float> spectra(kPoints * w.rows * row_size), products(kPoints * kRows * kWinogradTiles);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t first = item * w.rows, rows = total - first < w.rows ? total - first : w.rows;
    filters(w, first, rows, spectra.get());
    for (int64_t number = 0; number < w.blocks; ++number) {
      const TileBlock block = block_at(w, number);
      const float* seen = w.spectra + number * kPoints * inputs * kWinogradTiles;
      for (int64_t row = 0; row < rows; row += kRows) {
        const int64_t count = rows - row < kRows ? rows - row : kRows, point = count * kWinogradTiles;
        std::memset(products.get(), 0, size_t(kPoints * point) * sizeof(float));
        for (int64_t p = 0; p < kPoints; ++p)
          gemm(count, block.width(), inputs, spectra.get() + (p * rows + row) * row_size, row_size, int64_t(1),
               seen + p * inputs * kWinogradTiles, kWinogradTiles, products.get() + p * point, kWinogradTiles);
        (w.transposed ? finish<5, 2> : finish<4, 1>)(w, block, first + row, count, products.get());
      }
    }
  }
}

}  // namespace HIDA_ISA
}  // namespace hida
