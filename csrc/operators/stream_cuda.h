// Where the operators launch: on the device of a tensor, on torch's current stream there.
#pragma once

#include "../cuda/launch.h"

namespace hida {
namespace cuda {

// torch's current stream on a device. libtorch_cuda is not linked, but looked up in the process, so that this library
// builds against, and loads under, a torch without CUDA.
void* current_stream(int device);

class Here {
 public:
  explicit Here(int device) : device_(device), launch_(chip_of(device)) { launch_.stream = current_stream(device); }
  operator const Launch&() const { return launch_; }
  const Launch* operator->() const { return &launch_; }

 private:
  OnDevice device_;
  Launch launch_;
};

}  // namespace cuda
}  // namespace hida
