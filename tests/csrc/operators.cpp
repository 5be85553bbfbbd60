// The operator libraries as a program of libtorch loads them: operators LIBRARY [CUDA_LIBRARY [run]].
// Loads them, sees that every operator has a kernel for the device, and compares info_acon with its formula: on the
// CPU, or with "run" on a GPU (exit status 77 where there is none).
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <dlfcn.h>

#include <cstdio>
#include <string>

namespace {

const char* const everywhere[] = {"info_acon",
                                  "info_acon_backward",
                                  "ida",
                                  "ida_backward",
                                  "deform_conv2d",
                                  "deform_conv2d_backward",
                                  "instance_norm_modulate",
                                  "instance_norm_modulate_backward",
                                  "leaky_norm",
                                  "leaky_norm_backward"};

bool load(const std::string& path) {
  if (dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL) != nullptr) return true;
  std::printf("%s\n", dlerror());
  return false;
}

bool registered(c10::DispatchKey key) {
  for (const char* name : everywhere) {
    const auto found = c10::Dispatcher::singleton().findOp({std::string("hida::") + name, ""});
    if (found && found->hasKernelForDispatchKey(key)) continue;
    std::printf("hida::%s has no kernel for %s\n", name, c10::toString(key));
    return false;
  }
  return true;
}

bool right(at::Device device) {
  using Op = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&);
  const auto options = at::TensorOptions().device(device);
  const at::Tensor x = at::randn({2, 3, 9, 11}, options), logits = at::randn({2, 3, 9, 11}, options),
                   p1 = at::randn({1, 3, 1, 1}, options), p2 = at::randn({1, 3, 1, 1}, options), d = p1 - p2;
  const at::Tensor y =
      c10::Dispatcher::singleton().findSchemaOrThrow("hida::info_acon", "").typed<Op>().call(x, logits, p1, p2);
  const double worst = (y - (d * x * at::sigmoid(at::sigmoid(logits) * d * x) + p2 * x)).abs().max().item<double>();
  std::printf("info_acon on %s: worst error %.2e\n", device.str().c_str(), worst);
  return worst <= 2e-5;  // false for NaN
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 2 || !load(arguments[1])) return 1;
  if (count == 2) return registered(c10::DispatchKey::CPU) && right(at::kCPU) ? 0 : 1;
  (void)dlopen(HIDA_TORCH_LIBRARIES "/libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL);  // a CPU build of torch has none
  if (!load(arguments[2]) || !registered(c10::DispatchKey::CUDA)) return 1;
  if (count == 3) return 0;
  if (!at::hasCUDA() || at::detail::getCUDAHooks().deviceCount() == 0) {
    std::printf("skipped: no GPU, or a CPU build of torch; the CUDA operators load and are registered\n");
    return 77;
  }
  return right(at::Device(at::kCUDA, 0)) ? 0 : 1;
}
