// CUDA, or its emulation on a CPU, and what every kernel needs of either: launching, shared memory, elementary
// functions.
//   HIDA_SHARED(float, name, [32]);        an array in shared memory
//   HIDA_DYNAMIC_SHARED(float, name);      the memory whose size the launch gives: float* name
#pragma once

#include <cstdint>
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

#if defined(HIDA_EMULATE_CUDA)

template <class... P, class... A>
void launch_cluster(void (*kernel)(P...), unsigned cluster, dim3 grid, dim3 block, size_t shared, const Launch&,
                    A... args) {
  emulation::run(grid, block, shared, cluster, [=] { kernel(args...); });
}

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

#else

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();
  throw std::runtime_error(std::string("hida: ") + what + ": " + cudaGetErrorString(error) + ".");
}

// Dynamic shared memory that any kernel may have: 48 KB, less its arrays of fixed size.
constexpr size_t kPlainShared = 32 << 10;
// Kernels with more than this want it more than a first-level cache: several of their blocks share a multiprocessor.
constexpr size_t kMuchShared = 48 << 10;

// Launches `kernel` in clusters of `cluster` blocks (1: none; 8 at most).
template <class... P, class... A>
void launch_cluster(void (*kernel)(P...), unsigned cluster, dim3 grid, dim3 block, size_t shared, const Launch& l,
                    A... args) {
  const void* function = reinterpret_cast<const void*>(kernel);
  if (shared > kPlainShared)
    check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)), "shared memory");
  if (shared > kMuchShared)
    check(
        cudaFuncSetAttribute(function, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared),
        "shared memory");
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
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
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

#endif

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, const Launch& l, A... args) {
  launch_cluster(kernel, 1, grid, block, shared, l, args...);
}

// A grid of so many blocks, in one dimension.
inline dim3 grid_of(int64_t blocks) {
  if (blocks > 0x7fffffff) throw std::runtime_error("hida: the tensor has too many planes for one launch.");
  return dim3(unsigned(blocks));
}

// The chip's own 2^x and 1/x, to two units and one in the last place.
HIDA_DEVICE float power_of_two(float x) {
#if defined(HIDA_EMULATE_CUDA)
  return std::exp2(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}
HIDA_DEVICE float inverse(float x) {
#if defined(HIDA_EMULATE_CUDA)
  return 1.0f / x;
#else
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// exp and reciprocal as math.h wants them. Arguments outside are clamped, so that exp neither overflows nor vanishes:
// the logistic function needs no more.
struct Elementary {
  static HIDA_DEVICE float exp(float x) {
    x = bounded(x, -87.0f, 88.0f);
    const float log2e = 1.44269504f, power = x * log2e;
    const float rest = fmaf(x, 1.92596303e-8f, fmaf(x, log2e, -power));  // what rounding took from it
    const float y = power_of_two(power);
    return fmaf(y, rest * 0.693147181f, y);
  }
  static HIDA_DEVICE double exp(double x) { return ::exp(bounded(x, -708.0, 709.0)); }
  static HIDA_DEVICE float reciprocal(float x) { return inverse(x); }
  static HIDA_DEVICE double reciprocal(double x) { return 1.0 / x; }

 private:
  template <class Real>
  static HIDA_DEVICE Real bounded(Real x, Real low, Real high) {  // keeps NaN
    x = x < low ? low : x;
    return x > high ? high : x;
  }
};

HIDA_DEVICE float inverse_root(float x) {
#if defined(HIDA_EMULATE_CUDA)
  return 1.0f / std::sqrt(x);
#else
  return rsqrtf(x);
#endif
}
HIDA_DEVICE double inverse_root(double x) {
  return 1.0 / ::sqrt(x);
}

}  // namespace cuda
}  // namespace hida
