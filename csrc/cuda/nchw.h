// info_acon and ida of contiguous planes (NCHW), all of one dtype: what their kernels share. A plane stays in the
// registers of a part of a warp (up to 32 packs of eight pixels), of a block, or of the blocks of a cluster, which is
// all the difference between small planes and large ones. Loads come first: nothing that they wait for, every operand
// at once, 16 bytes each. Addresses are counted in 16 bytes, in 32 bits.
//
// A sum over a plane costs one barrier. Warps add up by shuffles (several sums at a time: the halves of a warp exchange
// what the other one goes on with), write a number each, and then every warp adds those up itself, in the same order.
// In a cluster each warp sends its number to every block (gates.h): so all that is read is the block's own, and a block
// that has received all that is sent to it may end.
#pragma once

#include "gates.h"
#include "plane_map.h"
#include "typed.h"

namespace hida {
namespace cuda {
namespace nchw {

// An image: its strides in units of 16 bytes. Where each plane has one number: in elements.
struct PackedImage {
  char* data = nullptr;
  unsigned n = 0, c = 0;
};

struct Task {
  PackedImage x, logits, gamma;
  PackedImage p1, p2;  // a number for each plane
  bool exact = true;   // p1 and p2 are float32, and not of the dtype of the rest
  unsigned channels = 0, packs = 0;
  unsigned lanes = 0;    // of a plane in a warp: 32, or fewer
  unsigned shift = 31;   // planes of up to 32 packs: log2(lanes), for a block has several
  unsigned planes = 1;   // of a block
  unsigned cluster = 1;  // blocks of a plane
  unsigned cluster_shift = 0;
  float share = 0;  // 1 / pixels
};

template <Dtype D>
constexpr unsigned kVec16s = D == Dtype::f32 ? 2 : 1;  // loads of 16 bytes of a pack

template <Dtype D>
HIDA_DEVICE char* address(const PackedImage& image, unsigned n, unsigned c, unsigned pack) {
  return image.data + uint64_t(n * image.n + c * image.c + pack * kVec16s<D>) * 16;
}

// From a thread's pack to its next one, in packs and in bytes.
constexpr unsigned kStep = kWarp;
template <Dtype D>
constexpr unsigned kApart = kStep * kVec16s<D> * 16;

// The work of a thread: packs `first`, `first` + kStep, ... of a plane; a warp's packs are neighbours.
struct ThreadWork {
  unsigned n, c, rank, first, end;
  HIDA_DEVICE explicit ThreadWork(const Task& a, int packs)
      : ThreadWork(a, packs, blockIdx.y, blockIdx.x >> a.cluster_shift) {}
  // Of an image, and of the planes that its `group`-th block or cluster has.
  HIDA_DEVICE ThreadWork(const Task& a, int packs, unsigned image, unsigned group) {
    const unsigned t = threadIdx.x, lane = t % kStep;
    rank = blockIdx.x & (a.cluster - 1);
    first = rank * blockDim.x * unsigned(packs);
    first += packs > 1 ? (t - lane) * unsigned(packs) + lane : t & ((1u << a.shift) - 1u);
    go(a, packs, image, group);
  }
  // To another image and group.
  HIDA_DEVICE void go(const Task& a, int packs, unsigned image, unsigned group) {
    n = image;
    c = packs > 1 ? group : group * a.planes + (threadIdx.x >> a.shift);  // several packs are of one plane
    end = c < a.channels ? a.packs : 0;
  }
  HIDA_DEVICE unsigned pack(int p) const { return first + unsigned(p) * kStep; }
  HIDA_DEVICE bool has(int p) const { return pack(p) < end; }
  // Threads of which each plane has one.
  HIDA_DEVICE bool leads() const { return first == 0 && end > 0; }
  HIDA_DEVICE unsigned sum(const Task& a) const { return n * a.channels + c; }
};

// A number of a plane, as it comes from memory, and what it is then.
template <Dtype D>
HIDA_DEVICE uint32_t number_bits(const PackedImage& image, bool exact, const ThreadWork& s) {
  const unsigned at = s.n * image.n + s.c * image.c;
  if (D == Dtype::f32 || exact) return reinterpret_cast<const uint32_t*>(image.data)[at];
  return reinterpret_cast<const uint16_t*>(image.data)[at];
}
template <Dtype D>
HIDA_DEVICE float number_of(uint32_t bits, bool exact) {
  if (D == Dtype::f32 || exact) return __uint_as_float(bits);
  return D == Dtype::bf16 ? widen_bf16(bits) : widen_f16(bits);
}

// ---- the activation ---------------------------------------------------------------------------------------------

// exp(-v) from v·kMinus: of 16-bit numbers, whose own rounding is far coarser, without correcting what rounding takes
// from a large power.
template <Dtype D>
constexpr float kMinus = D == Dtype::f32 ? -1.0f : -1.44269504f;
template <Dtype D>
HIDA_DEVICE float power_of(float z) {
  return D == Dtype::f32 ? Elementary::exp(z) : power_of_two(z);
}
// 1 / (1 + exp(-v)): at its ends 1 / (1 + 0) and 1 / (1 + ∞), which is 0, so that nothing has to be clamped.
template <Dtype D>
HIDA_DEVICE float gate_of(float z) {
  return inverse(1.0f + power_of<D>(z));
}
template <Dtype D>
HIDA_DEVICE float theta_of(float logit) {
  return gate_of<D>(logit * kMinus<D>);
}

// Within 0 and 1; of NaN 0.
HIDA_DEVICE float saturated(float v) {
#if defined(HIDA_EMULATE_CUDA)
  return v > 0 ? (v < 1 ? v : 1.0f) : 0.0f;
#else
  return __saturatef(v);  // a part of the multiplication before it
#endif
}

// As acon_slopes: q and tilt; `linear`: slope·x. Where the power is infinite, the gate is 0, and so is its slope.
template <Dtype D>
struct Bend {
  float gate, q, tilt;
  HIDA_DEVICE Bend(float linear, float theta) {
    const float bent = linear * theta, power = power_of<D>(bent * kMinus<D>);
    gate = inverse(1.0f + power);
    const float rise = bent * (gate * saturated(power * gate)), steep = linear * rise;
    q = gate + rise;
    tilt = steep - steep * theta;
  }
};

// p1 − p2 and p2 of a plane, and θ where that is one number.
template <Dtype D, Logits L>
struct Slopes {
  float slope = 0, base = 0, turn = 0, theta = 0;
  HIDA_DEVICE Slopes(const Task& a, uint32_t p1, uint32_t p2, uint32_t logit) {
    if (L == Logits::none) return;
    base = number_of<D>(p2, a.exact);
    slope = number_of<D>(p1, a.exact) - base;
    turn = slope * kMinus<D>;
    if (L == Logits::plane) theta = theta_of<D>(number_of<D>(logit, false));
  }
  HIDA_DEVICE Slopes(const Task& a, const ThreadWork& s) {
    if (L == Logits::none || s.end == 0) return;
    *this = Slopes(a, number_bits<D>(a.p1, a.exact, s), number_bits<D>(a.p2, a.exact, s),
                   L == Logits::plane ? number_bits<D>(a.logits, false, s) : 0);
  }
};

// ---- sums -------------------------------------------------------------------------------------------------------

// Shared memory: a number of each warp of a plane's blocks, some kinds of them.
constexpr int kWarpsOfPlane = 8 * kPlaneThreads / kWarp;
template <int Kinds>
HIDA_DEVICE float* room() {
  HIDA_SHARED(float, numbers, [kWarpsOfPlane * Kinds]);
  return numbers;
}

HIDA_DEVICE unsigned warps_of_plane(const Task& a) {
  return blockDim.x / unsigned(kWarp) * a.cluster;
}
HIDA_DEVICE unsigned warp_of_plane(const ThreadWork& s) {
  return s.rank * (blockDim.x / unsigned(kWarp)) + threadIdx.x / unsigned(kWarp);
}
// Whether a plane is one warp's, or a part of one. ida's kernels of 16-bit numbers know it: that is where they have one
// pack.
HIDA_DEVICE bool alone(const Task& a) {
  return a.shift < 31;
}
template <Dtype D, int P>
HIDA_DEVICE bool alone(const Task& a) {
  return P == 1 && (D != Dtype::f32 || alone(a));
}

template <int N>
HIDA_DEVICE void add_lanes(const Task& a, float (&v)[N]) {
#pragma unroll 1
  for (unsigned bit = 1; bit < a.lanes; bit *= 2) {
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] += __shfl_xor_sync(kAll, v[i], int(bit));
  }
}
HIDA_DEVICE float add_warp(float v) {
#pragma unroll
  for (int bit = 16; bit > 0; bit /= 2) v += __shfl_xor_sync(kAll, v, bit);
  return v;
}
// Over a warp: of `low` in its lower lanes, of `high` in its upper ones.
HIDA_DEVICE float add_halves(float low, float high) {
  const bool upper = (threadIdx.x & 16u) != 0;
  float v = (upper ? high : low) + __shfl_xor_sync(kAll, upper ? low : high, 16);
#pragma unroll
  for (int bit = 8; bit > 0; bit /= 2) v += __shfl_xor_sync(kAll, v, bit);
  return v;
}
// Of three: in lanes 0 to 7, 8 to 15, and 16 to 23; zero in the rest.
HIDA_DEVICE float add_quarters(float one, float two, float three) {
  const bool upper = (threadIdx.x & 16u) != 0, odd = (threadIdx.x & 8u) != 0;
  const float u = (upper ? three : one) + __shfl_xor_sync(kAll, upper ? one : three, 16);
  const float w = (upper ? 0.0f : two) + __shfl_xor_sync(kAll, upper ? two : 0.0f, 16);
  float v = (odd ? w : u) + __shfl_xor_sync(kAll, odd ? u : w, 8);
#pragma unroll
  for (int bit = 4; bit > 0; bit /= 2) v += __shfl_xor_sync(kAll, v, bit);
  return v;
}

// Sums of three kinds over the lanes of a plane, to to[kind]; a null pointer: not wanted.
HIDA_DEVICE void store_lanes(const Task& t, const ThreadWork& s, float one, float two, float three,
                             float* const (&to)[3]) {
  float sums[3] = {one, two, three};
  add_lanes(t, sums);
  if (!s.leads()) return;
#pragma unroll
  for (int i = 0; i < 3; ++i)
    if (to[i] != nullptr) to[i][s.sum(t)] = sums[i];
}

// ---- clusters ---------------------------------------------------------------------------------------------------

// A block's two gates. At the beginning of a kernel: they are open, and this block has begun.
HIDA_DEVICE int64_t* gates() {
  HIDA_SHARED(int64_t, both, [2]);
  return both;
}
HIDA_DEVICE void begin(const Task& a) {
  if (a.cluster == 1) return;
  if (threadIdx.x == 0) {
    gate_open(gates());
    gate_open(gates() + 1);
    gates_ready();
  }
  cluster_arrive();
}

// ---- on the host ------------------------------------------------------------------------------------------------

// The image in units of 16 bytes, and whether it can be one. (ida_nchw.cu, as what follows.)
bool packed_of(const Image& image, Dtype dtype, const Extent& e, PackedImage& packed);
// What both directions have; whether the kernels take it.
bool task_of(const Adapt& a, Task& task);

// Whether a backward goes to other kernels for its logits: one for each pixel have gradients in float32 for each
// channel.
inline bool widens(const Image& logits, Dtype dtype, const Extent& e) {
  return logits.step == 1 && logits.c == 0 && e.c > 1 && dtype != Dtype::f32;
}

constexpr int kSmallThreads = 4 * kWarp;  // most of a block of several planes

struct LaunchSize {
  dim3 grid;
  unsigned threads = 0;
};
// Blocks of up to `most` threads with up to `packs` packs each; whether `blocks` of them are enough for a plane.
bool size_launch(const Extent& e, const Launch& l, unsigned most, unsigned packs, int64_t blocks, Task& task,
                 LaunchSize& size);

// In clusters, or in blocks that know nothing of each other.
template <class A>
void start(void (*kernel)(A), const A& a, const LaunchSize& size, const Launch& l, bool together = true,
           size_t shared = 0) {
#if defined(HIDA_EMULATE_CUDA)
  ++emulation::usual;  // tests ask for it
#endif
  launch_cluster(kernel, together ? a.task.cluster : 1, size.grid, dim3(size.threads), shared, l, a);
}

// Whether the kernels take a call, which the second of each pair then makes; they need no workspace.
bool takes_adapt(const Adapt& a, const Launch& l);
bool adapt(const Adapt& a, const Launch& l);
bool takes_adapt_backward(const Adapt& a, const Launch& l);
bool adapt_backward(const Adapt& a, const Launch& l);
bool info_acon(const InfoAcon& a, const Launch& l);
bool takes_acon_backward(const InfoAcon& a, const Launch& l);
bool info_acon_backward(const InfoAcon& a, const Launch& l);

}  // namespace nchw
}  // namespace cuda
}  // namespace hida
