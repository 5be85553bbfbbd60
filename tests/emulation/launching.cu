// Two threads launch the same kernels with different amounts of shared memory, for test_emulation.py. A launch with
// more than its kernel may have at that moment stops the program. Prints what was asked for each kernel: how often it
// was set what it may have, how often what it prefers, and whether it may have all that the chip gives a block.
#include <cstdio>
#include <thread>

#include "cuda/device.h"

namespace hida {
namespace cuda {
namespace {

template <int Number>
__global__ void nothing(int* runs) {
  if (threadIdx.x == 0) ++*runs;
}

Launch chip() {
  Launch l;
  l.shared = emulation::chip.shared;
  l.device = emulation::device();
  return l;
}

void tell(void (*kernel)(int*)) {
  const emulation::Asked asked = emulation::asked_of(reinterpret_cast<const void*>(kernel));
  std::printf("%d %d %d\n", asked.set, asked.preferred, asked.most == emulation::chip.shared - 1024);
}

}  // namespace
}  // namespace cuda
}  // namespace hida

int main() {
  using namespace hida::cuda;
  int runs = 0;
  const auto launches = [&](size_t many) {
    const Launch l = chip();
    for (size_t i = 0; i < 500; ++i) {
      launch(nothing<0>, dim3(1), dim3(32), i % 50 == 0 ? 1024 : many, l, &runs);  // seldom with little
      launch(nothing<1>, dim3(1), dim3(32), size_t(33 << 10) + i, l, &runs);
      launch(nothing<2>, dim3(1), dim3(32), i, l, &runs);
    }
  };
  for (int shared : {232448, 166912}) {  // two devices
    emulation::chip.shared = shared;
    std::thread other(launches, size_t(40) << 10);
    launches(size_t(160) << 10);
    other.join();
    for (auto kernel : {nothing<0>, nothing<1>, nothing<2>}) tell(kernel);
  }
  std::printf("%d\n", runs);
}
