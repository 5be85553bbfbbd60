// Kernels with mistakes, for test_emulation.py: misuse CASE ORDER prints what came of one.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "cuda/device.h"

namespace hida {
namespace cuda {
namespace {

__global__ void sums(int mistake, float* out, const float* in) {
  HIDA_SHARED(float, values, [64]);
  HIDA_DYNAMIC_SHARED(float, dynamic);
  const unsigned t = threadIdx.x, opposite = 63 - t;
  values[t] = in[blockIdx.x * 64 + t];
  if (mistake != 1) __syncthreads();  // 1: no barrier
  float sum = values[t] + values[opposite];
  if (mistake == 2 && t < 32) __syncthreads();  // 2: a barrier for some
  if (mistake == 3) {                           // 3: two barriers that are not the same
    if (t < 32)
      __syncthreads();
    else
      __syncthreads();
  }
  if (mistake == 4 && t >= 40) return;  // 4: a warp operation with lanes that have left
  if (mistake == 5) sum += __shfl_sync(t % 32 < 16 ? 0xffffu : 0xffff0000u, sum, 20);  // 5: of a lane outside
  for (int bit = 16; bit > 0; bit /= 2) sum += __shfl_xor_sync(kAll, sum, bit);
  if (mistake == 6) sum += dynamic[64];                 // 6: behind the end
  if (mistake == 7) sum += *(values + 64 + t);          // 7: behind the end
  if (mistake == 8) sum += dynamic[t];                  // 8: never written
  if (mistake == 9) sum += in[gridDim.x * 64];          // 9: behind the end
  if (mistake == 10 && blockIdx.x == 1) sum += out[0];  // 10: another block's result
  if (mistake == 11) sum += cluster_read(values, 1);    // 11: there is no cluster
  const unsigned votes = __ballot_sync(kAll, t % 2 == 0);
  if (t == 0) out[blockIdx.x] = sum + float(__popc(votes) - 16);
}

}  // namespace
}  // namespace cuda
}  // namespace hida

int main(int count, char** arguments) {
  if (count != 3) return 2;
  const int mistake = std::atoi(arguments[1]);
  emulation::chip.order = std::atoi(arguments[2]);
  float* in = new float[128];
  float* out = new float[2]{0, 0};
  for (int i = 0; i < 128; ++i) in[i] = float(i % 7);
  hida::cuda::launch(hida::cuda::sums, dim3(2), dim3(64), 64 * sizeof(float), hida::cuda::Launch(), mistake, out,
                     static_cast<const float*>(in));
  std::printf("%g %g\n", double(out[0]), double(out[1]));
  delete[] in;
  delete[] out;
}
