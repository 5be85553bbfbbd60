// What the kernels of deform_conv2d share: pieces of channels, sampling points, gathering.
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

struct Job {
  Convolution d;
  int piece, padded, per_group, per_deformable;  // length of a piece; pieces of a group, of a deformable group
  int grad_padded;
  int taps, outputs;   // C_out / groups
  int64_t first;       // image, of those at work
  int64_t pixels;      // of their output
  Lines x, grad;       // the first of them
  const void* weight;  // (taps, C_out, per_group · padded)
  HIDA_MATH int line() const { return per_group * padded; }
};

// An output pixel.
struct OutputPixel {
  int64_t n;  // counted from the first image at work
  int pixel, row, column;
  bool exists;
};

HIDA_DEVICE OutputPixel place_of(const Job& job, int64_t p) {
  OutputPixel place{0, 0, 0, 0, p < job.pixels};
  if (!place.exists) return place;
  const int64_t plane = job.d.out.h * job.d.out.w;
  place.n = p / plane;
  place.pixel = int(p - place.n * plane);
  place.row = place.pixel / int(job.d.out.w);
  place.column = place.pixel - place.row * int(job.d.out.w);
  return place;
}
HIDA_DEVICE int64_t index_in(const Image& image, int64_t n, int64_t c, int row, int column) {
  return n * image.n + c * image.c + row * image.row + column * image.step;
}

// Where an output pixel begins; −1 where it does not exist.
HIDA_DEVICE int64_t line_of(const Lines& lines, const OutputPixel& place) {
  return place.exists ? place.n * lines.n + place.row * lines.row + place.column * lines.step : -1;
}

// inside: a bit for each corner within the image. at: the top left corner, which need not be.
template <class Real>
struct Sample {
  int64_t at;
  Real down, right, mask;
  int inside;
};

// The same, as rows and columns of the input; top and left from −1.
template <class Real>
struct Cell {
  int top, left, inside;
  Real down, right, mask;
};

// Where a tap of an output pixel samples, in pixels of the input.
template <class Real>
struct Spot {
  Real row, column, mask;
};

template <class Real>
HIDA_DEVICE Spot<Real> find_spot(const Job& job, int deformable, int tap, const OutputPixel& place) {
  const Deform& d = job.d;
  const int64_t n = job.first + place.n, k = int64_t(deformable) * job.taps + tap;
  const int i = tap / int(d.kernel_w), j = tap - i * int(d.kernel_w);
  const auto read = [&](const Image& image, int64_t c) {
    return read_as<Real>(image.data, image.dtype, index_in(image, n, c, place.row, place.column));
  };
  return {Real(place.row * d.stride_h - d.pad_h + i * d.dilation_h) + read(d.offset, 2 * k),
          Real(place.column * d.stride_w - d.pad_w + j * d.dilation_w) + read(d.offset, 2 * k + 1),
          d.mask.data ? read(d.mask, k) : Real(1)};
}

template <class Real>
HIDA_DEVICE Cell<Real> find_cell(const Job& job, int deformable, int tap, const OutputPixel& place) {
  Cell<Real> cell{-1, -1, 0, 0, 0, 0};
  if (!place.exists) return cell;
  const Deform& d = job.d;
  const Spot<Real> spot = find_spot<Real>(job, deformable, tap, place);
  cell.mask = spot.mask;
  const Point<Real> point = locate(spot.row, spot.column, d.in.h, d.in.w, int64_t(-1));
  cell.down = point.down;
  cell.right = point.right;
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    if (point.pixel[corner] < 0) continue;
    const int pixel = int(point.pixel[corner]);
    cell.inside |= 1 << corner;
    cell.top = pixel / int(d.in.w) - corner / 2;
    cell.left = pixel % int(d.in.w) - corner % 2;
  }
  return cell;
}

template <class Real>
HIDA_DEVICE Sample<Real> find_sample(const Job& job, int deformable, int tap, const OutputPixel& place) {
  const Cell<Real> cell = find_cell<Real>(job, deformable, tap, place);
  return {place.n * job.x.n + cell.top * job.x.row + cell.left * job.x.step, cell.down, cell.right, cell.mask,
          cell.inside};
}

template <class Real>
HIDA_DEVICE void shares_of(Real down, Real right, Real (&share)[4]) {
  Point<Real> point;
  point.down = down;
  point.right = right;
  shares(point, share);
}

template <class M>
HIDA_DEVICE void load_corners(const Lines& x, const Sample<typename M::Real>& s, int position, Vec16 (&vec)[4]) {
  const auto* from = static_cast<const typename M::Bits*>(x.data) + s.at + position;
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    vec[corner] = Vec16{};
    if (s.inside >> corner & 1) vec[corner] = load16(from + corner / 2 * x.row + corner % 2 * x.step);
  }
}

// Interpolated, times mask. Pixels outside do not take part, whatever the shares.
template <class M>
HIDA_DEVICE Vec16 gather(const Lines& x, const Sample<typename M::Real>& s, int position) {
  using Real = typename M::Real;
  Vec16 vec[4];
  load_corners<M>(x, s, position, vec);
  Real share[4];
  shares_of(s.down, s.right, share);
  if constexpr (kPerVec<M> == 8) {
#pragma unroll
    for (int w = 0; w < 4; ++w) {  // a word at a time: two numbers need few registers
      Real low = 0, high = 0;
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) {
        low += share[corner] * M::read(vec[corner].word[w] & 0xffffu);
        high += share[corner] * M::read(vec[corner].word[w] >> 16);
      }
      vec[0].word[w] = M::write(low * s.mask) | M::write(high * s.mask) << 16;
    }
    return vec[0];
  } else {
    Real v[4][kPerVec<M>];
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) unpack<M>(vec[corner], v[corner]);
#pragma unroll
    for (int i = 0; i < kPerVec<M>; ++i)
      v[0][i] = (share[0] * v[0][i] + share[1] * v[1][i] + share[2] * v[2][i] + share[3] * v[3][i]) * s.mask;
    return pack<M>(v[0]);
  }
}

}  // namespace cuda
}  // namespace hida
