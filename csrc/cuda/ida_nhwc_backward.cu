// ida and instance_norm_modulate, backward, in the usual channels_last case (nhwc.h). The formulas: ida_backward.cu.
// Traffic: 7n (read grad, x, logits, γ; write dx, dlogits, dγ); what is read is read twice, first for the sums of d and
// d·x̂, then for all gradients. The paths are those of ida_nhwc.cu:
//   up to 1024 pixels   a block has some channels of a plane as a whole.
//   more                two kernels: 11n, less what the second has from the second-level cache. A third, tiny one adds
//                       up the chunks' sums towards p1, p2 and the logits. (One, in which the images took turns, took
//                       15 and 18 % longer.)
// dγ is written in the second sweep, so that the first leaves nothing in the caches but what the second reads. Always
// the same order, no atomics. Share of the floor (ida, bfloat16, 16 images): 47 % for 64 channels of 128×128 on an
// H100, 43 % for 128 of 64×64; 41 and 37 % on an H200 (when both sweeps were of one kernel); instance_norm_modulate:
// not measured.
#include "chunks.h"

namespace hida {
namespace cuda {
namespace nhwc {
namespace {

// Pixels that a thread has in flight at a time.
template <Dtype D>
constexpr unsigned kReading = D == Dtype::f32 ? 1 : 2;

// The same in the second sweep: four loads of 16 bytes, or more.
template <Dtype D, Logits L>
constexpr unsigned kWriting = D == Dtype::f32 || L == Logits::whole ? 1 : 2;

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

// The sums of d and d·x̂ of the thread's pixels.
template <Dtype D, Logits L>
HIDA_DEVICE void sums_of_d(const Views<D, L>& views, const Slopes<D, L>& slopes, const float (&mean)[8],
                           const float (&rstd)[8], const ThreadWork& p, float (&sums)[2][8]) {
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
}

// The gradients of the block's pixels, and their sums towards p1, p2 and, for one θ per plane, the logits.
//   df = rstd·d − mean_d − mean_dx·x̂, both means times rstd
template <Dtype D, Logits L>
HIDA_DEVICE void gradients(const Adapt& a, const Views<D, L>& views, const Slopes<D, L>& slopes, const float (&mean)[8],
                           const float (&rstd)[8], float (&mean_d)[8], float (&mean_dx)[8], const Tiling& m,
                           const ThreadWork& p, float (&sums)[3][8]) {
  using Bounded = typename Functions<D>::Bounded;
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    const float share = rstd[k] / float(m.pixels);
    mean_d[k] *= share;
    mean_dx[k] *= share;
  }
  const View<D> dx(a.dx, p), dlogits(a.dlogits, p), dgamma(a.dgamma, p);
  // Backwards: what was read last is in the nearest cache. Where fewer are left, one is done again, for no branch.
  for (unsigned left = p.count(); left > 0; left = left > kWriting<D, L> ? left - kWriting<D, L> : 0) {
    Operands<D, L> packs[kWriting<D, L>];
    unsigned at[kWriting<D, L>];
#pragma unroll
    for (unsigned u = 0; u < kWriting<D, L>; ++u) {
      at[u] = p.first + (left - 1 - (u < left ? u : 0)) * p.lanes;
      packs[u] = views.read_last(at[u]);
    }
#pragma unroll
    for (unsigned u = 0; u < kWriting<D, L>; ++u) {
      float x[8], g[8], d[8], theta[8], to_gamma[8];
      packs[u].x.unpack(x);
      packs[u].grad.unpack(g);
      packs[u].gamma.unpack(d);
      if (L != Logits::none) slopes.theta(packs[u].logits, theta);
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
        const float weight = u < left ? df * x[k] : 0.0f;
        sums[0][k] += weight * here.q;
        sums[1][k] += weight * (1 - here.q);
        if (L == Logits::plane) sums[2][k] += u < left ? theta[k] : 0.0f;
      }
      if (dgamma.present()) dgamma.write(at[u], to_gamma);
      if (dx.present()) dx.write(at[u], d);
      if (L == Logits::whole && dlogits.present()) dlogits.write(at[u], theta);
    }
  }
}

// Sums of the block's pixels towards p1, p2 and the logits, to where they go; partial: see write_sum.
template <Logits L>
HIDA_DEVICE void write_parameters(const Adapt& a, const float (&sums)[3][8], const Tiling& m, const ThreadWork& p,
                                  const Shared& s, float* partial) {
  void* const targets[3] = {a.dp1, a.dp2, a.dlogits_sum};
#pragma unroll
  for (int i = 0; i < (L == Logits::none ? 0 : L == Logits::plane ? 3 : 2); ++i) {
    if (targets[i] == nullptr) continue;
    float* const to =
        partial == nullptr ? nullptr : partial + i * a.planes.extent.n * a.planes.extent.c * int64_t(m.chunks);
    add_lanes(sums[i], m, s, [&](unsigned c, float sum) { write_sum(targets[i], to, m, p, c, sum); });
  }
}

// Mean and reciprocal deviation of the thread's channels.
struct Normal {
  float mean[8] = {}, rstd[8] = {};
  HIDA_DEVICE Normal(const Adapt& a, const Tiling& m, const ThreadWork& p) {
    if (!p.valid) return;
    read_eight(a.mean, m, p, mean);
    read_eight(a.rstd, m, p, rstd);
  }
};

// Planes of few pixels: a block has some channels of one as a whole.
template <Dtype D, Logits L>
__global__ void __launch_bounds__(most_for(L), 1)
    whole(const __grid_constant__ Adapt a, const __grid_constant__ Tiling m) {
  HIDA_DYNAMIC_SHARED(float, memory);
  const Shared s(memory, m);
  const ThreadWork p(m);
  const Views<D, L> views(a, p);
  const Slopes<D, L> slopes(a.logits, a.p1, a.p2, p);
  const Normal of(a, m, p);
  float of_d[2][8] = {};
  sums_of_d(views, slopes, of.mean, of.rstd, p, of_d);
  float mean_d[8], mean_dx[8], sums[3][8] = {};
  tell_sums(of_d, m, p, s, mean_d, mean_dx);
  gradients(a, views, slopes, of.mean, of.rstd, mean_d, mean_dx, m, p, sums);
  // Work is made anew for the end; the registers are for the loop.
  write_parameters<L>(a, sums, m, ThreadWork(m), s, nullptr);
}

// Planes of more, in chunks. means: (N, chunks, 2, C); partial: see write_sum.
template <Dtype D, Logits L>
__global__ void __launch_bounds__(kMost, 1)
    first_sweep(const __grid_constant__ Adapt a, const __grid_constant__ Tiling m, float* means) {
  HIDA_DYNAMIC_SHARED(float, memory);
  const Shared s(memory, m);
  const ThreadWork p(m);
  const Normal of(a, m, p);
  float of_d[2][8] = {};
  sums_of_d(Views<D, L>(a, p), Slopes<D, L>(a.logits, a.p1, a.p2, p), of.mean, of.rstd, p, of_d);
  write_sums(of_d, m, p, s, means);
}
template <Dtype D, Logits L>
__global__ void __launch_bounds__(most_for(L), 1)
    second_sweep(const __grid_constant__ Adapt a, const __grid_constant__ Tiling m, float* means, float* partial) {
  HIDA_DYNAMIC_SHARED(float, memory);
  const Shared s(memory, m);
  const ThreadWork p(m, true);
  const Slopes<D, L> slopes(a.logits, a.p1, a.p2, p);
  const Normal of(a, m, p);
  float mean_d[8], mean_dx[8], sums[3][8] = {};
  tell_sums(means, m, p, s, mean_d, mean_dx);
  const Views<D, L> views(a, p);
  gradients(a, views, slopes, of.mean, of.rstd, mean_d, mean_dx, m, p, sums);
  write_parameters<L>(a, sums, m, ThreadWork(m, true), s, partial);
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
  const int64_t planes = a.planes.extent.n * a.planes.extent.c;
  float *const means = static_cast<float*>(workspace), *const partial = means + 2 * planes * m.chunks;
  with_dtype(a.x.dtype, [&](auto d) {
    with_logits(kind_of(a.logits), [&](auto kind) {
      constexpr Dtype D = decltype(d)::value;
      constexpr Logits L = decltype(kind)::value;
      if (m.chunks == 1) return run(whole<D, L>, m, shared_of(m), l, a, m);
      run(first_sweep<D, L>, m, shared_of(m), l, a, m, means);
      run(second_sweep<D, L>, m, shared_of(m), l, a, m, means, partial);
    });
  });
  if (m.chunks == 1 || (a.dp1 == nullptr && a.dp2 == nullptr && a.dlogits_sum == nullptr)) return;
  add_chunks({partial, {a.dp1, a.dp2, a.dlogits_sum}, planes, int(m.chunks), false}, l);
}

}  // namespace nhwc
}  // namespace cuda
}  // namespace hida
