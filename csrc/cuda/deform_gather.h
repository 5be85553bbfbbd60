// Samples of a tile, and columns gathered with them, on large maps.
//
// A block finds all samples of its tile first, or as many as shared memory holds (`run`), by all of its threads: where
// the four corners are, and what each contributes. Then a gather of a vector is four loads without conditions, as many
// products as numbers, and a store; its instructions limit these kernels.
#pragma once

#include "deform_sampling.h"

namespace hida {
namespace cuda {

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
// several places at a time, so that their loads are in flight together. The first one is read again where there are
// fewer.
template <class M, int Threads, int Channels, class PlaceOf>
HIDA_DEVICE void read_places(const Job& job, const Image& image, int count, PlaceOf place_of_number, int to,
                             Sample<typename M::Real>* samples) {
  using Real = typename M::Real;
  constexpr int apart = Threads / kTileSide, ahead = apart == 2 ? 5 : 3;  // at most, of 3×3 taps
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
