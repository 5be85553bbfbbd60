// What ops.cpp asks of the CPU kernels: plain structs in, no torch. Each kernel works on a range of units, which the
// caller spreads over threads; a unit's result does not depend on the range it came in, so that neither the number of
// threads nor their order shows in a result.
#pragma once

#include <cstdint>

namespace hida {

enum class Dtype : int32_t { f32, f64, bf16, f16 };

// An N,C,H,W tensor in memory. Strides in elements, 0 where it is broadcast. data may be null: absent, not wanted.
struct Image {
  void* data = nullptr;
  Dtype dtype = Dtype::f32;
  int64_t n = 0, c = 0, row = 0, step = 0;
};

struct Extent {
  int64_t n = 0, c = 0, h = 0, w = 0;
  int64_t pixels() const { return h * w; }
};

// `wide`: compute in double.
struct Planes {
  Extent extent;
  bool wide = false, channels_last = false;
};

// Sums over planes go to (N, C) arrays of the computing type: float, or double where `wide`.
struct Acon {
  Planes planes;
  Image x, logits, p1, p2;
  Image y;                  // forward
  Image grad, dx, dlogits;  // backward
  void *dlogits_sum = nullptr, *dp1 = nullptr, *dp2 = nullptr;
};

enum class Residual : int32_t { none, activated, tensor };

// Channels that a unit of the kernels for channels_last tensors takes at most.
constexpr int64_t kChannels = 128;
inline int64_t channel_blocks(int64_t channels) {
  return (channels + kChannels - 1) / kChannels;
}

// ida, and with `activate` off instance_norm_modulate.
struct Adapt {
  Planes planes;
  bool activate = false;
  Residual residual = Residual::none;
  double eps = 0;
  Image x, logits, p1, p2, gamma, beta, added;  // added: Residual::tensor
  Image y;
  void *mean = nullptr, *rstd = nullptr;  // (N, C), written forward, read backward
  Image grad, dx, dlogits, dgamma;
  bool grad_to_x = false;  // the residual is x itself: its gradient joins dx
  void *dlogits_sum = nullptr, *dp1 = nullptr, *dp2 = nullptr;
};

// Instance norm between two leaky ReLUs, channels_last.
struct LeakyNorm {
  Extent extent;
  bool wide = false;
  double before = 1, after = 1, eps = 0;
  Image x, y, grad, dx;
  void *mean = nullptr, *rstd = nullptr;  // (N, C), written forward, read backward
  int64_t units() const { return extent.n * channel_blocks(extent.c); }
};

// A convolution to one channel, 4×4: transposed, of stride 2 and padding 1, or of stride 1 and padding 2. x and dx are
// channels_last; units are (image, kRowsOfOne rows), of y forward and of x backward.
constexpr int64_t kRowsOfOne = 8;
struct ToOne {
  Extent in, out;
  bool transposed = false;
  Image x, y, grad, dx;
  const float* weight = nullptr;  // (C, 16)
  float bias = 0;
  float* dweight = nullptr;  // (units, C, 16)
  int64_t blocks(int64_t rows) const { return (rows + kRowsOfOne - 1) / kRowsOfOne; }
};

// Sums over the planes of a channels_last tensor, to an (N, C) array of the computing type.
struct PlaneSums {
  Extent extent;
  bool wide = false;
  Image x;
  void* sums = nullptr;
};

struct Deform {
  Extent in, out;  // out.c = C_out
  bool wide = false;
  int64_t kernel_h = 1, kernel_w = 1, stride_h = 1, stride_w = 1, pad_h = 0, pad_w = 0, dilation_h = 1, dilation_w = 1;
  int64_t groups = 1, deformable = 1;
  int64_t blocks = 0;              // of at most kBlock channels, see sampling.h
  int64_t parts = 1;               // of the batch, for the backward
  Image x, offset, mask, bias, y;  // mask and bias may be absent; bias has a stride c only
  const void* weight = nullptr;    // contiguous, of the computing type
  void* blocked = nullptr;         // (N, blocks, H·W + 1, kBlock): x rearranged
  void* columns = nullptr;         // (C_in·taps, pixels padded to kBlock), for few pixels
  Image grad, dx, doffset, dmask;
  void* dweight = nullptr;    // (parts, *weight's shape), of the computing type
  void* dsampling = nullptr;  // (blocks, 3, taps, N·H_out·W_out): row, column, mask
  int64_t taps() const { return kernel_h * kernel_w; }
};

// A transposed convolution, 4×4, stride 2, padding 1, in float. Few pixels: by output channels, from `columns`, (C_in,
// pixels of the batch padded to whole vectors). Few output channels: by rows, from x, whose rows are whole vectors.
struct Doubling {
  Extent in, out;
  const float *x = nullptr, *columns = nullptr, *weight = nullptr, *bias = nullptr;  // contiguous; bias may be absent
  float* y = nullptr;
  int64_t channels = 64;  // output channels of a unit: its part of a weight row is a page of memory, if they are 64
};
constexpr int64_t kRowsDoubled = 8;  // input rows of a unit

// A convolution in float by minimal filtering: 3×3, or (`twice`) transposed 4×4 with stride 2; padding 1. Tiles of
// output pixels are counted through the whole batch; a wave is some blocks of kWinogradTiles of them.
struct Winograd {
  bool twice = false;
  Extent in, out;
  const float *x = nullptr, *weight = nullptr, *bias = nullptr;  // contiguous; bias may be absent
  float* y = nullptr;
  float* spectra = nullptr;  // (blocks, 36, C_in, kWinogradTiles)
  int64_t first = 0, blocks = 0;
  int64_t rows = 12;  // of the products, in a unit
  // Doubled outputs are tiled by their pairs, and there is half a pair at either end.
  int64_t step() const { return twice ? 5 : 4; }
  int64_t down() const { return (in.h + (twice ? 1 : 0) + step() - 1) / step(); }
  int64_t across() const { return (in.w + (twice ? 1 : 0) + step() - 1) / step(); }
  int64_t tiles() const { return in.n * down() * across(); }
  int64_t phases() const { return twice ? 4 : 1; }  // rows of the products of an output channel
};
constexpr int64_t kWinogradTiles = 32;

constexpr int64_t kBlock = 16;        // channels; sixteen floats are a cache line
constexpr int64_t kTile = 64;         // output pixels, counted through the whole batch
constexpr int64_t kRowsAtATime = 48;  // output channels of a unit where there are few pixels

struct Kernels {
  const char* name;
  void (*acon)(const Acon&, int64_t, int64_t);
  void (*acon_backward)(const Acon&, int64_t, int64_t);
  void (*adapt)(const Adapt&, int64_t, int64_t);
  void (*adapt_backward)(const Adapt&, int64_t, int64_t);
  void (*deform_rearrange)(const Deform&, int64_t, int64_t);  // units: (image, block)
  void (*deform_tiles)(const Deform&, int64_t, int64_t);      // units: tiles of pixels
  void (*deform_columns)(const Deform&, int64_t, int64_t);    // units: blocks
  void (*deform_product)(const Deform&, int64_t, int64_t);    // units: kRowsAtATime output channels
  void (*deform_backward)(const Deform&, int64_t, int64_t);   // units: (part, block)
  void (*deform_gather)(const Deform&, int64_t, int64_t);     // units: (image, deformable group, tap)
  void (*plain_columns)(const Deform&, int64_t, int64_t);     // units: input channels; no offsets, no mask
  void (*doubling)(const Doubling&, int64_t, int64_t);
  void (*winograd_input)(const Winograd&, int64_t, int64_t);   // units: (block, kBlock input channels)
  void (*winograd_output)(const Winograd&, int64_t, int64_t);  // units: `rows` rows
  // Of channels_last tensors; units: (image, block of kChannels channels).
  void (*acon_channels)(const Acon&, int64_t, int64_t);
  void (*acon_channels_backward)(const Acon&, int64_t, int64_t);
  void (*adapt_channels)(const Adapt&, int64_t, int64_t);
  void (*adapt_channels_backward)(const Adapt&, int64_t, int64_t);
  void (*leaky_norm)(const LeakyNorm&, int64_t, int64_t);
  void (*leaky_norm_backward)(const LeakyNorm&, int64_t, int64_t);
  void (*plane_sums)(const PlaneSums&, int64_t, int64_t);
  void (*to_one)(const ToOne&, int64_t, int64_t);
  void (*to_one_backward)(const ToOne&, int64_t, int64_t);
};

// The best table that this processor can run, or the one that the environment variable HIDA_CPU names.
const Kernels& kernels();

}  // namespace hida
