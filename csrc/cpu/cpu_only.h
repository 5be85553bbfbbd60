// Arguments of the kernels that exist on the CPU only, and the sizes in which those of both devices share out their
// work here.
#pragma once

#include "../arguments.h"

namespace hida {

// Channels of a work item of the kernels for channels_last tensors, at most.
constexpr int64_t kChannels = 128;
inline int64_t channel_blocks(int64_t channels) {
  return (channels + kChannels - 1) / kChannels;
}

constexpr int64_t kBlock = 16;          // channels; sixteen floats are a cache line
constexpr int64_t kPixelsAtATime = 64;  // output pixels, counted through the whole batch
constexpr int64_t kRowsAtATime = 48;    // output channels of a work item where there are few pixels

// A convolution to one channel, 4×4: transposed, of stride 2 and padding 1, or of stride 1 and padding 2. x and dx are
// channels_last; items are (image, kToOneRows rows), of y forward and of x backward.
constexpr int64_t kToOneRows = 8;
struct ConvToOne {
  Extent in, out;
  bool transposed = false;
  Image x, y, grad, dx;
  const float* weight = nullptr;  // (C, 16)
  float bias = 0;
  float* dweight = nullptr;  // (items, C, 16)
  int64_t blocks(int64_t rows) const { return (rows + kToOneRows - 1) / kToOneRows; }
};

// Sums over the planes of a channels_last tensor, to an (N, C) array of the computing type.
struct PlaneSums {
  Extent extent;
  bool wide = false;
  Image x;
  void* sums = nullptr;
};

// A transposed convolution, 4×4, stride 2, padding 1, in float. Few pixels: by output channels, from `columns`, (C_in,
// pixels of the batch padded to whole vectors). Few output channels: by rows, from x, whose rows are whole vectors.
struct ConvTranspose {
  Extent in, out;
  const float *x = nullptr, *columns = nullptr, *weight = nullptr, *bias = nullptr;  // contiguous; bias may be absent
  float* y = nullptr;
  int64_t channels = 64;  // output channels of an item: its part of a weight row is a page of memory, if they are 64
};
constexpr int64_t kTransposeRows = 8;  // input rows of an item

// A convolution in float by minimal filtering: 3×3, or (`transposed`) transposed 4×4 with stride 2; padding 1. Tiles of
// output pixels are counted through the whole batch; a wave is some blocks of kWinogradTiles of them.
struct Winograd {
  bool transposed = false;
  Extent in, out;
  const float *x = nullptr, *weight = nullptr, *bias = nullptr;  // contiguous; bias may be absent
  float* y = nullptr;
  float* spectra = nullptr;  // (blocks, 36, C_in, kWinogradTiles)
  int64_t first = 0, blocks = 0;
  int64_t rows = 12;  // of the products, in an item
  // Doubled outputs are tiled by their pairs, and there is half a pair at either end.
  int64_t step() const { return transposed ? 5 : 4; }
  int64_t down() const { return (in.h + (transposed ? 1 : 0) + step() - 1) / step(); }
  int64_t across() const { return (in.w + (transposed ? 1 : 0) + step() - 1) / step(); }
  int64_t tiles() const { return in.n * down() * across(); }
  int64_t phases() const { return transposed ? 4 : 1; }  // rows of the products of an output channel
};
constexpr int64_t kWinogradTiles = 32;

}  // namespace hida
