#include "stream_cuda.h"

#include <dlfcn.h>

#include <stdexcept>

namespace hida {
namespace cuda {

void* current_stream(int device) {
  using Function = int32_t (*)(int32_t, void**);
  static const Function function = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_NOLOAD);
    void* symbol = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
    return reinterpret_cast<Function>(symbol);
  }();
  void* stream = nullptr;
  if (function == nullptr || function(device, &stream) != 0)
    throw std::runtime_error("hida: torch has no current CUDA stream; is this a build of torch with CUDA?");
  return stream;
}

}  // namespace cuda
}  // namespace hida
