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

// y of the block's pixels. Past: the caches, which are for other images.
template <bool Past, Dtype D>
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
      y.write(at[u], v, Past);
    }
  }
}

template <Dtype D>
__global__ void __launch_bounds__(kNormThreads, kResident)
    whole(const __grid_constant__ LeakyNorm a, const __grid_constant__ Tiling m, float before, float after) {
  HIDA_DYNAMIC_SHARED(float, memory);
  const Shared s(memory, m);
  const ThreadWork p(m);
  const View<D> x(a.x, p);
  Moments own = moments(x, p, before);
  const PlaneStatistics to{static_cast<float*>(a.mean), static_cast<float*>(a.rstd), a.eps};
  float mean[8], rest[8], rstd[8];
  to.find(own, m, p, s, mean, rest, rstd);
  apply<false>(a, x, p, before, after, mean, rest, rstd);
}

template <Dtype D>
__global__ void __launch_bounds__(kTurnThreads, kResident)
    in_turns(const __grid_constant__ LeakyNorm a, const __grid_constant__ Tiling m, float before, float after,
             const __grid_constant__ TurnStatistics statistics, const __grid_constant__ Turns t) {
  HIDA_DYNAMIC_SHARED(float, memory);
  const Shared s(memory, m);
  do_jobs(t, m, [&](const Job& job, const ThreadWork& p, const Tickets&) {
    const View<D> x(a.x, p);
    if (job.first) {
      Moments own = moments(x, p, before);
      statistics.write(own, t, job, m, p, s);
    } else {
      wait_until_open(t.done(true, job.unit), t.jobs);
      float mean[8] = {}, rest[8] = {}, rstd[8] = {};
      statistics.template read<D == Dtype::f32>(m, p, mean, rest, rstd);
      apply<true>(a, x, p, before, after, mean, rest, rstd);
    }
  });
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
  if (nhwc::is_whole(a)) return 0;
  const nhwc::Tiling m = nhwc::tiling_for(a, 1, l);
  return nhwc::counters_of(m) + nhwc::statistics_of(m, a.extent);
}

void leaky_norm(const LeakyNorm& a, void* workspace, const Launch& l) {
  using namespace nhwc;
  const Tiling m = tiling_for(a, 1, l);
  const float before = float(a.before), after = float(a.after);
  if (is_whole(a))
    return run(with_dtype(a.x.dtype, [](auto d) { return whole<decltype(d)::value>; }), m, shared_of(m), l, a, m,
               before, after);
  run_turns(with_dtype(a.x.dtype, [](auto d) { return in_turns<decltype(d)::value>; }), m, kResident, shared_of(m),
            workspace, l, a, m, before, after, turn_statistics(m, a.extent, a.mean, a.rstd, a.eps, workspace));
}

}  // namespace cuda
}  // namespace hida
