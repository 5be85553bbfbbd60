// Sums over planes from those over their chunks: a thread adds up those of a plane, in order. The second kernel
// wherever several blocks share a plane without being a cluster.
#include "plane_map.h"

namespace hida {
namespace cuda {
namespace {

constexpr int kReduceThreads = 256;

template <class Real>
__global__ void __launch_bounds__(kReduceThreads) add_chunks_kernel(const __grid_constant__ ChunkSums s) {
  const int64_t at = int64_t(blockIdx.x) * kReduceThreads + threadIdx.x;
  if (at >= 3 * s.count) return;
  const int kind = at >= 2 * s.count ? 2 : at >= s.count ? 1 : 0;
  void* target = kind == 2 ? s.sums[2] : kind == 1 ? s.sums[1] : s.sums[0];
  if (target == nullptr) return;
  const Real* from = static_cast<const Real*>(s.partial) + at * s.chunks;
  Real total = 0;
  for (int i = 0; i < s.chunks; ++i) total += from[i];
  static_cast<Real*>(target)[at - kind * s.count] = total;
}

}  // namespace

void add_chunks(const ChunkSums& s, const Launch& l) {
  const dim3 grid = grid_of((3 * s.count + kReduceThreads - 1) / kReduceThreads);
  launch(s.wide ? add_chunks_kernel<double> : add_chunks_kernel<float>, grid, dim3(kReduceThreads), 0, l, s);
}

}  // namespace cuda
}  // namespace hida
