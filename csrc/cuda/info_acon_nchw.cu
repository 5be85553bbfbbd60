// info_acon of planes in one piece and one dtype (nchw.h): what info_acon.cu does, for the usual case.
// Traffic: 3n forward (read x, logits; write y; 2n with one switch a plane), 5n backward (read grad, x, logits; write
// dx, dlogits). A thread has all its operands on their way before anything is computed, of two packs of eight pixels
// forward and of one backward. Backward, the blocks of a plane are a cluster, for its sums towards p1, p2 and the
// logits: no second kernel. Share of the floor: not measured.
#include "nchw.h"

namespace hida {
namespace cuda {
namespace nchw {
namespace {

struct Activation {
  Task task;
  Piece y, grad, dx, dlogits;
  float* sums[3] = {};  // towards p1, p2 and the logits, or null
  bool wants_sums = false;
};

template <Dtype D, Switches S, int P>
__global__ void __launch_bounds__(kThreads, 2) forward(const __grid_constant__ Activation a) {
  const Task& t = a.task;
  const Seat s(t, P);
  Eight<D> x[P], logits[P];
#pragma unroll
  for (int p = 0; p < P; ++p) {
    if (!s.has(p)) continue;
    const unsigned pack = s.first + unsigned(p) * s.step;
    x[p] = Eight<D>(place<D>(t.x, s.n, s.c, pack), 0);
    if (S == Switches::whole) logits[p] = Eight<D>(place<D>(t.logits, s.n, s.c, pack), 0);
  }
  const Slopes<D, S> slopes(t, s);
#pragma unroll
  for (int p = 0; p < P; ++p) {
    float v[8], theta[8];
    x[p].unpack(v);
    logits[p].unpack(theta);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      theta[k] = S == Switches::whole ? theta_of<D>(theta[k]) : slopes.theta;
      const float linear = slopes.slope * v[k];
      v[k] = linear * gate_of<D>(slopes.turn * v[k] * theta[k]) + slopes.base * v[k];
    }
    if (s.has(p)) Eight<D>::narrowed(v).store(place<D>(a.y, s.n, s.c, s.first + unsigned(p) * s.step));
  }
}

template <Dtype D, Switches S, int P>
__global__ void __launch_bounds__(kThreads, 2) backward(const __grid_constant__ Activation a) {
  const Task& t = a.task;
  if (a.wants_sums) begin(t);
  const Seat s(t, P);
  Eight<D> x[P], logits[P], grad[P];
#pragma unroll
  for (int p = 0; p < P; ++p) {
    if (!s.has(p)) continue;
    const unsigned pack = s.first + unsigned(p) * s.step;
    x[p] = Eight<D>(place<D>(t.x, s.n, s.c, pack), 0);
    if (S == Switches::whole) logits[p] = Eight<D>(place<D>(t.logits, s.n, s.c, pack), 0);
    grad[p] = Eight<D>(place<D>(a.grad, s.n, s.c, pack), 0);
  }
  const Slopes<D, S> slopes(t, s);
  float to_p1 = 0, to_p2 = 0, to_logits = 0;  // a thread has zeros where it has no pixels
  Eight<D> dx[P], dlogits[P];
#pragma unroll
  for (int p = 0; p < P; ++p) {
    float v[8], g[8], theta[8];
    x[p].unpack(v);
    grad[p].unpack(g);
    logits[p].unpack(theta);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      theta[k] = S == Switches::whole ? theta_of<D>(theta[k]) : slopes.theta;
      const Bend<D> bend(slopes.slope, slopes.turn, theta[k], v[k]);
      const float both = g[k] * v[k];
      to_p1 += both * bend.q;
      to_p2 += both - both * bend.q;
      theta[k] = g[k] * bend.tilt;
      if (S == Switches::plane) to_logits += theta[k];
      v[k] = g[k] * (slopes.slope * bend.q + slopes.base);
    }
    dx[p] = Eight<D>::narrowed(v);
    dlogits[p] = Eight<D>::narrowed(theta);
  }
  const auto write = [&] {
#pragma unroll
    for (int p = 0; p < P; ++p) {
      if (!s.has(p)) continue;
      const unsigned pack = s.first + unsigned(p) * s.step;
      if (a.dx.data != nullptr) dx[p].store(place<D>(a.dx, s.n, s.c, pack));
      if (S == Switches::whole && a.dlogits.data != nullptr) dlogits[p].store(place<D>(a.dlogits, s.n, s.c, pack));
    }
  };
  if (!a.wants_sums) return write();
  if (t.cluster > 1) cluster_wait();  // all blocks have begun
  add_late(t, s, to_p1, to_p2, to_logits, a.sums, write);
}

// ---- which kernel -----------------------------------------------------------------------------------------------

bool activation_of(const Acon& a, bool back, const Launch& l, Activation& act, Plan& plan) {
  const Extent& e = a.planes.extent;
  const Dtype dtype = a.x.dtype;
  Adapt same;
  same.planes = a.planes;
  same.activate = true;
  same.x = a.x, same.logits = a.logits, same.p1 = a.p1, same.p2 = a.p2;
  if (back && widens(a.logits, dtype, e)) return false;
  if (!task_of(same, act.task) || !piece_of(a.y, dtype, e, act.y) || !piece_of(a.grad, dtype, e, act.grad) ||
      !piece_of(a.dx, dtype, e, act.dx) || !piece_of(a.dlogits, dtype, e, act.dlogits))
    return false;
  void* const sums[3] = {a.dp1, a.dp2, a.dlogits_sum};
  for (int i = 0; i < 3; ++i) act.sums[i] = static_cast<float*>(sums[i]), act.wants_sums |= sums[i] != nullptr;
  const unsigned packs = back || dtype == Dtype::f32 || act.task.packs <= unsigned(kWarp) ? 1 : 2;
  // Whatever gradients are wanted, so that their bits do not depend on that.
  const bool small = !back || (l.cluster > 1 && act.task.packs <= kThreads / 2 * 8);
  return plan_of(e, l, small ? kThreads / 2 : kThreads, packs, back ? l.cluster : 1 << 20, act.task, plan);
}

template <Dtype D, int P>
void run(const Acon& a, bool back, const Activation& act, const Plan& plan, const Launch& l) {
  const bool uniform = a.logits.row == 0 && a.logits.step == 0;
  if (back)
    start(uniform ? backward<D, Switches::plane, 1> : backward<D, Switches::whole, 1>, act, plan, l, act.wants_sums);
  else
    start(uniform ? forward<D, Switches::plane, P> : forward<D, Switches::whole, P>, act, plan, l, false);
}

bool run(const Acon& a, bool back, const Launch& l) {
  Activation act;
  Plan plan;
  if (!activation_of(a, back, l, act, plan)) return false;
  with_dtype(a.x.dtype, [&](auto d) {
    constexpr Dtype D = decltype(d)::value;
    constexpr int kMore = D == Dtype::f32 ? 1 : 2;
    act.task.packs <= unsigned(kWarp) ? run<D, 1>(a, back, act, plan, l) : run<D, kMore>(a, back, act, plan, l);
  });
  return true;
}

}  // namespace

bool info_acon(const Acon& a, const Launch& l) {
  return run(a, false, l);
}
bool takes_acon_backward(const Acon& a, const Launch& l) {
  Activation act;
  Plan plan;
  return activation_of(a, true, l, act, plan);
}
bool info_acon_backward(const Acon& a, const Launch& l) {
  return run(a, true, l);
}

}  // namespace nchw
}  // namespace cuda
}  // namespace hida
