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

// One 16-byte vector of the weights' chunks (weight_at), or of the zeros after them, per thread.
template <class M>
__global__ void __launch_bounds__(kGemmThreads)
    pack_weight_kernel(const __grid_constant__ Job job, int64_t count, void* to) {
  constexpr int V = kPerVec<M>;
  const int64_t id = int64_t(blockIdx.x) * kGemmThreads + threadIdx.x, line = id / 8;
  if (id >= count) return;
  const int64_t chunk = line / job.d.out.c, o = line - chunk * job.d.out.c;
  const int64_t number = chunk / job.chunks, tap = number / job.per_group;
  const int c0 = int(chunk - number * job.chunks) * kDepth<M> + int(id % 8) * V;
  const int64_t inputs = int64_t(job.per_group) * job.piece, first = (number - tap * job.per_group) * job.piece + c0;
  typename M::Real x[V];
#pragma unroll
  for (int j = 0; j < V; ++j) {
    const bool is = tap < job.taps && c0 + j < job.piece;
    const int64_t at = (o * inputs + first + j) * job.taps + tap;
    x[j] = is ? read_as<typename M::Real>(job.d.weight, job.d.weight_dtype, at) : 0;
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
      e.n * image.n + e.h * image.row + e.w * image.step < (per_vec << 31);  // vectors are counted in 31 bits
  return image.data && image.dtype == math && (image.c == 1 || e.c == 1) && piece % per_vec == 0 && apart && near &&
         reinterpret_cast<uintptr_t>(image.data) % 16 == 0;
}

}  // namespace

void plan_layout(const Convolution& d, DeformPlan& plan) {
  if (d.in.pixels() * 2 >= INT32_MAX || d.out.pixels() * d.taps() >= INT32_MAX || d.in.c * 64 >= INT32_MAX ||
      d.out.c * 64 >= INT32_MAX || d.deformable * d.taps() * 2 >= INT32_MAX || d.in.h + 2 * d.pad_h >= INT32_MAX ||
      d.in.w + 2 * d.pad_w >= INT32_MAX)
    throw std::runtime_error(
        "hida: deform_conv2d takes planes of fewer than 2^30 pixels, 2^31 with padding in each direction, and 2^31 "
        "sampling points; and fewer than 2^25 channels.");
  const int64_t per_vec = 16 / size_of(d.math);
  plan.piece = int(common_divisor(d.in.c / d.groups, d.in.c / d.deformable));
  plan.padded = int(padded_to(plan.piece, per_vec));
  plan.grad_padded = int(padded_to(d.out.c / d.groups, per_vec));
  if (d.in.w * (d.in.c / plan.piece) * plan.padded / per_vec > INT32_MAX)
    throw std::runtime_error("hida: deform_conv2d takes rows of less than 32 GiB.");
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
int64_t numbers_of_weight(const Convolution& d, const DeformPlan& plan) {
  return d.taps() * d.out.c * (d.in.c / plan.piece / d.groups) * plan.padded;
}
namespace {
int64_t chunks_of(const Convolution& d, const DeformPlan& plan) {
  return over(plan.padded * size_of(d.math), kChunkBytes);
}
int64_t bytes_of_chunks(const Convolution& d, const DeformPlan& plan) {
  return d.taps() * (d.in.c / plan.piece / d.groups) * chunks_of(d, plan) * d.out.c * kChunkBytes;
}
int64_t bytes_of_zeros(const Convolution& d, const DeformPlan& plan) {
  const int64_t outputs = d.out.c / d.groups,
                pixel = std::max(d.in.c / plan.piece * plan.padded, d.groups * plan.grad_padded);
  return std::max((pixel + kTileSide) * size_of(d.math), (padded_to(outputs, plan.rows) - outputs) * kChunkBytes);
}
}  // namespace
int64_t bytes_of_weight(const Convolution& d, const DeformPlan& plan) {
  return bytes_of_chunks(d, plan) + bytes_of_zeros(d, plan);
}

Job start_job(const Convolution& d, const DeformPlan& plan, void* weight) {
  Job job{};
  job.d = d;
  job.piece = plan.piece;
  job.padded = plan.padded;
  job.per_group = int(d.in.c / d.groups / plan.piece);
  job.per_deformable = int(d.in.c / d.deformable / plan.piece);
  job.grad_padded = plan.grad_padded;
  job.taps = int(d.taps());
  job.outputs = int(d.out.c / d.groups);
  job.chunks = int(chunks_of(d, plan));
  if (weight) {
    job.weight = weight;
    job.zeros = static_cast<char*>(weight) + bytes_of_chunks(d, plan);
  }
  job.pixels = d.out.n * d.out.pixels();
  job.plane = Divisor(d.out.pixels());
  job.width = Divisor(d.out.w);
  job.kernel_w = Divisor(d.kernel_w);
  job.group_pieces = Divisor(job.per_group);
  job.deformable_pieces = Divisor(job.per_deformable);
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
void pack_weight(const Job& job, const DeformPlan& plan, void* to, const Launch& l) {
  const int64_t count = bytes_of_weight(job.d, plan) / 16;
  launch(pack_weight_kernel<M>, grid_of(over(count, kGemmThreads)), kGemmThreads, 0, l, job, count, to);
}

#define HIDA_INSTANTIATE(M)                                                                                   \
  template void pack_lines<M>(const Image&, const Extent&, int64_t, int64_t, int, int, void*, const Launch&); \
  template Lines lines_of<M>(const Image&, const Extent&, int64_t, int64_t, int, int, void*, const Launch&);  \
  template void pack_weight<M>(const Job&, const DeformPlan&, void*, const Launch&);
HIDA_FOR_STORED(HIDA_INSTANTIATE)

}  // namespace cuda
}  // namespace hida
