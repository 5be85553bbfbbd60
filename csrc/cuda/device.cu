// The CUDA runtime's current device, and what a chip offers.
#include <map>
#include <mutex>
#include <tuple>
#include <vector>

#include "device.h"

namespace hida {
namespace cuda {
namespace {

// This library has a CUDA runtime of its own beside torch's: what both share is the driver's current context, and it
// alone says what torch had set.
struct Driver {
  using Get = int (*)(void**);
  using Set = int (*)(void*);
  Get get = nullptr;
  Set set = nullptr;
  Driver() {
    get = reinterpret_cast<Get>(entry("cuCtxGetCurrent"));
    set = reinterpret_cast<Set>(entry("cuCtxSetCurrent"));
  }

 private:
  static void* entry(const char* name) {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
    check(cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &found), name);
#else
    check(cudaGetDriverEntryPoint(name, &function, cudaEnableDefault, &found), name);
#endif
    if (found != cudaDriverEntryPointSuccess) throw std::runtime_error(std::string("hida: the driver has no ") + name);
    return function;
  }
};

const Driver& driver() {
  static const Driver one;
  return one;
}

__global__ void any_kernel() {}

// Of eight blocks at most, which every chip with clusters has. None where the kernels are made of older PTX, which
// knows nothing of them.
int largest_cluster(bool supported) {
  const void* kernel = reinterpret_cast<const void*>(&any_kernel);
  cudaFuncAttributes code{};
  check(cudaFuncGetAttributes(&code, kernel), "the kernels, on this CUDA device");
  if (!supported || code.ptxVersion < 90) return 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(8);
  config.blockDim = dim3(256);
  int size = 1;
  check(cudaOccupancyMaxPotentialClusterSize(&size, kernel, &config), "clusters of the CUDA device");
  return size >= 8 ? 8 : size >= 4 ? 4 : size >= 2 ? 2 : 1;
}

}  // namespace

OnDevice::OnDevice(int device) : before_(nullptr) {
  static Once begun;  // the runtime starts, and may load the kernels, when it first sets a device
  if (driver().get(&before_) != 0) before_ = nullptr;
  const auto set = [device] { check(cudaSetDevice(device), "the CUDA device of the tensors"); };
  begun(uint64_t(device) + 1, [&] {
    const WhileCapturing mode;
    set();
  });
  set();
}

OnDevice::~OnDevice() {
  if (before_ != nullptr) (void)driver().set(before_);
}

Launch chip_of(int device) {
  static std::mutex mutex;
  static std::vector<Launch> known;
  const std::lock_guard<std::mutex> lock(mutex);
  if (int(known.size()) <= device) known.resize(size_t(device) + 1);
  Launch& chip = known[size_t(device)];
  if (chip.cluster == 0) {
    const WhileCapturing mode;
    const auto ask = [device](cudaDeviceAttr attribute) {
      int value = 0;
      check(cudaDeviceGetAttribute(&value, attribute, device), "a property of the CUDA device");
      return value;
    };
    chip.device = device;
    chip.multiprocessors = ask(cudaDevAttrMultiProcessorCount);
    chip.shared = ask(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    chip.cluster = largest_cluster(ask(cudaDevAttrClusterLaunch) != 0);
  }
  return chip;
}

int64_t resident_clusters(const void* kernel, unsigned cluster, unsigned threads, size_t shared, const Launch& l) {
  static std::mutex mutex;
  static std::map<std::tuple<const void*, int, unsigned, size_t>, int64_t> known;
  make_ready(kernel, shared, l);
  const std::lock_guard<std::mutex> lock(mutex);
  int64_t& one_more = known[{kernel, l.device, cluster << 16 | threads, shared}];  // 0: not asked yet
  if (one_more > 0) return one_more - 1;
  const WhileCapturing mode;
  // Several blocks share a multiprocessor: first-level cache gives way.
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared),
        "shared memory");
  int count = 0;
  if (cluster == 1) {
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, kernel, int(threads), shared), "blocks of a kernel");
    count *= l.multiprocessors;
  } else {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(cluster);
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared;
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = cluster;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    config.attrs = &attribute;
    config.numAttrs = 1;
    check(cudaOccupancyMaxActiveClusters(&count, kernel, &config), "clusters of a kernel");
  }
  one_more = count + 1;
  return count;
}

}  // namespace cuda
}  // namespace hida
