// What the kernels of deform_conv2d share: pieces of channels, packed weights, sampling points.
//
// Gathering needs channels last: a corner of a sampling point is then 16-byte loads of neighbouring channels, where
// NCHW would take a load for each number. So x (and the upstream gradient) is rearranged, a few images at a time,
// unless it is so already. Channels are cut into pieces of equal length that share a group and a deformable group; each
// is padded with zeros to whole vectors. A `position` counts channels with that padding.
#pragma once

#include "deform_conv.h"
#include "gemm_tile.h"

namespace hida {
namespace cuda {

// Channels last: distances of images, rows and pixels in numbers.
struct Lines {
  const void* data = nullptr;
  int64_t n = 0, row = 0, step = 0;
};

// Quotients of numbers below 2³¹ by one that all threads share: a product and a shift, exact.
struct Divisor {
  uint32_t number = 1, factor = 1u << 31;
  int shift = 31;
  Divisor() = default;
  explicit Divisor(int64_t divisor) : number(uint32_t(divisor)) {
    while (int64_t(1) << (shift - 31) < divisor) ++shift;
    factor = uint32_t(((uint64_t(1) << shift) + uint64_t(divisor) - 1) / uint64_t(divisor));
  }
};
HIDA_DEVICE int divide(int x, const Divisor& by) {
  return int(uint64_t(uint32_t(x)) * by.factor >> by.shift);
}

struct Job {
  Convolution d;
  int piece, padded, per_group, per_deformable;  // length of a piece; pieces of a group, of a deformable group
  int grad_padded;
  int taps, outputs;                                                // outputs: C_out / groups
  int chunks;                                                       // of kDepth channels, in a piece
  int64_t first;                                                    // image, of those at work
  int64_t pixels;                                                   // of their output
  Lines x, grad;                                                    // the first of them
  int row, step;                                                    // of x, in vectors
  const void* weight;                                               // as weight_at says
  const void* zeros;                                                // as long as a pixel of x, or of dy
  int run;                                                          // times 64 samples that a block finds at once
  Divisor plane, width, kernel_w, group_pieces, deformable_pieces;  // of the output; per_group; per_deformable
  HIDA_MATH int line() const { return per_group * padded; }
};

// Weights are packed in chunks of the depth, as they are used: taps, pieces of a group, kDepth channels, of which there
// may be fewer, then zeros; of each chunk a line of 128 bytes for each output channel.
constexpr int kChunkBytes = 128;
template <class M>
HIDA_DEVICE const Vec16* weight_at(const Job& job, int64_t number, int64_t output, int position) {
  const int chunk = position / kDepth<M>, vec = position % kDepth<M> / kPerVec<M>;
  return static_cast<const Vec16*>(job.weight) + ((number * job.chunks + chunk) * job.d.out.c + output) * 8 + vec;
}

// An output pixel.
struct OutputPixel {
  int64_t n;  // counted from the first image at work
  int pixel, row, column;
  bool exists;
};

HIDA_DEVICE OutputPixel place_of(const Job& job, int64_t p) {
  OutputPixel place{0, 0, 0, 0, p < job.pixels};
  if (!place.exists) return place;
  const int image = divide(int(p), job.plane);
  place.n = image;
  place.pixel = int(p) - image * int(job.plane.number);
  place.row = divide(place.pixel, job.width);
  place.column = place.pixel - place.row * int(job.width.number);
  return place;
}
HIDA_DEVICE int64_t index_in(const Image& image, int64_t n, int64_t c, int row, int column) {
  return n * image.n + c * image.c + row * image.row + column * image.step;
}

// Where an output pixel begins.
HIDA_DEVICE int64_t line_of(const Lines& lines, const OutputPixel& place) {
  return place.n * lines.n + place.row * lines.row + place.column * lines.step;
}
// The same; zeros where it does not exist.
template <class M>
HIDA_DEVICE const Vec16* grad_line(const Job& job, const OutputPixel& place, int position) {
  if (!place.exists) return static_cast<const Vec16*>(job.zeros);
  const auto* first = static_cast<const typename M::Bits*>(job.grad.data) + position;
  return reinterpret_cast<const Vec16*>(first + line_of(job.grad, place));
}

// Where a tap of an output pixel samples, in pixels of the input.
template <class Real>
struct Spot {
  Real row, column, mask;
};

// The place that offsets are added to.
template <class Real>
HIDA_DEVICE void add_place(const Job& job, int tap, const OutputPixel& place, Spot<Real>& spot) {
  const Deform& d = job.d;
  const int i = divide(tap, job.kernel_w), j = tap - i * int(d.kernel_w);
  spot.row += Real(place.row * int(d.stride_h) - int(d.pad_h) + i * int(d.dilation_h));
  spot.column += Real(place.column * int(d.stride_w) - int(d.pad_w) + j * int(d.dilation_w));
}

template <class Real>
HIDA_DEVICE Spot<Real> find_spot(const Job& job, int deformable, int tap, const OutputPixel& place) {
  const Deform& d = job.d;
  const int64_t n = job.first + place.n, k = int64_t(deformable) * job.taps + tap;
  const auto read = [&](const Image& image, int64_t c) {
    return read_as<Real>(image.data, image.dtype, index_in(image, n, c, place.row, place.column));
  };
  Spot<Real> spot{read(d.offset, 2 * k), read(d.offset, 2 * k + 1), d.mask.data ? read(d.mask, k) : Real(1)};
  add_place(job, tap, place, spot);
  return spot;
}

HIDA_DEVICE int floor_of(float x) {
  return int(floorf(x));
}
HIDA_DEVICE int floor_of(double x) {
  return int(floor(x));
}

// The cell of the input that a point is in. inside: a bit for each corner within the image. top and left from −1.
template <class Real>
struct Cell {
  int top, left, inside;
  Real down, right, mask;
};

template <class Real>
HIDA_DEVICE Cell<Real> find_cell(const Job& job, int deformable, int tap, const OutputPixel& place) {
  Cell<Real> cell{-1, -1, 0, 0, 0, 0};
  if (!place.exists) return cell;
  const int h = int(job.d.in.h), w = int(job.d.in.w);
  const Spot<Real> spot = find_spot<Real>(job, deformable, tap, place);
  cell.mask = spot.mask;
  if (!is_near(spot.row, spot.column, h, w)) return cell;
  cell.top = floor_of(spot.row);
  cell.left = floor_of(spot.column);
  cell.down = spot.row - Real(cell.top);
  cell.right = spot.column - Real(cell.left);
  const int rows = int(cell.top >= 0) * 3 | int(cell.top + 1 < h) * 12;
  const int columns = int(cell.left >= 0) * 5 | int(cell.left + 1 < w) * 10;
  cell.inside = rows & columns;
  return cell;
}

template <class Real>
HIDA_DEVICE void shares_of(Real down, Real right, Real (&share)[4]) {
  Point<Real> point;
  point.down = down;
  point.right = right;
  shares(point, share);
}

}  // namespace cuda
}  // namespace hida
