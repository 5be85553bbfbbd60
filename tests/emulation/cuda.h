// The part of CUDA that HIDA's kernels use, on a CPU: included instead of the CUDA headers where HIDA_EMULATE_CUDA is
// defined. Blocks (or clusters of blocks) run one after the other; a block's threads are fibers, which change at
// barriers and warp operations. See README.md beside this file.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "runtime.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __grid_constant__

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

#define HIDA_EMULATED_VECTORS(T, name, align2, align4) \
  struct alignas(align2) name##2 {                     \
    T x, y;                                            \
  };                                                   \
  struct alignas(align4) name##4 {                     \
    T x, y, z, w;                                      \
  };                                                   \
  inline name##2 make_##name##2(T x, T y) {            \
    return {x, y};                                     \
  }                                                    \
  inline name##4 make_##name##4(T x, T y, T z, T w) {  \
    return {x, y, z, w};                               \
  }
HIDA_EMULATED_VECTORS(float, float, 8, 16)
HIDA_EMULATED_VECTORS(int, int, 8, 16)
HIDA_EMULATED_VECTORS(unsigned, uint, 8, 16)
HIDA_EMULATED_VECTORS(short, short, 4, 8)
HIDA_EMULATED_VECTORS(unsigned short, ushort, 4, 8)
HIDA_EMULATED_VECTORS(double, double, 16, 16)
#undef HIDA_EMULATED_VECTORS

namespace emulation {

constexpr int kWarp = 32;
constexpr size_t kSlot = 128;  // bytes that a lane can show to its warp at a time

struct Warp;
struct Block;
struct Fiber;

struct Thread {
  uint3 index;
  unsigned lane;
  Warp* warp;
  Block* block;
  Fiber* fiber;
  enum State : int { ready, at_warp, at_block, at_cluster, gone } state;
  int line;  // of the source where it waits
};

// What the kernels ask; none of it may be called outside a kernel.
extern Thread* current;
uint3 block_index();
dim3 block_size();
dim3 grid_size();
unsigned cluster_rank();
unsigned cluster_size();
void barrier(int line);
void cluster_barrier(int line);
// Shows `bytes` bytes to the lanes of `mask`, all of which must call; returns what they showed, a slot for each lane,
// until the next call.
const char* gather(unsigned mask, const void* value, size_t bytes, int line);
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Shared memory: a place for each declaration, the same in every block; the dynamic part of this block; the same
// place in another block of the cluster.
size_t reserve(size_t bytes, size_t align);
char* fixed(size_t offset);
char* dynamic();
char* in_cluster(void* own, unsigned rank);

// `kernel`: its address, by which the runtime knows it.
void run(const void* kernel, dim3 grid, dim3 block, size_t shared, unsigned cluster, void (*body)(void*),
         void* context);

template <class F>
void run(const void* kernel, dim3 grid, dim3 block, size_t shared, unsigned cluster, F body) {
  run(kernel, grid, block, shared, cluster, [](void* context) { (*static_cast<F*>(context))(); }, &body);
}

// Set by the tests; what the launching code sees of the "chip". order: of the threads of a block, of its warps and of
// the blocks: 0 first to last, 1 last to first, 2 shuffled.
struct Chip {
  int capability = 90, multiprocessors = 4, shared = 232448, order = 0;
};
extern Chip chip;

// Launches of the kernels for usual cases, which have others to fall back on: the launching code counts them.
extern int usual;

template <class T>
struct Shown {
  const char* slots;
  T operator[](int lane) const {
    T value;
    std::memcpy(&value, slots + size_t(lane) * kSlot, sizeof(T));
    return value;
  }
};
template <class T>
Shown<T> show(unsigned mask, const T& value, int line) {
  static_assert(sizeof(T) <= kSlot, "a lane shows at most kSlot bytes");
  return {gather(mask, &value, sizeof(T), line)};
}
template <class T>
T shuffle(unsigned mask, const T& value, int source, int line) {
  const Shown<T> shown = show(mask, value, line);
  if (!(mask >> source & 1)) fail("line %d: lane %u reads lane %d, which takes no part", line, current->lane, source);
  return shown[source];
}

// How the chip's approximate instructions err: not at all; as if by chance; all results too large, or too small.
enum class Rough { exact, chance, above, below };
extern Rough rough;

// What such an instruction gives: numbers below the normal ones are 0, others wrong by up to so many times 2⁻²³ of
// themselves, always by the same.
inline float approximate(float x, int units) {
  if (std::fabs(x) < std::numeric_limits<float>::min()) return 0.0f;
  if (rough == Rough::exact || !std::isfinite(x)) return x;
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  bits = (bits ^ bits >> 16) * 0x7feb352du;
  bits = (bits ^ bits >> 15) * 0x846ca68bu;
  const float share = rough == Rough::above ? 1.0f : rough == Rough::below ? -1.0f : float(bits >> 8) * 0x1p-23f - 1.0f;
  return x + x * (float(units) * share * 0x1p-23f);
}

}  // namespace emulation

#define threadIdx (::emulation::current->index)
#define blockIdx (::emulation::block_index())
#define blockDim (::emulation::block_size())
#define gridDim (::emulation::grid_size())
constexpr int warpSize = emulation::kWarp;

// Shared memory of fixed size, `HIDA_SHARED(float, name, [32])`, and of the size given at the launch.
#define HIDA_SHARED(type, name, ...)                                                                   \
  using name##_type = type __VA_ARGS__;                                                                \
  static const size_t name##_offset = ::emulation::reserve(sizeof(name##_type), alignof(name##_type)); \
  name##_type& name = *reinterpret_cast<name##_type*>(::emulation::fixed(name##_offset))
#define HIDA_DYNAMIC_SHARED(type, name) type* const name = reinterpret_cast<type*>(::emulation::dynamic())

#define HIDA_LINE int line = __builtin_LINE()

inline void __syncthreads(HIDA_LINE) {
  emulation::barrier(line);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, HIDA_LINE) {
  emulation::gather(mask, nullptr, 0, line);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, HIDA_LINE) {
  const int lane = int(emulation::current->lane), first = lane & ~(width - 1);
  return emulation::shuffle(mask, value, first + (source & (width - 1)), line);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, HIDA_LINE) {
  const int lane = int(emulation::current->lane), source = lane ^ bits;
  return emulation::shuffle(mask, value, source > (lane | (width - 1)) ? lane : source, line);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, HIDA_LINE) {
  const int lane = int(emulation::current->lane), source = lane + int(delta);
  return emulation::shuffle(mask, value, source > (lane | (width - 1)) ? lane : source, line);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, HIDA_LINE) {
  const int lane = int(emulation::current->lane), source = lane - int(delta);
  return emulation::shuffle(mask, value, source < (lane & ~(width - 1)) ? lane : source, line);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, HIDA_LINE) {
  const emulation::Shown<int> shown = emulation::show(mask, predicate, line);
  unsigned result = 0;
  for (int lane = 0; lane < emulation::kWarp; ++lane)
    if ((mask >> lane & 1) && shown[lane]) result |= 1u << lane;
  return result;
}
inline int __any_sync(unsigned mask, int predicate, HIDA_LINE) {
  return __ballot_sync(mask, predicate, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, HIDA_LINE) {
  return __ballot_sync(mask, predicate, line) == mask;
}

// Atomic by nature: threads change at barriers only.
template <class T>
T atomicAdd(T* address, T value) {
  const T old = *address;
  *address = old + value;
  return old;
}
template <class T>
T atomicMax(T* address, T value) {
  const T old = *address;
  if (value > old) *address = value;
  return old;
}
template <class T>
T atomicMin(T* address, T value) {
  const T old = *address;
  if (value < old) *address = value;
  return old;
}
template <class T>
T atomicExch(T* address, T value) {
  const T old = *address;
  *address = value;
  return old;
}
template <class T>
T atomicCAS(T* address, T expected, T value) {
  const T old = *address;
  if (old == expected) *address = value;
  return old;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
T __ldg(const T* from) {
  return *from;
}
template <class T>
T __ldcs(const T* from) {
  return *from;
}
template <class T>
void __stcs(T* to, T value) {
  *to = value;
}
inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
inline int __popc(unsigned bits) {
  return __builtin_popcount(bits);
}
inline int __ffs(int bits) {
  return __builtin_ffs(bits);
}
inline int __clz(int bits) {
  return bits == 0 ? 32 : __builtin_clz(unsigned(bits));
}

#undef HIDA_LINE
