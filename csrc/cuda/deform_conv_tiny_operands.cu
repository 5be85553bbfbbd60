// deform_conv2d where planes are small and few: what the products read.
//
//   columns[p][c·taps + tap] = mask·Σ share·x[c](corner)           dy, channels last
//
// A block owns 32 or 64 channels of an image: x of these and all sampling points go to shared memory, then neighbouring
// threads write neighbouring columns. Other blocks of the same launch rearrange dy.
// Traffic: x and dy read once, offsets and mask once a block, from the second-level cache; columns written
// once. Share of the floor: not measured.
#include "deform_conv_tiny.h"

namespace hida {
namespace cuda {
namespace {

constexpr int kGradChannels = 128;  // of dy, for a block that rearranges it

// Threads in a row that share a tap, a power of two; a block has so many times `taps`.
HIDA_MATH int lanes_of_tap(int taps) {
  int lanes = 128;
  while (lanes > 4 && lanes * taps > 160) lanes /= 2;
  return lanes;
}
constexpr int kMostOperandThreads = 160;

// M (pixels, pitch), made by so many blocks; each: channels of a deformable group, in `slices` of `slice`.
struct ColumnBlocks {
  void* data;
  int64_t pitch;
  int blocks, each, slices, slice;
};

template <class M>
HIDA_DEVICE void make_columns(const Job& job, const ColumnBlocks& columns, int block, char* memory) {
  using Bits = typename M::Bits;
  const Deform& d = job.d;
  const int plane = int(d.in.h * d.in.w), pixels = int(d.out.h * d.out.w), taps = job.taps;
  const int rest = block / columns.slices, n = rest / int(d.deformable), deformable = rest - n * int(d.deformable);
  const int first = (block - rest * columns.slices) * columns.slice, left = columns.each - first;
  const int count = left < columns.slice ? left : columns.slice, channel = deformable * columns.each + first;
  const int lanes = int(blockDim.x) / taps;
  const int64_t pitch = columns.pitch;
  auto* points = reinterpret_cast<TinyPoint*>(memory);
  auto* x = reinterpret_cast<Bits*>(points + pixels * taps);
  find_points(
      job, n, deformable, 0, pixels * taps, [&](int i, const TinyPoint& point) { points[i] = point; },
      [&] { bring_x<M>(job, n, channel, count, x); });
  __syncthreads();
  // Neighbouring threads have neighbouring columns; each takes two channels at a time.
  const int tap = int(threadIdx.x) % taps;
  for (int c = int(threadIdx.x) / taps; c < count; c += 2 * lanes) {
    const bool both = c + lanes < count;
    const int apart = both ? lanes : 0;
    const Bits *one = x + c * (plane + 1), *two = one + apart * (plane + 1);
    Bits* to = static_cast<Bits*>(columns.data) + int64_t(n) * pixels * pitch + (channel + c) * taps + tap;
    Bits* other = to + apart * taps;
    for (int pixel = 0; pixel < pixels; ++pixel, to += pitch, other += pitch) {
      const TinyPoint point = points[pixel * taps + tap];
      float part[4], sum[2] = {};
      shares_of(point.down, point.right, part);
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) {
        sum[0] += part[corner] * value_of<M>(one[point.corner(corner)]);
        sum[1] += part[corner] * value_of<M>(two[point.corner(corner)]);
      }
      *to = bits_of<M>(sum[0] * point.mask);
      if (both) *other = bits_of<M>(sum[1] * point.mask);
    }
  }
}

// dy of an image, kGradChannels of a group, channels last.
template <class M>
HIDA_DEVICE void rearrange_grad(const Job& job, int block, void* to) {
  using Bits = typename M::Bits;
  constexpr int ahead = 8;
  const Image& grad = job.d.grad;
  const int plane = int(job.d.out.h * job.d.out.w), w = int(job.d.out.w), threads = int(blockDim.x);
  const int parts = (job.outputs + kGradChannels - 1) / kGradChannels, groups = int(job.d.groups);
  const int first = block % parts * kGradChannels, group = block / parts % groups;
  const int n = block / parts / groups;
  const int count = job.outputs - first < kGradChannels ? job.outputs - first : kGradChannels, total = count * plane;
  const bool last = grad.c == 1;
  const int inner = last ? count : plane;
  const int line = groups * job.grad_padded;
  Bits* lines = static_cast<Bits*>(to) + int64_t(n) * plane * line + group * job.grad_padded + first;
  const int64_t base = n * grad.n + (int64_t(group) * job.outputs + first) * grad.c;
  const int channel = int(grad.c), below = int(grad.row), step = int(grad.step);
  const Divider by_inner(inner), by_row(w);
  for (int i = int(threadIdx.x); i < total; i += ahead * threads) {
    uint32_t v[ahead];
    int place[ahead];
#pragma unroll
    for (int k = 0; k < ahead; ++k) {
      const int e = i + k * threads, slow = by_inner(e), fast = e - slow * inner;
      const int c = last ? fast : slow, pixel = last ? slow : fast, row = by_row(pixel);
      place[k] = pixel * line + c;
      v[k] = e < total ? bits_at(grad, base + (c * channel + row * below + (pixel - row * w) * step)) : 0;
    }
#pragma unroll
    for (int k = 0; k < ahead; ++k)
      if (i + k * threads < total) lines[place[k]] = bits_of<M>(value_of(grad.dtype, v[k]));
  }
}

template <class M>
__global__ void __launch_bounds__(kMostOperandThreads, 4)
    operands_kernel(const __grid_constant__ Job job, const ColumnBlocks columns, void* grad) {
  HIDA_DYNAMIC_SHARED(char, memory);
  const int block = int(blockIdx.x);
  if (block < columns.blocks)
    make_columns<M>(job, columns, block, memory);
  else
    rearrange_grad<M>(job, block - columns.blocks, grad);
}

}  // namespace

template <class M>
void tiny_operands(const Job& job, void* columns, int64_t pitch, void* grad, const Launch& l) {
  const Deform& d = job.d;
  const int64_t each = d.in.c / d.deformable, images = d.in.n * d.deformable;
  // The points are found once in a block: twice as many channels, where that leaves work for the whole chip.
  const int64_t slice = images * over(each, 2 * kSlice) < l.multiprocessors ? kSlice : 2 * kSlice;
  const int64_t slices = over(each, slice), blocks = columns ? images * slices : 0;
  const int64_t grad_blocks = grad ? d.in.n * d.groups * over(job.outputs, kGradChannels) : 0;
  const int64_t points = d.out.pixels() * job.taps * int64_t(sizeof(TinyPoint));
  const int64_t shared = columns ? points + slice * (d.in.pixels() + 1) * int64_t(sizeof(typename M::Bits)) : 0;
  launch(operands_kernel<M>, grid_of(blocks + grad_blocks), unsigned(lanes_of_tap(job.taps) * job.taps), size_t(shared),
         l, job, ColumnBlocks{columns, pitch, int(blocks), int(each), int(slices), int(slice)}, grad);
}

#define HIDA_INSTANTIATE(M) template void tiny_operands<M>(const Job&, void*, int64_t, void*, const Launch&);
HIDA_INSTANTIATE(Bf16) HIDA_INSTANTIATE(Fp16) HIDA_INSTANTIATE(Fp32)

}  // namespace cuda
}  // namespace hida
