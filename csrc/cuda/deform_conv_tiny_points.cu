// deform_conv2d where planes are small and few: from sampling points to columns, and back from the columns' gradient.
//
//   columns[p][c·taps + tap] = mask·Σ share·x[c](corner)           dx[c][q] = Σ_p,tap [q is a corner] share·mask·G
//   offsets and mask of (p, tap): Σ_c G·x[c](corner), one sum for each corner, of which both are combinations
//
// A block owns an image's 32 channels (columns, dx), or a pixel's deformable group (offsets and mask). What it needs of
// x and G it brings into shared memory first, loads being independent; sampling points are found once, a thread each.
// Channels lie H·W + 1 apart there: the last is a zero, which a corner outside the image reads. No atomics, one order:
// the points that reach a pixel are picked by a warp, in order, its lanes then being channels.
// Traffic: x and G read once a block, from the second-level cache. Share of the floor: not measured.
#include "deform_conv_tiny.h"

namespace hida {
namespace cuda {
namespace {

constexpr int kSlice = 32;          // channels of a block, where it has not all of a deformable group
constexpr int kThreads = 256;       // of the backward blocks
constexpr int kAtOnce = 192;        // sampling points whose G is in shared memory at a time
constexpr int kRoom = 36 << 10;     // bytes for G and x of some channels
constexpr int kGradChannels = 128;  // of dy, for a block that rearranges it

// corners: pixels of the input, eight bits each; H·W where outside.
struct alignas(16) TinyPoint {
  uint32_t corners;
  float down, right, mask;
  HIDA_DEVICE int corner(int i) const { return int(corners >> 8 * i & 0xffu); }
};

// f(read): read(data, index) gives a number of this dtype, which is then known where loads are issued.
template <class F>
HIDA_DEVICE void with_reader(Dtype dtype, F f) {
  if (dtype == Dtype::f32)
    f([](const void* data, int64_t i) { return static_cast<const float*>(data)[i]; });
  else if (dtype == Dtype::bf16)
    f([](const void* data, int64_t i) { return widen_bf16(static_cast<const uint16_t*>(data)[i]); });
  else if (dtype == Dtype::f16)
    f([](const void* data, int64_t i) { return widen_f16(static_cast<const uint16_t*>(data)[i]); });
  else
    f([](const void* data, int64_t i) { return float(static_cast<const double*>(data)[i]); });
}

// Divides by the same number again and again, in two instructions: what is divided, times that number, is below 2^32.
struct Divider {
  unsigned by, inverse;
  HIDA_DEVICE explicit Divider(int number) : by(unsigned(number)), inverse(0xffffffffu / by + 1) {}
  HIDA_DEVICE int operator()(int x) const { return by == 1 ? x : int(uint64_t(unsigned(x)) * inverse >> 32); }
};

template <class M>
HIDA_DEVICE float value_of(typename M::Bits bits) {
  if constexpr (kPerVec<M> == 8)
    return M::read(bits);
  else
    return bits;
}
template <class M>
HIDA_DEVICE typename M::Bits bits_of(float value) {
  if constexpr (kPerVec<M> == 8)
    return typename M::Bits(M::write(value));
  else
    return value;
}

// A number of float or of a 16-bit dtype: as it is in memory, so that nothing waits for it yet; and its value.
HIDA_DEVICE uint32_t bits_at(const Image& image, int64_t index) {
  if (image.dtype == Dtype::f32) return static_cast<const uint32_t*>(image.data)[index];
  return static_cast<const uint16_t*>(image.data)[index];
}
HIDA_DEVICE float value_of(Dtype dtype, uint32_t bits) {
  return dtype == Dtype::f32 ? __uint_as_float(bits) : dtype == Dtype::bf16 ? widen_bf16(bits) : widen_f16(bits);
}

// Points [first, first + count) of an image's (pixel, tap)s, a thread each. meanwhile(): while the first are awaited.
template <class F>
HIDA_DEVICE void find_points(const Job& job, int n, int deformable, int first, int count, TinyPoint* points,
                             F meanwhile) {
  const Deform& d = job.d;
  int pixel = 0, tap = 0, i = int(threadIdx.x);
  uint32_t down = 0, right = 0, mask = 0;
  const auto fetch = [&] {
    if (i >= count) return;
    pixel = (first + i) / job.taps, tap = first + i - pixel * job.taps;
    const int row = pixel / int(d.out.w), column = pixel - row * int(d.out.w), k = deformable * job.taps + tap;
    const int64_t offset = index_in(d.offset, n, 2 * k, row, column);
    down = bits_at(d.offset, offset);
    right = bits_at(d.offset, offset + d.offset.c);
    if (d.mask.data) mask = bits_at(d.mask, index_in(d.mask, n, k, row, column));
  };
  fetch();
  meanwhile();
  while (i < count) {
    const int h = int(d.in.h), w = int(d.in.w), row = pixel / int(d.out.w), column = pixel - row * int(d.out.w);
    const int across = int(d.kernel_w), tap_row = tap / across, tap_column = tap - tap_row * across;
    const Point<float> point =
        locate(float(row * d.stride_h - d.pad_h + tap_row * d.dilation_h) + value_of(d.offset.dtype, down),
               float(column * d.stride_w - d.pad_w + tap_column * d.dilation_w) + value_of(d.offset.dtype, right), h, w,
               h * w);
    uint32_t corners = 0;
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) corners |= uint32_t(point.pixel[corner]) << 8 * corner;
    points[i] = {corners, point.down, point.right, d.mask.data ? value_of(d.mask.dtype, mask) : 1.0f};
    i += int(blockDim.x);
    fetch();
  }
}

// Channels [first, first + count) of an image to shared memory, (channel, H·W and a zero), as they are in memory.
template <class M>
HIDA_DEVICE void bring_x(const Job& job, int n, int first, int count, typename M::Bits* to) {
  using Bits = typename M::Bits;
  constexpr int ahead = 8;
  const Image& x = job.d.x;
  const int w = int(job.d.in.w), plane = int(job.d.in.h) * w, threads = int(blockDim.x);
  const bool last = x.c == 1;
  const Divider by_row(w);
  const int inner = last ? count : plane, total = count * plane;
  const auto* from = static_cast<const Bits*>(x.data) + n * x.n + first * x.c;
  // Element e of the faster dimension and the slower one, kept without dividing again.
  int slow = int(threadIdx.x) / inner, fast = int(threadIdx.x) - slow * inner;
  const int slower = threads / inner, faster = threads - slower * inner;
  for (int i = int(threadIdx.x); i < total; i += ahead * threads) {
    Bits v[ahead];
    int place[ahead];
#pragma unroll
    for (int k = 0; k < ahead; ++k) {
      const int c = last ? fast : slow, q = last ? slow : fast;
      place[k] = c * (plane + 1) + q;
      v[k] = 0;
      if (i + k * threads < total) {
        const int row = by_row(q);
        v[k] = from[c * x.c + row * x.row + (q - row * w) * x.step];
      }
      slow += slower;
      fast += faster;
      if (fast >= inner) fast -= inner, ++slow;
    }
#pragma unroll
    for (int k = 0; k < ahead; ++k)
      if (i + k * threads < total) to[place[k]] = v[k];
  }
  for (int c = int(threadIdx.x); c < count; c += threads) to[c * (plane + 1) + plane] = 0;
}

// `lines` lines of `length` floats, `apart` apart, to shared memory, `pitch` apart. vectors: all are multiples of four.
HIDA_DEVICE void bring_lines(const float* from, int64_t apart, int lines, int length, bool vectors, float* to,
                             int pitch) {
  constexpr int ahead = 4;
  const int each = vectors ? length / 4 : length, total = lines * each, threads = int(blockDim.x);
  const Divider by_line(each);
  for (int i = int(threadIdx.x); i < total; i += ahead * threads) {
    Vec16 v[ahead];
    int place[ahead];
#pragma unroll
    for (int k = 0; k < ahead; ++k) {
      const int e = i + k * threads, line = by_line(e), at = e - line * each;
      v[k] = Vec16{};
      place[k] = line * pitch + (vectors ? at * 4 : at);
      if (e >= total) continue;
      if (vectors)
        v[k] = load16(from + line * apart + at * 4);
      else
        v[k].word[0] = __float_as_uint(from[line * apart + at]);
    }
#pragma unroll
    for (int k = 0; k < ahead; ++k) {
      if (i + k * threads >= total) continue;
      if (vectors)
        store16(to + place[k], v[k]);
      else
        to[place[k]] = __uint_as_float(v[k].word[0]);
    }
  }
}

// ---- forward, and what dW needs -----------------------------------------------------------------------------------

// Threads in a row that share a tap, a power of two; a block has so many times `taps`.
HIDA_MATH int lanes_of_tap(int taps) {
  int lanes = 128;
  while (lanes > 4 && lanes * taps > 160) lanes /= 2;
  return lanes;
}
constexpr int kMostOperandThreads = 160;

template <class M>
HIDA_DEVICE void make_columns(const Job& job, int block, char* memory, void* columns, int64_t pitch) {
  using Bits = typename M::Bits;
  const Deform& d = job.d;
  const int deformables = int(d.deformable), each = int(d.in.c) / deformables, slices = (each + kSlice - 1) / kSlice,
            plane = int(d.in.h * d.in.w);
  const int pixels = int(d.out.h * d.out.w), taps = job.taps, lanes = int(blockDim.x) / taps;
  const int slice = block % slices, deformable = block / slices % deformables;
  const int n = block / slices / deformables;
  const int first = slice * kSlice, count = each - first < kSlice ? each - first : kSlice;
  const int channel = deformable * each + first;
  auto* points = reinterpret_cast<TinyPoint*>(memory);
  auto* x = reinterpret_cast<Bits*>(points + pixels * taps);
  find_points(job, n, deformable, 0, pixels * taps, points, [&] { bring_x<M>(job, n, channel, count, x); });
  __syncthreads();
  // Neighbouring threads have neighbouring columns.
  const int tap = int(threadIdx.x) % taps, c0 = int(threadIdx.x) / taps;
  Bits* to = static_cast<Bits*>(columns) + int64_t(n) * pixels * pitch + channel * taps + tap;
  for (int pixel = 0; pixel < pixels; ++pixel, to += pitch) {
    const TinyPoint point = points[pixel * taps + tap];
    float part[4];
    shares_of(point.down, point.right, part);
    for (int c = c0; c < count; c += 2 * lanes) {  // two at a time
      float sum[2] = {};
      const bool both = c + lanes < count;
      const Bits* at[2] = {x + c * (plane + 1), x + (both ? c + lanes : c) * (plane + 1)};
#pragma unroll
      for (int corner = 0; corner < 4; ++corner)
#pragma unroll
        for (int i = 0; i < 2; ++i) sum[i] += part[corner] * value_of<M>(at[i][point.corner(corner)]);
      to[c * taps] = bits_of<M>(sum[0] * point.mask);
      if (both) to[(c + lanes) * taps] = bits_of<M>(sum[1] * point.mask);
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
  const int64_t line = int64_t(groups) * job.grad_padded;
  Bits* lines = static_cast<Bits*>(to) + int64_t(n) * plane * line + group * job.grad_padded + first;
  const int64_t base = n * grad.n + (int64_t(group) * job.outputs + first) * grad.c;
  const Divider by_inner(inner), by_row(w);
  with_reader(grad.dtype, [&](auto read) {
    for (int i = int(threadIdx.x); i < total; i += ahead * threads) {
      float v[ahead];
      int64_t place[ahead];
#pragma unroll
      for (int k = 0; k < ahead; ++k) {
        const int e = i + k * threads, slow = by_inner(e), fast = e - slow * inner;
        const int c = last ? fast : slow, pixel = last ? slow : fast, row = by_row(pixel);
        place[k] = pixel * line + c;
        v[k] = e < total ? read(grad.data, base + c * grad.c + row * grad.row + (pixel - row * w) * grad.step) : 0;
      }
#pragma unroll
      for (int k = 0; k < ahead; ++k)
        if (i + k * threads < total) lines[place[k]] = bits_of<M>(v[k]);
    }
  });
}

template <class M>
__global__ void __launch_bounds__(kMostOperandThreads, 4)
    operands_kernel(const __grid_constant__ Job job, void* columns, int64_t pitch, void* grad, int column_blocks) {
  HIDA_DYNAMIC_SHARED(char, memory);
  const int block = int(blockIdx.x);
  if (block < column_blocks)
    make_columns<M>(job, block, memory, columns, pitch);
  else
    rearrange_grad<M>(job, block - column_blocks, grad);
}

// ---- backward -----------------------------------------------------------------------------------------------------

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
                [&] { bring_lines(g, d.in.c * taps, now, count * taps, vectors, lines, pitch); });
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
void tiny_operands(const Job& job, void* columns, int64_t pitch, void* grad, const Launch& l) {
  const Deform& d = job.d;
  const int64_t slices = over(d.in.c / d.deformable, kSlice), bits = int64_t(sizeof(typename M::Bits));
  const int64_t column_blocks = columns ? d.in.n * d.deformable * slices : 0;
  const int64_t grad_blocks = grad ? d.in.n * d.groups * over(job.outputs, kGradChannels) : 0;
  const int64_t shared =
      columns ? d.out.pixels() * job.taps * int64_t(sizeof(TinyPoint)) + kSlice * (d.in.pixels() + 1) * bits : 0;
  launch(operands_kernel<M>, grid_of(column_blocks + grad_blocks), unsigned(lanes_of_tap(job.taps) * job.taps),
         size_t(shared), l, job, columns, pitch, grad, int(column_blocks));
}

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

#define HIDA_INSTANTIATE(M)                                                         \
  template void tiny_operands<M>(const Job&, void*, int64_t, void*, const Launch&); \
  template void tiny_gradients<M>(const Job&, const float*, const Launch&);
HIDA_INSTANTIATE(Bf16) HIDA_INSTANTIATE(Fp16) HIDA_INSTANTIATE(Fp32)

}  // namespace cuda
}  // namespace hida
