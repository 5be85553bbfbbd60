// CUDA, or its emulation on a CPU, and what every kernel needs of either: launching, shared memory, elementary
// functions.
//   HIDA_SHARED(float, name, [32]);        an array in shared memory
//   HIDA_DYNAMIC_SHARED(float, name);      the memory whose size the launch gives: float* name
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <stdexcept>
#include <string>

#if defined(HIDA_EMULATE_CUDA)
#include <cuda.h>  // of tests/emulation
#else
#include <cuda_runtime.h>
#define HIDA_SHARED(type, name, ...) __shared__ type name __VA_ARGS__
#define HIDA_DYNAMIC_SHARED(type, name)                                \
  extern __shared__ __align__(16) unsigned char hida_dynamic_shared[]; \
  type* const name = reinterpret_cast<type*>(hida_dynamic_shared)
#endif

#include "../half.h"
#include "../math.h"
#include "launch.h"

namespace hida {
namespace cuda {

#define HIDA_DEVICE __device__ __forceinline__

HIDA_MATH int64_t size_of(Dtype dtype) {
  return dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2;
}

constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffffu;

// ---- launching --------------------------------------------------------------------------------------------------

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();
  throw std::runtime_error(std::string("hida: ") + what + ": " + cudaGetErrorString(error) + ".");
}

// While it lives, this thread may ask about and load kernels although a stream is being captured: none of that goes to
// a stream, but what it may do inside (allocate, wait for the device) would end the capture.
class WhileCapturing {
 public:
  WhileCapturing() { (void)cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~WhileCapturing() { (void)cudaThreadExchangeStreamCaptureMode(&mode_); }
  WhileCapturing(const WhileCapturing&) = delete;
  WhileCapturing& operator=(const WhileCapturing&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// What is done once for each key, by the first of the threads that come; all wait until it is done. To ask takes some
// nanoseconds and no lock. What throws is done again by the next; should the table ever be full, others are too.
class Once {
 public:
  template <class F>
  void operator()(uint64_t key, F f) {
    if (has(key)) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (has(key)) return;
    f();
    for (int i = 0; i < kPlaces; ++i) {
      std::atomic<uint64_t>& place = places_[at(key, i)];
      if (place.load(std::memory_order_relaxed) != 0) continue;
      place.store(key, std::memory_order_release);
      return;
    }
  }

 private:
  static constexpr int kPlaces = 4096;
  static int at(uint64_t key, int i) { return (int(key * 0x9e3779b97f4a7c15u >> 52) + i) % kPlaces; }
  bool has(uint64_t key) const {
    for (int i = 0; i < kPlaces; ++i) {
      const uint64_t found = places_[at(key, i)].load(std::memory_order_acquire);
      if (found == key || found == 0) return found == key;
    }
    return false;
  }

  std::atomic<uint64_t> places_[kPlaces] = {};  // 0: empty
  std::mutex mutex_;
};

// Dynamic shared memory that any kernel may have: 48 KB, less its arrays of fixed size.
constexpr size_t kPlainShared = 32 << 10;
// Kernels with more than this want it more than a first-level cache: several of their blocks share a multiprocessor.
constexpr size_t kMuchShared = 48 << 10;

// Makes a kernel ready on the current device, l.device, to be launched with so much shared memory; each step is done
// before the first launch that needs it. Asking for a kernel's attributes loads it, which the runtime else puts off
// until it is launched: too late where that first launch is captured into a graph. A kernel may then have all the
// shared memory that the chip gives a block, whatever its launches ask for, so that no thread takes from another's what
// it needs.
inline void make_ready(const void* kernel, size_t shared, const Launch& l) {
  static Once done;
  const auto once = [&](int step, auto f) {
    // Addresses of code have 48 bits.
    done(uint64_t(reinterpret_cast<uintptr_t>(kernel)) << 16 | uint64_t(l.device) << 2 | uint64_t(step), [&] {
      const WhileCapturing mode;
      f();
    });
  };
  const auto set = [&](cudaFuncAttribute attribute, int value) {
    check(cudaFuncSetAttribute(kernel, attribute, value), "shared memory");
  };
  cudaFuncAttributes code{};
  const auto ask = [&] { check(cudaFuncGetAttributes(&code, kernel), "a kernel, on this CUDA device"); };
  once(1, ask);
  if (shared <= kPlainShared) return;
  once(2, [&] {
    ask();
    set(cudaFuncAttributeMaxDynamicSharedMemorySize, l.shared - int(code.sharedSizeBytes));
  });
  if (shared <= kMuchShared) return;
  once(3, [&] { set(cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared); });
}

// Launches `kernel` in clusters of `cluster` blocks (1: none; 8 at most).
template <class... P, class... A>
void launch_cluster(void (*kernel)(P...), unsigned cluster, dim3 grid, dim3 block, size_t shared, const Launch& l,
                    A... args) {
  const void* function = reinterpret_cast<const void*>(kernel);
  make_ready(function, shared, l);
#if defined(HIDA_EMULATE_CUDA)
  emulation::run(function, grid, block, shared, cluster, [=] { kernel(args...); });
#else
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = static_cast<cudaStream_t>(l.stream);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = cluster;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  config.attrs = &attribute;
  config.numAttrs = cluster > 1 ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, P(args)...), "a kernel could not be launched");
#endif
}

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, const Launch& l, A... args) {
  launch_cluster(kernel, 1, grid, block, shared, l, args...);
}

// Clusters of `cluster` blocks (1: none) of a kernel that run at a time on the current device, l.device, which is asked
// once; 0 where a part of the chip that blocks of a cluster share has too little for them. (device.cu)
int64_t resident_clusters(const void* kernel, unsigned cluster, unsigned threads, size_t shared, const Launch& l);

// A grid of so many blocks, in one dimension.
inline dim3 grid_of(int64_t blocks) {
  if (blocks > 0x7fffffff) throw std::runtime_error("hida: the tensor has too many planes for one launch.");
  return dim3(unsigned(blocks));
}

// ---- clusters ---------------------------------------------------------------------------------------------------

#if defined(HIDA_EMULATE_CUDA)

// The blocks of a cluster: rank and number of this one, their barrier, and a place of another's shared memory.
HIDA_DEVICE unsigned cluster_rank() {
  return emulation::cluster_rank();
}
HIDA_DEVICE unsigned cluster_size() {
  return emulation::cluster_size();
}
HIDA_DEVICE void cluster_sync(int line = __builtin_LINE()) {
  emulation::cluster_barrier(line);
}
template <class T>
HIDA_DEVICE T cluster_read(T* own, unsigned rank) {
  return *reinterpret_cast<T*>(emulation::in_cluster(own, rank));
}

#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
HIDA_DEVICE unsigned cluster_rank() {
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
HIDA_DEVICE unsigned cluster_size() {
  unsigned size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}
HIDA_DEVICE void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
template <class T>
HIDA_DEVICE T cluster_read(T* own, unsigned rank) {
  T* place;
  asm("mapa.u64 %0, %1, %2;" : "=l"(place) : "l"(own), "r"(rank));
  return *static_cast<volatile T*>(place);
}
#else  // a block on its own
HIDA_DEVICE unsigned cluster_rank() {
  return 0;
}
HIDA_DEVICE unsigned cluster_size() {
  return 1;
}
HIDA_DEVICE void cluster_sync() {
  __syncthreads();
}
template <class T>
HIDA_DEVICE T cluster_read(T* own, unsigned) {
  return *own;
}
#endif

// ---- memory -----------------------------------------------------------------------------------------------------

// Has the second-level cache fetch the 32 bytes around a place, without waiting.
HIDA_DEVICE void prefetch(const void* place) {
#if defined(HIDA_EMULATE_CUDA)
  (void)*static_cast<const volatile char*>(place);  // for the sanitizers
#else
  asm volatile("prefetch.global.L2 [%0];" ::"l"(place));
#endif
}

// ---- elementary functions ---------------------------------------------------------------------------------------

// The chip's own 2^x and 1/x, wrong by 2⁻²² and 2⁻²³ of themselves at most; 0 where the result is not a normal number.
HIDA_DEVICE float power_of_two(float x) {
#if defined(HIDA_EMULATE_CUDA)
  return emulation::approximate(std::exp2(x), 2);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}
HIDA_DEVICE float inverse(float x) {
#if defined(HIDA_EMULATE_CUDA)
  return emulation::approximate(1.0f / x, 1);
#else
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// exp and reciprocal for the templates of math.h. exp is never infinite: its arguments are clamped to what nearly is,
// of which reciprocal() makes 0, so that the logistic function is 0 where it vanishes, but no product of the two is
// NaN. The least argument gives 0.
struct Elementary {
  static HIDA_DEVICE float exp(float x) {
    x = bounded(x, -88.0f, 88.0f);
    const float log2e = 1.44269504f, power = x * log2e;
    const float rest = fmaf(x, 1.92596303e-8f, fmaf(x, log2e, -power));  // what rounding took from it
    const float y = power_of_two(power);
    return fmaf(y, rest * 0.693147181f, y);
  }
  static HIDA_DEVICE double exp(double x) { return ::exp(bounded(x, -746.0, 709.7)); }
  static HIDA_DEVICE float reciprocal(float x) { return inverse(x); }
  static HIDA_DEVICE double reciprocal(double x) { return x >= 1.6e308 ? 0.0 : 1.0 / x; }

 private:
  template <class Real>
  static HIDA_DEVICE Real bounded(Real x, Real low, Real high) {  // keeps NaN
    x = x < low ? low : x;
    return x > high ? high : x;
  }
};

HIDA_DEVICE float inverse_root(float x) {
#if defined(HIDA_EMULATE_CUDA)
  return emulation::approximate(1.0f / std::sqrt(x), 2);
#else
  return rsqrtf(x);
#endif
}
HIDA_DEVICE double inverse_root(double x) {
  return 1.0 / ::sqrt(x);
}

}  // namespace cuda
}  // namespace hida
