// ida and instance_norm_modulate, backward, of contiguous planes of one dtype (nchw.h): what ida_backward.cu does,
// for the usual case. Traffic: 7n (read grad, x, logits, γ; write dx, dlogits, dγ). All operands are in flight before
// anything is computed, two packs of eight pixels of each per thread. Between the two sweeps a thread keeps what came
// from memory as it came, and x̂ and the slopes of the activation: 64 registers per pack of 16-bit numbers, so that
// 1024 packs are on a multiprocessor. float32, and planes of a warp, one pack per thread.
//   The first sum of a plane, of d and d·x̂, is every warp's; the second one, towards p1, p2 and the logits, is one
// warp's alone, and what goes to memory is stored while it is on its way.
// About 62 instructions per element. Share of the floor (ida, bfloat16, 16 images on an H100): 64 channels of 128×128
// 67 %, 128 of 64×64 65 %; instance_norm_modulate: not measured.
#include "nchw.h"

namespace hida {
namespace cuda {
namespace nchw {
namespace {

struct Backward {
  Task task;
  PackedImage grad, dx, dlogits, dgamma;
  const float *mean = nullptr, *rstd = nullptr;
  float* sums[3] = {};                     // towards p1, p2 and the logits, or null
  bool joins = false, joins_late = false;  // the residual was f, or x: grad is a part of df, or of dx
  bool wants_sums = false;
};

// Makes the compiler take a pack as unknown: it is unpacked again where it is needed again, and takes half the
// registers.
template <Dtype D>
HIDA_DEVICE void forget(Eight<D>& pack) {
#if defined(__CUDA_ARCH__)
  if constexpr (D != Dtype::f32)
    asm volatile("" : "+r"(pack.words.x), "+r"(pack.words.y), "+r"(pack.words.z), "+r"(pack.words.w));
#else
  (void)pack;
#endif
}

// d and d·x̂ over a plane: every thread of it gets both.
HIDA_DEVICE void add_both(const Task& t, const ThreadWork& s, float& one, float& two) {
  if (alone(t)) {
    float both[2] = {one, two};
    add_lanes(t, both);
    one = both[0], two = both[1];
    return;
  }
  const unsigned warps = warps_of_plane(t), lane = threadIdx.x & 31u, half = lane >> 4, to = lane & 15u;
  float* const all = room<5>() + half * warps;
  float* const mine = all + warp_of_plane(s);
  float v = add_halves(one, two);
  if (t.cluster == 1) {
    if (to == 0) *mine = v;
    __syncthreads();
  } else {
    cluster_wait();  // all blocks have begun
    if (to < t.cluster) cluster_write(mine, to, v);
    __syncwarp();
    cluster_arrive();
    cluster_wait();
  }
  v = 0;
#pragma unroll 1
  for (unsigned i = to; i < warps; i += 16) v += all[i];
#pragma unroll
  for (int bit = 8; bit > 0; bit /= 2) v += __shfl_xor_sync(kAll, v, bit);
  one = __shfl_sync(kAll, v, 0);
  two = __shfl_sync(kAll, v, 16);
}

// Two blocks of 512 threads with one pack of 16-bit numbers share a multiprocessor, or two of 256 with two packs.
template <Dtype D, Logits L, int P>
__global__ void __launch_bounds__(kPlaneThreads, D == Dtype::f32 ? 1 : 3 - P)
    backward(const __grid_constant__ Backward a) {
  const Task& t = a.task;
  begin(t);
  const ThreadWork s(t, P);
  Eight<D> x[P], logits[P], gamma[P], grad[P];
#pragma unroll
  for (int p = 0; p < P; ++p) {
    if (!s.has(p)) continue;
    const unsigned pack = s.first + unsigned(p) * s.step;
    x[p] = Eight<D>(address<D>(t.x, s.n, s.c, pack), 0);
    if (L == Logits::whole) logits[p] = Eight<D>(address<D>(t.logits, s.n, s.c, pack), 0);
    gamma[p] = Eight<D>(address<D>(t.gamma, s.n, s.c, pack), 0);
    grad[p] = Eight<D>(address<D>(a.grad, s.n, s.c, pack), 0);
  }
  const Slopes<D, L> slopes(t, s);
  float mean = 0, rstd = 0;
  if (s.end > 0) mean = a.mean[s.sum(t)], rstd = a.rstd[s.sum(t)];

  float normal[P][8], q[P][8], tilt[P][8], mean_d = 0, mean_dx = 0;
#pragma unroll
  for (int p = 0; p < P; ++p) {
    float v[8], g[8], theta[8];
    x[p].unpack(v);
    logits[p].unpack(theta);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      if (L == Logits::none) {
        normal[p][k] = v[k], q[p][k] = tilt[p][k] = 0;
      } else {
        theta[k] = L == Logits::whole ? theta_of<D>(theta[k]) : slopes.theta;
        const Bend<D> bend(slopes.slope * v[k], theta[k]);
        normal[p][k] = v[k] * (slopes.slope * bend.gate + slopes.base);
        q[p][k] = bend.q;
        tilt[p][k] = bend.tilt;
      }
      normal[p][k] = (normal[p][k] - mean) * rstd;
    }
    gamma[p].unpack(v);
    grad[p].unpack(g);
#pragma unroll
    for (int k = 0; k < 8; ++k) {  // zeros where a thread has no pixels
      const float d = g[k] * v[k] + g[k];
      mean_d += d;
      mean_dx += d * normal[p][k];
    }
    forget(x[p]);
    forget(gamma[p]);
    forget(grad[p]);
  }
  add_both(t, s, mean_d, mean_dx);

  const float level = mean_d * t.share * rstd, lean = mean_dx * t.share * rstd;
  float to_p1 = 0, to_both = 0, to_logits = 0;  // zeros where a thread has no pixels, for there x is 0
  Eight<D> dx[P], dlogits[P], dgamma[P];
#pragma unroll
  for (int p = 0; p < P; ++p) {
    float v[8], g[8], d[8];
    gamma[p].unpack(v);
    grad[p].unpack(g);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      d[k] = (g[k] * v[k] + g[k]) * rstd - level - normal[p][k] * lean;
      normal[p][k] *= g[k];
    }
    dgamma[p] = Eight<D>::narrowed(normal[p]);
    if (a.joins) {
#pragma unroll
      for (int k = 0; k < 8; ++k) d[k] += g[k];
    }
    if (L != Logits::none) {
      x[p].unpack(v);
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        tilt[p][k] *= d[k];
        const float both = d[k] * v[k];
        to_p1 += both * q[p][k];
        to_both += both;
        if (L == Logits::plane) to_logits += tilt[p][k];
        d[k] *= slopes.slope * q[p][k] + slopes.base;
      }
      dlogits[p] = Eight<D>::narrowed(tilt[p]);
      if (a.joins_late) {
#pragma unroll
        for (int k = 0; k < 8; ++k) d[k] += g[k];
      }
    }
    dx[p] = Eight<D>::narrowed(d);
  }

  const auto write = [&] {
#pragma unroll
    for (int p = 0; p < P; ++p) {
      if (!s.has(p)) continue;
      const unsigned pack = s.first + unsigned(p) * s.step;
      if (a.dx.data != nullptr) dx[p].store(address<D>(a.dx, s.n, s.c, pack));
      if (L == Logits::whole && a.dlogits.data != nullptr) dlogits[p].store(address<D>(a.dlogits, s.n, s.c, pack));
      if (a.dgamma.data != nullptr) dgamma[p].store(address<D>(a.dgamma, s.n, s.c, pack));
    }
  };
  if (L == Logits::none || !a.wants_sums) return write();
  add_late(t, s, to_p1, to_both - to_p1, to_logits, a.sums, write);
}

// ---- which kernel -----------------------------------------------------------------------------------------------

bool backward_of(const Adapt& a, const Launch& l, Backward& b, LaunchSize& size, int& packs) {
  const Extent& e = a.planes.extent;
  const Dtype dtype = a.x.dtype;
  if (a.activate && widens(a.logits, dtype, e)) return false;
  if (!task_of(a, b.task) || !packed_of(a.grad, dtype, e, b.grad) || !packed_of(a.dx, dtype, e, b.dx) ||
      !packed_of(a.dlogits, dtype, e, b.dlogits) || !packed_of(a.dgamma, dtype, e, b.dgamma))
    return false;
  b.mean = static_cast<const float*>(a.mean);
  b.rstd = static_cast<const float*>(a.rstd);
  void* const sums[3] = {a.dp1, a.dp2, a.dlogits_sum};
  for (int i = 0; i < 3; ++i) b.sums[i] = static_cast<float*>(sums[i]), b.wants_sums |= sums[i] != nullptr;
  b.joins = a.residual == Residual::activated;
  b.joins_late = a.grad_to_x;
  // As forward. float32 takes more registers: one pack, in smaller blocks, where clusters make up for that.
  const unsigned whole = b.task.packs, largest = kPlaneThreads * 8;  // packs of a plane, with one per thread
  packs = dtype != Dtype::f32 && whole > unsigned(kWarp) ? 2 : 1;
  const bool smaller = dtype == Dtype::f32 ? l.cluster > 1 && whole <= largest / 2 : packs == 2 && whole <= largest;
  return size_launch(e, l, smaller ? kPlaneThreads / 2 : kPlaneThreads, unsigned(packs), l.cluster, b.task, size);
}

template <Dtype D, int P>
void run(const Adapt& a, const Backward& b, const LaunchSize& size, const Launch& l) {
  const bool uniform = a.logits.row == 0 && a.logits.step == 0;
  start(!a.activate ? backward<D, Logits::none, P>
        : uniform   ? backward<D, Logits::plane, P>
                    : backward<D, Logits::whole, P>,
        b, size, l);
}

}  // namespace

bool takes_adapt_backward(const Adapt& a, const Launch& l) {
  Backward b;
  LaunchSize size;
  int packs;
  return backward_of(a, l, b, size, packs);
}

bool adapt_backward(const Adapt& a, const Launch& l) {
  Backward b;
  LaunchSize size;
  int packs;
  if (!backward_of(a, l, b, size, packs)) return false;
  with_dtype(a.x.dtype, [&](auto d) {
    constexpr Dtype D = decltype(d)::value;
    constexpr int kMore = D == Dtype::f32 ? 1 : 2;
    packs == 1 ? run<D, 1>(a, b, size, l) : run<D, kMore>(a, b, size, l);
  });
  return true;
}

}  // namespace nchw
}  // namespace cuda
}  // namespace hida
