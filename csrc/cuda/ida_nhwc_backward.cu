// ida and instance_norm_modulate, backward, in the usual channels_last case (nhwc.h). The formulas: ida_backward.cu.
// Traffic: 7n (read grad, x, logits, γ; write dx, dlogits, dγ); what is read is read twice, first for the sums of d and
// d·x̂, then for all gradients. The paths are those of ida_nhwc.cu:
//   up to 1024 pixels   a block has some channels of a plane as a whole.
//   more                two kernels: 11n, less what the second has from the second-level cache. A third, tiny one adds
//                       up the chunks' sums towards p1, p2 and the logits.
// dγ is written in the second sweep, so that the first leaves nothing in the caches but what the second reads. Always
// the same order, no atomics. Share of the floor (ida, bfloat16, 16 images on an H100): 64 channels of 128×128 47 %,
// 128 of 64×64 43 %; instance_norm_modulate: not measured.
#include "nhwc.h"

namespace hida {
namespace cuda {
namespace nhwc {
namespace {

enum Stage { kMeans = 1, kGradients = 2, kBoth = 3 };

// Pixels that a thread has in flight at a time.
template <Dtype D>
constexpr unsigned kReading = D == Dtype::f32 ? 1 : 2;

// Threads of a block. One θ per plane needs more registers than so many threads leave each.
HIDA_MATH constexpr unsigned most_for(Logits logits) {
  return logits == Logits::plane ? kMost / 2 : kMost;
}

// The operands of a pack of channels.
template <Dtype D, Logits L>
struct Operands {
  Eight<D> x, grad, gamma, logits;
};
template <Dtype D, Logits L>
struct Views {
  View<D> x, grad, gamma, logits;
  HIDA_DEVICE Views(const Adapt& a, const ThreadWork& p)
      : x(a.x, p), grad(a.grad, p), gamma(a.gamma, p), logits(a.logits, p) {}
  HIDA_DEVICE Operands<D, L> read(unsigned pixel) const {
    return {x.read(pixel), grad.read(pixel), gamma.read(pixel), L == Logits::whole ? logits.read(pixel) : Eight<D>()};
  }
  HIDA_DEVICE Operands<D, L> read_last(unsigned pixel) const {
    return {x.read_last(pixel), grad.read_last(pixel), gamma.read_last(pixel),
            L == Logits::whole ? logits.read_last(pixel) : Eight<D>()};
  }
};

// partial: (2, N, chunks, C), the sums of d and d·x̂ of each chunk; then (3, N, C, chunks), those towards p1, p2,
// logits.
HIDA_DEVICE float* means_at(const Adapt& a, const Tiling& m, const ThreadWork& p, float* partial, int kind,
                            unsigned part) {
  return partial + ((kind * a.planes.extent.n + int64_t(p.n)) * m.chunks + part) * m.channels + p.tile;
}

HIDA_DEVICE void merge_chunks(const Adapt& a, const Tiling& m, const ThreadWork& p, const Shared& s, float* partial) {
  const unsigned t = threadIdx.x, threads = m.threads(), width = m.width();
  const unsigned parts = threads < 2 * width ? 1 : threads / width;
  const float *const d = means_at(a, m, p, partial, 0, 0), *const dx = means_at(a, m, p, partial, 1, 0);
  for (unsigned job = t; job < width * parts; job += threads) {
    const unsigned c = job % width;
    float sums[2] = {0, 0};
    if (p.tile + c < m.channels) {
#pragma unroll 4
      for (unsigned i = job / width; i < m.chunks; i += parts) {
        const size_t at = size_t(i) * m.channels + c;
        sums[0] += d[at];
        sums[1] += dx[at];
      }
    }
    s.jobs[job] = sums[0];
    s.jobs[s.apart + job] = sums[1];
  }
  __syncthreads();
  for (unsigned c = t; c < width; c += threads) {
    float sums[2] = {0, 0};
    for (unsigned i = 0; i < parts; ++i) sums[0] += s.jobs[i * width + c], sums[1] += s.jobs[s.apart + i * width + c];
    s.table[c] = sums[0];
    s.table[width + c] = sums[1];
  }
}

template <Dtype D, Logits L>
__global__ void __launch_bounds__(most_for(L), 1)
    kernel(const __grid_constant__ Adapt a, const __grid_constant__ Tiling m, int stage, float* partial) {
  using Bounded = typename Functions<D>::Bounded;
  HIDA_DYNAMIC_SHARED(float, memory);
  const Shared s(memory, m);
  ThreadWork p(m, stage == kGradients);
  // For the end; the registers are for the loop.
  HIDA_SHARED(unsigned, place, [3]);
  if (threadIdx.x == 0) place[0] = p.n, place[1] = p.tile, place[2] = p.part;
  const Views<D, L> views(a, p);
  const Slopes<D, L> slopes(a.logits, a.p1, a.p2, p);
  float mean[8] = {}, rstd[8] = {};
  if (p.valid) {
    read_eight(a.mean, m, p, mean);
    read_eight(a.rstd, m, p, rstd);
  }
  if (stage & kMeans) {
    float sums[2][8] = {};
    for (unsigned pixel = p.first; p.has(pixel); pixel += kReading<D> * p.lanes) {
      Operands<D, L> packs[kReading<D>];
#pragma unroll
      for (unsigned u = 0; u < kReading<D>; ++u)
        packs[u] = views.read(p.has(pixel + u * p.lanes) ? pixel + u * p.lanes : pixel);
#pragma unroll
      for (unsigned u = 0; u < kReading<D>; ++u) {
        const bool has = p.has(pixel + u * p.lanes);  // no branch, behind which the loads would be moved
        float f[8], g[8], d[8];
        slopes.value(packs[u].x, packs[u].logits, f);
        packs[u].grad.unpack(g);
        packs[u].gamma.unpack(d);
#pragma unroll
        for (int k = 0; k < 8; ++k) {
          d[k] = has ? g[k] * (1 + d[k]) : 0.0f;
          sums[0][k] += d[k];
          sums[1][k] += d[k] * normalise(f[k], mean[k], rstd[k]);
        }
      }
    }
#pragma unroll
    for (unsigned i = 0; i < 2; ++i) {
      add_lanes(sums[i], m, s, [&](unsigned c, float sum) {
        if (stage == kBoth)
          s.table[i * m.width() + c] = sum;
        else if (p.tile + c < m.channels)
          means_at(a, m, p, partial, int(i), p.part)[c] = sum;
      });
    }
    if (stage == kMeans) return;
  } else {
    merge_chunks(a, m, p, s, partial);
  }
  __syncthreads();
  // df = rstd·d − mean_d − mean_dx·x̂, both means times rstd.
  float mean_d[8], mean_dx[8];
  s.tell(0, m, p, mean_d);
  s.tell(1, m, p, mean_dx);
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    const float share = rstd[k] / float(m.pixels);
    mean_d[k] *= share;
    mean_dx[k] *= share;
  }
  const View<D> dx(a.dx, p), dlogits(a.dlogits, p), dgamma(a.dgamma, p);
  float sums[3][8] = {};
  // Backwards: what was read last is in the nearest cache.
  for (unsigned pixel = p.first + p.count() * p.lanes; pixel > p.first;) {
    pixel -= p.lanes;
    const Operands<D, L> packs = views.read_last(pixel);
    float x[8], g[8], d[8], theta[8], to_gamma[8];
    packs.x.unpack(x);
    packs.grad.unpack(g);
    packs.gamma.unpack(d);
    if (L != Logits::none) slopes.theta(packs.logits, theta);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      AconSlopes<float> here{x[k], 0, 0};
      if (L != Logits::none) here = acon_slopes<Bounded>(x[k], theta[k], slopes.slope[k], slopes.base[k]);
      const float normalised = normalise(here.value, mean[k], rstd[k]);
      to_gamma[k] = g[k] * normalised;
      const float df = g[k] * (1 + d[k]) * rstd[k] - mean_d[k] - normalised * mean_dx[k] +
                       m.joins * g[k];  // if g is not finite, nothing of its plane is
      d[k] = df;
      if (L == Logits::none) continue;
      d[k] = df * (slopes.slope[k] * here.q + slopes.base[k]) + m.to_x * g[k];
      theta[k] = df * here.tilt;
      const float weight = df * x[k];
      sums[0][k] += weight * here.q;
      sums[1][k] += weight * (1 - here.q);
      if (L == Logits::plane) sums[2][k] += theta[k];
    }
    if (dgamma.present()) dgamma.write(pixel, to_gamma);
    if (dx.present()) dx.write(pixel, d);
    if (L == Logits::whole && dlogits.present()) dlogits.write(pixel, theta);
  }
  if (L == Logits::none) return;
  void* const targets[3] = {a.dp1, a.dp2, a.dlogits_sum};
  p.n = place[0], p.tile = place[1], p.part = place[2];
  constexpr int kSums = L == Logits::plane ? 3 : 2;
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    if (targets[i] == nullptr) continue;
    float* const to =
        partial == nullptr ? nullptr : partial + (2 + i) * a.planes.extent.n * a.planes.extent.c * int64_t(m.chunks);
    add_lanes(sums[i], m, s, [&](unsigned c, float sum) { write_sum(targets[i], to, m, p, c, sum); });
  }
}

using Kernel = void (*)(const Adapt, const Tiling, int, float*);
template <Dtype D>
Kernel kernel_for(Logits logits) {
  return logits == Logits::none    ? kernel<D, Logits::none>
         : logits == Logits::plane ? kernel<D, Logits::plane>
                                   : kernel<D, Logits::whole>;
}

Tiling tiling_for(const Adapt& a, const Launch& l) {
  const Extent& e = a.planes.extent;
  return e.pixels() <= kWholePixels ? whole_planes(e, l, most_for(kind_of(a.logits))) : chunked(e, l);
}

}  // namespace

int64_t adapt_backward_workspace(const Adapt& a, const Launch& l) {
  const Tiling m = tiling_for(a, l);
  return m.chunks > 1 ? 5 * a.planes.extent.n * a.planes.extent.c * m.chunks : 0;
}

void adapt_backward(const Adapt& a, void* workspace, const Launch& l) {
  Tiling m = tiling_for(a, l);
  m.joins = a.residual == Residual::activated ? 1.0f : 0.0f;
  m.to_x = a.grad_to_x ? 1.0f : 0.0f;
  const Logits logits = kind_of(a.logits);
  const Kernel kernel = with_dtype(a.x.dtype, [&](auto d) { return kernel_for<decltype(d)::value>(logits); });
  float* const partial = static_cast<float*>(workspace);
  const auto stage = [&](int which) { run(kernel, m, shared_of(m), l, a, m, which, partial); };
  if (m.chunks == 1) return stage(kBoth);
  stage(kMeans);
  stage(kGradients);
  if (a.dp1 == nullptr && a.dp2 == nullptr && a.dlogits_sum == nullptr) return;
  const int64_t planes = a.planes.extent.n * a.planes.extent.c;
  add_chunks({partial + 2 * planes * m.chunks, {a.dp1, a.dp2, a.dlogits_sum}, planes, int(m.chunks), false}, l);
}

}  // namespace nhwc
}  // namespace cuda
}  // namespace hida
