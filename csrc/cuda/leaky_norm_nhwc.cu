// leaky_norm, forward, in the usual channels_last case. The formula and the paths: leaky_norm_nhwc.h.
// Traffic: 2n (read x; write y). Share of the floor: not measured.
#include "leaky_norm_nhwc.h"

namespace hida {
namespace cuda {
namespace nhwc {
namespace {

// Pixels that a thread has in flight at a time: four loads of 16 bytes.
template <Dtype D>
constexpr unsigned kReading = D == Dtype::f32 ? 2 : 4;
// Blocks that a multiprocessor has at a time.
constexpr unsigned kResident = 4;

// Of the thread's pixels.
template <Dtype D>
HIDA_DEVICE Moments moments(const View<D>& x, const ThreadWork& p, float before) {
  Moments own;
  for (unsigned pixel = p.first; p.has(pixel); pixel += kReading<D> * p.lanes) {
    Eight<D> packs[kReading<D>];
#pragma unroll
    for (unsigned u = 0; u < kReading<D>; ++u)
      packs[u] = x.read(p.has(pixel + u * p.lanes) ? pixel + u * p.lanes : pixel);
#pragma unroll
    for (unsigned u = 0; u < kReading<D>; ++u) {
      float f[8];
      packs[u].unpack(f);
#pragma unroll
      for (int k = 0; k < 8; ++k) f[k] = leaky(f[k], f[k], before);
      own.add(f, u == 0, p.has(pixel + u * p.lanes));
    }
  }
  return own;
}

// y of the block's pixels.
template <Dtype D>
HIDA_DEVICE void apply(const LeakyNorm& a, const View<D>& x, const ThreadWork& p, float before, float after,
                       float (&mean)[8], const float (&rest)[8], const float (&rstd)[8]) {
  // Where the result has 16 bits, one float has enough of the mean.
#pragma unroll
  for (int k = 0; k < 8; ++k)
    if (D != Dtype::f32) mean[k] += rest[k];
  const View<D> y(a.y, p);
  // Backwards: what was read last is in the nearest cache. Where fewer are left, one is done again, for no branch
  // either.
  for (unsigned left = p.count(); left > 0; left = left > kReading<D> ? left - kReading<D> : 0) {
    Eight<D> packs[kReading<D>];
    unsigned at[kReading<D>];
#pragma unroll
    for (unsigned u = 0; u < kReading<D>; ++u) {
      at[u] = p.first + (left - 1 - (u < left ? u : 0)) * p.lanes;
      packs[u] = x.read_last(at[u]);
    }
#pragma unroll
    for (unsigned u = 0; u < kReading<D>; ++u) {
      float v[8];
      packs[u].unpack(v);
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const float f = leaky(v[k], v[k], before), off = D == Dtype::f32 ? f - mean[k] - rest[k] : f - mean[k];
        const float normalised = off * rstd[k];
        v[k] = leaky(normalised, normalised, after);
      }
      y.write(at[u], v);
    }
  }
}

// Planes of few pixels: a block has some channels of one as a whole.
template <Dtype D>
__global__ void __launch_bounds__(kNormThreads, kResident)
    whole(const __grid_constant__ LeakyNorm a, const __grid_constant__ Tiling m, float before, float after,
          const __grid_constant__ Statistics to) {
  HIDA_DYNAMIC_SHARED(float, memory);
  const Shared s(memory, m);
  const ThreadWork p(m);
  const View<D> x(a.x, p);
  Moments own = moments(x, p, before);
  to.find(own, m, p, s);
  float mean[8], rest[8], rstd[8];
  to.tell(m, p, s, mean, rest, rstd);
  apply(a, x, p, before, after, mean, rest, rstd);
}

// Planes of more, in chunks.
template <Dtype D>
__global__ void __launch_bounds__(kNormThreads, kResident)
    first_sweep(const __grid_constant__ LeakyNorm a, const __grid_constant__ Tiling m, float before,
                const __grid_constant__ Statistics to) {
  HIDA_DYNAMIC_SHARED(float, memory);
  const Shared s(memory, m);
  const ThreadWork p(m);
  Moments own = moments(View<D>(a.x, p), p, before);
  to.write_chunk(own, m, p, s);
}
template <Dtype D>
__global__ void __launch_bounds__(kNormThreads, kResident)
    second_sweep(const __grid_constant__ LeakyNorm a, const __grid_constant__ Tiling m, float before, float after,
                 const __grid_constant__ Statistics of) {
  HIDA_DYNAMIC_SHARED(float, memory);
  const Shared s(memory, m);
  const ThreadWork p(m, true);
  of.find_of_chunks(m, p, s);
  float mean[8], rest[8], rstd[8];
  of.tell(m, p, s, mean, rest, rstd);
  apply(a, View<D>(a.x, p), p, before, after, mean, rest, rstd);
}

}  // namespace
}  // namespace nhwc

bool leaky_norm_takes(const Image& image, const Extent& e) {
  Image given = image;
  if (e.pixels() == 1) given.row = given.step = 0;  // one pixel is at no distance from others
  return image.dtype != Dtype::f64 && e.c > 0 && e.c % 8 == 0 && e.pixels() <= 1 << 28 && e.n * e.c <= 0x7fffffff &&
         nhwc::is_packed(given, e, image.dtype);
}

int64_t leaky_norm_workspace(const LeakyNorm& a, const Launch& l) {
  return nhwc::statistics_of(nhwc::tiling_for(a, l), a.extent);
}

void leaky_norm(const LeakyNorm& a, void* workspace, const Launch& l) {
  using namespace nhwc;
  const Tiling m = tiling_for(a, l);
  const float before = float(a.before), after = float(a.after);
  const Statistics to(a.mean, a.rstd, a.eps, workspace);
  with_dtype(a.x.dtype, [&](auto d) {
    constexpr Dtype D = decltype(d)::value;
    if (m.chunks == 1) return run(whole<D>, m, shared_of(m), l, a, m, before, after, to);
    run(first_sweep<D>, m, shared_of(m), l, a, m, before, to);
    run(second_sweep<D>, m, shared_of(m), l, a, m, before, after, to);
  });
}

}  // namespace cuda
}  // namespace hida
