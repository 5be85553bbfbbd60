// What the kernels of deform_conv2d share: pieces of channels, sampling points, gathering.
//
// Gathering needs channels last: a corner of a sampling point is then 16-byte loads of neighbouring channels, where
// NCHW would take a load for each number. So x (and the upstream gradient) is rearranged, a few images at a time,
// unless it is so already. Channels are cut into pieces of equal length that share a group and a deformable group; each
// is padded with zeros to whole vectors. A `position` counts channels with that padding.
//
// A block finds all samples of its tile first, or as many as shared memory holds (`run`), by all of its threads: where
// the four corners are, and what each contributes. Then a gather of a vector is four loads without conditions, as many
// products as numbers, and a store; its instructions limit these kernels.
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

// The two rows, or columns, between which a point is: shares, their derivative. Where one is outside the image, the
// other stands for both, with half of its share each: what is read has a part in the sum anyway, so that a number that
// is not finite spoils nothing else.
template <class Real>
struct Between {
  int low, high;
  Real share[2], slope[2];
};

template <class Real>
HIDA_DEVICE Between<Real> between(Real at, int size) {
  Between<Real> b;
  b.low = floor_of(at);
  b.high = b.low + 1;
  const Real part = at - Real(b.low);
  b.share[0] = 1 - part, b.share[1] = part;
  b.slope[0] = -1, b.slope[1] = 1;
  if (b.low < 0) b.share[0] = b.share[1] = part / 2, b.slope[0] = b.slope[1] = Real(0.5), b.low = b.high;
  if (b.high == size) b.share[0] = b.share[1] = (1 - part) / 2, b.slope[0] = b.slope[1] = Real(-0.5), b.high = b.low;
  return b;
}

// The four corners of a point: the top left one, and from there to the right and down, in vectors. Zeros where the
// point is elsewhere.
struct alignas(16) Corners {
  const Vec16* at;
  int right, down;  // signed: the chip adds them to an address in one instruction
};

HIDA_DEVICE Corners no_corners(const Job& job) {
  return {static_cast<const Vec16*>(job.zeros), 0, 0};
}

// What a column is made of at a point: corners, and their shares times the mask.
template <class Real>
struct alignas(16) Sample {
  Corners corners;
  Real share[4];
};

template <class M>
HIDA_DEVICE Corners corners_of(const Job& job, const Between<typename M::Real>& rows,
                               const Between<typename M::Real>& columns, int64_t n, int position) {
  const auto* image = static_cast<const typename M::Bits*>(job.x.data) + (n * job.x.n + position);
  const Vec16* pixel =
      reinterpret_cast<const Vec16*>(image) + int64_t(rows.low) * job.row + int64_t(columns.low) * job.step;
  return {pixel, columns.high > columns.low ? job.step : 0, rows.high > rows.low ? job.row : 0};
}

template <class M>
HIDA_DEVICE Sample<typename M::Real> sample_of(const Job& job, const Spot<typename M::Real>& spot,
                                               const OutputPixel& place, int position) {
  using Real = typename M::Real;
  const int h = int(job.d.in.h), w = int(job.d.in.w);
  const bool near = place.exists && is_near(spot.row, spot.column, h, w);
  Between<Real> rows = between(near ? spot.row : Real(0), h), columns = between(near ? spot.column : Real(0), w);
  const Real mask = place.exists ? spot.mask : Real(0);
  Sample<Real> sample;
  sample.corners = corners_of<M>(job, rows, columns, place.n, position);
  if (!near) {
    sample.corners = no_corners(job);
    columns.share[0] = columns.share[1] = 0;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) sample.share[i] = mask * rows.share[i / 2] * columns.share[i % 2];
  return sample;
}

// A tile's pixel and tap, and the first channel to gather there.
struct TapPlace {
  OutputPixel place;
  int deformable, tap, position;
};

// Reads an image's `Channels` channels for each of a thread's places into the shares of their samples, from `to` on:
// four places at a time, so that their loads are in flight together. The first one is read again where there are fewer.
template <class M, int Threads, int Channels, class PlaceOf>
HIDA_DEVICE void read_places(const Job& job, const Image& image, int count, PlaceOf place_of_number, int to,
                             Sample<typename M::Real>* samples) {
  using Real = typename M::Real;
  constexpr int ahead = 4, apart = Threads / kTileSide;
  const auto read_all = [&](auto stored) {
    const auto* data = static_cast<const decltype(stored)*>(image.data);
#pragma unroll 1
    for (int first = int(threadIdx.x) / kTileSide; first < count; first += ahead * apart) {
      decltype(stored) found[ahead][Channels];
      int number[ahead];
#pragma unroll
      for (int i = 0; i < ahead; ++i) {
        number[i] = first + i * apart < count ? first + i * apart : first;
        const TapPlace t = place_of_number(number[i]);
        const int c0 = Channels * (t.deformable * job.taps + t.tap);
        const int64_t at = index_in(image, job.first + t.place.n, c0, t.place.row, t.place.column);
#pragma unroll
        for (int c = 0; c < Channels; ++c) found[i][c] = data[at + c * image.c];
      }
#pragma unroll
      for (int i = 0; i < ahead; ++i)
#pragma unroll
        for (int c = 0; c < Channels; ++c)
          samples[number[i] * kTileSide + int(threadIdx.x) % kTileSide].share[to + c] =
              stored_to<Real>(found[i][c], image.dtype);
    }
  };
  if (image.dtype == Dtype::f64) return read_all(double());
  if (image.dtype == Dtype::f32) return read_all(float());
  read_all(uint16_t());
}

// The samples of `count` times 64 places, by all threads; the caller waits for them. place_of_number(number) is what a
// thread has to find, of a pixel that exists or else of any; finish(spot, place) is the sample.
template <class M, int Threads, class PlaceOf, class Finish>
HIDA_DEVICE void find_samples(const Job& job, int count, PlaceOf place_of_number, Sample<typename M::Real>* samples,
                              Finish finish) {
  using Real = typename M::Real;
  read_places<M, Threads, 2>(job, job.d.offset, count, place_of_number, 0, samples);
  if (job.d.mask.data) read_places<M, Threads, 1>(job, job.d.mask, count, place_of_number, 2, samples);
#pragma unroll 1
  for (int number = int(threadIdx.x) / kTileSide; number < count; number += Threads / kTileSide) {
    Sample<Real>& sample = samples[number * kTileSide + int(threadIdx.x) % kTileSide];
    const TapPlace t = place_of_number(number);
    Spot<Real> spot{sample.share[0], sample.share[1], job.d.mask.data ? sample.share[2] : Real(1)};
    add_place(job, t.tap, t.place, spot);
    sample = finish(spot, t);
  }
}

// Those of columns; and, in `none`, 64 that read zeros.
template <class M, int Threads, class PlaceOf>
HIDA_DEVICE void find_columns(const Job& job, int count, PlaceOf place_of_number, Sample<typename M::Real>* samples,
                              Sample<typename M::Real>* none) {
  if (threadIdx.x < kTileSide) none[threadIdx.x] = {no_corners(job), {0, 0, 0, 0}};
  find_samples<M, Threads>(job, count, place_of_number, samples,
                           [&](const Spot<typename M::Real>& spot, const TapPlace& t) {
                             return sample_of<M>(job, spot, t.place, t.position);
                           });
}

HIDA_DEVICE void load_corners(const Corners& from, int u, Vec16 (&vec)[4]) {
  const Vec16 whole = load16(&from);  // at once
  Corners corners;
  memcpy(&corners, &whole, sizeof corners);
  const Vec16* at = corners.at + u;
  vec[0] = load16_global(at);
  vec[1] = load16_global(at + corners.right);
  vec[2] = load16_global(at + corners.down);
  vec[3] = load16_global(at + (corners.down + corners.right));
}

template <class M>
HIDA_DEVICE Vec16 weighted(const Vec16 (&vec)[4], const typename M::Real (&share)[4]) {
  using Real = typename M::Real;
  Vec16 result;
  if constexpr (kPerVec<M> == 8) {
#pragma unroll
    for (int w = 0; w < 4; ++w) {  // a word at a time: two numbers need few registers
      Real low = share[0] * M::read(vec[0].word[w] & 0xffffu), high = share[0] * M::read(vec[0].word[w] >> 16);
#pragma unroll
      for (int corner = 1; corner < 4; ++corner) {
        low += share[corner] * M::read(vec[corner].word[w] & 0xffffu);
        high += share[corner] * M::read(vec[corner].word[w] >> 16);
      }
      result.word[w] = M::write(low, high);
    }
    return result;
  } else {
    Real v[4][kPerVec<M>];
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) unpack<M>(vec[corner], v[corner]);
#pragma unroll
    for (int i = 0; i < kPerVec<M>; ++i)
      v[0][i] = share[0] * v[0][i] + share[1] * v[1][i] + share[2] * v[2][i] + share[3] * v[3][i];
    return pack<M>(v[0]);
  }
}

// Columns, a line for each sample: a loader for `multiply`, but for `at`.
template <class M>
struct Columns {
  using Real = typename M::Real;
  using LoadsTogether = void;
  const Sample<Real>* now = nullptr;   // of the chunk
  const Sample<Real>* none = nullptr;  // 64 that read zeros: for what is no vector of a line
  int first = 0, end = 0;              // of a line's vectors: the chunk's first, and the last one's successor

  // Two vectors at a time, at least eight loads in flight.
  template <int N>
  HIDA_DEVICE void vecs(int line, int apart, int u, Vec16 (&out)[N]) const {
    static_assert(N % 2 == 0);
    u += first;
    const Sample<Real>* samples = (u < end ? now : none) + line;
#pragma unroll
    for (int i = 0; i < N; i += 2) {
      const Sample<Real>&a = samples[i * apart], &b = samples[(i + 1) * apart];
      Vec16 at_a[4], at_b[4];
      load_corners(a.corners, u, at_a);
      load_corners(b.corners, u, at_b);
      out[i] = weighted<M>(at_a, a.share);
      out[i + 1] = weighted<M>(at_b, b.share);
    }
  }
};

}  // namespace cuda
}  // namespace hida
