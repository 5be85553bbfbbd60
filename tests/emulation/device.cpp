// The emulated chip as the launching code sees it: what csrc/cuda/device.cu and stream.cpp are for a real one.
#include "cuda.h"
#include "cuda/stream.h"

namespace hida {
namespace cuda {

OnDevice::OnDevice(int) : before_(nullptr) {}
OnDevice::~OnDevice() = default;

Launch chip_of(int) {
  const emulation::Chip& chip = emulation::chip;
  return {nullptr, chip.capability, chip.multiprocessors, chip.shared, true};
}

void* current_stream(int) {
  return nullptr;
}

}  // namespace cuda
}  // namespace hida
