// ida and instance_norm_modulate, forward: f = info_acon(x) or x; y = (1 + γ)·(f − μ)/√(var + eps) + β + residual.
// Only what is not the usual case, which is left to ida_nchw.cu and ida_nhwc.cu.
// Traffic: 5n (read x, logits, γ, β; write y); n more for a residual of its own. A plane is read once and kept on the
// chip: mean, then squares around it, then y.
//   resident  one pack per thread, in registers; planes of up to 32 packs are of one warp or less, several of them in a
//             block; those of up to 4096 pixels of one block. γ and β are in flight during the sums. NHWC: tiles of
//             channels.
//   staged    up to the chip's shared memory (16384 pixels take 64 KB); where it has clusters, and planes are larger
//             or few, the blocks of a cluster share a plane and exchange their sums: four of them have 256×256.
//   streamed  everything else: x and logits are read twice, the second time from the second-level cache if it holds
//             them; in one kernel, or, for few planes, statistics of chunks first and y from them second.
// Statistics are corrected for what rounding left in the mean, so that a large mean costs no digits; chunks are
// merged in order. Always the same order, no atomics. Share of the floor, measured in the usual case (ida,
// bfloat16, 16 images on an H100): 64 channels of 128×128 69 %, 128 of 64×64 46 %; channels_last 6 %.
// instance_norm_modulate: not measured.
#include "ida_common.h"
#include "nchw.h"
#include "nhwc.h"

namespace hida {
namespace cuda {
namespace {

// What a thread needs to make f, and then y.
template <class Real, bool Vector>
struct Operands : Adapted<Real, Vector> {
  using Adapted<Real, Vector>::a;
  using Adapted<Real, Vector>::x;
  using Adapted<Real, Vector>::gamma;
  using Adapted<Real, Vector>::plane;
  const Plane beta, added, y;
  const bool adds;

  HIDA_DEVICE Operands(const Adapt& a_, const ThreadWork& s)
      : Adapted<Real, Vector>(a_, s),
        beta(a_.beta, a_.planes.extent, s.n, s.c),
        added(a_.added, a_.planes.extent, s.n, s.c),
        y(a_.y, a_.planes.extent, s.n, s.c),
        adds(a_.residual == Residual::tensor) {}

  HIDA_DEVICE void activated(const Pixels<Real, Vector>& pixels, Real (&f)[kPack<Real>]) const {
    const Pack<Real, Vector> x_pack(x, pixels), logits = this->load_logits(pixels);
    x_pack.unpack(x.dtype, f);
    if (!this->activate) return;
    Real theta[kPack<Real>];
    plane.theta(logits, theta);
#pragma unroll
    for (int k = 0; k < kPack<Real>; ++k) f[k] = acon<Elementary>(f[k], theta[k], plane.slope, plane.base);
  }

  // The packs that y takes besides f and a residual of its own.
  struct Late {
    Pack<Real, Vector> gamma, beta;
    HIDA_DEVICE Late(const Operands& o, const Pixels<Real, Vector>& pixels)
        : gamma(o.gamma, pixels), beta(o.beta, pixels) {}
  };

  // mean + rest is the mean, to more digits than one number has.
  HIDA_DEVICE void finish(const Pixels<Real, Vector>& pixels, const Late& late, Real mean, Real rest, Real rstd,
                          Real (&f)[kPack<Real>]) const {
    Real v[kPack<Real>], w[kPack<Real>];
    late.gamma.unpack(gamma.dtype, v);
    late.beta.unpack(beta.dtype, w);
    const bool activated = a.residual == Residual::activated;
#pragma unroll
    for (int k = 0; k < kPack<Real>; ++k) {
      v[k] = modulate(normalise(f[k] - mean, rest, rstd), v[k], w[k]);
      if (activated) v[k] += f[k];
    }
    if (adds) {
      Pack<Real, Vector>(added, pixels).unpack(added.dtype, w);
#pragma unroll
      for (int k = 0; k < kPack<Real>; ++k) v[k] += w[k];
    }
    write_pack(y, pixels, v);
  }
};

template <class Real>
struct Statistics {
  Real mean, rest, rstd;

  // From the sums of the differences from `mean` and of their squares.
  HIDA_DEVICE Statistics(Real mean_, Real off, Real squares, Real count, Real eps) : mean(mean_) {
    rest = off / count;
    const Real variance = squares / count - rest * rest;
    rstd = inverse_root((variance < 0 ? Real(0) : variance) + eps);  // NaN stays
  }
  HIDA_DEVICE void write(const Adapt& a, const ThreadWork& s) const {
    if (!s.leads() || s.part != 0) return;
    static_cast<Real*>(a.mean)[s.sum] = mean + rest;
    static_cast<Real*>(a.rstd)[s.sum] = rstd;
  }
};

template <class Real, bool Vector>
__global__ void __launch_bounds__(kPlaneThreads, Vector ? 2 : 1)
    resident(const __grid_constant__ Adapt a, const __grid_constant__ Map m) {
  const ThreadWork s(a.planes.extent, m);
  const Operands<Real, Vector> o(a, s);
  const Pixels<Real, Vector> pixels(s.begin, s.end, s.lane, s.lanes);
  const typename Operands<Real, Vector>::Late late(o, pixels);
  const Real count = Real(a.planes.extent.h * a.planes.extent.w);
  Real f[kPack<Real>], total[1] = {0}, squares[2] = {0, 0};
  o.activated(pixels, f);
#pragma unroll
  for (int k = 0; k < kPack<Real>; ++k)
    if (pixels.has(k)) total[0] += f[k];
  add_up<1, Vector>(total, m);
  const Real mean = total[0] / count;
#pragma unroll
  for (int k = 0; k < kPack<Real>; ++k)
    if (pixels.has(k)) squares[0] += f[k] - mean, squares[1] += (f[k] - mean) * (f[k] - mean);
  add_up<2, Vector>(squares, m);
  const Statistics<Real> found(mean, squares[0], squares[1], count, Real(a.eps));
  found.write(a, s);
  o.finish(pixels, late, found.mean, found.rest, found.rstd, f);
}

// f stays in shared memory, each thread's where only that thread goes. Blocks of a cluster have a chunk each.
template <bool Vector>
__global__ void __launch_bounds__(kStagedThreads, Vector ? 3 : 2)
    staged(const __grid_constant__ Adapt a, const __grid_constant__ Map m) {
  HIDA_DYNAMIC_SHARED(float4, kept);
  float4* const mine = kept + threadIdx.x;
  const int threads = m.threads();
  const ThreadWork s(a.planes.extent, m);
  const Operands<float, Vector> o(a, s);
  const int64_t step = int64_t(s.lanes) * kPack<float>;
  const float count = float(a.planes.extent.h * a.planes.extent.w);
  const auto fetch = [&](int slot, float (&f)[kPack<float>]) {
    const float4 low = mine[2 * slot * threads], high = mine[(2 * slot + 1) * threads];
    f[0] = low.x, f[1] = low.y, f[2] = low.z, f[3] = low.w;
    f[4] = high.x, f[5] = high.y, f[6] = high.z, f[7] = high.w;
  };
  float f[kPack<float>], total[1] = {0}, squares[2] = {0, 0};
  int slot = 0;
  for (int64_t first = s.begin; first < s.end; first += step, ++slot) {
    const Pixels<float, Vector> pixels(first, s.end, s.lane, s.lanes);
    o.activated(pixels, f);
#pragma unroll
    for (int k = 0; k < kPack<float>; ++k)
      if (pixels.has(k)) total[0] += f[k];
    mine[2 * slot * threads] = make_float4(f[0], f[1], f[2], f[3]);
    mine[(2 * slot + 1) * threads] = make_float4(f[4], f[5], f[6], f[7]);
  }
  add_up_cluster<1, Vector>(total, m);
  const float mean = total[0] / count;
  slot = 0;
  for (int64_t first = s.begin; first < s.end; first += step, ++slot) {
    const Pixels<float, Vector> pixels(first, s.end, s.lane, s.lanes);
    fetch(slot, f);
#pragma unroll
    for (int k = 0; k < kPack<float>; ++k)
      if (pixels.has(k)) squares[0] += f[k] - mean, squares[1] += (f[k] - mean) * (f[k] - mean);
  }
  add_up_cluster<2, Vector>(squares, m);
  const Statistics<float> found(mean, squares[0], squares[1], count, float(a.eps));
  found.write(a, s);
  slot = 0;
  for (int64_t first = s.begin; first < s.end; first += step, ++slot) {
    const Pixels<float, Vector> pixels(first, s.end, s.lane, s.lanes);
    const typename Operands<float, Vector>::Late late(o, pixels);
    fetch(slot, f);
    o.finish(pixels, late, found.mean, found.rest, found.rstd, f);
  }
}

enum Stage { kStatistics = 1, kApply = 2, kBoth = 3 };

// partial: (3, N, C, chunks), of each chunk a number near its mean, how far off it is, and the squares around the mean.
template <class Real, bool Vector>
__global__ void __launch_bounds__(kPlaneThreads, 1)
    streamed(const __grid_constant__ Adapt a, const __grid_constant__ Map m, int stage, Real* partial) {
  const Extent& e = a.planes.extent;
  const ThreadWork s(e, m);
  const Operands<Real, Vector> o(a, s);
  const int64_t step = int64_t(s.lanes) * kPack<Real>, apart = e.n * e.c * m.chunks;
  Real mean = 0, off = 0, squares = 0;
  if (stage & kStatistics) {
    // Of the thread: packs merged one after the other (Chan), all shifted by the first one's mean.
    Real count = 0, shift = 0, shifted = 0;
    for (int64_t first = s.begin; first < s.end; first += step) {
      const Pixels<Real, Vector> pixels(first, s.end, s.lane, s.lanes);
      Real f[kPack<Real>], here = 0, around = 0;
      o.activated(pixels, f);
      const Real size = Real(pixels.count());
      if (size == 0) break;
      if (count == 0) {
#pragma unroll
        for (int k = 0; k < kPack<Real>; ++k)
          if (pixels.has(k)) shift += f[k];
        shift /= size;
      }
#pragma unroll
      for (int k = 0; k < kPack<Real>; ++k)
        if (pixels.has(k)) here += f[k] - shift;
      here /= size;
#pragma unroll
      for (int k = 0; k < kPack<Real>; ++k)
        if (pixels.has(k)) around += (f[k] - shift - here) * (f[k] - shift - here);
      const Real both = count + size, gap = here - shifted, share = size / both;
      squares += around + gap * gap * (count * share);
      shifted += gap * share;
      count = both;
    }
    // Of the block: around one mean for all.
    Real total[1] = {count * (shift + shifted)};
    const Real pixels = Real(s.end > s.begin ? s.end - s.begin : 1);
    add_up<1, Vector>(total, m);
    mean = total[0] / pixels;
    const Real gap = shift - mean + shifted;
    Real sums[2] = {count * gap, squares + count * gap * gap};
    if (count == 0) sums[0] = sums[1] = 0;
    add_up<2, Vector>(sums, m);
    off = sums[0], squares = sums[1];
    if (stage == kStatistics) {
      if (s.leads()) {
        off /= pixels;
        partial[s.partial(m)] = mean;
        partial[apart + s.partial(m)] = off;
        partial[2 * apart + s.partial(m)] = squares - off * off * pixels;
      }
      return;
    }
  } else {
    const Real* means = partial + s.partial(m) - s.part;
    const Real* offs = means + apart;
    mean = means[0];
    const Real last = Real(e.h * e.w - int64_t(m.chunks - 1) * m.chunk);
    for (int i = 0; i < m.chunks; ++i) {
      const Real size = i + 1 < m.chunks ? Real(m.chunk) : last, gap = means[i] - mean + offs[i];
      off += size * gap;
      squares += offs[apart + i] + size * gap * gap;
    }
  }
  const Statistics<Real> found(mean, off, squares, Real(e.h * e.w), Real(a.eps));
  found.write(a, s);
  for (int64_t first = s.begin; first < s.end; first += step) {
    const Pixels<Real, Vector> pixels(first, s.end, s.lane, s.lanes);
    const typename Operands<Real, Vector>::Late late(o, pixels);
    Real f[kPack<Real>];
    o.activated(pixels, f);
    o.finish(pixels, late, found.mean, found.rest, found.rstd, f);
  }
}

// ---- which kernel -----------------------------------------------------------------------------------------------

bool packable(const Adapt& a) {
  return all_packable(a.planes.extent, a.logits, {&a.x, &a.y, &a.gamma, &a.beta, &a.added});
}

struct Method {
  enum Kind { resident, staged, streamed } kind;
  Map map;
  int64_t shared = 0;
};

Method method_of(const Adapt& a, const Launch& l) {
  const Extent& e = a.planes.extent;
  const bool channels_last = is_channels_last(a.x, e);
  const Map whole = resident_map(a.planes, channels_last);
  if (whole.fits(a.planes)) return {Method::resident, whole};
  if (!channels_last && !a.planes.wide) {
    // Three blocks per multiprocessor have enough loads in flight.
    const int64_t step = int64_t(kStagedThreads) * kPack<float>, steps = (e.pixels() + step - 1) / step;
    const int cluster = staging_cluster(e, steps, step * int64_t(sizeof(float)), 3, packable(a), l);
    if (cluster > 0) {
      const Map m = cluster_map(a.planes, steps, cluster);
      return {Method::staged, m, m.chunk * int64_t(sizeof(float))};
    }
  }
  return {Method::streamed, map_of(a.planes, channels_last, kPlaneThreads, 2, chunks_for(e, channels_last, l, 2))};
}

}  // namespace

int64_t adapt_workspace(const Adapt& a, const Launch& l) {
  if (nchw::takes_adapt(a, l)) return 0;
  if (nhwc::takes(a)) return nhwc::adapt_workspace(a, l);
  const Method method = method_of(a, l);
  return method.kind == Method::streamed && method.map.chunks > 1
             ? 3 * a.planes.extent.n * a.planes.extent.c * method.map.chunks
             : 0;
}

void adapt(const Adapt& a, void* workspace, const Launch& l) {
  if (nchw::adapt(a, l)) return;
  if (nhwc::takes(a)) return nhwc::adapt(a, workspace, l);
  const Method method = method_of(a, l);
  const Map& m = method.map;
  const bool vector = packable(a) && !m.channels_last;
  const dim3 grid = grid_of(m.blocks), block(unsigned(m.threads()));
  if (method.kind == Method::resident) {
    launch(a.planes.wide ? resident<double, false>
           : vector      ? resident<float, true>
                         : resident<float, false>,
           grid, block, 0, l, a, m);
  } else if (method.kind == Method::staged) {
    launch_cluster(vector ? staged<true> : staged<false>, unsigned(m.chunks), grid, block, size_t(method.shared), l, a,
                   m);
  } else {
    const auto run = [&](int stage) {
      if (a.planes.wide)
        launch(streamed<double, false>, grid, block, 0, l, a, m, stage, static_cast<double*>(workspace));
      else
        launch(vector ? streamed<float, true> : streamed<float, false>, grid, block, 0, l, a, m, stage,
               static_cast<float*>(workspace));
    };
    if (m.chunks == 1) return run(kBoth);
    run(kStatistics);
    run(kApply);
  }
}

}  // namespace cuda
}  // namespace hida
