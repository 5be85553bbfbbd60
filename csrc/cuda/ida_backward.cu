// ida and instance_norm_modulate, backward, from x, logits, γ and the two statistics; the rest is computed again.
//   d = grad·(1 + γ), dγ = grad·x̂, df = rstd·(d − mean(d) − x̂·mean(d·x̂)) (+ grad), then InfoACON's own slopes.
// Traffic: 7n (read grad, x, logits, γ; write dx, dlogits, dγ; dβ is grad itself). dγ is written in the first sweep.
//   resident  a pack a thread: the second sweep works on registers. As in ida.cu.
//   streamed  the second sweep reads again, from the second-level cache if it holds a plane's four operands (a
//             megabyte for 256×256 in float32). One kernel: a block a plane, or the blocks of a cluster; for few planes
//             on chips without clusters the two sweeps over chunks are two kernels, and a tiny third adds up.
// Always the same order, no atomics. Share of the floor: not measured.
#include "activation.h"

namespace hida {
namespace cuda {
namespace {

template <class Real, bool Vector>
struct Operands {
  const Adapt& a;
  const Switch<Real, Vector> plane;
  const Plane grad, x, gamma, dx, dlogits, dgamma;
  const bool activate;
  const Real mean, rstd;

  HIDA_DEVICE Operands(const Adapt& a_, const Seat& s)
      : a(a_),
        plane(a_.logits, a_.p1, a_.p2, a_.planes.extent, s, a_.activate),
        grad(a_.grad, a_.planes.extent, s.n, s.c),
        x(a_.x, a_.planes.extent, s.n, s.c),
        gamma(a_.gamma, a_.planes.extent, s.n, s.c),
        dx(a_.dx, a_.planes.extent, s.n, s.c),
        dlogits(a_.dlogits, a_.planes.extent, s.n, s.c),
        dgamma(a_.dgamma, a_.planes.extent, s.n, s.c),
        activate(a_.activate),
        mean(static_cast<const Real*>(a_.mean)[s.sum]),
        rstd(static_cast<const Real*>(a_.rstd)[s.sum]) {}
};

// A pack of both sweeps.
template <class Real, bool Vector>
struct Elements {
  Real x[kPack<Real>], g[kPack<Real>], normalised[kPack<Real>], d[kPack<Real>], q[kPack<Real>], tilt[kPack<Real>];

  HIDA_DEVICE Elements(const Operands<Real, Vector>& o, const Pixels<Real, Vector>& pixels) {
    const Pack<Real, Vector> x_pack(o.x, pixels), g_pack(o.grad, pixels), gamma_pack(o.gamma, pixels);
    const Pack<Real, Vector> logits = o.activate ? o.plane.load(pixels) : Pack<Real, Vector>();
    x_pack.unpack(o.x.dtype, x);
    g_pack.unpack(o.grad.dtype, g);
    gamma_pack.unpack(o.gamma.dtype, d);
    if (o.activate) {
      Real theta[kPack<Real>];
      o.plane.theta(logits, theta);
#pragma unroll
      for (int k = 0; k < kPack<Real>; ++k) {
        const AconSlopes<Real> slopes = acon_slopes<Elementary>(x[k], theta[k], o.plane.slope, o.plane.base);
        normalised[k] = normalise(slopes.value, o.mean, o.rstd);
        q[k] = slopes.q;
        tilt[k] = slopes.tilt;
      }
    } else {
#pragma unroll
      for (int k = 0; k < kPack<Real>; ++k) {
        normalised[k] = normalise(x[k], o.mean, o.rstd);
        q[k] = tilt[k] = 0;
      }
    }
#pragma unroll
    for (int k = 0; k < kPack<Real>; ++k) d[k] = g[k] * (1 + d[k]);
  }

  // First sweep: dγ, and the sums of d and d·x̂.
  HIDA_DEVICE void first(const Operands<Real, Vector>& o, const Pixels<Real, Vector>& pixels, Real (&sums)[2]) const {
#pragma unroll
    for (int k = 0; k < kPack<Real>; ++k)
      if (pixels.has(k)) sums[0] += d[k], sums[1] += d[k] * normalised[k];
    if (!o.dgamma.present()) return;
    Real v[kPack<Real>];
#pragma unroll
    for (int k = 0; k < kPack<Real>; ++k) v[k] = g[k] * normalised[k];
    write_pack(o.dgamma, pixels, v);
  }

  // Second sweep: dx, dlogits, and the sums towards p1, p2 and the logits. Overwrites d and tilt.
  HIDA_DEVICE void second(const Operands<Real, Vector>& o, const Pixels<Real, Vector>& pixels, Real mean_d,
                          Real mean_dx, Real (&sums)[3]) {
    const bool joins = o.a.residual == Residual::activated;
#pragma unroll
    for (int k = 0; k < kPack<Real>; ++k) {
      Real df = normalise_gradient(d[k], normalised[k], mean_d, mean_dx, o.rstd);
      if (joins) df += g[k];
      d[k] = df;
      if (!o.activate) continue;
      tilt[k] *= df;
      d[k] = df * (o.plane.slope * q[k] + o.plane.base);
      if (o.a.grad_to_x) d[k] += g[k];
      if (pixels.has(k)) {
        sums[0] += df * x[k] * q[k];
        sums[1] += df * x[k] * (1 - q[k]);
        sums[2] += tilt[k];
      }
    }
    if (o.dx.present()) write_pack(o.dx, pixels, d);
    if (o.dlogits.present()) write_pack(o.dlogits, pixels, tilt);
  }
};

// partial: (3, N, C, chunks), or null, where the sums of a plane are complete.
template <class Real>
HIDA_DEVICE void write_sums(const Adapt& a, const Map& m, const Seat& s, const Real (&sums)[3], Real* partial) {
  if (!s.leads() || (partial == nullptr && s.part != 0)) return;
  void* const targets[3] = {a.dp1, a.dp2, a.dlogits_sum};
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    if (targets[i] == nullptr) continue;
    if (partial != nullptr)
      partial[int64_t(i) * a.planes.extent.n * a.planes.extent.c * m.chunks + s.partial(m)] = sums[i];
    else
      static_cast<Real*>(targets[i])[s.sum] = sums[i];
  }
}

HIDA_DEVICE bool wants_sums(const Adapt& a) {
  return a.dp1 != nullptr || a.dp2 != nullptr || a.dlogits_sum != nullptr;
}

template <class Real, bool Vector>
__global__ void __launch_bounds__(kThreads, 1)
    resident(const __grid_constant__ Adapt a, const __grid_constant__ Map m) {
  const Seat s(a.planes.extent, m);
  const Operands<Real, Vector> o(a, s);
  const Pixels<Real, Vector> pixels(s.begin, s.end, s.lane, s.lanes);
  const Real count = Real(a.planes.extent.h * a.planes.extent.w);
  Elements<Real, Vector> elements(o, pixels);
  Real means[2] = {0, 0}, sums[3] = {0, 0, 0};
  elements.first(o, pixels, means);
  add_up<2, Vector>(means, m);
  elements.second(o, pixels, means[0] / count, means[1] / count, sums);
  if (!wants_sums(a)) return;
  add_up<3, Vector>(sums, m);
  write_sums<Real>(a, m, s, sums, nullptr);
}

constexpr int kStreamThreads = 256;  // so that the second sweep has registers enough

enum Stage { kFirst = 1, kSecond = 2, kBoth = 3 };

// partial: (5, N, C, chunks), the sums of the first sweep and those of the second; null for one kernel.
template <class Real, bool Vector>
__global__ void __launch_bounds__(kStreamThreads, Vector ? 2 : 1)
    streamed(const __grid_constant__ Adapt a, const __grid_constant__ Map m, int stage, Real* partial) {
  const Extent& e = a.planes.extent;
  const Seat s(e, m);
  const Operands<Real, Vector> o(a, s);
  const int64_t step = int64_t(s.lanes) * kPack<Real>, apart = e.n * e.c * m.chunks;
  const Real count = Real(e.h * e.w);
  Real means[2] = {0, 0}, sums[3] = {0, 0, 0};
  if (stage & kFirst) {
    for (int64_t first = s.begin; first < s.end; first += step) {
      const Pixels<Real, Vector> pixels(first, s.end, s.lane, s.lanes);
      const Elements<Real, Vector> elements(o, pixels);
      elements.first(o, pixels, means);
    }
    add_up_cluster<2, Vector>(means, m);
    if (stage == kFirst) {
      if (s.leads()) partial[s.partial(m)] = means[0], partial[apart + s.partial(m)] = means[1];
      return;
    }
  } else {
    for (int i = 0; i < m.chunks; ++i) {
      means[0] += partial[s.partial(m) - s.part + i];
      means[1] += partial[apart + s.partial(m) - s.part + i];
    }
  }
  for (int64_t first = s.begin; first < s.end; first += step) {
    const Pixels<Real, Vector> pixels(first, s.end, s.lane, s.lanes);
    Elements<Real, Vector> elements(o, pixels);
    elements.second(o, pixels, means[0] / count, means[1] / count, sums);
  }
  if (!wants_sums(a)) return;
  add_up_cluster<3, Vector>(sums, m);
  write_sums<Real>(a, m, s, sums, partial == nullptr ? nullptr : partial + 2 * apart);
}

// ---- which kernel -----------------------------------------------------------------------------------------------

bool in_packs(const Adapt& a) {
  const Extent& e = a.planes.extent;
  for (const Image* image : {&a.x, &a.grad, &a.gamma, &a.dx, &a.dlogits, &a.dgamma})
    if (!lies_in_packs(*image, e)) return false;
  return (a.logits.row == 0 && a.logits.step == 0) || lies_in_packs(a.logits, e);
}

struct Plan {
  enum Kind { resident, together, apart } kind;  // the two sweeps: on registers, in one kernel, in two
  Map map;
};

Plan plan_of(const Adapt& a, const Launch& l) {
  const Extent& e = a.planes.extent;
  const bool inner = channels_innermost(a.x, e);
  const Map whole = resident_map(a.planes, inner);
  if (whole.fits(a.planes)) return {Plan::resident, whole};
  if (!inner && l.capability >= 90) {
    const int64_t step = int64_t(kStreamThreads) * pack_of(a.planes), steps = (e.pixels() + step - 1) / step;
    int cluster = 1;
    while (cluster < 8 && steps > cluster && e.n * e.c * cluster < l.multiprocessors) cluster *= 2;
    Map m = map_of(a.planes, false, kStreamThreads, (steps + cluster - 1) / cluster, cluster);
    m.blocks = m.blocks / m.chunks * cluster;  // also those without pixels: the cluster's barriers count them
    m.chunks = cluster;
    return {Plan::together, m};
  }
  const Map m = map_of(a.planes, inner, kStreamThreads, 2, chunks_for(e, inner, l, 1));
  return {m.chunks == 1 ? Plan::together : Plan::apart, m};
}

}  // namespace

int64_t adapt_backward_workspace(const Adapt& a, const Launch& l) {
  const Plan plan = plan_of(a, l);
  return plan.kind == Plan::apart ? 5 * a.planes.extent.n * a.planes.extent.c * plan.map.chunks : 0;
}

void adapt_backward(const Adapt& a, void* workspace, const Launch& l) {
  const Plan plan = plan_of(a, l);
  const Map& m = plan.map;
  const bool vector = in_packs(a) && !m.inner;
  const dim3 grid = grid_of(m.blocks), block(unsigned(m.threads()));
  if (plan.kind == Plan::resident) {
    launch(a.planes.wide ? resident<double, false>
           : vector      ? resident<float, true>
                         : resident<float, false>,
           grid, block, 0, l, a, m);
    return;
  }
  const auto run = [&](int stage, unsigned cluster) {
    if (a.planes.wide)
      launch_cluster(streamed<double, false>, cluster, grid, block, 0, l, a, m, stage, static_cast<double*>(workspace));
    else
      launch_cluster(vector ? streamed<float, true> : streamed<float, false>, cluster, grid, block, 0, l, a, m, stage,
                     static_cast<float*>(workspace));
  };
  if (plan.kind == Plan::together) return run(kBoth, unsigned(m.chunks));
  run(kFirst, 1);
  run(kSecond, 1);
  if (a.dp1 == nullptr && a.dp2 == nullptr && a.dlogits_sum == nullptr) return;
  const int64_t planes = a.planes.extent.n * a.planes.extent.c, size = a.planes.wide ? 8 : 4;
  const void* partial = static_cast<char*>(workspace) + 2 * planes * m.chunks * size;
  fold({partial, {a.dp1, a.dp2, a.dlogits_sum}, planes, m.chunks, a.planes.wide}, l);
}

}  // namespace cuda
}  // namespace hida
