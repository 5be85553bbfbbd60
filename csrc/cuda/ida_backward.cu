// ida and instance_norm_modulate, backward, from x, logits, γ and the two statistics; the rest is computed again.
// Only what is not the usual case, which is left to ida_nchw_backward.cu and ida_nhwc_backward.cu.
//   d = grad·(1 + γ), dγ = grad·x̂, df = rstd·(d − mean(d) − x̂·mean(d·x̂)) (+ grad), then InfoACON's own slopes.
// Traffic: 7n (read grad, x, logits, γ; write dx, dlogits, dγ; dβ is grad itself). dγ is written in the first sweep.
//   resident  one pack per thread: the second sweep works on registers. As in ida.cu.
//   staged    on chips with clusters: the operands stay in shared memory, as they came, that of eight blocks for
//             256×256: 64 KB each in bfloat16, 128 KB in float32. Nothing is read twice.
//   streamed  the second sweep reads again, from the second-level cache if it holds a plane's four operands (a
//             megabyte for 256×256 in float32). One kernel: one block per plane, or the blocks of a cluster; for few
//             planes on chips without clusters the two sweeps over chunks are two kernels, and a tiny third adds up.
// Always the same order, no atomics. Share of the floor, measured in the usual case (ida, bfloat16, 16 images on
// an H100): 64 channels of 128×128 41 %, 128 of 64×64 37 %; channels_last 2 %. instance_norm_modulate: not measured.
#include "ida_common.h"
#include "nchw.h"
#include "nhwc.h"

namespace hida {
namespace cuda {
namespace {

template <class Real, bool Vector>
struct Operands : Adapted<Real, Vector> {
  const Plane grad, dx, dlogits, dgamma;
  const Real mean, rstd;

  HIDA_DEVICE Operands(const Adapt& a_, const ThreadWork& s)
      : Adapted<Real, Vector>(a_, s),
        grad(a_.grad, a_.planes.extent, s.n, s.c),
        dx(a_.dx, a_.planes.extent, s.n, s.c),
        dlogits(a_.dlogits, a_.planes.extent, s.n, s.c),
        dgamma(a_.dgamma, a_.planes.extent, s.n, s.c),
        mean(static_cast<const Real*>(a_.mean)[s.sum]),
        rstd(static_cast<const Real*>(a_.rstd)[s.sum]) {}
};

// The operands of a pack, from memory or kept in shared memory.
template <class Real, bool Vector>
struct Packs {
  Pack<Real, Vector> x, grad, gamma, logits;

  HIDA_DEVICE Packs(const Operands<Real, Vector>& o, const Pixels<Real, Vector>& pixels)
      : x(o.x, pixels), grad(o.grad, pixels), gamma(o.gamma, pixels), logits(o.load_logits(pixels)) {}
  HIDA_DEVICE Packs(const Operands<Real, Vector>& o, const uint4* from, int apart) {
    from = x.fetch(o.x.dtype, from, apart);
    from = grad.fetch(o.grad.dtype, from, apart);
    from = gamma.fetch(o.gamma.dtype, from, apart);
    if (o.activate && !o.plane.uniform) logits.fetch(o.plane.logits.dtype, from, apart);
  }
  HIDA_DEVICE void keep(const Operands<Real, Vector>& o, uint4* to, int apart) const {
    to = x.keep(o.x.dtype, to, apart);
    to = grad.keep(o.grad.dtype, to, apart);
    to = gamma.keep(o.gamma.dtype, to, apart);
    if (o.activate && !o.plane.uniform) logits.keep(o.plane.logits.dtype, to, apart);
  }
};

// A pack of both sweeps.
template <class Real, bool Vector>
struct Elements {
  Real x[kPack<Real>], g[kPack<Real>], normalised[kPack<Real>], d[kPack<Real>], q[kPack<Real>], tilt[kPack<Real>];

  HIDA_DEVICE Elements(const Operands<Real, Vector>& o, const Packs<Real, Vector>& packs) {
    packs.x.unpack(o.x.dtype, x);
    packs.grad.unpack(o.grad.dtype, g);
    packs.gamma.unpack(o.gamma.dtype, d);
    if (o.activate) {
      Real theta[kPack<Real>];
      o.plane.theta(packs.logits, theta);
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
HIDA_DEVICE void write_sums(const Adapt& a, const Map& m, const ThreadWork& s, const Real (&sums)[3], Real* partial) {
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
__global__ void __launch_bounds__(kPlaneThreads, 1)
    resident(const __grid_constant__ Adapt a, const __grid_constant__ Map m) {
  const ThreadWork s(a.planes.extent, m);
  const Operands<Real, Vector> o(a, s);
  const Pixels<Real, Vector> pixels(s.begin, s.end, s.lane, s.lanes);
  const Real count = Real(a.planes.extent.h * a.planes.extent.w);
  Elements<Real, Vector> elements(o, Packs<Real, Vector>(o, pixels));
  Real means[2] = {0, 0}, sums[3] = {0, 0, 0};
  elements.first(o, pixels, means);
  add_up<2, Vector>(means, m);
  elements.second(o, pixels, means[0] / count, means[1] / count, sums);
  if (!wants_sums(a)) return;
  add_up<3, Vector>(sums, m);
  write_sums<Real>(a, m, s, sums, nullptr);
}

// The operands stay in shared memory as they came, each thread's where only that thread goes. Blocks of a cluster have
// a chunk each.
template <bool Vector>
__global__ void __launch_bounds__(kStagedThreads, 2)
    staged(const __grid_constant__ Adapt a, const __grid_constant__ Map m, int vec16s) {
  HIDA_DYNAMIC_SHARED(uint4, kept);
  const int threads = m.threads();
  const ThreadWork s(a.planes.extent, m);
  const Operands<float, Vector> o(a, s);
  const int64_t step = int64_t(s.lanes) * kPack<float>;
  const float count = float(a.planes.extent.h * a.planes.extent.w);
  float means[2] = {0, 0}, sums[3] = {0, 0, 0};
  uint4* mine = kept + threadIdx.x;
  for (int64_t first = s.begin; first < s.end; first += step, mine += vec16s * threads) {
    const Pixels<float, Vector> pixels(first, s.end, s.lane, s.lanes);
    const Packs<float, Vector> packs(o, pixels);
    packs.keep(o, mine, threads);
    Elements<float, Vector>(o, packs).first(o, pixels, means);
  }
  add_up_cluster<2, Vector>(means, m);
  mine = kept + threadIdx.x;
  for (int64_t first = s.begin; first < s.end; first += step, mine += vec16s * threads) {
    const Pixels<float, Vector> pixels(first, s.end, s.lane, s.lanes);
    Elements<float, Vector> elements(o, Packs<float, Vector>(o, mine, threads));
    elements.second(o, pixels, means[0] / count, means[1] / count, sums);
  }
  if (!wants_sums(a)) return;
  add_up_cluster<3, Vector>(sums, m);
  write_sums<float>(a, m, s, sums, nullptr);
}

enum Stage { kFirst = 1, kSecond = 2, kBoth = 3 };

// partial: (5, N, C, chunks), the sums of the first sweep and those of the second; null for one kernel.
template <class Real, bool Vector>
__global__ void __launch_bounds__(kStagedThreads, Vector ? 2 : 1)
    streamed(const __grid_constant__ Adapt a, const __grid_constant__ Map m, int stage, Real* partial) {
  const Extent& e = a.planes.extent;
  const ThreadWork s(e, m);
  const Operands<Real, Vector> o(a, s);
  const int64_t step = int64_t(s.lanes) * kPack<Real>, apart = e.n * e.c * m.chunks;
  const Real count = Real(e.h * e.w);
  Real means[2] = {0, 0}, sums[3] = {0, 0, 0};
  if (stage & kFirst) {
    for (int64_t first = s.begin; first < s.end; first += step) {
      const Pixels<Real, Vector> pixels(first, s.end, s.lane, s.lanes);
      const Elements<Real, Vector> elements(o, Packs<Real, Vector>(o, pixels));
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
    Elements<Real, Vector> elements(o, Packs<Real, Vector>(o, pixels));
    elements.second(o, pixels, means[0] / count, means[1] / count, sums);
  }
  if (!wants_sums(a)) return;
  add_up_cluster<3, Vector>(sums, m);
  write_sums<Real>(a, m, s, sums, partial == nullptr ? nullptr : partial + 2 * apart);
}

// ---- which kernel -----------------------------------------------------------------------------------------------

bool packable(const Adapt& a) {
  return all_packable(a.planes.extent, a.logits, {&a.x, &a.grad, &a.gamma, &a.dx, &a.dlogits, &a.dgamma});
}

struct Method {
  enum Kind { resident, staged, together, apart } kind;  // sweeps: of registers, shared memory, one kernel, two
  Map map;
  int vec16s = 0;  // 16-byte vectors that a thread keeps of a pack
};

// One for a pack of a 16-bit dtype, else two.
int vec16s_of(const Adapt& a, bool vector) {
  int vec16s = 0;
  for (const Image* image : {&a.x, &a.grad, &a.gamma, &a.logits}) {
    if (image == &a.logits && (!a.activate || (a.logits.row == 0 && a.logits.step == 0))) continue;
    vec16s += vector && image->dtype != Dtype::f32 ? 1 : 2;
  }
  return vec16s;
}

Method method_of(const Adapt& a, const Launch& l) {
  const Extent& e = a.planes.extent;
  const bool channels_last = is_channels_last(a.x, e);
  const Map whole = resident_map(a.planes, channels_last);
  if (whole.fits(a.planes)) return {Method::resident, whole};
  if (!channels_last && l.cluster > 1) {
    const int64_t step = int64_t(kStagedThreads) * pack_of(a.planes), steps = (e.pixels() + step - 1) / step;
    if (!a.planes.wide) {
      const bool vector = packable(a);
      const int vec16s = vec16s_of(a, vector);
      const int cluster = staging_cluster(e, steps, int64_t(vec16s) * kStagedThreads * 16, 2, vector, l);
      if (cluster > 0) return {Method::staged, cluster_map(a.planes, steps, cluster), vec16s};
    }
    // The larger the clusters, the fewer planes are at work, and the better the second-level cache holds them.
    return {Method::together, cluster_map(a.planes, steps, cluster_for(e, steps, l.cluster, l))};
  }
  const Map m = map_of(a.planes, channels_last, kStagedThreads, 2, chunks_for(e, channels_last, l, 1));
  return {m.chunks == 1 ? Method::together : Method::apart, m};
}

}  // namespace

int64_t adapt_backward_workspace(const Adapt& a, const Launch& l) {
  if (nchw::takes_adapt_backward(a, l)) return 0;
  if (nhwc::takes(a)) return nhwc::adapt_backward_workspace(a, l);
  const Method method = method_of(a, l);
  return method.kind == Method::apart ? 5 * a.planes.extent.n * a.planes.extent.c * method.map.chunks : 0;
}

void adapt_backward(const Adapt& a, void* workspace, const Launch& l) {
  if (nchw::adapt_backward(a, l)) return;
  if (nhwc::takes(a)) return nhwc::adapt_backward(a, workspace, l);
  const Method method = method_of(a, l);
  const Map& m = method.map;
  const bool vector = packable(a) && !m.channels_last;
  const dim3 grid = grid_of(m.blocks), block(unsigned(m.threads()));
  if (method.kind == Method::resident) {
    launch(a.planes.wide ? resident<double, false>
           : vector      ? resident<float, true>
                         : resident<float, false>,
           grid, block, 0, l, a, m);
    return;
  }
  if (method.kind == Method::staged) {
    const size_t shared = size_t(m.chunk / kPack<float>) * size_t(method.vec16s) * sizeof(uint4);
    return launch_cluster(vector ? staged<true> : staged<false>, unsigned(m.chunks), grid, block, shared, l, a, m,
                          method.vec16s);
  }
  const auto run = [&](int stage, unsigned cluster) {
    if (a.planes.wide)
      launch_cluster(streamed<double, false>, cluster, grid, block, 0, l, a, m, stage, static_cast<double*>(workspace));
    else
      launch_cluster(vector ? streamed<float, true> : streamed<float, false>, cluster, grid, block, 0, l, a, m, stage,
                     static_cast<float*>(workspace));
  };
  if (method.kind == Method::together) return run(kBoth, unsigned(m.chunks));
  run(kFirst, 1);
  run(kSecond, 1);
  if (a.dp1 == nullptr && a.dp2 == nullptr && a.dlogits_sum == nullptr) return;
  const int64_t planes = a.planes.extent.n * a.planes.extent.c, size = a.planes.wide ? 8 : 4;
  const void* partial = static_cast<char*>(workspace) + 2 * planes * m.chunks * size;
  add_chunks({partial, {a.dp1, a.dp2, a.dlogits_sum}, planes, m.chunks, a.planes.wide}, l);
}

}  // namespace cuda
}  // namespace hida
