// ida and instance_norm_modulate, backward, in the usual channels_last case (nhwc.h). The formulas: ida_backward.cu.
// Traffic: 7n (read grad, x, logits, γ; write dx, dlogits, dγ); what is read is read twice, first for the sums of d and
// d·x̂, then for all gradients. The paths are those of ida_nhwc.cu:
//   up to 1024 pixels   a block has some channels of a plane as a whole.
//   more                the images in turns (turns.h), so that the second sweep reads from the second-level cache.
// dγ is written in the second sweep, so that the first leaves nothing in the caches but what the second reads. Always
// the same order, no atomics in a result. Share of the floor (ida, bfloat16, 16 images on an H100): three kernels, with
// the sums of all images before the gradients of all, had 47 % of it for 64 channels of 128×128, 43 % for 128 of 64×64;
// in turns, and instance_norm_modulate: not measured.
#include "turns.h"

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
// Blocks that a multiprocessor has at a time, so that one loads while another computes; one where two have too few
// registers.
HIDA_MATH constexpr unsigned resident_for(Dtype dtype, Logits logits) {
  return logits == Logits::plane || (logits == Logits::whole && dtype == Dtype::f32) ? 1 : 2;
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
// Past: the caches, which are for other images.
template <bool Past, Dtype D, Logits L>
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
      if (dgamma.present()) dgamma.write(at[u], to_gamma, Past);
      if (dx.present()) dx.write(at[u], d, Past);
      if (L == Logits::whole && dlogits.present()) dlogits.write(at[u], theta, Past);
    }
  }
}

// Sums towards p1, p2 and the logits.
HIDA_MATH constexpr int kinds_for(Logits logits) {
  return logits == Logits::none ? 0 : logits == Logits::plane ? 3 : 2;
}
HIDA_DEVICE void* target_of(const Adapt& a, int kind) {
  return kind == 0 ? a.dp1 : kind == 1 ? a.dp2 : a.dlogits_sum;
}

// Planes of few pixels: a block has some channels of one as a whole.
template <Dtype D, Logits L>
__global__ void __launch_bounds__(most_for(L), 1)
    whole(const __grid_constant__ Adapt a, const __grid_constant__ Tiling m) {
  HIDA_DYNAMIC_SHARED(float, memory);
  const Shared s(memory, m);
  const ThreadWork p(m);
  const Views<D, L> views(a, p);
  const Slopes<D, L> slopes(a.logits, a.p1, a.p2, p);
  float mean[8] = {}, rstd[8] = {};
  if (p.valid) {
    read_eight(a.mean, m, p, mean);
    read_eight(a.rstd, m, p, rstd);
  }
  float of_d[2][8] = {};
  sums_of_d(views, slopes, mean, rstd, p, of_d);
  float mean_d[8], mean_dx[8], sums[3][8] = {};
  tell_sums(of_d, m, p, s, mean_d, mean_dx);
  gradients<false>(a, views, slopes, mean, rstd, mean_d, mean_dx, m, p, sums);
  // Work is made anew for the end; the registers are for the loop.
  const ThreadWork again(m);
#pragma unroll
  for (int i = 0; i < kinds_for(L); ++i) {
    void* const target = target_of(a, i);
    if (target == nullptr) continue;
    add_lanes(sums[i], m, s, [&](unsigned c, float sum) { write_sum(target, nullptr, m, again, c, sum); });
  }
}

// Planes of more. chunks: of all units and chunks the sums towards p1, p2, logits.
template <Dtype D, Logits L>
__global__ void __launch_bounds__(kTurnThreads, resident_for(D, L))
    in_turns(const __grid_constant__ Adapt a, const __grid_constant__ Tiling m, const __grid_constant__ TurnSums means,
             float* chunks, const __grid_constant__ Turns t) {
  HIDA_DYNAMIC_SHARED(float, memory);
  const Shared s(memory, m);
  do_jobs(t, m, [&](const Job& job, const ThreadWork& p, const Tickets& tickets) {
    const Views<D, L> views(a, p);
    const Slopes<D, L> slopes(a.logits, a.p1, a.p2, p);
    float mean[8] = {}, rstd[8] = {};
    if (p.valid) {
      read_eight(a.mean, m, p, mean);
      read_eight(a.rstd, m, p, rstd);
    }
    if (job.first) {
      float of_d[2][8] = {};
      sums_of_d(views, slopes, mean, rstd, p, of_d);
      means.write(of_d, t, job, m, p, s);
      return;
    }
    wait_until_open(t.done(true, job.unit), t.jobs);
    float mean_d[8] = {}, mean_dx[8] = {}, sums[3][8] = {};
    means.read(0, m, p, mean_d);
    means.read(1, m, p, mean_dx);
    gradients<true>(a, views, slopes, mean, rstd, mean_d, mean_dx, m, p, sums);
    if (L == Logits::none || (a.dp1 == nullptr && a.dp2 == nullptr && a.dlogits_sum == nullptr)) return;
    constexpr int kKinds = kinds_for(L) > 0 ? kinds_for(L) : 1;
    // Made anew: the registers were for the loop.
    const auto parts_of = [&](unsigned unit) { return ChunkArray<kKinds>(chunks, m, unit); };
#pragma unroll
    for (int i = 0; i < kKinds; ++i)
      add_lanes(sums[i], m, s, [&](unsigned c, float sum) {
        const Job again(t, tickets.now());
        parts_of(again.unit).at(again.part, i)[c] = sum;
      });
    const unsigned unit = Job(t, tickets.now()).unit;
    if (!is_last(t.done(false, unit), t.jobs)) return;
    const ChunkArray<kKinds> parts = parts_of(unit);
    const unsigned first = unit % m.tiles * m.width();
    merge<kKinds>(
        m, s,
        [&](float (&v)[kKinds], unsigned c, unsigned i) {
#pragma unroll
          for (int k = 0; k < kKinds; ++k) v[k] += __ldcg(parts.at(i, k) + c);
        },
        [&](unsigned c, const float (&v)[kKinds]) {
          if (first + c >= m.channels) return;
          const int64_t at = int64_t(unit / m.tiles) * m.channels + first + c;
#pragma unroll
          for (int k = 0; k < kKinds; ++k)
            if (target_of(a, k) != nullptr) static_cast<float*>(target_of(a, k))[at] = v[k];
        });
  });
}

template <Dtype D>
auto whole_for(Logits logits) {
  return with_logits(logits, [](auto kind) { return whole<D, decltype(kind)::value>; });
}
template <Dtype D>
auto turns_for(Logits logits) {
  return with_logits(logits, [](auto kind) { return in_turns<D, decltype(kind)::value>; });
}

bool is_whole(const Adapt& a) {
  return a.planes.extent.pixels() <= kWholePixels;
}
Tiling turns_tiling(const Adapt& a, const Launch& l) {
  return turn_tiling(a.planes.extent, size_of(a.x.dtype) * (kind_of(a.logits) == Logits::whole ? 4 : 3), l);
}

}  // namespace

int64_t adapt_backward_workspace(const Adapt& a, const Launch& l) {
  if (is_whole(a)) return 0;
  const Tiling m = turns_tiling(a, l);
  return counters_of(m) + sums_of(m, a.planes.extent) + kinds_for(kind_of(a.logits)) * m.blocks * m.width();
}

void adapt_backward(const Adapt& a, void* workspace, const Launch& l) {
  const Extent& e = a.planes.extent;
  const Logits logits = kind_of(a.logits);
  Tiling m = is_whole(a) ? whole_planes(e, l, most_for(logits)) : turns_tiling(a, l);
  m.joins = a.residual == Residual::activated ? 1.0f : 0.0f;
  m.to_x = a.grad_to_x ? 1.0f : 0.0f;
  if (is_whole(a))
    return run(with_dtype(a.x.dtype, [&](auto d) { return whole_for<decltype(d)::value>(logits); }), m, shared_of(m), l,
               a, m);
  const TurnSums means = turn_sums(m, e, workspace);
  run_turns(with_dtype(a.x.dtype, [&](auto d) { return turns_for<decltype(d)::value>(logits); }), m,
            resident_for(a.x.dtype, logits), shared_of(m), workspace, l, a, m, means, means.totals + sums_of(m, e));
}

}  // namespace nhwc
}  // namespace cuda
}  // namespace hida
