// ida and instance_norm_modulate, backward, of contiguous planes of one dtype (nchw.h): what ida_backward.cu does,
// for the usual case. Traffic: 7n (read grad, x, logits, γ; write dx, dlogits, dγ); n more, of the second-level cache,
// where the residual was x. Blocks stay and go from plane to plane (nchw_rounds.h), a thread with two packs of eight
// pixels; float32, and planes of a warp, with one.
//   The first sweep has what dγ needs, and stores it. Between the sweeps a thread keeps x as it came, and for each
// pixel x̂, dy·(1 + γ)/σ and two slopes of the activation. The first sums of a plane, of d and d·x̂, are every
// warp's; the second ones, towards p1, p2 and the logits, are one warp's alone, a round later.
//   Of 16-bit numbers two blocks of 256 threads share a multiprocessor: 128 registers, places for two planes (128 KB).
// So 64 to 128 KB are on their way. About 65 instructions per element and 4 of the slow ones.
//   Share of the floor (ida, bfloat16, 16 images on an H100): not measured. With blocks that loaded, computed, and
// ended it was 68 % for 64 channels of 128×128, 66 % for 128 of 64×64: a third of the time nothing was on its way.
#include <algorithm>

#include "nchw_rounds.h"

namespace hida {
namespace cuda {
namespace nchw {
namespace {

struct Backward {
  Task task;
  PackedImage grad, dx, dlogits, dgamma;
  const float *mean = nullptr, *rstd = nullptr;
  float* sums[3] = {};      // towards p1, p2 and the logits, or null
  float joins = 0;          // the residual was f: so many times is grad a part of df
  bool joins_late = false;  // it was x: grad is a part of dx
  bool wants_sums = false;
  unsigned stages = 0, stage = 0;           // planes whose operands have places in shared memory; bytes of one
  unsigned images = 0, groups = 0;          // of planes, in an image
  unsigned next_image = 0, next_group = 0;  // from one round to the next
};

// A thread's operands of a plane: x, γ, grad, and logits if each pixel has its own; where they are, and their places in
// shared memory while they are on their way.
template <Logits L>
constexpr int kOperands = L == Logits::whole ? 4 : 3;

template <Dtype D, Logits L, int P, class F>
HIDA_DEVICE void each_pack(const Backward& a, const ThreadWork& s, F f) {
  const PackedImage* const images[4] = {&a.task.x, &a.task.gamma, &a.grad, &a.task.logits};
#pragma unroll
  for (int i = 0; i < kOperands<L>; ++i) {
    const char* const from = address<D>(*images[i], s.n, s.c, s.first);
#pragma unroll
    for (int p = 0; p < P; ++p)
      if (s.has(p)) f(i, p, from + p * kApart<D>);
  }
}
// A thread's first place: those of a warp are together, so that all that follows is at constant distances.
template <Dtype D, Logits L, int P>
HIDA_DEVICE Place first_place() {
  HIDA_DYNAMIC_SHARED(uint4, all);
  const unsigned lane = threadIdx.x % kStep;
  return place_of(all + (threadIdx.x - lane) * (kOperands<L> * P * kVec16s<D>)+lane);
}
template <Dtype D, Logits L, int P>
HIDA_DEVICE void copy(const Backward& a, const ThreadWork& s, Place to) {
  each_pack<D, L, P>(a, s, [&](int i, int p, const char* from) {
#pragma unroll
    for (unsigned half = 0; half < kVec16s<D>; ++half)
      copy_ahead(to + unsigned(i * P + p) * kApart<D> + half * kStep * 16, from + half * 16);
  });
}
template <Dtype D, int P>
HIDA_DEVICE Eight<D> copied(Place from, int i, int p) {
  from += unsigned(i * P + p) * kApart<D>;
  Eight<D> pack;
  if constexpr (D == Dtype::f32)
    pack.low = at_place(from), pack.high = at_place(from + kStep * 16);
  else
    pack.words = at_place(from);
  return pack;
}

// The numbers of a plane, as they come from memory.
template <Dtype D, Logits L>
struct Numbers {
  uint32_t p1 = 0, p2 = 0, logit = 0;
  float mean = 0, rstd = 0;
  HIDA_DEVICE Numbers(const Backward& a, const ThreadWork& s) {
    const Task& t = a.task;
    if (s.end == 0) return;
    mean = a.mean[s.sum(t)], rstd = a.rstd[s.sum(t)];
    if (L == Logits::none) return;
    p1 = number_bits<D>(t.p1, t.exact, s), p2 = number_bits<D>(t.p2, t.exact, s);
    if (L == Logits::plane) logit = number_bits<D>(t.logits, false, s);
  }
};

// The planes of a block or cluster, or of their group, from round to round.
struct Position {
  unsigned n, group;
  HIDA_DEVICE Position(const Backward& a, unsigned index) : n(index / a.groups), group(index - n * a.groups) {}
  HIDA_DEVICE void go(const Backward& a) {
    group += a.next_group, n += a.next_image;
    if (group >= a.groups) group -= a.groups, ++n;
  }
  HIDA_DEVICE unsigned plane(const Backward& a) const { return n * a.groups + group; }
};

// Two blocks of 256 threads with two packs of 16-bit numbers share a multiprocessor.
template <Dtype D, Logits L, int P>
__global__ void __launch_bounds__(D != Dtype::f32 && P == 1 ? kSmallThreads : kPlaneThreads,
                                  D != Dtype::f32 && P == 1 ? 6 : 1) backward(const __grid_constant__ Backward a) {
  const Task& t = a.task;
  const bool by_itself = alone<D, P>(t), late = L != Logits::none && a.wants_sums;
  const unsigned clusters = gridDim.x >> t.cluster_shift;
  Position here(a, blockIdx.x >> t.cluster_shift), there = here;
  ThreadWork s(t, P, here.n, here.group);
  const Exchange sums(t, s.rank);
  const Place places = first_place<D, L, P>();
  const auto copy_there = [&](Place to) {
    if (there.n < a.images) {
      ThreadWork ahead = s;
      ahead.go(t, P, there.n, there.group);
      copy<D, L, P>(a, ahead, to);
    }
    end_of_copies();
    there.go(a);
  };
  for (unsigned i = 0; i < a.stages; ++i) copy_there(places + i * a.stage);
  Numbers<D, L> numbers(a, s);
  begin(t);
  if (!by_itself) sums.ready();

  unsigned round = 0;
  for (; here.n < a.images; ++round) {
    const Place place = places + (a.stages > 1 ? (round & 1) * a.stage : 0);
    Eight<D> operands[4][P];
    if (a.stages > 0) {
      if (a.stages > 1)
        wait_for_copies<1>();
      else
        wait_for_copies<0>();
#pragma unroll
      for (int p = 0; p < P; ++p) {
        if (!s.has(p)) continue;
#pragma unroll
        for (int i = 0; i < kOperands<L>; ++i) operands[i][p] = copied<D, P>(place, i, p);
      }
    } else {
      each_pack<D, L, P>(a, s, [&](int i, int p, const char* from) { operands[i][p] = Eight<D>(from, 0); });
    }
    Eight<D>(&x)[P] = operands[0], (&gamma)[P] = operands[1], (&grad)[P] = operands[2], (&logits)[P] = operands[3];
    const Slopes<D, L> slopes(t, numbers.p1, numbers.p2, numbers.logit);
    const float mean = numbers.mean, rstd = numbers.rstd;

    float normal[P][8], q[P][8], tilt[P][8], upper[P][8], mean_d = 0, mean_dx = 0;
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
        upper[p][k] = g[k] * ((1 + v[k]) * rstd + a.joins);
        g[k] *= normal[p][k];
      }
      if (a.dgamma.data != nullptr && s.has(p))
        Eight<D>::narrowed(g).store(address<D>(a.dgamma, s.n, s.c, s.first) + unsigned(p) * kApart<D>);
      forget(x[p]);
    }
    if (!by_itself) sums.send_early(round, mean_d, mean_dx);
    // The operands have been used, and others may take their places.
    if (a.stages > 0) copy_there(place);
    const ThreadWork w = s;
    here.go(a);
    if (here.n < a.images) {
      s.go(t, P, here.n, here.group);
      numbers = Numbers<D, L>(a, s);
    }
    if (by_itself) {
      float both[2] = {mean_d, mean_dx};
      add_lanes(t, both);
      mean_d = both[0], mean_dx = both[1];
    } else {
      sums.wait(round, true, late && round > 0);
      sums.add_early(round, mean_d, mean_dx);
      if (late && round > 0) sums.store_late(round, a.sums, here.plane(a) - 2 * clusters);
    }

    const float level = mean_d * t.share * rstd, lean = mean_dx * t.share * rstd;
    float to_p1 = 0, to_both = 0, to_logits = 0;  // zeros where a thread has no pixels, for there x is 0
#pragma unroll
    for (int p = 0; p < P; ++p) {
      float v[8], d[8];
      x[p].unpack(v);
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        d[k] = upper[p][k] - level - normal[p][k] * lean;
        if (L == Logits::none) continue;
        tilt[p][k] *= d[k];
        const float both = d[k] * v[k];
        to_p1 += both * q[p][k];
        to_both += both;
        if (L == Logits::plane) to_logits += tilt[p][k];
        d[k] *= slopes.slope * q[p][k] + slopes.base;
      }
      if (!w.has(p)) continue;
      const unsigned apart = unsigned(p) * kApart<D>;
      if (L != Logits::none && a.joins_late) {  // again, from the second-level cache
        Eight<D>(address<D>(a.grad, w.n, w.c, w.first) + apart, 0).unpack(v);
#pragma unroll
        for (int k = 0; k < 8; ++k) d[k] += v[k];
      }
      if (a.dx.data != nullptr) Eight<D>::narrowed(d).store(address<D>(a.dx, w.n, w.c, w.first) + apart);
      if (L == Logits::whole && a.dlogits.data != nullptr)
        Eight<D>::narrowed(tilt[p]).store(address<D>(a.dlogits, w.n, w.c, w.first) + apart);
    }
    if (!late) continue;
    if (by_itself)
      store_lanes(t, w, to_p1, to_both - to_p1, to_logits, a.sums);
    else
      sums.send_late(round, to_p1, to_both - to_p1, to_logits);
  }
  if (!late || by_itself || round == 0) return;
  sums.wait(round, false, true);
  sums.store_late(round, a.sums, here.plane(a) - clusters);
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
  b.joins = a.residual == Residual::activated ? 1 : 0;
  b.joins_late = a.grad_to_x;
  // As forward. float32 takes more registers: one pack, in smaller blocks, where clusters make up for that.
  const unsigned whole = b.task.packs, largest = kPlaneThreads * 8;  // packs of a plane, with one per thread
  packs = dtype != Dtype::f32 && whole > unsigned(kWarp) ? 2 : 1;
  const bool smaller = dtype == Dtype::f32 ? l.cluster > 1 && whole <= largest / 2 : packs == 2 && whole <= largest;
  return size_launch(e, l, smaller ? kPlaneThreads / 2 : kPlaneThreads, unsigned(packs), l.cluster, b.task, size);
}

template <Dtype D, Logits L, int P>
void run(Backward b, LaunchSize size, const Launch& l) {
  const void* const kernel = reinterpret_cast<const void*>(backward<D, L, P>);
  const size_t copies = size_t(size.threads) * P * kOperands<L> * kVec16s<D> * 16;
  b.groups = size.grid.x / b.task.cluster;
  b.images = size.grid.y;
  const size_t sharing = std::max(kPlaneThreads / size.threads, 1u);  // blocks, of a multiprocessor
  const int64_t all = int64_t(b.groups) * b.images, most = 0x7fffffff / b.task.cluster;
  int64_t wanted = most;
  for (b.stages = l.shared > kNoCopies ? 2 : 0; b.stages > 0; --b.stages) {
    if (sharing * (b.stages * copies + kSums) > size_t(l.shared)) continue;
    wanted = resident_clusters(kernel, b.task.cluster, size.threads, b.stages * copies, l);
    if (wanted > 0) break;
    wanted = most;
  }
  b.stage = unsigned(copies);
  const size_t shared = b.stages * copies;
  const unsigned clusters = unsigned(std::min({all, wanted, most}));
  b.next_image = clusters / b.groups;
  b.next_group = clusters % b.groups;
  size.grid = dim3(clusters * b.task.cluster);
  start(backward<D, L, P>, b, size, l, true, shared);
}
template <Dtype D, int P>
void run(const Adapt& a, const Backward& b, const LaunchSize& size, const Launch& l) {
  if (!a.activate) return run<D, Logits::none, P>(b, size, l);
  const bool uniform = a.logits.row == 0 && a.logits.step == 0;
  uniform ? run<D, Logits::plane, P>(b, size, l) : run<D, Logits::whole, P>(b, size, l);
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
