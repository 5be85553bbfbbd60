// deform_conv2d: how its kernels need x, dy and weights in memory, and their rearrangement where that is not so.
#include "deform_launch.h"

namespace hida {
namespace cuda {
namespace {

// 64 pixels × 128 bytes of channels per block: read across pixels or across channels, whichever is contiguous.
template <class M>
__global__ void __launch_bounds__(kGemmThreads)
    pack_kernel(Image from, Extent e, int64_t first, int64_t count, int piece, int padded, int positions, void* to) {
  HIDA_DYNAMIC_SHARED(char, memory);
  constexpr int V = kPerVec<M>, D = kDepth<M>;
  const int across = (positions + D - 1) / D;
  const int64_t plane = e.h * e.w, block = int64_t(blockIdx.x) / across, pixel0 = block * kTileSide;
  const int position0 = int(int64_t(blockIdx.x) % across) * D;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int t = int(threadIdx.x) + i * kGemmThreads;
    const int line = from.c == 1 ? t / 8 : t % kTileSide, u = from.c == 1 ? t % 8 : t / kTileSide;
    const int64_t p = pixel0 + line, n = p / plane;
    const int pixel = int(p - n * plane), row = pixel / int(e.w), column = pixel - row * int(e.w);
    const int position = position0 + u * V, c0 = position % padded;
    typename M::Real x[V];
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const bool is = n < count && position < positions && c0 + j < piece;
      const int64_t c = int64_t(position / padded) * piece + c0 + j;
      x[j] = is ? read_as<typename M::Real>(from.data, from.dtype, index_in(from, first + n, c, row, column)) : 0;
    }
    store16(memory + line * kRowPitch + u * 16, pack<M>(x));
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int t = int(threadIdx.x) + i * kGemmThreads, line = t / 8, position = position0 + t % 8 * V;
    if (pixel0 + line >= count * plane || position >= positions) continue;
    store16(static_cast<typename M::Bits*>(to) + (pixel0 + line) * positions + position,
            load16(memory + line * kRowPitch + t % 8 * 16));
  }
}

// One 16-byte vector of (taps, C_out, line) per thread.
template <class M>
__global__ void __launch_bounds__(kGemmThreads) pack_weight_kernel(const __grid_constant__ Job job, void* to) {
  constexpr int V = kPerVec<M>;
  const int vecs = job.line() / V;
  const int64_t id = int64_t(blockIdx.x) * kGemmThreads + threadIdx.x, row = id / vecs;
  if (row >= job.taps * job.d.out.c) return;
  const int position = int(id - row * vecs) * V, c0 = position % job.padded;
  const int64_t tap = row / job.d.out.c, o = row - tap * job.d.out.c, inputs = int64_t(job.per_group) * job.piece;
  typename M::Real x[V];
#pragma unroll
  for (int j = 0; j < V; ++j) {
    const int64_t c = int64_t(position / job.padded) * job.piece + c0 + j;
    x[j] = c0 + j < job.piece
               ? read_as<typename M::Real>(job.d.weight, job.d.weight_dtype, (o * inputs + c) * job.taps + tap)
               : 0;
  }
  store16(static_cast<typename M::Bits*>(to) + id * V, pack<M>(x));
}

int64_t common_divisor(int64_t a, int64_t b) {
  return b == 0 ? a : common_divisor(b, a % b);
}

// Channels last, of the products' dtype, whole vectors, aligned: can be gathered from as it is.
bool is_gatherable(const Image& image, const Extent& e, Dtype math, int64_t piece) {
  const int64_t per_vec = 16 / size_of(math);
  const bool apart = image.step % per_vec == 0 && image.row % per_vec == 0 && image.n % per_vec == 0;
  const bool near =
      e.n * image.n + e.h * image.row + e.w * image.step < (per_vec << 32);  // vectors are counted in 32 bits
  return image.data && image.dtype == math && (image.c == 1 || e.c == 1) && piece % per_vec == 0 && apart && near &&
         reinterpret_cast<uintptr_t>(image.data) % 16 == 0;
}

}  // namespace

void plan_layout(const Convolution& d, DeformPlan& plan) {
  if (d.in.pixels() * 2 >= INT32_MAX || d.out.pixels() * d.taps() >= INT32_MAX || d.in.c * 8 >= INT32_MAX ||
      d.out.c * 8 >= INT32_MAX)
    throw std::runtime_error("hida: deform_conv2d takes planes of fewer than 2^30 pixels and 2^31 sampling points.");
  const int64_t per_vec = 16 / size_of(d.math);
  plan.piece = int(common_divisor(d.in.c / d.groups, d.in.c / d.deformable));
  plan.padded = int(padded_to(plan.piece, per_vec));
  plan.grad_padded = int(padded_to(d.out.c / d.groups, per_vec));
  plan.pack_x = !is_gatherable(d.x, d.in, d.math, plan.piece);
  plan.pack_grad = !is_gatherable(d.grad, d.out, d.math, d.out.c / d.groups);
}

// Where an im2col would write much, less than a twentieth of it.
int64_t aim_of(const Convolution& d, const Choice& choice) {
  const int64_t columns = d.out.n * d.out.pixels() * d.in.c * d.taps() * size_of(d.math);
  return columns < int64_t(128) << 20 ? choice.budget : std::min(choice.budget, columns / 20 - kAlign);
}

int64_t bytes_of_x(const Convolution& d, const DeformPlan& plan, int64_t images) {
  return plan.pack_x ? images * d.in.pixels() * (d.in.c / plan.piece) * plan.padded * size_of(d.math) : 0;
}
int64_t bytes_of_grad(const Convolution& d, const DeformPlan& plan, int64_t images) {
  return plan.pack_grad ? images * d.out.pixels() * d.groups * plan.grad_padded * size_of(d.math) : 0;
}
int64_t bytes_of_weight(const Convolution& d, const DeformPlan& plan) {
  return d.taps() * d.out.c * (d.in.c / plan.piece / d.groups) * plan.padded * size_of(d.math);
}

Job start_job(const Convolution& d, const DeformPlan& plan) {
  Job job{};
  job.d = d;
  job.piece = plan.piece;
  job.padded = plan.padded;
  job.per_group = int(d.in.c / d.groups / plan.piece);
  job.per_deformable = int(d.in.c / d.deformable / plan.piece);
  job.grad_padded = plan.grad_padded;
  job.taps = int(d.taps());
  job.outputs = int(d.out.c / d.groups);
  job.pixels = d.out.n * d.out.pixels();
  return job;
}

template <class M>
void pack_lines(const Image& from, const Extent& e, int64_t first, int64_t count, int piece, int padded, void* to,
                const Launch& l) {
  const int64_t positions = e.c / piece * padded;
  const int64_t blocks = over(count * e.pixels(), kTileSide) * over(positions, kDepth<M>);
  launch(pack_kernel<M>, grid_of(blocks), kGemmThreads, kOperand, l, from, e, first, count, piece, padded,
         int(positions), to);
}

template <class M>
Lines lines_of(const Image& from, const Extent& e, int64_t first, int64_t count, int piece, int padded, void* memory,
               const Launch& l) {
  if (memory == nullptr)
    return {static_cast<const typename M::Bits*>(from.data) + first * from.n, from.n, from.row, from.step};
  pack_lines<M>(from, e, first, count, piece, padded, memory, l);
  const int64_t positions = e.c / piece * padded;
  return {memory, e.pixels() * positions, e.w * positions, positions};
}

template <class M>
void pack_weight(const Job& job, void* to, const Launch& l) {
  const int64_t vecs = job.taps * job.d.out.c * (job.line() / kPerVec<M>);
  launch(pack_weight_kernel<M>, grid_of(over(vecs, kGemmThreads)), kGemmThreads, 0, l, job, to);
}

#define HIDA_INSTANTIATE(M)                                                                                   \
  template void pack_lines<M>(const Image&, const Extent&, int64_t, int64_t, int, int, void*, const Launch&); \
  template Lines lines_of<M>(const Image&, const Extent&, int64_t, int64_t, int, int, void*, const Launch&);  \
  template void pack_weight<M>(const Job&, void*, const Launch&);
HIDA_FOR_STORED(HIDA_INSTANTIATE)

}  // namespace cuda
}  // namespace hida
