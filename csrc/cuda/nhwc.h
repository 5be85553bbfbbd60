// Kernels for the usual channels_last case: every tensor of one dtype of 16 or 32 bits, channels side by side, pixels
// at equal distances, eight channels on a 16-byte boundary (also slices of one 3C tensor). nhwc::takes() knows it;
// everything else goes to the kernels for any strides and dtypes.
//
// A thread has eight channels, one or two 16-byte loads of a tensor, and every `lanes`-th pixel of its block's chunk: a
// warp reads whole cache lines, p1, p2 and the statistics are constants of a thread, and there is no address arithmetic
// but a 32-bit product for each load. Sums over pixels stay in registers until the end of the chunk, then go over the
// lanes in shared memory, then over chunks, always in the same order; no shuffles, so that a block may have any number
// of threads (3 packs of channels × 85 pixels), no atomics.
#pragma once

#include "plane_map.h"
#include "typed.h"

namespace hida {
namespace cuda {
namespace nhwc {

constexpr unsigned kMost = 512;       // threads of a block, at most; usually half of them
constexpr unsigned kMostGroups = 64;  // packs of channels of a block

// Blocks: tiles of `groups` packs of channels × chunks of pixels × images, in this order.
struct Tiling {
  unsigned channels = 0, pixels = 0;
  unsigned groups = 1, lanes = 1;
  unsigned tiles = 1, chunks = 1, chunk = 0;
  float joins = 0, to_x = 0;  // 1: f is added to y, the gradient to that of f; the gradient is added to that of x
  int64_t blocks = 0;
  HIDA_MATH unsigned threads() const { return groups * lanes; }
  HIDA_MATH unsigned width() const { return 8 * groups; }  // channels of a tile
  // A place for each thread or channel, and so many that what follows is aligned to 16 bytes.
  HIDA_MATH unsigned jobs() const { return ((threads() > width() ? threads() : width()) + 3) / 4 * 4; }
};

// Shared memory of a block, in floats: see Shared.
inline size_t shared_of(const Tiling& m) {
  return (8 * m.threads() + 2 * m.jobs() + 3 * m.width()) * sizeof(float);
}

// ---- on the chip ------------------------------------------------------------------------------------------------

// The work of a thread.
struct ThreadWork {
  unsigned n, tile, part;      // image, first channel of the tile, chunk
  unsigned channel, at;        // first channel of the thread, in the image and in the tile
  unsigned first, end, lanes;  // pixels: first, first + lanes, …, below end
  bool valid;                  // the last tile may have fewer channels: its threads without any have no pixels either

  // backwards: the last blocks first, which read what the kernel before left in the second-level cache.
  HIDA_DEVICE explicit ThreadWork(const Tiling& m, bool backwards = false) : lanes(m.lanes) {
    const unsigned block = backwards ? gridDim.x - 1 - blockIdx.x : blockIdx.x, row = block / m.tiles;
    n = row / m.chunks;
    part = row % m.chunks;
    tile = block % m.tiles * m.width();
    at = 8 * (threadIdx.x % m.groups);
    channel = tile + at;
    valid = channel < m.channels;
    const unsigned begin = part * m.chunk, stop = begin + m.chunk < m.pixels ? begin + m.chunk : m.pixels;
    first = begin + threadIdx.x / m.groups;
    end = valid ? stop : 0;
  }
  HIDA_DEVICE bool has(unsigned pixel) const { return pixel < end; }
  HIDA_DEVICE unsigned count() const { return first < end ? (end - first + lanes - 1) / lanes : 0; }
};
HIDA_DEVICE unsigned pixels_of(const Tiling& m, unsigned part) {
  const unsigned left = m.pixels - part * m.chunk;
  return left < m.chunk ? left : m.chunk;
}

// `last`: not read again; caches may forget it first.
HIDA_DEVICE uint4 load(const void* from, bool last) {
  return last ? __ldcs(static_cast<const uint4*>(from)) : *static_cast<const uint4*>(from);
}
template <Dtype D>
HIDA_DEVICE void load(const void* from, bool last, Eight<D>& eight) {
  eight.words = load(from, last);
}
HIDA_DEVICE void load(const void* from, bool last, Eight<Dtype::f32>& eight) {
  eight.low = load(from, last);
  eight.high = load(static_cast<const uint4*>(from) + 1, last);
}

// A tensor as a thread goes through it: where its tile of the image begins, the same for the whole block, and 32 bits
// of offset.
template <Dtype D>
struct View {
  char* base;
  unsigned step, own;

  HIDA_DEVICE View(const Image& image, const ThreadWork& p)
      : step(unsigned(image.step) * Eight<D>::kBytes), own(p.at * Eight<D>::kBytes) {
    base = static_cast<char*>(image.data) + (int64_t(p.n) * image.n + int64_t(p.tile) * image.c) * Eight<D>::kBytes;
  }
  HIDA_DEVICE bool present() const { return base != nullptr; }
  HIDA_DEVICE Eight<D> read(unsigned pixel) const {
    Eight<D> eight;
    load(base + (pixel * step + own), false, eight);
    return eight;
  }
  HIDA_DEVICE Eight<D> read_last(unsigned pixel) const {
    Eight<D> eight;
    load(base + (pixel * step + own), true, eight);
    return eight;
  }
  HIDA_DEVICE void write(unsigned pixel, const float (&v)[8]) const {
    Eight<D>::narrowed(v).store(base + (pixel * step + own));
  }
  // Has the second-level cache fetch it.
  HIDA_DEVICE void prefetch(unsigned pixel) const { cuda::prefetch(base + (pixel * step + own)); }
};

// Eight numbers of a tensor with one for each plane: all loads are in flight before the first is used.
HIDA_DEVICE void read_eight(const Image& image, const ThreadWork& p, float (&v)[8]) {
  const int64_t at = int64_t(p.n) * image.n + int64_t(p.channel) * image.c;
  if (image.dtype == Dtype::f32) {
    const float* from = static_cast<const float*>(image.data) + at;
#pragma unroll
    for (int k = 0; k < 8; ++k) v[k] = from[k * image.c];
  } else {
    const uint16_t* from = static_cast<const uint16_t*>(image.data) + at;
    uint32_t bits[8];
#pragma unroll
    for (int k = 0; k < 8; ++k) bits[k] = from[k * image.c];
#pragma unroll
    for (int k = 0; k < 8; ++k) v[k] = image.dtype == Dtype::bf16 ? widen_bf16(bits[k]) : widen_f16(bits[k]);
  }
}
// Of an array (N, C).
HIDA_DEVICE void read_eight(const void* array, const Tiling& m, const ThreadWork& p, float (&v)[8]) {
  Eight<Dtype::f32>(array, int64_t(p.n) * m.channels + p.channel).unpack(v);
}

// exp where the result has 16 bits: e^x to a relative error of 6e-8·(1 + |x|).
struct Brief {
  static HIDA_DEVICE float exp(float x) { return power_of_two(x * 1.44269504f); }
  static HIDA_DEVICE float reciprocal(float x) { return inverse(x); }
};
// The same, which does not overflow, for 1/(1 + e^x)·e^x.
struct BriefBounded : Brief {
  static HIDA_DEVICE float exp(float x) {
    const float power = x * 1.44269504f;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    float least;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(least) : "f"(power), "f"(127.0f));
    return power_of_two(least);
#else
    return power_of_two(power > 127.0f ? 127.0f : power);  // keeps NaN
#endif
  }
};
template <Dtype D>
struct Functions {
  using Plain = Brief;
  using Bounded = BriefBounded;
};
template <>
struct Functions<Dtype::f32> {
  using Plain = Elementary;
  using Bounded = Elementary;
};

// InfoACON's constants of a thread.
template <Dtype D, Logits L>
struct Slopes {
  float slope[8] = {}, base[8] = {}, one[8] = {};

  HIDA_DEVICE Slopes(const Image& logits, const Image& p1, const Image& p2, const ThreadWork& p) {
    if (L == Logits::none || !p.valid) return;
    read_eight(p1, p, slope);
    read_eight(p2, p, base);
    if (L == Logits::plane) read_eight(logits, p, one);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      slope[k] -= base[k];
      if (L == Logits::plane) one[k] = sigmoid<typename Functions<D>::Plain>(one[k]);
    }
  }
  HIDA_DEVICE void theta(const Eight<D>& logits, float (&v)[8]) const {
    if (L == Logits::whole) logits.unpack(v);
#pragma unroll
    for (int k = 0; k < 8; ++k) v[k] = L == Logits::whole ? sigmoid<typename Functions<D>::Plain>(v[k]) : one[k];
  }
  HIDA_DEVICE void value(const Eight<D>& x, const Eight<D>& logits, float (&f)[8]) const {
    x.unpack(f);
    if (L == Logits::none) return;
    float switches[8];
    theta(logits, switches);
#pragma unroll
    for (int k = 0; k < 8; ++k) f[k] = acon<typename Functions<D>::Plain>(f[k], switches[k], slope[k], base[k]);
  }
};

struct Shared {
  float* lanes;  // (threads, 8)
  float* jobs;   // two arrays, of a number for each thread or channel
  float* table;  // (3, width): what every thread of a channel is to know
  unsigned apart;

  HIDA_DEVICE Shared(float* memory, const Tiling& m) : lanes(memory), apart(m.jobs()) {
    jobs = lanes + 8 * m.threads();
    table = jobs + 2 * apart;
  }
  HIDA_DEVICE void tell(unsigned row, const Tiling& m, const ThreadWork& p, float (&v)[8]) const {
    const float4* from = reinterpret_cast<const float4*>(table + row * m.width() + p.at);
    const float4 low = from[0], high = from[1];
    v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
    v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
  }
};

// Adds `v` over the lanes of a block, and gives take(channel of the tile, sum) to one thread for each channel, the same
// at every call. Every thread of the block has to come.
template <class F>
HIDA_DEVICE void add_lanes(const float (&v)[8], const Tiling& m, const Shared& s, F take) {
  const unsigned t = threadIdx.x, threads = m.threads(), width = m.width(), parts = m.lanes >= 8 ? m.lanes / 8 : 1;
  float4* const mine = reinterpret_cast<float4*>(s.lanes) + 2 * t;
  mine[0] = make_float4(v[0], v[1], v[2], v[3]);
  mine[1] = make_float4(v[4], v[5], v[6], v[7]);
  __syncthreads();
  for (unsigned job = t; job < width * parts; job += threads) {
    const unsigned c = job % width;
    float sum = 0;
    for (unsigned lane = job / width; lane < m.lanes; lane += parts) sum += s.lanes[lane * width + c];
    s.jobs[job] = sum;
  }
  __syncthreads();
  for (unsigned c = t; c < width; c += threads) {
    float sum = 0;
    for (unsigned i = 0; i < parts; ++i) sum += s.jobs[i * width + c];
    take(c, sum);
  }
}

// Two sums of a block that has planes as a whole, told to all of its threads.
HIDA_DEVICE void tell_sums(const float (&own)[2][8], const Tiling& m, const ThreadWork& p, const Shared& s,
                           float (&one)[8], float (&two)[8]) {
#pragma unroll
  for (unsigned i = 0; i < 2; ++i)
    add_lanes(own[i], m, s, [&](unsigned c, float sum) { s.table[i * m.width() + c] = sum; });
  __syncthreads();
  s.tell(0, m, p, one);
  s.tell(1, m, p, two);
}

// Where a sum of the block goes: to the array (N, C), or to (N, C, chunks), for add_chunks().
HIDA_DEVICE void write_sum(void* target, float* partial, const Tiling& m, const ThreadWork& p, unsigned c, float sum) {
  if (p.tile + c >= m.channels) return;
  const int64_t at = int64_t(p.n) * m.channels + p.tile + c;
  if (partial != nullptr)
    partial[at * m.chunks + p.part] = sum;
  else
    static_cast<float*>(target)[at] = sum;
}

// ---- on the host ------------------------------------------------------------------------------------------------

// Whether an image, if there is one, has the strides and the alignment that these kernels need.
inline bool is_packed(const Image& image, const Extent& e, Dtype dtype) {
  if (image.data == nullptr) return true;
  const int64_t size = size_of(dtype), step = image.step * size;
  return image.dtype == dtype && image.c == 1 && image.row == e.w * image.step && step >= 0 && step % 16 == 0 &&
         reinterpret_cast<uintptr_t>(image.data) % 16 == 0 && image.n * size % 16 == 0 &&
         e.pixels() * step + e.c * size <= 0x7fffffff;
}
inline bool usual(const Planes& p, const Image& x) {
  const Extent& e = p.extent;
  return !p.wide && x.dtype != Dtype::f64 && e.c > 0 && e.c % 8 == 0 && e.pixels() > 1 && e.pixels() <= 1 << 28 &&
         e.n * e.c <= 0x7fffffff;
}
inline Logits kind_of(const Image& logits) {
  return logits.data == nullptr ? Logits::none : logits.row == 0 && logits.step == 0 ? Logits::plane : Logits::whole;
}
inline bool takes(const InfoAcon& a) {
  const Extent& e = a.planes.extent;
  if (!usual(a.planes, a.x)) return false;
  for (const Image* image : {&a.x, &a.y, &a.grad, &a.dx, &a.dlogits})
    if (!is_packed(*image, e, a.x.dtype)) return false;
  return kind_of(a.logits) == Logits::plane ? a.dlogits.data == nullptr : is_packed(a.logits, e, a.x.dtype);
}
inline bool takes(const Adapt& a) {
  const Extent& e = a.planes.extent;
  if (!usual(a.planes, a.x)) return false;
  for (const Image* image : {&a.x, &a.gamma, &a.beta, &a.added, &a.y, &a.grad, &a.dx, &a.dlogits, &a.dgamma})
    if (!is_packed(*image, e, a.x.dtype)) return false;
  for (const void* sums : {a.mean, a.rstd})
    if (reinterpret_cast<uintptr_t>(sums) % 16 != 0) return false;
  if (!a.activate) return a.logits.data == nullptr;
  return kind_of(a.logits) == Logits::plane ? a.dlogits.data == nullptr : is_packed(a.logits, e, a.x.dtype);
}

// Tiles of about so many packs of channels, all of one size but the last; whole planes.
inline Tiling tiling_of(const Extent& e, unsigned groups, unsigned threads) {
  Tiling m;
  m.channels = unsigned(e.c);
  m.pixels = unsigned(e.pixels());
  const unsigned packs = m.channels / 8;
  m.tiles = (packs + groups - 1) / groups;
  m.groups = (packs + m.tiles - 1) / m.tiles;
  m.lanes = threads / m.groups < m.pixels ? threads / m.groups : m.pixels;
  m.chunk = m.pixels;
  m.blocks = e.n * m.tiles;
  return m;
}

// A block for every image and tile. What it reads twice, 64 KB of two tensors of 16 bits, is to stay in the first-level
// cache: tiles are as narrow as a sector of the cache (32 bytes) for 32×32 pixels, wide for few. Narrow too where there
// are few blocks.
inline Tiling whole_planes(const Extent& e, const Launch& l, unsigned most = kMost) {
  const int64_t fitting = 2048 / e.pixels(), fill = 3 * l.multiprocessors / 2;
  unsigned groups = fitting < 2 ? 2 : fitting > kMostGroups ? kMostGroups : unsigned(fitting);
  while (groups > 2 && e.n * ((e.c / 8 + groups - 1) / groups) < fill) groups /= 2;
  const Tiling m = tiling_of(e, groups, kMost / 2);
  return m.blocks <= l.multiprocessors ? tiling_of(e, groups, most) : m;
}
constexpr int64_t kWholePixels = 1024;

// Chunks of sixteen packs per thread; of less where the chip has too few blocks, of more where it has very many. A tile
// is 128 bytes of 16-bit channels, or 64, so that there are fewer chunks whose sums are to be merged.
inline Tiling chunked(const Extent& e, const Launch& l) {
  const int64_t fill = 3 * l.multiprocessors / 2;
  Tiling m;
  const auto cut = [&](unsigned groups, int64_t packs) {
    m = tiling_of(e, groups, kMost / 2);
    const int64_t chunk = packs * m.lanes;
    m.chunk = unsigned(chunk < m.pixels ? chunk : m.pixels);
    m.chunks = (m.pixels + m.chunk - 1) / m.chunk;
    m.blocks = e.n * m.tiles * m.chunks;
  };
  cut(8, 16);
  for (int64_t packs = 8; packs >= 2 && m.blocks < fill; packs /= 2) cut(4, packs);
  for (int64_t packs = 32; m.chunks > 256 || (packs <= 64 && m.blocks > 12 * fill); packs *= 2) cut(8, packs);
  return m;
}

template <class... P, class... A>
void run(void (*kernel)(P...), const Tiling& m, size_t shared, const Launch& l, A... args) {
#if defined(HIDA_EMULATE_CUDA)
  ++emulation::usual;  // tests ask for it
#endif
  launch(kernel, grid_of(m.blocks), dim3(m.threads()), shared, l, args...);
}

// As the functions of launch.h, for what takes() takes.
void info_acon(const InfoAcon& a, const Launch& l);
int64_t info_acon_backward_workspace(const InfoAcon& a, const Launch& l);
void info_acon_backward(const InfoAcon& a, void* workspace, const Launch& l);
int64_t adapt_workspace(const Adapt& a, const Launch& l);
void adapt(const Adapt& a, void* workspace, const Launch& l);
int64_t adapt_backward_workspace(const Adapt& a, const Launch& l);
void adapt_backward(const Adapt& a, void* workspace, const Launch& l);

}  // namespace nhwc
}  // namespace cuda
}  // namespace hida
