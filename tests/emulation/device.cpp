// The emulated chip as the launching code sees it: cuda/device.cu and operators/stream_cuda.cpp are for a real one.
#include "cuda/device.h"

#include "cuda.h"
#include "cuda/deform_conv.h"
#include "operators/stream_cuda.h"

namespace hida {
namespace cuda {

OnDevice::OnDevice(int) : before_(nullptr) {}
OnDevice::~OnDevice() = default;

Launch chip_of(int) {
  const emulation::Chip& chip = emulation::chip;
  return {nullptr, chip.capability >= 90 ? 8 : 1, chip.multiprocessors, chip.shared, emulation::device()};
}

int64_t resident_clusters(const void*, unsigned cluster, unsigned, size_t, const Launch& l) {
  return l.multiprocessors > int(cluster) ? l.multiprocessors / int(cluster) : 1;
}

void* current_stream(int) {
  return nullptr;
}

}  // namespace cuda
}  // namespace hida

// What a 3×3 deform_conv2d of one group, padding 1, would take on the emulated chip: bytes of workspace and images at a
// time, forward and backward. dtype: as hida::Dtype; last: channels last.
extern "C" __attribute__((visibility("default"))) void hida_emulation_deform_plan(int dtype, int last, int64_t n,
                                                                                  int64_t channels, int64_t outputs,
                                                                                  int64_t h, int64_t w,
                                                                                  int64_t* result) {
  static char memory[16];
  const auto image = [&](int64_t c) {
    hida::Image i{reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory) + 15) / 16 * 16), hida::Dtype(dtype)};
    i.n = c * h * w, i.c = last ? 1 : h * w, i.row = last ? w * c : w, i.step = last ? c : 1;
    return i;
  };
  hida::cuda::Convolution d;
  d.math = d.weight_dtype = hida::Dtype(dtype);
  d.in = {n, channels, h, w};
  d.out = {n, outputs, h, w};
  d.kernel_h = d.kernel_w = 3;
  d.pad_h = d.pad_w = 1;
  d.x = d.dx = image(channels);
  d.y = d.grad = image(outputs);
  d.offset = d.doffset = image(18);
  d.mask = d.dmask = image(9);
  d.dweight = d.y.data;
  const hida::cuda::Launch l = hida::cuda::chip_of(0);
  const hida::cuda::DeformPlan plans[2] = {plan_forward(d, l, {}), plan_backward(d, l, {})};
  for (int i = 0; i < 2; ++i) result[2 * i] = plans[i].bytes, result[2 * i + 1] = plans[i].images;
}
