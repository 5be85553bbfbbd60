// leaky_norm, backward, in the usual channels_last case. The formula and the paths: leaky_norm_nhwc.h.
// Traffic: 3n (read grad, x; write dx); 5n in two kernels, less what the second has from the second-level cache.
// Share of the floor: not measured.
#include "leaky_norm_nhwc.h"

namespace hida {
namespace cuda {
namespace nhwc {
namespace {

// Pixels that a thread has in flight at a time: four loads of 16 bytes.
template <Dtype D>
constexpr unsigned kReading = D == Dtype::f32 ? 1 : 2;

// The operands of a pack of channels of some pixels.
template <Dtype D>
struct Operands {
  Eight<D> x, grad;
};

// What the gradient is made of: d, and how far f is off its mean, which has the sign of x̂.
struct Derived {
  float off[8], d[8];

  template <Dtype D>
  HIDA_DEVICE Derived(const Operands<D>& packs, float before, float after, const float (&mean)[8], float (&x)[8]) {
    packs.x.unpack(x);
    packs.grad.unpack(d);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      off[k] = leaky(x[k], x[k], before) - mean[k];
      d[k] = leaky(off[k], d[k], after);
    }
  }
};

// partial: of each chunk the sums of d and of d·(f − μ).
template <Dtype D>
__global__ void __launch_bounds__(kNormThreads, 3)
    backward(const __grid_constant__ LeakyNorm a, const __grid_constant__ Tiling m, float before, float after,
             int stage, float* partial) {
  HIDA_DYNAMIC_SHARED(float, memory);
  const Shared s(memory, m);
  const ThreadWork p(m);
  const View<D> x(a.x, p), grad(a.grad, p);
  float mean[8] = {};
  if (p.valid) read_eight(a.mean, m, p, mean);
  float* const here = partial_of(partial, m, p);
  const int64_t apart = kinds_apart(a, m);
  if (stage & kSums) {
    float sums[2][8] = {};
    for (unsigned pixel = p.first; p.has(pixel); pixel += kReading<D> * p.lanes) {
      Operands<D> packs[kReading<D>];
#pragma unroll
      for (unsigned u = 0; u < kReading<D>; ++u) {
        const unsigned at = p.has(pixel + u * p.lanes) ? pixel + u * p.lanes : pixel;
        packs[u] = {x.read(at), grad.read(at)};
      }
#pragma unroll
      for (unsigned u = 0; u < kReading<D>; ++u) {
        const bool has = p.has(pixel + u * p.lanes);  // no branch, behind which the loads would be moved
        float v[8];
        const Derived of(packs[u], before, after, mean, v);
#pragma unroll
        for (int k = 0; k < 8; ++k) {
          const float d = has ? of.d[k] : 0.0f;
          sums[0][k] += d;
          sums[1][k] += d * of.off[k];
        }
      }
    }
#pragma unroll
    for (unsigned i = 0; i < 2; ++i) {
      add_lanes(sums[i], m, s, [&](unsigned c, float sum) {
        if (stage == kBoth)
          s.table[i * m.width() + c] = sum;
        else if (p.tile + c < m.channels)
          here[i * apart + int64_t(p.part) * m.channels + c] = sum;
      });
    }
    if (stage == kSums) return;
  } else {
    const auto add = [&](const float* first, unsigned i, float (&sums)[2]) {
      const float* const from = first + size_t(i) * m.channels;
      sums[0] += from[0];
      sums[1] += from[apart];
    };
    merge_chunks(m, p, s, here, add, [&](unsigned c, const float (&sums)[2]) {
      s.table[c] = sums[0];
      s.table[m.width() + c] = sums[1];
    });
  }
  __syncthreads();
  float rstd[8] = {}, mean_d[8], mean_dx[8];
  if (p.valid) read_eight(a.rstd, m, p, rstd);
  s.tell(0, m, p, mean_d);
  s.tell(1, m, p, mean_dx);
  const float share = 1 / float(m.pixels);
#pragma unroll
  for (int k = 0; k < 8; ++k) mean_d[k] *= share, mean_dx[k] *= share * rstd[k];
  const View<D> dx(a.dx, p);
  // Backwards, as forward does.
  for (unsigned left = p.count(); left > 0; left = left > kReading<D> ? left - kReading<D> : 0) {
    Operands<D> packs[kReading<D>];
    unsigned at[kReading<D>];
#pragma unroll
    for (unsigned u = 0; u < kReading<D>; ++u) {
      at[u] = p.first + (left - 1 - (u < left ? u : 0)) * p.lanes;
      packs[u] = {x.read_last(at[u]), grad.read_last(at[u])};
    }
#pragma unroll
    for (unsigned u = 0; u < kReading<D>; ++u) {
      float v[8];
      const Derived of(packs[u], before, after, mean, v);
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const float df = normalise_gradient(of.d[k], of.off[k] * rstd[k], mean_d[k], mean_dx[k], rstd[k]);
        v[k] = leaky(v[k], df, before);
      }
      dx.write(at[u], v);
    }
  }
}

}  // namespace
}  // namespace nhwc

int64_t leaky_norm_backward_workspace(const LeakyNorm& a, const Launch& l) {
  return nhwc::workspace_for(a, l, 2);
}

void leaky_norm_backward(const LeakyNorm& a, void* workspace, const Launch& l) {
  const auto kernel = [](auto d) -> nhwc::NormKernel { return nhwc::backward<decltype(d)::value>; };
  nhwc::run_stages(with_dtype(a.x.dtype, kernel), a, workspace, l);
}

}  // namespace cuda
}  // namespace hida
