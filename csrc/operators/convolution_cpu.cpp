// Convolutions that are faster here than in general libraries, on CPU tensors in float32: those bound by reading their
// weights, and by minimal filtering those of many pixels. Checks, memory, threads. They have no gradient of their own;
// Python gives them that of torch's convolutions.
#include <algorithm>
#include <optional>

#include "../cpu/kernels.h"
#include "tensors.h"

namespace hida {
namespace {

using torch::stable::new_empty;
using Pair = std::vector<int64_t>;

void require_float(const char* name, const Tensor& t) {
  require_here(name, t);
  if (t.scalar_type() != ScalarType::Float) fail(std::string(name) + " must be float32.");
  if (!t.is_contiguous()) fail(std::string(name) + " must be contiguous.");
}

constexpr int64_t kFewChannels = 4;

int64_t padded(int64_t pixels) {
  return (pixels + kBlock - 1) / kBlock * kBlock;
}

// (C_in·taps, pixels of the batch, padded).
Tensor columns_of(Deform& d, const Tensor& x) {
  Tensor columns = new_empty(x, {d.in.c * d.taps() * padded(d.out.n * d.out.pixels())});
  d.x = image_of("x", x, d.in);
  d.columns = columns.mutable_data_ptr();
  for_items(d.in.c, d.taps() * d.out.n * d.out.pixels(),
            [&](int64_t begin, int64_t end) { kernels().im2col(d, begin, end); });
  return columns;
}

// Spectra of a wave: below 16 MB, so that they stay in the last cache.
Tensor by_winograd(bool transposed, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                   const Extent& in, const Tensor& y, const Extent& out) {
  Winograd w;
  w.transposed = transposed, w.in = in, w.out = out;
  w.x = static_cast<const float*>(x.const_data_ptr());
  w.weight = static_cast<const float*>(weight.const_data_ptr());
  if (bias) w.bias = static_cast<const float*>(bias->const_data_ptr());
  w.y = static_cast<float*>(y.mutable_data_ptr());
  const int64_t inputs = std::max<int64_t>(1, in.c);  // sizes: where there are none, the bias is still written
  const int64_t blocks = (w.tiles() + kWinogradTiles - 1) / kWinogradTiles, block_size = 36 * inputs * kWinogradTiles;
  const int64_t most = std::max<int64_t>(1, (1 << 22) / block_size), waves = (blocks + most - 1) / most;
  w.rows = std::clamp<int64_t>(6144 / inputs / 12 * 12, 12, 48);
  const Tensor spectra = in_large_pages(new_empty(x, {(blocks + waves - 1) / waves * block_size}));
  w.spectra = static_cast<float*>(spectra.mutable_data_ptr());
  for (int64_t wave = 0; wave < waves; ++wave) {
    w.first = wave * blocks / waves;
    w.blocks = (wave + 1) * blocks / waves - w.first;
    for_items(w.blocks * ((in.c + kBlock - 1) / kBlock), 36 * kBlock * kWinogradTiles,
              [&](int64_t from, int64_t to) { kernels().winograd_input(w, from, to); });
    for_items((out.c * w.phases() + w.rows - 1) / w.rows, w.blocks * w.rows * inputs * kWinogradTiles,
              [&](int64_t from, int64_t to) { kernels().winograd_output(w, from, to); });
  }
  return y;
}

void require_bias(const std::optional<Tensor>& bias, int64_t channels) {
  if (!bias) return;
  require_float("bias", *bias);
  require_shape("bias", *bias, {{channels}});
}

Tensor conv2d(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Pair& stride,
              const Pair& padding) {
  Deform d;
  d.in = extent_of("x", x);
  const Extent w = extent_of("weight", weight);
  require_float("x", x);
  require_float("weight", weight);
  if (stride.size() != 2 || padding.size() != 2 || stride[0] < 1 || stride[1] < 1 || padding[0] < 0 || padding[1] < 0)
    fail("stride must be two numbers of at least 1, padding two of at least 0.");
  if (w.c != d.in.c || w.c < 1 || w.h < 1 || w.w < 1) fail("weight must have shape (C_out, C_in, kh, kw).");
  if (d.in.h + 2 * padding[0] < w.h || d.in.w + 2 * padding[1] < w.w) fail("x is smaller than the kernel.");
  d.kernel_h = w.h, d.kernel_w = w.w;
  d.stride_h = stride[0], d.stride_w = stride[1];
  d.pad_h = padding[0], d.pad_w = padding[1];
  d.out = {d.in.n, w.n, (d.in.h + 2 * d.pad_h - w.h) / d.stride_h + 1, (d.in.w + 2 * d.pad_w - w.w) / d.stride_w + 1};
  const bool three = w.h == 3 && w.w == 3 && d.stride_h == 1 && d.stride_w == 1 && d.pad_h == 1 && d.pad_w == 1;
  const bool few = d.out.n * d.out.pixels() <= (three ? 2 : 4) * kPixelsAtATime;
  if (!few && !three)
    fail("conv2d is for at most 256 output pixels in the whole batch, or for 3×3 with stride 1 and padding 1.");
  require_bias(bias, d.out.c);
  Tensor y = in_large_pages(new_empty(x, {d.out.n, d.out.c, d.out.h, d.out.w}));
  if (y.numel() == 0) return y;
  if (!few) return by_winograd(false, x, weight, bias, d.in, y, d.out);
  if (bias) {
    d.bias.data = const_cast<void*>(bias->const_data_ptr());
    d.bias.c = 1;
  }
  d.weight = weight.const_data_ptr();
  d.y = image_of("y", y, d.out, true);
  const Tensor columns = columns_of(d, x);
  for_items((d.out.c + kRowsAtATime - 1) / kRowsAtATime, d.in.c * d.taps() * kRowsAtATime,
            [&](int64_t begin, int64_t end) { kernels().deform_product(d, begin, end); });
  return y;
}

Tensor double_size(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  ConvTranspose d;
  d.in = extent_of("x", x);
  const Extent w = extent_of("weight", weight);
  require_float("x", x);
  require_float("weight", weight);
  if (w.n != d.in.c || w.h != 4 || w.w != 4) fail("weight must have shape (C_in, C_out, 4, 4).");
  d.out = {d.in.n, w.c, 2 * d.in.h, 2 * d.in.w};
  const int64_t pixels = d.in.n * d.in.pixels();
  require_bias(bias, d.out.c);
  Tensor y = in_large_pages(new_empty(x, {d.out.n, d.out.c, d.out.h, d.out.w}));
  if (y.numel() == 0) return y;
  const bool rows = pixels > 4 * kPixelsAtATime && d.out.c < kFewChannels && d.in.w % kBlock == 0;
  if (pixels > 4 * kPixelsAtATime && !rows) return by_winograd(true, x, weight, bias, d.in, y, d.out);
  d.weight = static_cast<const float*>(weight.const_data_ptr());
  d.y = static_cast<float*>(y.mutable_data_ptr());
  if (bias) d.bias = static_cast<const float*>(bias->const_data_ptr());
  d.x = static_cast<const float*>(x.const_data_ptr());
  Tensor keep = x;
  if (!rows) {
    if (pixels > kPixelsAtATime) d.channels = 16;  // the products of an item stay in the second-level cache
    Deform plain;
    plain.in = plain.out = d.in;
    keep = columns_of(plain, x);
    d.columns = static_cast<const float*>(keep.const_data_ptr());
  }
  const int64_t items =
      d.columns ? (d.out.c + d.channels - 1) / d.channels : d.in.n * ((d.in.h + kTransposeRows - 1) / kTransposeRows);
  for_items(items, 1 << 20, [&](int64_t begin, int64_t end) { kernels().conv_transpose(d, begin, end); });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hida, CPU, m) {
  m.impl("conv2d", TORCH_BOX(&conv2d));
  m.impl("conv_transpose2d", TORCH_BOX(&double_size));
}

}  // namespace hida
