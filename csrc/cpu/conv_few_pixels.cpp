// Convolutions that are bound by reading their weights, because their pixels are few, and transposed
// convolutions (4×4, stride 2, padding 1) that are bound by it or by reading their input, because they have one output
// channel or a few. General libraries rearrange the weights first, which costs more than the convolution.
// Traffic: weights and input once.
#include "gemm.h"
#include "kernels.h"
#include "nchw.h"

namespace hida {
namespace HIDA_ISA {
namespace {

constexpr int64_t kTaps = 16;   // of a transposed convolution
constexpr int64_t kDepth = 16;  // weight rows read side by side

// Add T (16 taps of one channel, each of rows [first, last) of input pixels, `width` numbers apart) into an output
// plane, of which rows [begin, end) are kept.
void spread(const float* taps, int64_t width, int64_t first, int64_t last, const Extent& in, int64_t begin, int64_t end,
            float* plane) {
  const int64_t out_w = 2 * in.w;
  for (int64_t ky = 0; ky < 4; ++ky) {
    for (int64_t row = first; row < last; ++row) {
      const int64_t y = 2 * row - 1 + ky;
      if (y < begin || y >= end) continue;
      float* line = plane + y * out_w;
      for (int64_t kx = 0; kx < 4; ++kx) {
        const float* from = taps + (4 * ky + kx) * width + (row - first) * in.w;
        const int64_t skip = kx == 0, stop = in.w - (kx == 3);
        float* to = line + kx - 1;
        for (int64_t x = skip; x < stop; ++x) to[2 * x] += from[x];
      }
    }
  }
}

void begin_plane(const ConvTranspose& d, int64_t c, int64_t count, float* to) {
  const float bias = d.bias ? d.bias[c] : 0.0f;
  for (int64_t i = 0; i < count; ++i) to[i] = bias;
}

// A work item is d.channels output channels of the whole batch.
void by_channels(const ConvTranspose& d, int64_t begin, int64_t end) {
  const int64_t pixels = d.in.n * d.in.pixels(), width = (pixels + kBlock - 1) / kBlock * kBlock, outputs = d.out.c;
  Scratch<float> taps(d.channels * kTaps * width);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t c0 = item * d.channels;
    const int64_t channels = outputs - c0 < d.channels ? outputs - c0 : d.channels;
    std::memset(taps.get(), 0, size_t(channels * kTaps * width) * sizeof(float));
    for (int64_t k = 0; k < d.in.c; k += kDepth)
      gemm(channels * kTaps, width, d.in.c - k < kDepth ? d.in.c - k : kDepth, d.weight + (k * outputs + c0) * kTaps,
           int64_t(1), outputs * kTaps, d.columns + k * width, width, taps.get(), width);
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t n = 0; n < d.in.n; ++n) {
        float* plane = d.y + (n * outputs + c0 + c) * d.out.pixels();
        begin_plane(d, c0 + c, d.out.pixels(), plane);
        spread(taps.get() + c * kTaps * width + n * d.in.pixels(), width, 0, d.in.h, d.in, 0, d.out.h, plane);
      }
    }
  }
}

// A work item is kTransposeRows input rows of one image. The rows beside them are multiplied again.
void by_rows(const ConvTranspose& d, int64_t begin, int64_t end) {
  const int64_t chunks = (d.in.h + kTransposeRows - 1) / kTransposeRows, outputs = d.out.c;
  const int64_t width = (kTransposeRows + 2) * d.in.w;
  Scratch<float> taps(outputs * kTaps * width);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / chunks, row = item % chunks * kTransposeRows;
    const int64_t stop = row + kTransposeRows < d.in.h ? row + kTransposeRows : d.in.h;
    const int64_t first = row > 0 ? row - 1 : 0, last = stop < d.in.h ? stop + 1 : stop;
    std::memset(taps.get(), 0, size_t(outputs * kTaps * width) * sizeof(float));
    gemm(outputs * kTaps, (last - first) * d.in.w, d.in.c, d.weight, int64_t(1), outputs * kTaps,
         d.x + n * d.in.c * d.in.pixels() + first * d.in.w, d.in.pixels(), taps.get(), width);
    for (int64_t c = 0; c < outputs; ++c) {
      float* plane = d.y + (n * outputs + c) * d.out.pixels();
      begin_plane(d, c, 2 * (stop - row) * d.out.w, plane + 2 * row * d.out.w);
      spread(taps.get() + c * kTaps * width, width, first, last, d.in, 2 * row, 2 * stop, plane);
    }
  }
}

}  // namespace

// One channel's columns: (taps, pixels of the batch, padded), zeros outside the image.
void im2col(const Deform& d, int64_t begin, int64_t end) {
  const int64_t pixels = d.in.pixels(), count = d.out.n * d.out.pixels(),
                width = (count + kBlock - 1) / kBlock * kBlock;
  Scratch<float> plane(pixels + 64);
  for (int64_t c = begin; c < end; ++c) {
    float* rows = static_cast<float*>(d.columns) + c * d.taps() * width;
    for (int64_t n = 0; n < d.in.n; ++n) {
      for (int64_t at = 0; at < pixels; at += kLine)
        copy_line(d.x, d.in, n, c, at, pixels - at < kLine ? pixels - at : kLine, plane.get() + at);
      for (int64_t tap = 0; tap < d.taps(); ++tap) {
        float* to = rows + tap * width + n * d.out.pixels();
        for (int64_t row = 0; row < d.out.h; ++row) {
          const int64_t y = row * d.stride_h - d.pad_h + tap / d.kernel_w * d.dilation_h;
          for (int64_t column = 0; column < d.out.w; ++column) {
            const int64_t x = column * d.stride_w - d.pad_w + tap % d.kernel_w * d.dilation_w;
            *to++ = y >= 0 && y < d.in.h && x >= 0 && x < d.in.w ? plane[y * d.in.w + x] : 0.0f;
          }
        }
      }
    }
    for (int64_t tap = 0; tap < d.taps(); ++tap)
      for (int64_t i = count; i < width; ++i) rows[tap * width + i] = 0;
  }
}

void conv_transpose(const ConvTranspose& d, int64_t begin, int64_t end) {
  d.columns ? by_channels(d, begin, end) : by_rows(d, begin, end);
}

}  // namespace HIDA_ISA
}  // namespace hida
