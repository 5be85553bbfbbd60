// info_acon in the usual channels_last case (nhwc.h). The formulas: info_acon.cu.
// Traffic: 3n forward (read x, logits; write y; 2n with one θ per plane), 5n backward (read grad, x, logits; write
// dx, dlogits; 3n with one θ per plane). Sums towards p1, p2 and one θ per plane: of a thread's pixels, of a
// block's lanes, then of a plane's chunks by reduce.cu; always in the same order.
// Share of the floor: not measured.
#include "nhwc.h"

namespace hida {
namespace cuda {
namespace nhwc {
namespace {

// Pixels that a thread has in flight at a time.
template <Dtype D>
constexpr unsigned kForward = D == Dtype::f32 ? 2 : 4;
template <Dtype D>
constexpr unsigned kBackward = D == Dtype::f32 ? 1 : 2;

template <Dtype D, Logits L>
__global__ void __launch_bounds__(kMost / 2, 3)
    forward(const __grid_constant__ InfoAcon a, const __grid_constant__ Tiling m) {
  constexpr unsigned kPixels = kForward<D>;
  const ThreadWork p(m);
  const View<D> x(a.x, p), logits(a.logits, p), y(a.y, p);
  const Slopes<D, L> slopes(a.logits, a.p1, a.p2, p);
  for (unsigned pixel = p.first; p.has(pixel); pixel += kPixels * p.lanes) {
    Eight<D> x_packs[kPixels], packs[kPixels];
#pragma unroll
    for (unsigned u = 0; u < kPixels; ++u) {
      const unsigned at = p.has(pixel + u * p.lanes) ? pixel + u * p.lanes : pixel;
      x_packs[u] = x.read(at);
      if (L == Logits::whole) packs[u] = logits.read(at);
    }
#pragma unroll
    for (unsigned u = 0; u < kPixels; ++u) {
      if (!p.has(pixel + u * p.lanes)) break;
      float f[8];
      slopes.value(x_packs[u], packs[u], f);
      y.write(pixel + u * p.lanes, f);
    }
  }
}

// partial: (3, N, C, chunks), or null: then a plane is one chunk.
template <Dtype D, Logits L>
__global__ void __launch_bounds__(kMost, 1)
    backward(const __grid_constant__ InfoAcon a, const __grid_constant__ Tiling m, float* partial) {
  constexpr unsigned kPixels = kBackward<D>;
  HIDA_DYNAMIC_SHARED(float, memory);
  const ThreadWork p(m);
  const View<D> x(a.x, p), logits(a.logits, p), grad(a.grad, p), dx(a.dx, p), dlogits(a.dlogits, p);
  const Slopes<D, L> slopes(a.logits, a.p1, a.p2, p);
  float sums[3][8] = {};
  for (unsigned pixel = p.first; p.has(pixel); pixel += kPixels * p.lanes) {
    Eight<D> x_packs[kPixels], grads[kPixels], packs[kPixels];
#pragma unroll
    for (unsigned u = 0; u < kPixels; ++u) {
      const unsigned at = p.has(pixel + u * p.lanes) ? pixel + u * p.lanes : pixel;
      x_packs[u] = x.read(at);
      grads[u] = grad.read(at);
      if (L == Logits::whole) packs[u] = logits.read(at);
    }
#pragma unroll
    for (unsigned u = 0; u < kPixels; ++u) {
      if (!p.has(pixel + u * p.lanes)) break;
      float v[8], g[8], theta[8];
      x_packs[u].unpack(v);
      grads[u].unpack(g);
      slopes.theta(packs[u], theta);
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const AconSlopes<float> here =
            acon_slopes<typename Functions<D>::Bounded>(v[k], theta[k], slopes.slope[k], slopes.base[k]);
        const float weight = g[k] * v[k];
        sums[0][k] += weight * here.q;
        sums[1][k] += weight * (1 - here.q);
        v[k] = g[k] * (slopes.slope[k] * here.q + slopes.base[k]);
        theta[k] = g[k] * here.tilt;
        if (L == Logits::plane) sums[2][k] += theta[k];
      }
      if (dx.present()) dx.write(pixel + u * p.lanes, v);
      if (L == Logits::whole && dlogits.present()) dlogits.write(pixel + u * p.lanes, theta);
    }
  }
  const Shared s(memory, m);
  void* const targets[3] = {a.dp1, a.dp2, a.dlogits_sum};
#pragma unroll
  for (int i = 0; i < (L == Logits::plane ? 3 : 2); ++i) {
    if (targets[i] == nullptr) continue;
    float* const to =
        partial == nullptr ? nullptr : partial + i * a.planes.extent.n * a.planes.extent.c * int64_t(m.chunks);
    add_lanes(sums[i], m, s, [&](unsigned c, float sum) { write_sum(targets[i], to, m, p, c, sum); });
  }
}

template <Dtype D>
auto forward_for(Logits logits) {
  return logits == Logits::plane ? forward<D, Logits::plane> : forward<D, Logits::whole>;
}
template <Dtype D>
auto backward_for(Logits logits) {
  return logits == Logits::plane ? backward<D, Logits::plane> : backward<D, Logits::whole>;
}

// Backward, planes of few pixels are one chunk, so that there are no chunks to add up.
Tiling tiling_for_backward(const InfoAcon& a, const Launch& l) {
  const Extent& e = a.planes.extent;
  return e.pixels() <= kWholePixels ? whole_planes(e, l) : chunked(e, l);
}

}  // namespace

void info_acon(const InfoAcon& a, const Launch& l) {
  const Tiling m = chunked(a.planes.extent, l);
  const Logits logits = kind_of(a.logits);
  run(with_dtype(a.x.dtype, [&](auto d) { return forward_for<decltype(d)::value>(logits); }), m, 0, l, a, m);
}

int64_t info_acon_backward_workspace(const InfoAcon& a, const Launch& l) {
  const Tiling m = tiling_for_backward(a, l);
  const bool sums = a.dp1 != nullptr || a.dp2 != nullptr || a.dlogits_sum != nullptr;
  return sums && m.chunks > 1 ? 3 * a.planes.extent.n * a.planes.extent.c * m.chunks : 0;
}

void info_acon_backward(const InfoAcon& a, void* workspace, const Launch& l) {
  const Tiling m = tiling_for_backward(a, l);
  const Logits logits = kind_of(a.logits);
  float* const partial = static_cast<float*>(workspace);
  run(with_dtype(a.x.dtype, [&](auto d) { return backward_for<decltype(d)::value>(logits); }), m, shared_of(m), l, a, m,
      partial);
  if (partial == nullptr) return;
  add_chunks({partial, {a.dp1, a.dp2, a.dlogits_sum}, a.planes.extent.n * a.planes.extent.c, int(m.chunks), false}, l);
}

}  // namespace nhwc
}  // namespace cuda
}  // namespace hida
