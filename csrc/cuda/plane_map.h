// How blocks and threads share the planes of a tensor, and sums over planes in a fixed order.
#pragma once

#include "packs.h"

namespace hida {
namespace cuda {

constexpr int kPlaneThreads = 512;  // most of a block

inline int pack_of(const Planes& p) {
  return p.wide ? kPack<double> : kPack<float>;
}

// NCHW: `lanes` neighbouring threads work on a plane, and a block on `planes` of them (one, if `lanes` exceeds a warp).
// NHWC: `planes` neighbouring threads take neighbouring channels of an image, so that a warp reads whole cache lines. A
// block has `chunk` pixels of its planes, and a plane `chunks` blocks.
struct Map {
  bool channels_last = false;
  int lanes = 1, planes = 1;
  int chunks = 1;
  int64_t chunk = 0;
  int64_t blocks = 0;
  HIDA_MATH int threads() const { return lanes * planes; }
  // Whether every thread has one pack at most.
  bool fits(const Planes& p) const { return int64_t(lanes) * pack_of(p) >= p.extent.pixels(); }
};

// The work of a thread.
struct ThreadWork {
  unsigned n, c, part;
  int lane, lanes;
  bool valid;          // threads without a plane go along, to take part in barriers
  int64_t begin, end;  // pixels of the block; none without a plane
  unsigned sum;        // where the plane's sums are in (N, C)

  HIDA_DEVICE ThreadWork(const Extent& e, const Map& m) {
    const unsigned channels = unsigned(e.c), group = blockIdx.x / unsigned(m.chunks), t = threadIdx.x;
    part = blockIdx.x % unsigned(m.chunks);
    lanes = m.lanes;
    if (m.channels_last) {
      const unsigned tiles = (channels + unsigned(m.planes) - 1) / unsigned(m.planes);
      n = group / tiles;
      c = group % tiles * unsigned(m.planes) + t % unsigned(m.planes);
      lane = int(t / unsigned(m.planes));
      valid = c < channels;
      if (!valid) c = channels - 1;
    } else {
      const unsigned planes = unsigned(e.n) * channels;
      unsigned plane = group * unsigned(m.planes) + t / unsigned(lanes);
      lane = int(t % unsigned(lanes));
      valid = plane < planes;
      if (!valid) plane = planes - 1;
      n = plane / channels;
      c = plane % channels;
    }
    begin = int64_t(part) * m.chunk;
    end = begin + m.chunk < e.h * e.w ? begin + m.chunk : e.h * e.w;
    if (!valid) end = begin;
    sum = n * channels + c;
  }
  // Where the partial ones are, in (N, C, chunks).
  HIDA_DEVICE int64_t partial(const Map& m) const { return int64_t(sum) * m.chunks + part; }
  // Threads of which each plane has one.
  HIDA_DEVICE bool leads() const { return valid && lane == 0; }
};

// Adds `v` over the lanes of each plane, over the block, and over the cluster. Every lane gets the sums, the same
// bits: the order depends on the map alone. `Vector` kernels are never NHWC.
template <int N, bool Vector, class Real>
HIDA_DEVICE void add_up(Real (&v)[N], const Map& m) {
  const int low = m.channels_last ? m.planes : 1, high = m.channels_last || m.lanes > kWarp ? kWarp : m.lanes;
  for (int bit = low; bit < high; bit *= 2) {
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] += __shfl_xor_sync(kAll, v[i], bit);
  }
  const int warps = m.threads() / kWarp;
  if (warps > 1 && (m.channels_last || m.lanes > kWarp)) {
    constexpr int kWide = Vector ? 1 : kWarp;  // values of a warp
    HIDA_SHARED(Real, sums, [kPlaneThreads / kWarp][N][kWide]);
    const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
    if (lane < low) {
#pragma unroll
      for (int i = 0; i < N; ++i) sums[warp][i][Vector ? 0 : lane] = v[i];
    }
    __syncthreads();
    const int mine = Vector ? 0 : lane % low;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      v[i] = sums[0][i][mine];
      for (int w = 1; w < warps; ++w) v[i] += sums[w][i][mine];
    }
    __syncthreads();
  }
}

// As add_up, and over the blocks of a cluster, which are the chunks of one plane.
template <int N, bool Vector, class Real>
HIDA_DEVICE void add_up_cluster(Real (&v)[N], const Map& m) {
  add_up<N, Vector>(v, m);
  if (cluster_size() == 1) return;
  HIDA_SHARED(Real, block, [N]);
  if (threadIdx.x == 0) {
#pragma unroll
    for (int i = 0; i < N; ++i) block[i] = v[i];
  }
  cluster_sync();
#pragma unroll
  for (int i = 0; i < N; ++i) {
    v[i] = cluster_read(&block[i], 0);
    for (unsigned rank = 1; rank < cluster_size(); ++rank) v[i] += cluster_read(&block[i], rank);
  }
  cluster_sync();
}

// ---- on the host ------------------------------------------------------------------------------------------------

inline int power_of_two_from(int64_t value) {
  int power = 1;
  while (power < value) power *= 2;
  return power;
}

inline bool is_channels_last(const Image& x, const Extent& e) {
  return e.c > 1 && e.pixels() > 1 && x.c == 1 && x.step != 1;
}

// A map with at most `threads` threads per block and at least `packs` packs of a plane for each, in `chunks` blocks
// per plane at most; in NHWC, `tile` channels per block at most.
inline Map map_of(const Planes& planes, bool channels_last, int threads, int64_t packs, int64_t chunks,
                  int tile = kWarp) {
  const Extent& e = planes.extent;
  const int pack = pack_of(planes);
  if (e.n * e.c > 0x7fffffff || e.w > 0x7fffffff)
    throw std::runtime_error("hida: more than 2147483647 planes, or pixels in a row, are not supported on CUDA.");
  const int64_t pixels = e.pixels(), whole = (pixels + pack - 1) / pack;  // packs of a plane
  Map m;
  m.channels_last = channels_last;
  if (channels_last) {
    m.planes = e.c >= tile ? tile : power_of_two_from(e.c);
    m.lanes = threads / m.planes;
    const int64_t needed = power_of_two_from(whole);
    if (m.lanes > needed) m.lanes = int(needed) * m.planes < kWarp ? kWarp / m.planes : int(needed);
  } else if (whole <= packs * kWarp) {
    m.lanes = whole >= kWarp ? kWarp : power_of_two_from(whole);
    m.planes = threads / m.lanes;
    while (m.planes * m.lanes > kWarp && e.n * e.c <= m.planes / 2) m.planes /= 2;
  } else {
    m.lanes = whole >= threads ? threads : int((whole + kWarp - 1) / kWarp) * kWarp;
  }
  const int64_t step = int64_t(m.lanes) * pack;  // a chunk is a whole number of these
  int64_t steps = (whole + m.lanes - 1) / m.lanes;
  int64_t each = (steps + chunks - 1) / chunks;
  if (each < packs) each = packs;
  m.chunks = int((steps + each - 1) / each);
  m.chunk = each * step;
  const int64_t groups =
      channels_last ? e.n * ((e.c + m.planes - 1) / m.planes) : (e.n * e.c + m.planes - 1) / m.planes;
  m.blocks = groups * m.chunks;
  return m;
}

// A map that gives every thread one pack at most, if there is one.
inline Map resident_map(const Planes& planes, bool channels_last) {
  if (!channels_last) {
    const bool small = planes.extent.pixels() <= int64_t(kWarp) * pack_of(planes);
    return map_of(planes, false, small ? 4 * kWarp : kPlaneThreads, 1, 1);
  }
  Map m;
  for (int tile = kWarp; tile >= 8; tile /= 2) {
    m = map_of(planes, true, kPlaneThreads, 1, 1, tile);
    if (m.fits(planes)) break;
  }
  return m;
}

// Chunks that give every multiprocessor `blocks` blocks.
inline int64_t chunks_for(const Extent& e, bool channels_last, const Launch& l, int blocks) {
  const int64_t groups = channels_last ? e.n * ((e.c + kWarp - 1) / kWarp) : e.n * e.c;
  const int64_t wanted = int64_t(l.multiprocessors) * blocks;
  return groups >= wanted ? 1 : (wanted + groups - 1) / groups;
}

// sums[i] of `count` planes from their `chunks` partial sums each, three kinds at a time.
struct ChunkSums {
  const void* partial = nullptr;  // (3, count, chunks)
  void* sums[3] = {};             // (count), or null
  int64_t count = 0;
  int chunks = 1;
  bool wide = false;
};
void add_chunks(const ChunkSums& s, const Launch& l);  // (reduce.cu)

}  // namespace cuda
}  // namespace hida
