// Attributes of kernels, kept for each device, by any thread.
#include "runtime.h"

#include <chrono>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "cuda.h"

namespace emulation {
namespace {

constexpr int kPlain = 48 << 10;  // shared memory of a block whose kernel is allowed no more
constexpr int kFixed = 1 << 10;   // of it, arrays of fixed size: the same for all, which is more than any has

std::mutex mutex;
std::vector<Chip> devices;
std::map<std::pair<const void*, int>, Asked> kernels;
thread_local cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;

int device_locked() {
  size_t i = 0;
  for (; i < devices.size(); ++i)
    if (devices[i].capability == chip.capability && devices[i].multiprocessors == chip.multiprocessors &&
        devices[i].shared == chip.shared)
      return int(i);
  devices.push_back(chip);
  return int(i);
}

Asked& asked_locked(const void* kernel) {
  return kernels.try_emplace({kernel, device_locked()}, Asked{0, 0, 0, kPlain - kFixed}).first->second;
}

// A stream may be being captured in any thread.
void require_relaxed() {
  if (capture_mode != cudaStreamCaptureModeRelaxed) fail("kernels are asked about while a stream may be captured");
}

}  // namespace

int device() {
  const std::lock_guard<std::mutex> lock(mutex);
  return device_locked();
}

Asked asked_of(const void* kernel) {
  const std::lock_guard<std::mutex> lock(mutex);
  return asked_locked(kernel);
}

}  // namespace emulation

using namespace emulation;

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  require_relaxed();
  const std::lock_guard<std::mutex> lock(mutex);
  ++asked_locked(kernel).times;
  attributes->sharedSizeBytes = kFixed;
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  require_relaxed();
  {
    const std::lock_guard<std::mutex> lock(mutex);
    Asked& asked = asked_locked(kernel);
    if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) {
      ++asked.preferred;
      return cudaSuccess;
    }
    if (value + kFixed > chip.shared) return 1;
    ++asked.set;
    asked.most = value;
  }
  std::this_thread::sleep_for(std::chrono::microseconds(50));  // another thread may come before the launch
  return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, capture_mode);
  return cudaSuccess;
}

cudaError_t cudaGetLastError() {
  return cudaSuccess;
}

const char* cudaGetErrorString(cudaError_t) {
  return "invalid argument";
}
