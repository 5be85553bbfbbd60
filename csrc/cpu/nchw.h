// Lines: stretches of a plane as plain arrays of the computing type. Every kernel works on lines and so knows neither
// dtypes nor strides; a line that already is such an array in memory is used in place.
#pragma once

#include "dtypes.h"

namespace hida {
namespace HIDA_ISA {

constexpr int64_t kLine = 2048;  // pixels; a handful of lines stay in the first-level cache

// Visit the runs of equal step that `count` pixels from `first` on consist of: f(element offset, pixels done, count).
template <class F>
HIDA_INLINE void for_runs(const Image& image, const Extent& e, int64_t n, int64_t c, int64_t first, int64_t count,
                          F f) {
  const int64_t plane = n * image.n + c * image.c;
  if (image.row == e.w * image.step) return f(plane + first * image.step, int64_t(0), count);
  for (int64_t done = 0; done < count;) {
    const int64_t row = (first + done) / e.w, column = (first + done) % e.w;
    const int64_t run = e.w - column < count - done ? e.w - column : count - done;
    f(plane + row * image.row + column * image.step, done, run);
    done += run;
  }
}

// Copy `count` pixels of plane (n, c) from pixel `first` on into `to`, with zeros up to whole vectors.
template <class Real>
inline void copy_line(const Image& image, const Extent& e, int64_t n, int64_t c, int64_t first, int64_t count,
                      Real* to) {
  with_type(image.dtype, [&](auto type) {
    using T = decltype(type);
    for_runs(image, e, n, c, first, count, [&](int64_t at, int64_t done, int64_t run) {
      gather(static_cast<const T*>(image.data) + at, image.step, run, to + done);
    });
  });
  for (int64_t i = count; i < padded<Real>(count); ++i) to[i] = 0;
}

template <class Real>
HIDA_INLINE bool is_array(const Image& image, const Extent& e, int64_t count) {
  return image.dtype == (sizeof(Real) == 4 ? Dtype::f32 : Dtype::f64) && image.step == 1 && image.row == e.w &&
         count % kLanes<Real> == 0;
}

// As copy_line, but no copy where the plane is an array of Real already.
template <class Real>
HIDA_INLINE const Real* read_line(const Image& image, const Extent& e, int64_t n, int64_t c, int64_t first,
                                  int64_t count, Real* buffer) {
  if (is_array<Real>(image, e, count)) return static_cast<const Real*>(image.data) + n * image.n + c * image.c + first;
  copy_line(image, e, n, c, first, count, buffer);
  return buffer;
}

// Where to write a line, and putting it there.
template <class Real>
HIDA_INLINE Real* target_line(const Image& image, const Extent& e, int64_t n, int64_t c, int64_t first, int64_t count,
                              Real* buffer) {
  return is_array<Real>(image, e, count) ? static_cast<Real*>(image.data) + n * image.n + c * image.c + first : buffer;
}
template <class Real>
inline void write_line(const Image& image, const Extent& e, int64_t n, int64_t c, int64_t first, int64_t count,
                       const Real* line, const Real* buffer) {
  if (image.data == nullptr || line != buffer) return;
  with_type(image.dtype, [&](auto type) {
    using T = decltype(type);
    for_runs(image, e, n, c, first, count, [&](int64_t at, int64_t done, int64_t run) {
      scatter(static_cast<T*>(image.data) + at, image.step, run, line + done);
    });
  });
}

// Stores to a plane's lines: past the caches where the plane is an array of Real in a tensor that they would not hold
// anyway. Then no line is read in order to be overwritten, and what is still needed stays.
template <class Real>
class Out {
 public:
  HIDA_INLINE Out(const Image& image, const Extent& e, int64_t n, int64_t c) {
    constexpr int64_t kLarge = int64_t(1) << 20;  // bytes of a tensor
    past_ =
        image.data != nullptr && is_array<Real>(image, e, e.pixels()) &&
        e.n * e.c * e.pixels() * int64_t(sizeof(Real)) >= kLarge &&
        reinterpret_cast<uintptr_t>(static_cast<Real*>(image.data) + n * image.n + c * image.c) % HIDA_VECTOR_BYTES ==
            0;
  }
  template <class V>
  HIDA_INLINE void put(Real* to, const V& v) const {
    past_ ? stream(to, v) : store(to, v);
  }

 private:
  bool past_;
};

// Ask for memory before it is needed: touch(i) fetches pixel i of a line into the second-level cache. Does nothing for
// a plane that is not contiguous.
class Ahead {
 public:
  Ahead() = default;
  HIDA_INLINE Ahead(const Image& image, const Extent& e, int64_t n, int64_t c, int64_t first) {
    if (image.data == nullptr || image.step != 1 || image.row != e.w) return;
    step_ = image.dtype == Dtype::f64 ? 8 : image.dtype == Dtype::f32 ? 4 : 2;
    from_ = static_cast<const char*>(image.data) + (n * image.n + c * image.c + first) * step_;
  }
  template <class V>
  HIDA_INLINE void touch(int64_t i, const V&) const {
    __builtin_prefetch(from_ + i * step_, 0, 2);
  }
  template <class Real, int K>
  HIDA_INLINE void touch(int64_t i, const Several<Real, K>&) const {
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) __builtin_prefetch(from_ + (i + k * kLanes<Real>)*step_, 0, 2);
  }

 private:
  const char* from_ = reinterpret_cast<const char*>(this);
  int64_t step_ = 0;
};

}  // namespace HIDA_ISA
}  // namespace hida
