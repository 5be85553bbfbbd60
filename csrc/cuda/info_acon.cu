// info_acon: y = (p1 − p2)·x·σ(θ·(p1 − p2)·x) + p2·x, θ = σ(logits).
// Traffic: 3n forward (read x, logits; write y; 2n with one θ per plane), 5n backward (read grad, x, logits; write
// dx, dlogits). Blocks take chunks of planes, so that p1 and p2 are constants of a thread; a thread has two packs of
// eight elements in flight at a time forward, one of three operands backward. Sums over planes: lanes, then warps,
// then chunks (a second, tiny kernel), always in the same order; no atomics.
// Share of the floor: not measured.
#include "activation.h"
#include "nchw.h"
#include "nhwc.h"

namespace hida {
namespace cuda {
namespace {

constexpr int kAconThreads = 256;

template <class Real, bool Vector>
__global__ void __launch_bounds__(kAconThreads, Vector ? 3 : 2)
    forward(const __grid_constant__ InfoAcon a, const __grid_constant__ Map m) {
  const Extent& e = a.planes.extent;
  const ThreadWork s(e, m);
  const Activation<Real, Vector> plane(a.logits, a.p1, a.p2, e, s);
  const Plane x(a.x, e, s.n, s.c), y(a.y, e, s.n, s.c);
  const auto finish = [&](const Pack<Real, Vector>& x_pack, const Pack<Real, Vector>& logits,
                          const Pixels<Real, Vector>& pixels) {
    Real v[kPack<Real>], theta[kPack<Real>];
    x_pack.unpack(x.dtype, v);
    plane.theta(logits, theta);
#pragma unroll
    for (int k = 0; k < kPack<Real>; ++k) v[k] = acon<Elementary>(v[k], theta[k], plane.slope, plane.base);
    write_pack(y, pixels, v);
  };
  const int64_t step = int64_t(s.lanes) * kPack<Real>;
  for (int64_t first = s.begin; first < s.end; first += 2 * step) {
    const Pixels<Real, Vector> one(first, s.end, s.lane, s.lanes), two(first + step, s.end, s.lane, s.lanes);
    const Pack<Real, Vector> x_one(x, one), x_two(x, two), logits_one = plane.load(one), logits_two = plane.load(two);
    finish(x_one, logits_one, one);
    finish(x_two, logits_two, two);
  }
}

template <class Real, bool Vector>
__global__ void __launch_bounds__(kAconThreads, Vector ? 3 : 2)
    backward(const __grid_constant__ InfoAcon a, const __grid_constant__ Map m, Real* partial) {
  const Extent& e = a.planes.extent;
  const ThreadWork s(e, m);
  const Activation<Real, Vector> plane(a.logits, a.p1, a.p2, e, s);
  const Plane x(a.x, e, s.n, s.c), grad(a.grad, e, s.n, s.c), dx(a.dx, e, s.n, s.c), dlogits(a.dlogits, e, s.n, s.c);
  Real sums[3] = {0, 0, 0};  // towards p1, p2, logits
  const int64_t step = int64_t(s.lanes) * kPack<Real>;
  for (int64_t first = s.begin; first < s.end; first += step) {
    const Pixels<Real, Vector> pixels(first, s.end, s.lane, s.lanes);
    const Pack<Real, Vector> x_pack(x, pixels), grad_pack(grad, pixels), logits = plane.load(pixels);
    Real to_x[kPack<Real>], to_logits[kPack<Real>], theta[kPack<Real>];
    x_pack.unpack(x.dtype, to_x);
    grad_pack.unpack(grad.dtype, to_logits);
    plane.theta(logits, theta);
#pragma unroll
    for (int k = 0; k < kPack<Real>; ++k) {
      const Real v = to_x[k], g = to_logits[k];  // zeros where the thread has nothing: they add nothing
      const AconSlopes<Real> slopes = acon_slopes<Elementary>(v, theta[k], plane.slope, plane.base);
      to_x[k] = g * (plane.slope * slopes.q + plane.base);
      to_logits[k] = g * slopes.tilt;
      sums[0] += g * v * slopes.q;
      sums[1] += g * v * (1 - slopes.q);
      sums[2] += to_logits[k];
    }
    if (dx.present()) write_pack(dx, pixels, to_x);
    if (dlogits.present()) write_pack(dlogits, pixels, to_logits);
  }
  if (a.dp1 == nullptr && a.dp2 == nullptr && a.dlogits_sum == nullptr) return;
  add_up<3, Vector>(sums, m);
  if (!s.leads()) return;
  void* const targets[3] = {a.dp1, a.dp2, a.dlogits_sum};
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    if (targets[i] == nullptr) continue;
    if (partial != nullptr)
      partial[int64_t(i) * e.n * e.c * m.chunks + s.partial(m)] = sums[i];
    else
      static_cast<Real*>(targets[i])[s.sum] = sums[i];
  }
}

bool packable(const InfoAcon& a) {
  return all_packable(a.planes.extent, a.logits, {&a.x, &a.y, &a.grad, &a.dx, &a.dlogits});
}

Map map_acon(const InfoAcon& a, const Launch& l) {
  const Extent& e = a.planes.extent;
  const bool channels_last = is_channels_last(a.x, e);
  // A thousand elements and more a thread are no use; fewer than two packs only where there is little to do at all.
  const int64_t enough = chunks_for(e, channels_last, l, 16), large = (e.pixels() + 32767) / 32768;
  return map_of(a.planes, channels_last, kAconThreads, 2, enough > large ? enough : large);
}

}  // namespace

void info_acon(const InfoAcon& a, const Launch& l) {
  if (nchw::info_acon(a, l)) return;
  if (nhwc::takes(a)) return nhwc::info_acon(a, l);
  const Map m = map_acon(a, l);
  const auto kernel = a.planes.wide                     ? forward<double, false>
                      : packable(a) && !m.channels_last ? forward<float, true>
                                                        : forward<float, false>;
  launch(kernel, grid_of(m.blocks), dim3(unsigned(m.threads())), 0, l, a, m);
}

int64_t info_acon_backward_workspace(const InfoAcon& a, const Launch& l) {
  if (nchw::takes_acon_backward(a, l)) return 0;
  if (nhwc::takes(a)) return nhwc::info_acon_backward_workspace(a, l);
  const Map m = map_acon(a, l);
  const bool sums = a.dp1 != nullptr || a.dp2 != nullptr || a.dlogits_sum != nullptr;
  return sums && m.chunks > 1 ? 3 * a.planes.extent.n * a.planes.extent.c * m.chunks : 0;
}

void info_acon_backward(const InfoAcon& a, void* workspace, const Launch& l) {
  if (nchw::info_acon_backward(a, l)) return;
  if (nhwc::takes(a)) return nhwc::info_acon_backward(a, workspace, l);
  const Map m = map_acon(a, l);
  const dim3 grid = grid_of(m.blocks), block(unsigned(m.threads()));
  if (a.planes.wide)
    launch(backward<double, false>, grid, block, 0, l, a, m, static_cast<double*>(workspace));
  else
    launch(packable(a) && !m.channels_last ? backward<float, true> : backward<float, false>, grid, block, 0, l, a, m,
           static_cast<float*>(workspace));
  if (workspace == nullptr) return;
  add_chunks({workspace, {a.dp1, a.dp2, a.dlogits_sum}, a.planes.extent.n * a.planes.extent.c, m.chunks, a.planes.wide},
             l);
}

}  // namespace cuda
}  // namespace hida
