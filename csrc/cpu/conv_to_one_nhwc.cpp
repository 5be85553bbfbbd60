// Convolutions 4×4 of a channels_last tensor to one output channel: a transposed one of stride 2 and padding 1, or one
// of stride 1 and padding 2. A pixel's channels meet sixteen weights each, so that a pixel's products are one vector
// (16 floats) which is summed over channels: y is then a sum of few of its numbers. Traffic n forward, 3n backward.
#include "nchw.h"

namespace hida {
namespace HIDA_ISA {
namespace {

constexpr int kParts = 16 / kLanes<float>;
constexpr int64_t kTogether = kParts == 1 ? 8 : 4;  // pixels, or channels, whose sums stay in registers
using Sixteen = Several<float, kParts>;

HIDA_INLINE Sixteen sixteen(const float* from) {
  return load_like(Sixteen{}, from);
}

// `count` pixels of a row as (pixels, channels); x is NHWC.
void read_row(const Image& x, const Extent& e, int64_t n, int64_t row, float* to) {
  with_type(x.dtype, [&](auto type) {
    using T = decltype(type);
    const T* from = static_cast<const T*>(x.data) + n * x.n + row * x.row;
    if (x.step == e.c) return gather(from, 1, e.w * e.c, to);
    for (int64_t p = 0; p < e.w; ++p) gather(from + p * x.step, 1, e.c, to + p * e.c);
  });
}
void write_row(const Image& dx, const Extent& e, int64_t n, int64_t row, const float* from) {
  with_type(dx.dtype, [&](auto type) {
    using T = decltype(type);
    T* to = static_cast<T*>(dx.data) + n * dx.n + row * dx.row;
    if (dx.step == e.c) return scatter(to, 1, e.w * e.c, from);
    for (int64_t p = 0; p < e.w; ++p) scatter(to + p * dx.step, 1, e.c, from + p * e.c);
  });
}

// z (pixels, 16) = x (pixels, channels) · weight (channels, 16).
template <int64_t kPixels>
HIDA_INLINE void products(const float* x, const float* weight, int64_t channels, float* z) {
  Sixteen sum[kPixels] = {};
  for (int64_t c = 0; c < channels; ++c) {
    const Sixteen w = sixteen(weight + 16 * c);
#pragma GCC unroll 8
    for (int64_t p = 0; p < kPixels; ++p) sum[p] = sum[p] + x[p * channels + c] * w;
  }
  for (int64_t p = 0; p < kPixels; ++p) store(z + 16 * p, sum[p]);
}

// The upstream gradient that each of the sixteen weights of a row's pixels meets, (pixels, 16). `rows` holds the rows
// of the gradient from `top` on, `stride` long, two zeros before the first column.
void gradients(const ConvToOne& a, const float* rows, int64_t top, int64_t stride, int64_t row, float* to) {
  for (int64_t ky = 0; ky < 4; ++ky) {
    const float* line = rows + (a.transposed ? 2 * row - 1 + ky - top : row + 2 - ky - top) * stride + 2;
    if (a.transposed)
      for (int64_t p = 0; p < a.in.w; ++p) std::memcpy(to + 16 * p + 4 * ky, line + 2 * p - 1, 4 * sizeof(float));
    else
      for (int64_t p = 0; p < a.in.w; ++p)
        for (int64_t kx = 0; kx < 4; ++kx) to[16 * p + 4 * ky + kx] = line[p + 2 - kx];
  }
}

}  // namespace

void conv_to_one_nhwc(const ConvToOne& a, int64_t begin, int64_t end) {
  const int64_t w = a.in.w, c = a.in.c, row_of_z = 16 * (w + 4), blocks = a.blocks(a.out.h);
  const int64_t most = kToOneRows + 3;
  Scratch<float> x(w * c), z(most * row_of_z), line(a.out.w);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / blocks, from = item % blocks * kToOneRows;
    const int64_t to = from + kToOneRows < a.out.h ? from + kToOneRows : a.out.h;
    // Rows of x that these rows of y depend on; there are two pixels of zeros on either side of each.
    const int64_t top = a.transposed ? from / 2 - 1 : from - 2, bottom = a.transposed ? (to - 1) / 2 + 1 : to;
    std::memset(z.get(), 0, size_t(most * row_of_z) * sizeof(float));
    for (int64_t row = top < 0 ? 0 : top; row <= bottom && row < a.in.h; ++row) {
      float* row_z = z.get() + (row - top) * row_of_z + 32;
      read_row(a.x, a.in, n, row, x.get());
      int64_t p = 0;
      for (; p + kTogether <= w; p += kTogether) products<kTogether>(x.get() + p * c, a.weight, c, row_z + 16 * p);
      for (; p < w; ++p) products<1>(x.get() + p * c, a.weight, c, row_z + 16 * p);
    }
    for (int64_t row = from; row < to; ++row) {
      if (a.transposed) {
        // Two rows and, of each, two columns reach a pixel: an even row by ky = 1, and by ky = 3 of the row above.
        const int64_t odd = row % 2;
        const float* near = z.get() + (row / 2 - top) * row_of_z + 32 + (odd ? 8 : 4);
        const float* far = z.get() + (row / 2 + (odd ? 1 : -1) - top) * row_of_z + 32 + (odd ? 0 : 12);
        for (int64_t p = 0; p < w; ++p) {
          const float *u = near + 16 * p, *v = far + 16 * p;
          line[2 * p] = a.bias + (u[1] + u[3 - 16]) + (v[1] + v[3 - 16]);
          line[2 * p + 1] = a.bias + (u[2] + u[16]) + (v[2] + v[16]);
        }
      } else {
        for (int64_t p = 0; p < a.out.w; ++p) {
          float sum = a.bias;
          for (int64_t ky = 0; ky < 4; ++ky) {
            const float* u = z.get() + (row - 2 + ky - top) * row_of_z + 16 * p + 4 * ky;
            sum += (u[0] + u[17]) + (u[34] + u[51]);
          }
          line[p] = sum;
        }
      }
      write_line(a.y, a.out, n, 0, row * a.out.w, a.out.w, line.get(), line.get());
    }
  }
}

void conv_to_one_nhwc_backward(const ConvToOne& a, int64_t begin, int64_t end) {
  constexpr int64_t L = kLanes<float>;
  const int64_t w = a.in.w, c = a.in.c, blocks = a.blocks(a.in.h), stride = a.out.w + 5 + L;
  const int64_t most = 2 * kToOneRows + 3, whole = padded<float>(c);
  Scratch<float> x(w * c), dx(w * c + L), g(w * 16), rows(most * stride), columns(16 * whole);
  // The weights, tap by tap.
  for (int64_t i = 0; i < 16 * whole; ++i) columns[i] = i % whole < c ? a.weight[i % whole * 16 + i / whole] : 0;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / blocks, from = item % blocks * kToOneRows;
    const int64_t to = from + kToOneRows < a.in.h ? from + kToOneRows : a.in.h;
    const int64_t top = a.transposed ? 2 * from - 1 : from - 1, bottom = a.transposed ? 2 * to : to + 1;
    std::memset(rows.get(), 0, size_t(most * stride) * sizeof(float));
    for (int64_t row = top < 0 ? 0 : top; row <= bottom && row < a.out.h; ++row)
      copy_line(a.grad, a.out, n, 0, row * a.out.w, a.out.w, rows.get() + (row - top) * stride + 2);
    float* dweight = a.dweight == nullptr ? nullptr : a.dweight + item * c * 16;
    if (dweight) std::memset(dweight, 0, size_t(c * 16) * sizeof(float));
    for (int64_t row = from; row < to; ++row) {
      gradients(a, rows.get(), top, stride, row, g.get());
      if (a.dx.data) {
        for (int64_t k = 0; k < whole; k += L)
          for (int64_t p = 0; p < w; ++p) {
            Vec<float> sum[4] = {};
#pragma GCC unroll 16
            for (int64_t tap = 0; tap < 16; ++tap) sum[tap % 4] += g[16 * p + tap] * load(&columns[tap * whole + k]);
            const Vec<float> value = (sum[0] + sum[1]) + (sum[2] + sum[3]);
            if (k + L <= c)
              store(&dx[p * c + k], value);
            else
              store_first(&dx[p * c + k], value, c - k);
          }
        write_row(a.dx, a.in, n, row, dx.get());
      }
      if (dweight) {
        read_row(a.x, a.in, n, row, x.get());
        int64_t k = 0;
        for (; k + kTogether <= c; k += kTogether) {
          Sixteen sum[kTogether] = {};
          for (int64_t p = 0; p < w; ++p) {
            const Sixteen upstream = sixteen(&g[16 * p]);
#pragma GCC unroll 8
            for (int64_t m = 0; m < kTogether; ++m) sum[m] = sum[m] + x[p * c + k + m] * upstream;
          }
          for (int64_t m = 0; m < kTogether; ++m)
            store(dweight + 16 * (k + m), sixteen(dweight + 16 * (k + m)) + sum[m]);
        }
        for (; k < c; ++k) {
          Sixteen sum{};
          for (int64_t p = 0; p < w; ++p) sum = sum + x[p * c + k] * sixteen(&g[16 * p]);
          store(dweight + 16 * k, sixteen(dweight + 16 * k) + sum);
        }
      }
    }
  }
}

}  // namespace HIDA_ISA
}  // namespace hida
