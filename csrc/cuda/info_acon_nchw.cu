// info_acon of contiguous planes of one dtype (nchw.h): what info_acon.cu does, for the usual case.
// Traffic: 3n forward (read x, logits; write y; 2n with one θ per plane), 5n backward (read grad, x, logits; write
// dx, dlogits). A thread has all its operands in flight before anything is computed, of two packs of eight pixels
// forward and of one backward. Backward, the blocks of a plane are a cluster, for its sums towards p1, p2 and the
// logits: no second kernel. Share of the floor: not measured.
#include "nchw_rounds.h"

namespace hida {
namespace cuda {
namespace nchw {
namespace {

struct AconArguments {
  Task task;
  PackedImage y, grad, dx, dlogits;
  float* sums[3] = {};  // towards p1, p2 and the logits, or null
  bool wants_sums = false;
};

template <Dtype D, Logits L, int P>
__global__ void __launch_bounds__(kPlaneThreads, 2) forward(const __grid_constant__ AconArguments a) {
  const Task& t = a.task;
  const ThreadWork s(t, P);
  Eight<D> x[P], logits[P];
#pragma unroll
  for (int p = 0; p < P; ++p) {
    if (!s.has(p)) continue;
    const unsigned pack = s.pack(p);
    x[p] = Eight<D>(address<D>(t.x, s.n, s.c, pack), 0);
    if (L == Logits::whole) logits[p] = Eight<D>(address<D>(t.logits, s.n, s.c, pack), 0);
  }
  const Slopes<D, L> slopes(t, s);
#pragma unroll
  for (int p = 0; p < P; ++p) {
    float v[8], theta[8];
    x[p].unpack(v);
    logits[p].unpack(theta);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      theta[k] = L == Logits::whole ? theta_of<D>(theta[k]) : slopes.theta;
      const float linear = slopes.slope * v[k];
      v[k] = linear * gate_of<D>(slopes.turn * v[k] * theta[k]) + slopes.base * v[k];
    }
    if (s.has(p)) Eight<D>::narrowed(v).store(address<D>(a.y, s.n, s.c, s.pack(p)));
  }
}

template <Dtype D, Logits L, int P>
__global__ void __launch_bounds__(kPlaneThreads, 2) backward(const __grid_constant__ AconArguments a) {
  const Task& t = a.task;
  const ThreadWork s(t, P);
  const Exchange sums(t, s.rank);
  Eight<D> x[P], logits[P], grad[P];
#pragma unroll
  for (int p = 0; p < P; ++p) {
    if (!s.has(p)) continue;
    const unsigned pack = s.pack(p);
    x[p] = Eight<D>(address<D>(t.x, s.n, s.c, pack), 0);
    if (L == Logits::whole) logits[p] = Eight<D>(address<D>(t.logits, s.n, s.c, pack), 0);
    grad[p] = Eight<D>(address<D>(a.grad, s.n, s.c, pack), 0);
  }
  if (a.wants_sums) begin(t);
  const Slopes<D, L> slopes(t, s);
  float to_p1 = 0, to_both = 0, to_logits = 0;  // a thread has zeros where it has no pixels
  Eight<D> dx[P], dlogits[P];
#pragma unroll
  for (int p = 0; p < P; ++p) {
    float v[8], g[8], theta[8];
    x[p].unpack(v);
    grad[p].unpack(g);
    logits[p].unpack(theta);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      theta[k] = L == Logits::whole ? theta_of<D>(theta[k]) : slopes.theta;
      const Bend<D> bend(slopes.slope * v[k], theta[k]);
      const float both = g[k] * v[k];
      to_p1 += both * bend.q;
      to_both += both;
      theta[k] = g[k] * bend.tilt;
      if (L == Logits::plane) to_logits += theta[k];
      v[k] = g[k] * (slopes.slope * bend.q + slopes.base);
    }
    dx[p] = Eight<D>::narrowed(v);
    dlogits[p] = Eight<D>::narrowed(theta);
  }
  const auto write = [&] {
#pragma unroll
    for (int p = 0; p < P; ++p) {
      if (!s.has(p)) continue;
      const unsigned pack = s.pack(p);
      if (a.dx.data != nullptr) dx[p].store(address<D>(a.dx, s.n, s.c, pack));
      if (L == Logits::whole && a.dlogits.data != nullptr) dlogits[p].store(address<D>(a.dlogits, s.n, s.c, pack));
    }
  };
  if (!a.wants_sums) return write();
  if (alone(t)) {
    write();
    return store_lanes(t, s, to_p1, to_both - to_p1, to_logits, a.sums);
  }
  sums.ready();
  sums.send_late(0, to_p1, to_both - to_p1, to_logits);
  write();
  sums.wait(1, false, true);
  sums.store_late(1, a.sums, s.sum(t));
}

// ---- which kernel -----------------------------------------------------------------------------------------------

bool arguments_of(const InfoAcon& a, bool back, const Launch& l, AconArguments& args, LaunchSize& size) {
  const Extent& e = a.planes.extent;
  const Dtype dtype = a.x.dtype;
  Adapt same;
  same.planes = a.planes;
  same.activate = true;
  same.x = a.x, same.logits = a.logits, same.p1 = a.p1, same.p2 = a.p2;
  if (back && widens(a.logits, dtype, e)) return false;
  if (!task_of(same, args.task) || !packed_of(a.y, dtype, e, args.y) || !packed_of(a.grad, dtype, e, args.grad) ||
      !packed_of(a.dx, dtype, e, args.dx) || !packed_of(a.dlogits, dtype, e, args.dlogits))
    return false;
  void* const sums[3] = {a.dp1, a.dp2, a.dlogits_sum};
  for (int i = 0; i < 3; ++i) args.sums[i] = static_cast<float*>(sums[i]), args.wants_sums |= sums[i] != nullptr;
  const unsigned packs = back || dtype == Dtype::f32 || args.task.packs <= unsigned(kWarp) ? 1 : 2;
  // Whatever gradients are wanted, so that their bits do not depend on that.
  const bool small = !back || (l.cluster > 1 && args.task.packs <= kPlaneThreads / 2 * 8);
  return size_launch(e, l, small ? kPlaneThreads / 2 : kPlaneThreads, packs, back ? l.cluster : 1 << 20, args.task,
                     size);
}

template <Dtype D, int P>
void run(const InfoAcon& a, bool back, const AconArguments& args, const LaunchSize& size, const Launch& l) {
  const bool uniform = a.logits.row == 0 && a.logits.step == 0;
  if (back)
    start(uniform ? backward<D, Logits::plane, 1> : backward<D, Logits::whole, 1>, args, size, l, args.wants_sums);
  else
    start(uniform ? forward<D, Logits::plane, P> : forward<D, Logits::whole, P>, args, size, l, false);
}

bool run(const InfoAcon& a, bool back, const Launch& l) {
  AconArguments args;
  LaunchSize size;
  if (!arguments_of(a, back, l, args, size)) return false;
  with_dtype(a.x.dtype, [&](auto d) {
    constexpr Dtype D = decltype(d)::value;
    constexpr int kMore = D == Dtype::f32 ? 1 : 2;
    args.task.packs <= unsigned(kWarp) ? run<D, 1>(a, back, args, size, l) : run<D, kMore>(a, back, args, size, l);
  });
  return true;
}

}  // namespace

bool info_acon(const InfoAcon& a, const Launch& l) {
  return run(a, false, l);
}
bool takes_acon_backward(const InfoAcon& a, const Launch& l) {
  AconArguments args;
  LaunchSize size;
  return arguments_of(a, true, l, args, size);
}
bool info_acon_backward(const InfoAcon& a, const Launch& l) {
  return run(a, true, l);
}

}  // namespace nchw
}  // namespace cuda
}  // namespace hida
