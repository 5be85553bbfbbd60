// Blocks that stay, and go from plane to plane (nchw.h): while they compute one, the operands of the next ones are on
// their way to shared memory, where each thread has places of its own. So loads need no registers, and the memory is
// not idle while blocks compute, or begin. A round, of one plane, has one point where its blocks wait for each other:
// what is added up after it, is there in the next round.
//   There are two sets of numbers and of gates, which rounds use in turn. That is enough: who sends in round r + 1 has
// received what everyone sent in round r, and everyone had read the numbers of r − 1 before.
#pragma once

#include "nchw.h"

namespace hida {
namespace cuda {
namespace nchw {

// ---- copies -----------------------------------------------------------------------------------------------------

// A place in shared memory, as few instructions find it. 16 bytes to it, on their way by themselves (cp.async): this
// thread alone may read them, after it waited for all sets of copies but the last `Pending` ones, each of which ends
// with end_of_copies().
#if defined(__CUDA_ARCH__)
using Place = uint32_t;
HIDA_DEVICE Place place_of(const void* own) {
  Place place = Place(__cvta_generic_to_shared(own));
  asm volatile("" : "+r"(place));  // kept, not found again
  return place;
}
HIDA_DEVICE uint4 at_place(Place from) {
  uint4 words;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "r"(from)
               : "memory");
  return words;
}
#else
using Place = char*;
HIDA_DEVICE Place place_of(const void* own) {
  return static_cast<char*>(const_cast<void*>(own));
}
HIDA_DEVICE uint4 at_place(Place from) {
  return *reinterpret_cast<const uint4*>(from);
}
#endif
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
HIDA_DEVICE void copy_ahead(Place to, const char* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
HIDA_DEVICE void end_of_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int Pending>
HIDA_DEVICE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}
#else  // at once; a chip runs it where the code was made for older ones
HIDA_DEVICE void copy_ahead(Place to, const char* from) {
  const uint4 words = *reinterpret_cast<const uint4*>(from);
#if defined(__CUDA_ARCH__)
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(words.x), "r"(words.y), "r"(words.z),
               "r"(words.w)
               : "memory");
#else
  *reinterpret_cast<uint4*>(to) = words;
#endif
}
HIDA_DEVICE void end_of_copies() {}
template <int Pending>
HIDA_DEVICE void wait_for_copies() {}
#endif

// Makes the compiler take a pack as unknown: it is there before what follows, and is unpacked again where it is needed
// again, which takes half the registers.
template <Dtype D>
HIDA_DEVICE void forget(Eight<D>& pack) {
#if defined(__CUDA_ARCH__)
  if constexpr (D != Dtype::f32)
    asm volatile("" : "+r"(pack.words.x), "+r"(pack.words.y), "+r"(pack.words.z), "+r"(pack.words.w)::"memory");
  else
    asm volatile(""
                 : "+r"(pack.low.x), "+r"(pack.low.y), "+r"(pack.low.z), "+r"(pack.low.w), "+r"(pack.high.x),
                   "+r"(pack.high.y), "+r"(pack.high.z), "+r"(pack.high.w)::"memory");
#else
  (void)pack;
#endif
}

// ---- sums -------------------------------------------------------------------------------------------------------

// The sums of a plane's blocks: two kinds that every warp gets in a round, three that the first warp gets in the next.
constexpr int kEarly = 2, kLate = 3;

class Exchange {
 public:
  HIDA_DEVICE Exchange(const Task& t, unsigned rank)
      : cluster_(t.cluster),
        warps_(blockDim.x / unsigned(kWarp) * t.cluster),
        mine_(rank * (blockDim.x / unsigned(kWarp)) + threadIdx.x / unsigned(kWarp)),
        first_(rank == 0) {}
  // After begin(t), before anything is sent: all blocks have begun.
  HIDA_DEVICE void ready() const {
    if (cluster_ > 1) cluster_wait();
  }

  HIDA_DEVICE void send_early(unsigned round, float one, float two) const {
    const unsigned lane = threadIdx.x & 31u, half = lane >> 4, to = lane & 15u;
    const float v = add_halves(one, two);
    float* const place = numbers(round) + half * warps_ + mine_;
    if (cluster_ == 1) {
      if (to == 0) *place = v;
    } else if (to < cluster_) {
      gate_send(place, gates() + (round & 1), to, v);
    }
  }
  HIDA_DEVICE void send_late(unsigned round, float one, float two, float three) const {
    const unsigned lane = threadIdx.x & 31u, which = lane >> 3;
    const float v = add_quarters(one, two, three);
    if ((lane & 7u) != 0 || which >= kLate) return;
    float* const place = numbers(round + 1) + (kEarly + which) * warps_ + mine_;
    if (cluster_ == 1)
      *place = v;
    else
      gate_send(place, gates() + ((round + 1) & 1), 0, v);
  }
  // For what was sent to this block; `late`: in the round before.
  HIDA_DEVICE void wait(unsigned round, bool early, bool late) const {
    if (cluster_ == 1) return __syncthreads();
    int64_t* const gate = gates() + (round & 1);
    if (threadIdx.x == 0)
      gate_expect(gate, warps_ * unsigned(sizeof(float)) * ((early ? kEarly : 0) + (late && first_ ? kLate : 0)));
    gate_wait(gate, (round >> 1) & 1);
  }

  HIDA_DEVICE void add_early(unsigned round, float& one, float& two) const {
    const unsigned lane = threadIdx.x & 31u, half = lane >> 4;
    const float* const all = numbers(round) + half * warps_;
    float v = 0;
#pragma unroll 1
    for (unsigned i = lane & 15u; i < warps_; i += 16) v += all[i];
#pragma unroll
    for (int bit = 8; bit > 0; bit /= 2) v += __shfl_xor_sync(kAll, v, bit);
    one = __shfl_sync(kAll, v, 0);
    two = __shfl_sync(kAll, v, 16);
  }
  // Of the round before, to to[kind][at]; a null pointer: not wanted.
  HIDA_DEVICE void store_late(unsigned round, float* const (&to)[kLate], unsigned at) const {
    if (!first_ || threadIdx.x >= unsigned(kWarp)) return;
    const unsigned lane = threadIdx.x & 31u, which = lane >> 3;
    const float* const all = numbers(round) + (kEarly + which) * warps_;
    float v = 0;
    if (which < kLate) {
#pragma unroll 1
      for (unsigned i = lane & 7u; i < warps_; i += 8) v += all[i];
    }
#pragma unroll
    for (int bit = 4; bit > 0; bit /= 2) v += __shfl_xor_sync(kAll, v, bit);
    float* const target = which == 0 ? to[0] : which == 1 ? to[1] : to[2];
    if ((lane & 7u) == 0 && which < kLate && target != nullptr) target[at] = v;
  }

 private:
  HIDA_DEVICE float* numbers(unsigned round) const {
    return room<2 * (kEarly + kLate)>() + (round & 1) * (kEarly + kLate) * warps_;
  }
  const unsigned cluster_, warps_, mine_;
  const bool first_;
};

// ---- on the host ------------------------------------------------------------------------------------------------

// A chip with no more shared memory for a block has no copies that go on by themselves (7.5).
constexpr int kNoCopies = 64 << 10;
// What a block has besides its copies: sums, gates, and a kilobyte of the chip's own.
constexpr size_t kSums = 7 << 10;

}  // namespace nchw
}  // namespace cuda
}  // namespace hida
