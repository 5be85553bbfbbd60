// deform_conv2d where planes are small and few: from the columns' gradient, G, to those of x, offsets and mask.
//
//   dx[c][q] = Σ_p,tap [q is a corner] share·mask·G
//   offsets and mask of (p, tap): Σ_c G·x[c](corner), a sum for each corner, of which the three are combinations
//
// Blocks of one launch own 32 channels of an image (dx), or a pixel's deformable group (offsets and mask). What they
// need of G and x goes to shared memory first. No atomics, one order: the points that reach a pixel are picked by a
// warp, in order, whose lanes then are the channels; sums over channels are shared by threads in a fixed way. Traffic:
// G read once by either, x once for each pixel, from the second-level cache; dx, doffset, dmask written once. Share of
// the floor: not measured.
#include "deform_conv_tiny.h"

namespace hida {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kAtOnce = 192;     // sampling points whose G is in shared memory at a time
constexpr int kRoom = 36 << 10;  // bytes for G and x of some channels

// Where a point's G is, of the first of a warp's channels, and how much of it a pixel gets.
struct Hit {
  int at;
  float share;
};

HIDA_MATH int pixels_at_once(int taps) {
  return taps > kAtOnce ? 1 : kAtOnce / taps;
}

// dx of an image, kSlice channels.
template <class M>
HIDA_DEVICE void input_gradient(const Job& job, int block, char* memory, const float* gradient, bool vectors) {
  const Deform& d = job.d;
  const int deformables = int(d.deformable), each = int(d.in.c) / deformables, slices = (each + kSlice - 1) / kSlice;
  const int plane = int(d.in.h * d.in.w), w = int(d.in.w), pixels = int(d.out.h * d.out.w), taps = job.taps;
  const int slice = block % slices, deformable = block / slices % deformables;
  const int n = block / slices / deformables;
  const int first = slice * kSlice, count = each - first < kSlice ? each - first : kSlice;
  const int channel = deformable * each + first;
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp, lots = pixels_at_once(taps);
  const int most = lots < pixels ? lots : pixels, pitch = kSlice * taps;
  auto* lines = reinterpret_cast<float*>(memory);                     // (pixel, channel, tap)
  auto* points = reinterpret_cast<TinyPoint*>(lines + most * pitch);  // (pixel, tap)
  auto* hits = reinterpret_cast<Hit*>(points + most * taps) + warp * most * taps;
  auto* sums = reinterpret_cast<float*>(points + most * taps) + 2 * (kThreads / kWarp) * most * taps;  // (q, channel)
  const Divider by_taps(taps), by_row(w);
  for (int from = 0; from < pixels; from += lots) {
    const int now = pixels - from < lots ? pixels - from : lots;
    if (from > 0) __syncthreads();
    const float* g = gradient + (int64_t(n * pixels + from) * d.in.c + channel) * taps;
    find_points(job, n, deformable, from * taps, now * taps, points,
                [&] { bring_lines(g, int(d.in.c) * taps, now, count * taps, vectors, lines, pitch); });
    __syncthreads();
    for (int q = warp; q < plane; q += kThreads / kWarp) {
      int found = 0;
      for (int i = lane; i - lane < now * taps; i += kWarp) {
        bool is = false;
        float share = 0;
        if (i < now * taps) {
          const TinyPoint point = points[i];
          float part[4];
          shares_of(point.down, point.right, part);
#pragma unroll
          for (int corner = 0; corner < 4; ++corner)
            if (point.corner(corner) == q) is = true, share = part[corner] * point.mask;
        }
        const unsigned which = __ballot_sync(kAll, is);
        const int pixel = by_taps(i);
        if (is) hits[found + __popc(which & ((1u << lane) - 1))] = {pixel * pitch + i - pixel * taps, share};
        found += __popc(which);
      }
      __syncwarp();
      float sum = from > 0 ? sums[q * kSlice + lane] : 0;
#pragma unroll 4
      for (int i = 0; i < found; ++i) sum += hits[i].share * lines[hits[i].at + lane * taps];
      sums[q * kSlice + lane] = sum;
      __syncwarp();
    }
  }
  __syncthreads();
  const bool last = d.dx.c == 1;
  const int inner = last ? count : plane;
  const Divider by_inner(inner);
  for (int i = int(threadIdx.x); i < count * plane; i += kThreads) {
    const int slow = by_inner(i), fast = i - slow * inner;
    const int c = last ? fast : slow, q = last ? slow : fast, row = by_row(q);
    static_cast<typename M::Bits*>(d.dx.data)[index_in(d.dx, n, channel + c, row, q - row * w)] =
        bits_of<M>(sums[q * kSlice + c]);
  }
}

// Channels whose G and x are in shared memory at a time.
template <class M>
HIDA_MATH int channels_at_once(int each, int plane, int taps) {
  const int one = taps * 4 + (plane + 1) * int(sizeof(typename M::Bits)), most = kRoom / one;
  const int lots = (each + most - 1) / most;
  return ((each + lots - 1) / lots + 3) / 4 * 4;
}

// Gradients of offsets and mask at a pixel, of a deformable group.
template <class M>
HIDA_DEVICE void sample_gradients(const Job& job, int block, char* memory, const float* gradient, bool vectors) {
  using Bits = typename M::Bits;
  const Deform& d = job.d;
  const int deformables = int(d.deformable), each = int(d.in.c) / deformables, plane = int(d.in.h * d.in.w),
            taps = job.taps;
  const int pixels = int(d.out.h * d.out.w), deformable = block % deformables;
  const int p = block / deformables, n = p / pixels, pixel = p - n * pixels, channel = deformable * each;
  const int thread = int(threadIdx.x), lanes = kThreads / taps;
  const int tap = thread % taps, c0 = thread / taps, most = channels_at_once<M>(each, plane, taps);
  auto* sums = reinterpret_cast<float*>(memory);  // (row, column, mask; thread)
  auto* points = reinterpret_cast<TinyPoint*>(sums + 3 * kThreads);
  auto* line = reinterpret_cast<float*>(points + taps);
  auto* x = reinterpret_cast<Bits*>(line + most * taps);
  const float* from = gradient + (p * d.in.c + channel) * taps;
  float sum[4] = {};
  for (int first = 0; first < each; first += most) {
    const int count = each - first < most ? each - first : most;
    if (first > 0) __syncthreads();
    find_points(job, n, deformable, pixel * taps, first > 0 ? 0 : taps, points, [&] {
      bring_lines(from + first * taps, 0, 1, count * taps, vectors, line, 0);
      bring_x<M>(job, n, channel + first, count, x);
    });
    __syncthreads();
    const TinyPoint point = points[tap];
    if (c0 < lanes) {
      const Bits* corner[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) corner[i] = x + point.corner(i);
#pragma unroll 4
      for (int c = c0; c < count; c += lanes) {
        const float g = line[c * taps + tap];
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[i] += g * value_of<M>(corner[i][c * (plane + 1)]);
      }
    }
  }
  const TinyPoint point = points[tap];
  float part[4];
  shares_of(point.down, point.right, part);
  sums[thread] = point.mask * ((sum[2] - sum[0]) * (1 - point.right) + (sum[3] - sum[1]) * point.right);
  sums[kThreads + thread] = point.mask * ((sum[1] - sum[0]) * (1 - point.down) + (sum[3] - sum[2]) * point.down);
  sums[2 * kThreads + thread] = part[0] * sum[0] + part[1] * sum[1] + part[2] * sum[2] + part[3] * sum[3];
  __syncthreads();
  if (thread >= 3 * taps) return;
  const int what = thread / taps, which = thread - what * taps;
  float total = 0;
#pragma unroll 4
  for (int i = 0; i < lanes; ++i) total += sums[what * kThreads + i * taps + which];
  const int64_t k = int64_t(deformable) * taps + which;
  const Image& to = what < 2 ? d.doffset : d.dmask;
  if (to.data)
    write_as(to.data, to.dtype,
             index_in(to, n, what < 2 ? 2 * k + what : k, pixel / int(d.out.w), pixel % int(d.out.w)), total);
}

template <class M>
__global__ void __launch_bounds__(kThreads, 3)
    gradients_kernel(const __grid_constant__ Job job, const float* gradient, bool vectors, int sample_blocks) {
  HIDA_DYNAMIC_SHARED(char, memory);
  const int block = int(blockIdx.x);
  if (block < sample_blocks)
    sample_gradients<M>(job, block, memory, gradient, vectors);
  else
    input_gradient<M>(job, block - sample_blocks, memory, gradient, vectors);
}

}  // namespace

template <class M>
void tiny_gradients(const Job& job, const float* gradient, const Launch& l) {
  const Deform& d = job.d;
  const int64_t each = d.in.c / d.deformable, point = int64_t(sizeof(TinyPoint)), taps = job.taps;
  const bool samples = d.doffset.data || d.dmask.data;
  const int64_t sample_blocks = samples ? job.pixels * d.deformable : 0;
  const int64_t input_blocks = d.dx.data ? d.in.n * d.deformable * over(each, kSlice) : 0;
  const int64_t most = std::min<int64_t>(pixels_at_once(job.taps), d.out.pixels()) * taps;
  const int64_t channels = channels_at_once<M>(int(each), int(d.in.pixels()), job.taps);
  const int64_t for_samples =
      3 * kThreads * 4 + taps * point + channels * (taps * 4 + (d.in.pixels() + 1) * int64_t(sizeof(typename M::Bits)));
  const int64_t for_input =
      most * (kSlice * 4 + point + kThreads / kWarp * int64_t(sizeof(Hit))) + d.in.pixels() * kSlice * 4;
  launch(gradients_kernel<M>, grid_of(sample_blocks + input_blocks), kThreads,
         size_t(std::max(samples ? for_samples : 0, d.dx.data ? for_input : 0)), l, job, gradient, each * taps % 4 == 0,
         sample_blocks);
}

#define HIDA_INSTANTIATE(M) template void tiny_gradients<M>(const Job&, const float*, const Launch&);
HIDA_INSTANTIATE(Bf16) HIDA_INSTANTIATE(Fp16) HIDA_INSTANTIATE(Fp32)

}  // namespace cuda
}  // namespace hida
