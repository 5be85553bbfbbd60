// deform_conv2d where planes are small and few: from the columns' gradient, G, to those of x, offsets and mask.
//
//   dx[c][q] = Σ_p,tap [q is a corner] share·mask·G
//   offsets and mask of (p, tap): Σ_c G·x[c](corner), a sum for each corner, of which the three are combinations
//
// Blocks of one launch own 32 or 64 channels of an image (dx), or a pixel's deformable group (offsets and mask). What
// they need of G and x goes to shared memory first. No atomics, one order: the points that reach a pixel are picked by
// a warp, in order, whose lanes then are the channels; sums over channels are shared by threads in a fixed way.
// Traffic: G read once by either, x once for each pixel, from the second-level cache; dx, doffset, dmask written once.
// Share of the floor: not measured.
#include "deform_conv_tiny.h"

namespace hida {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kAtOnce = 192;     // sampling points whose G of kSlice channels is in shared memory at a time
constexpr int kRoom = 36 << 10;  // bytes for G and x of some channels

// each: channels of a deformable group, in `slices` of `slice`; pixels, channels: whose G is in shared memory at a
// time; samples: blocks for offsets and mask, the others are for dx; vectors: lines of G are whole vectors.
struct Sizes {
  int each, slices, slice, pixels, channels, samples;
  bool vectors;
};

// Where a point's G is, of the first of a warp's channels, and how much of it a pixel gets.
struct alignas(8) Hit {
  int at;
  float share;
};
// A point's shares of its corners, times its mask.
struct alignas(16) Shares {
  float of[4];
};

// dx of an image, one slice of channels: a lane has one of them, or two.
template <class M>
HIDA_DEVICE void input_gradient(const Job& job, const Sizes& sizes, int block, char* memory, const float* gradient) {
  const Deform& d = job.d;
  const int plane = int(d.in.h * d.in.w), w = int(d.in.w), pixels = int(d.out.h * d.out.w), taps = job.taps;
  const int rest = block / sizes.slices, n = rest / int(d.deformable), deformable = rest - n * int(d.deformable);
  const int first = (block - rest * sizes.slices) * sizes.slice, left = sizes.each - first;
  const int slice = sizes.slice, count = left < slice ? left : slice, channel = deformable * sizes.each + first;
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
  const int most = sizes.pixels * taps, pitch = slice * taps;
  auto* lines = reinterpret_cast<float*>(memory);                          // (pixel, channel, tap)
  auto* shares = reinterpret_cast<Shares*>(lines + sizes.pixels * pitch);  // (pixel, tap)
  auto* all_hits = reinterpret_cast<Hit*>(shares + most);                  // (warp, point)
  auto* corners = reinterpret_cast<uint32_t*>(all_hits + kThreads / kWarp * most);
  auto* sums = reinterpret_cast<float*>(corners + most);  // (pixel of the input, channel)
  Hit* hits = all_hits + warp * most;
  const Divider by_taps(taps), by_row(w);
  for (int from = 0; from < pixels; from += sizes.pixels) {
    const int now = pixels - from < sizes.pixels ? pixels - from : sizes.pixels, points = now * taps;
    if (from > 0) __syncthreads();
    const float* g = gradient + (int64_t(n * pixels + from) * d.in.c + channel) * taps;
    find_points(
        job, n, deformable, from * taps, points,
        [&](int i, const TinyPoint& point) {
          float part[4];
          shares_of(point.down, point.right, part);
          corners[i] = point.corners;
          shares[i] = {{part[0] * point.mask, part[1] * point.mask, part[2] * point.mask, part[3] * point.mask}};
        },
        [&] { bring_lines(g, int(d.in.c) * taps, now, count * taps, sizes.vectors, lines, pitch); });
    __syncthreads();
    for (int q = warp; q < plane; q += kThreads / kWarp) {
      int found = 0;
      for (int i = lane; i - lane < points; i += kWarp) {
        // The highest bit of each byte that is q's; of several bits the lowest is right.
        const uint32_t other = i < points ? corners[i] ^ uint32_t(q) * 0x01010101u : ~0u;
        const uint32_t equal = (other - 0x01010101u) & ~other & 0x80808080u;
        const unsigned which = __ballot_sync(kAll, equal != 0);
        if (equal != 0) {
          const int pixel = by_taps(i), corner = (__ffs(int(equal)) - 1) / 8;
          hits[found + __popc(which & ((1u << lane) - 1))] = {pixel * pitch + i - pixel * taps, shares[i].of[corner]};
        }
        found += __popc(which);
      }
      __syncwarp();
      const float *one = lines + lane * taps, *two = one + (slice - kSlice) * taps;
      float* to = sums + q * slice + lane;
      float sum[2] = {};
      if (from > 0) sum[0] = to[0], sum[1] = to[slice - kSlice];
#pragma unroll 4
      for (int i = 0; i < found; ++i) {
        const Hit hit = hits[i];
        sum[0] += hit.share * one[hit.at];
        sum[1] += hit.share * two[hit.at];
      }
      to[slice - kSlice] = sum[1];  // the same place and number where there is one channel
      to[0] = sum[0];
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
        bits_of<M>(sums[q * slice + c]);
  }
}

// Gradients of offsets and mask at a pixel, of a deformable group.
template <class M>
HIDA_DEVICE void sample_gradients(const Job& job, const Sizes& sizes, int block, char* memory, const float* gradient) {
  using Bits = typename M::Bits;
  const Deform& d = job.d;
  const int each = sizes.each, most = sizes.channels, plane = int(d.in.h * d.in.w), taps = job.taps;
  const int pixels = int(d.out.h * d.out.w), p = block / int(d.deformable), deformable = block - p * int(d.deformable);
  const int n = p / pixels, pixel = p - n * pixels, channel = deformable * each;
  const int thread = int(threadIdx.x), lanes = kThreads / taps, c0 = thread / taps, tap = thread - c0 * taps;
  auto* sums = reinterpret_cast<float*>(memory);  // (row, column, mask; thread)
  auto* points = reinterpret_cast<TinyPoint*>(sums + 3 * kThreads);
  auto* line = reinterpret_cast<float*>(points + taps);
  auto* x = reinterpret_cast<Bits*>(line + most * taps);
  const float* from = gradient + (p * d.in.c + channel) * taps;
  float sum[4] = {};
  for (int first = 0; first < each; first += most) {
    const int count = each - first < most ? each - first : most;
    if (first > 0) __syncthreads();
    find_points(
        job, n, deformable, pixel * taps, first > 0 ? 0 : taps,
        [&](int i, const TinyPoint& point) { points[i] = point; },
        [&] {
          bring_lines(from + first * taps, 0, 1, count * taps, sizes.vectors, line, 0);
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
    gradients_kernel(const __grid_constant__ Job job, const Sizes sizes, const float* gradient) {
  HIDA_DYNAMIC_SHARED(char, memory);
  const int block = int(blockIdx.x);
  if (block < sizes.samples)
    sample_gradients<M>(job, sizes, block, memory, gradient);
  else
    input_gradient<M>(job, sizes, block - sizes.samples, memory, gradient);
}

}  // namespace

template <class M>
void tiny_gradients(const Job& job, const float* gradient, const Launch& l) {
  const Deform& d = job.d;
  const bool samples = d.doffset.data || d.dmask.data;
  const int64_t each = d.in.c / d.deformable, groups = d.in.n * d.deformable, taps = job.taps, plane = d.in.pixels();
  // The points are found and picked once in a block: two channels a lane, where that leaves work for the whole chip.
  const int64_t slice = groups * over(each, 2 * kSlice) < l.multiprocessors ? kSlice : 2 * kSlice;
  const int64_t slices = over(each, slice), at_once = kAtOnce * kSlice / slice;
  const int64_t sample_blocks = samples ? job.pixels * d.deformable : 0, input_blocks = d.dx.data ? groups * slices : 0;
  const int64_t pixels = std::min(std::max<int64_t>(1, at_once / taps), d.out.pixels()), points = pixels * taps;
  const int64_t channel = taps * 4 + (plane + 1) * int64_t(sizeof(typename M::Bits));  // its bytes
  const int64_t channels = padded_to(over(each, over(each, kRoom / channel)), 4);
  const int64_t for_samples = 3 * kThreads * 4 + taps * int64_t(sizeof(TinyPoint)) + channels * channel;
  const int64_t for_input = points * int64_t(slice * 4 + sizeof(Shares) + kThreads / kWarp * sizeof(Hit) + 4);
  const int64_t shared = std::max(samples ? for_samples : 0, d.dx.data ? for_input + plane * slice * 4 : 0);
  const Sizes sizes{int(each),     int(slices),        int(slice),          int(pixels),
                    int(channels), int(sample_blocks), each * taps % 4 == 0};
  launch(gradients_kernel<M>, grid_of(sample_blocks + input_blocks), kThreads, size_t(shared), l, job, sizes, gradient);
}

#define HIDA_INSTANTIATE(M) template void tiny_gradients<M>(const Job&, const float*, const Launch&);
HIDA_INSTANTIATE(Bf16) HIDA_INSTANTIATE(Fp16) HIDA_INSTANTIATE(Fp32)

}  // namespace cuda
}  // namespace hida
