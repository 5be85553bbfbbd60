// ida and instance_norm_modulate, forward, of contiguous planes of one dtype (nchw.h): what ida.cu does, for the
// usual case. Traffic: 5n (read x, logits, γ, β; write y); n more for a residual that is not x itself. All operands are
// in flight before anything is computed; a thread has one pack of eight pixels or two, of four operands.
//   Statistics: each warp its own mean, then the differences from it, and their squares; then those of all warps of the
// plane are put together (Chan), by every warp in the same order. So there is one barrier, and a large mean costs no
// digits. With two packs about 50 instructions per element of 16 bits, 15 of them for the activation.
//   Share of the floor (ida, bfloat16, 16 images on an H100): 64 channels of 128×128 90 %, 128 of 64×64 83 %, measured
// before the cluster's barrier went (gates.h). Blocks that stay (nchw_rounds.h) are predicted to be no faster: four
// share a multiprocessor. instance_norm_modulate: not measured.
#include "nchw.h"

namespace hida {
namespace cuda {
namespace nchw {
namespace {

struct Forward {
  Task task;
  PackedImage beta, added, y;
  float *mean = nullptr, *rstd = nullptr;
  float eps = 0;
  bool activated = false, adds = false, other = false;  // residuals: f; a tensor; and that is not x
};

// mean + rest is the mean, to more digits than one number has.
struct Statistics {
  float mean, rest, rstd;
};

template <Dtype D, int P>
HIDA_DEVICE Statistics statistics(const Task& t, const ThreadWork& s, const float (&f)[P][8], float eps) {
  float total = 0;  // a thread has zeros where it has no pixels
#pragma unroll
  for (int p = 0; p < P; ++p) {
#pragma unroll
    for (int k = 0; k < 8; ++k) total += f[p][k];
  }
  // Off a number near the mean, and squares around it.
  const auto around = [&](float near, float& off, float& squares) {
    off = squares = 0;
#pragma unroll
    for (int p = 0; p < P; ++p) {
      float o = 0, q = 0;
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const float d = f[p][k] - near;
        o += d;
        q += d * d;
      }
      if (s.has(p)) off += o, squares += q;
    }
  };
  Statistics found;
  float variance;
  if (alone<D, P>(t)) {
    float one[1] = {total}, two[2];
    add_lanes(t, one);
    found.mean = one[0] * t.share;
    around(found.mean, two[0], two[1]);
    add_lanes(t, two);
    found.rest = two[0] * t.share;
    variance = two[1] * t.share - found.rest * found.rest;
  } else {
    unsigned packs = 0;
#pragma unroll
    for (int p = 0; p < P; ++p) packs += unsigned(__popc(__ballot_sync(kAll, s.has(p))));
    const float size = float(packs * 8);
    const float near = add_warp(total) * inverse(size > 0 ? size : 1.0f);
    float off, squares;
    around(near, off, squares);
    const float sum = add_halves(off, squares);
    // Four numbers of each warp: near, off; size, squares. The lower lanes have the first two, the upper ones the rest.
    const unsigned warps = warps_of_plane(t), lane = threadIdx.x & 31u, half = lane >> 4, to = lane & 15u;
    float* const all = room<4>();
    float* const mine = all + half * 2 * warps + warp_of_plane(s);
    const float first = half == 0 ? near : size;
    if (t.cluster == 1) {
      if (to == 0) mine[0] = first, mine[warps] = sum;
      __syncthreads();
    } else {
      cluster_wait();  // all blocks have begun
      if (to < t.cluster) gate_send(mine, gates(), to, first), gate_send(mine + warps, gates(), to, sum);
      if (threadIdx.x == 0) gate_expect(gates(), warps * 4 * unsigned(sizeof(float)));
      gate_wait(gates(), 0);
    }
    // Around the first warp's number, then around the mean.
    const float centre = all[0];
    float gaps = 0, spread = 0;
#pragma unroll 1
    for (unsigned i = lane; i < warps; i += kWarp) gaps += (all[i] - centre) * all[2 * warps + i] + all[warps + i];
    const float mean = add_warp(gaps) * t.share;  // off `centre`
#pragma unroll 1
    for (unsigned i = lane; i < warps; i += kWarp) {
      const float gap = all[i] - centre - mean;
      spread += all[3 * warps + i] + gap * (2 * all[warps + i] + gap * all[2 * warps + i]);
    }
    variance = add_warp(spread) * t.share;
    found.mean = centre + mean;
    found.rest = mean - (found.mean - centre);
  }
  found.rstd = inverse_root((variance < 0 ? 0.0f : variance) + eps);  // NaN stays
  return found;
}

// Blocks of so many threads that a multiprocessor has registers for.
template <Dtype D, int P>
constexpr int kMost = D != Dtype::f32 && P == 1 ? kSmallThreads : kPlaneThreads;
template <Dtype D, int P>
constexpr int kSharing = D == Dtype::f32 ? 3 - P
                         : P == 1        ? 8
                                         : 2;

template <Dtype D, Logits L, int P>
__global__ void __launch_bounds__(kMost<D, P>, kSharing<D, P>) forward(const __grid_constant__ Forward a) {
  const Task& t = a.task;
  const ThreadWork s(t, P);
  Eight<D> x[P], logits[P], gamma[P], beta[P], added[P];
  const auto at = [&](const PackedImage& image) { return address<D>(image, s.n, s.c, s.first); };
#pragma unroll
  for (int p = 0; p < P; ++p) {
    if (!s.has(p)) continue;
    const unsigned apart = unsigned(p) * kApart<D>;
    x[p] = Eight<D>(at(t.x) + apart, 0);
    if (L == Logits::whole) logits[p] = Eight<D>(at(t.logits) + apart, 0);
    gamma[p] = Eight<D>(at(t.gamma) + apart, 0);
    beta[p] = Eight<D>(at(a.beta) + apart, 0);
    if (a.other) added[p] = Eight<D>(at(a.added) + apart, 0);
  }
  begin(t);
  const Slopes<D, L> slopes(t, s);
  float f[P][8];
#pragma unroll
  for (int p = 0; p < P; ++p) {
    x[p].unpack(f[p]);
    if (!a.other) added[p] = x[p];
    if (L == Logits::none) continue;
    float theta[8];
    logits[p].unpack(theta);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      theta[k] = L == Logits::whole ? theta_of<D>(theta[k]) : slopes.theta;
      f[p][k] *= slopes.slope * gate_of<D>(slopes.turn * f[p][k] * theta[k]) + slopes.base;
    }
  }
  const Statistics found = statistics<D, P>(t, s, f, a.eps);
  if (s.leads()) {
    a.mean[s.sum(t)] = found.mean + found.rest;
    a.rstd[s.sum(t)] = found.rstd;
  }
  const float shift = -found.rest * found.rstd;
#pragma unroll
  for (int p = 0; p < P; ++p) {
    if (!s.has(p)) continue;
    float v[8], w[8];
    gamma[p].unpack(v);
    beta[p].unpack(w);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const float normalised = fmaf(f[p][k] - found.mean, found.rstd, shift);
      v[k] = fmaf(normalised, v[k], normalised + w[k]);
    }
    if (a.activated) {
#pragma unroll
      for (int k = 0; k < 8; ++k) v[k] += f[p][k];
    }
    if (a.adds) {
      added[p].unpack(w);
#pragma unroll
      for (int k = 0; k < 8; ++k) v[k] += w[k];
    }
    Eight<D>::narrowed(v).store(at(a.y) + unsigned(p) * kApart<D>);
  }
}

// ---- which kernel -----------------------------------------------------------------------------------------------

bool forward_of(const Adapt& a, const Launch& l, Forward& f, LaunchSize& size, int& packs) {
  const Extent& e = a.planes.extent;
  const Dtype dtype = a.x.dtype;
  if (!task_of(a, f.task) || !packed_of(a.beta, dtype, e, f.beta) || !packed_of(a.added, dtype, e, f.added) ||
      !packed_of(a.y, dtype, e, f.y))
    return false;
  f.mean = static_cast<float*>(a.mean);
  f.rstd = static_cast<float*>(a.rstd);
  f.eps = float(a.eps);
  f.activated = a.residual == Residual::activated;
  f.adds = a.residual == Residual::tensor;
  f.other = f.adds && !(a.added.data == a.x.data && a.added.n == a.x.n && a.added.c == a.x.c);
  // Two packs per thread cost half as many instructions for what is not done for each element, and have as many bytes
  // on their way: where planes have enough for a warp. float32 has no registers for that, but for the largest planes.
  const unsigned whole = f.task.packs, largest = kPlaneThreads * 8;  // packs of a plane, with one per thread
  packs = whole > (dtype == Dtype::f32 ? largest : unsigned(kWarp)) ? 2 : 1;
  const unsigned most = dtype != Dtype::f32 && whole <= largest ? kPlaneThreads / 2 : kPlaneThreads;
  return size_launch(e, l, most, unsigned(packs), l.cluster, f.task, size);
}

template <Dtype D, int P>
void run(const Adapt& a, const Forward& f, const LaunchSize& size, const Launch& l) {
  const bool uniform = a.logits.row == 0 && a.logits.step == 0;
  start(!a.activate ? forward<D, Logits::none, P>
        : uniform   ? forward<D, Logits::plane, P>
                    : forward<D, Logits::whole, P>,
        f, size, l);
}
template <Dtype D>
void run(const Adapt& a, const Forward& f, const LaunchSize& size, int packs, const Launch& l) {
  packs == 1 ? run<D, 1>(a, f, size, l) : run<D, 2>(a, f, size, l);
}

}  // namespace

bool packed_of(const Image& image, Dtype dtype, const Extent& e, PackedImage& packed) {
  if (image.data == nullptr) return true;
  if (image.dtype != dtype || !is_packable(image, e)) return false;
  const int64_t size = size_of(dtype), n = image.n * size / 16, c = image.c * size / 16;
  if (n < 0 || c < 0 || n > UINT32_MAX || c > UINT32_MAX) return false;
  // In halves, that nothing overflows: the last pack of the last plane.
  const double reach = double(e.n - 1) * double(n) + double(e.c - 1) * double(c) + double(e.pixels() * size / 16);
  if (reach > double(UINT32_MAX)) return false;
  packed = {static_cast<char*>(image.data), unsigned(n), unsigned(c)};
  return true;
}

bool task_of(const Adapt& a, Task& task) {
  const Extent& e = a.planes.extent;
  if (a.planes.wide || e.n > 65535 || e.c * 8 > 0x7fffffff || e.pixels() % 8 != 0 || e.pixels() > 1 << 24) return false;
  if (!packed_of(a.x, a.x.dtype, e, task.x) || !packed_of(a.gamma, a.x.dtype, e, task.gamma)) return false;
  const auto number_of = [&](const Image& image, PackedImage& packed) {
    packed = {static_cast<char*>(image.data), unsigned(image.n), unsigned(image.c)};
    return image.n >= 0 && image.c >= 0 && double(e.n - 1) * double(image.n) + double(e.c - 1) * double(image.c) < 1e9;
  };
  if (a.activate) {
    task.exact = a.p1.dtype == Dtype::f32;
    if (a.p1.dtype != a.p2.dtype || (!task.exact && a.p1.dtype != a.x.dtype)) return false;
    if (!number_of(a.p1, task.p1) || !number_of(a.p2, task.p2)) return false;
    if (a.logits.row == 0 && a.logits.step == 0) {
      if (a.logits.dtype != a.x.dtype || !number_of(a.logits, task.logits)) return false;
    } else if (!packed_of(a.logits, a.x.dtype, e, task.logits)) {
      return false;
    }
  }
  task.channels = unsigned(e.c);
  task.packs = unsigned(e.pixels() / 8);
  task.share = float(1.0 / double(e.pixels()));
  return true;
}

bool size_launch(const Extent& e, const Launch& l, unsigned most, unsigned packs, int64_t blocks, Task& task,
                 LaunchSize& size) {
  if (task.packs <= unsigned(kWarp)) {
    task.lanes = unsigned(power_of_two_from(task.packs));
    task.shift = 0;
    while (1u << task.shift < task.lanes) ++task.shift;
    size.threads = kSmallThreads;  // fewer, where they are not needed, or there are more multiprocessors than blocks
    const auto blocks_of = [&](unsigned threads) {
      const int64_t planes = threads / task.lanes;
      return (e.c + planes - 1) / planes;
    };
    while (size.threads > unsigned(kWarp) && (blocks_of(size.threads / 2) == blocks_of(size.threads) ||
                                              e.n * blocks_of(size.threads) < l.multiprocessors))
      size.threads /= 2;
    task.planes = size.threads / task.lanes;
    size.grid = dim3(unsigned(blocks_of(size.threads)), unsigned(e.n));
    return true;
  }
  task.lanes = kWarp;
  while (task.cluster * most * packs < task.packs) task.cluster *= 2, ++task.cluster_shift;
  if (task.cluster > 1 && int64_t(task.cluster) > blocks) return false;
  const unsigned each = task.cluster * packs * kWarp;
  size.threads = (task.packs + each - 1) / each * kWarp;
  size.grid = dim3(unsigned(e.c) * task.cluster, unsigned(e.n));
  return true;
}

bool takes_adapt(const Adapt& a, const Launch& l) {
  Forward f;
  LaunchSize size;
  int packs;
  return forward_of(a, l, f, size, packs);
}

bool adapt(const Adapt& a, const Launch& l) {
  Forward f;
  LaunchSize size;
  int packs;
  if (!forward_of(a, l, f, size, packs)) return false;
  with_dtype(a.x.dtype, [&](auto d) { run<decltype(d)::value>(a, f, size, packs, l); });
  return true;
}

}  // namespace nchw
}  // namespace cuda
}  // namespace hida
