// What the chunks of channels_last planes have in memory, from one kernel for the next, which merges it: every block
// that needs it does so itself, always in the same order.
#pragma once

#include "nhwc.h"

namespace hida {
namespace cuda {
namespace nhwc {

// Where a number of each channel of the block's tile is, of a chunk of its image: in (N, chunks, Kinds, C).
template <int Kinds>
HIDA_DEVICE float* of_chunk(float* all, const Tiling& m, const ThreadWork& p, unsigned part, int kind) {
  return all + ((size_t(p.n) * m.chunks + part) * Kinds + kind) * m.channels + p.tile;
}

// Merges what the chunks of an image have of the block's tile: add(sums, channel of the tile, chunk) for a part of the
// chunks in each thread, then take(channel of the tile, sums) in one thread for each channel. Every thread of the block
// has to come.
template <int N, class Add, class Take>
HIDA_DEVICE void merge_chunks(const Tiling& m, const ThreadWork& p, const Shared& s, Add add, Take take) {
  const unsigned t = threadIdx.x, threads = m.threads(), width = m.width();
  const unsigned parts = threads < 2 * width ? 1 : threads / width;
  for (unsigned job = t; job < width * parts; job += threads) {
    const unsigned c = job % width;
    float sums[N] = {};
    if (p.tile + c < m.channels) {
#pragma unroll 4
      for (unsigned i = job / width; i < m.chunks; i += parts) add(sums, c, i);
    }
#pragma unroll
    for (int k = 0; k < N; ++k) s.lanes[k * width * parts + job] = sums[k];
  }
  __syncthreads();
  for (unsigned c = t; c < width; c += threads) {
    float sums[N] = {};
    for (unsigned i = 0; i < parts; ++i) {
#pragma unroll
      for (int k = 0; k < N; ++k) sums[k] += s.lanes[(k * parts + i) * width + c];
    }
    take(c, sums);
  }
}

// Two sums: of the block's chunk, written; later, of all chunks, told to the threads of any of them, as the function of
// nhwc.h does for planes as a whole. chunks: (N, chunks, 2, C).
HIDA_DEVICE void write_sums(const float (&own)[2][8], const Tiling& m, const ThreadWork& p, const Shared& s,
                            float* chunks) {
#pragma unroll
  for (int i = 0; i < 2; ++i)
    add_lanes(own[i], m, s, [&](unsigned c, float sum) {
      if (p.tile + c < m.channels) of_chunk<2>(chunks, m, p, p.part, i)[c] = sum;
    });
}
HIDA_DEVICE void tell_sums(float* chunks, const Tiling& m, const ThreadWork& p, const Shared& s, float (&one)[8],
                           float (&two)[8]) {
  merge_chunks<2>(
      m, p, s,
      [&](float (&sums)[2], unsigned c, unsigned i) {
        sums[0] += of_chunk<2>(chunks, m, p, i, 0)[c];
        sums[1] += of_chunk<2>(chunks, m, p, i, 1)[c];
      },
      [&](unsigned c, const float (&sums)[2]) {
        s.table[c] = sums[0];
        s.table[m.width() + c] = sums[1];
      });
  __syncthreads();
  s.tell(0, m, p, one);
  s.tell(1, m, p, two);
}

}  // namespace nhwc
}  // namespace cuda
}  // namespace hida
