// Mean and variance of channels_last planes. Sums of a thread are off its first element, of which it has a few dozen;
// those of a block are off its mean, those of a plane off its first chunk's: so no sum is much larger than what is left
// of it, whatever the mean is and wherever an outlier is. A mean comes in two floats, the second what rounding took
// from the first.
#pragma once

#include "chunks.h"

namespace hida {
namespace cuda {
namespace nhwc {

// Rows of the table.
enum Row { kMean, kRest, kRstd };

// Of the pixels of a thread, for eight channels.
struct Moments {
  float shift[8] = {}, sum[8] = {}, squares[8] = {}, count = 0;

  // has: no branch, behind which loads would be moved; what is missing counts as the shift.
  HIDA_DEVICE void add(const float (&f)[8], bool first, bool has) {
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      if (first) shift[k] = count == 0 ? f[k] : shift[k];
      const float off = (has ? f[k] : shift[k]) - shift[k];
      sum[k] += off;
      squares[k] += off * off;
    }
    count += has ? 1.0f : 0.0f;
  }
};

// Merges those of a block's threads: take(channel of the tile, mean, its rest, squares around the mean) by one thread
// for each channel.
template <class F>
HIDA_DEVICE void merge_threads(Moments& t, const Tiling& m, const ThreadWork& p, const Shared& s, F take) {
  const float share = t.count > 0 ? 1 / t.count : 0, size = float(pixels_of(m, p.part));
  // The first lane always has a pixel, if its channels are there.
  if (threadIdx.x < m.groups) {
#pragma unroll
    for (int k = 0; k < 8; ++k) s.table[kMean * m.width() + p.at + unsigned(k)] = t.shift[k] + t.sum[k] * share;
  }
  __syncthreads();
  float middle[8], off[8];
  s.tell(kMean, m, p, middle);
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    const float own = t.sum[k] * share;
    t.squares[k] = t.count > 0 ? t.squares[k] - t.sum[k] * own : 0;
    t.sum[k] = own;
    off[k] = t.count > 0 ? t.count * (t.shift[k] - middle[k] + own) : 0;
  }
  // The first lane's mean may be far off, that of an outlier; the block's is near, and then off by a little.
  add_lanes(off, m, s, [&](unsigned c, float sum) { s.table[kMean * m.width() + c] += sum / size; });
  __syncthreads();
  s.tell(kMean, m, p, middle);
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    const float gap = t.count > 0 ? t.shift[k] - middle[k] + t.sum[k] : 0;
    off[k] = t.count * gap;
    t.squares[k] += off[k] * gap;
  }
  add_lanes(off, m, s, [&](unsigned c, float sum) { s.table[kRest * m.width() + c] = sum; });
  add_lanes(t.squares, m, s, [&](unsigned c, float around) {
    const float near = s.table[kMean * m.width() + c], sum = s.table[kRest * m.width() + c], rest = sum / size;
    take(c, near, rest, around - sum * rest);
  });
}

HIDA_DEVICE float rstd_of(float variance, double eps) {
  return inverse_root((variance < 0 ? 0.0f : variance) + float(eps));  // NaN stays
}

// Where the statistics of planes go: to the arrays (N, C), and to the table. chunks: (N, chunks, 3, C), of each chunk a
// mean, its rest, the squares around it; null where a block has planes as a whole. Every thread of a block has to come.
struct Statistics {
  float *mean, *rstd, *chunks;
  double eps;

  Statistics(void* mean_, void* rstd_, double eps_, void* chunks_)
      : mean(static_cast<float*>(mean_)),
        rstd(static_cast<float*>(rstd_)),
        chunks(static_cast<float*>(chunks_)),
        eps(eps_) {}

  // Of planes as a whole: merged, written, and put into the table.
  HIDA_DEVICE void find(Moments& own, const Tiling& m, const ThreadWork& p, const Shared& s) const {
    merge_threads(own, m, p, s, [&](unsigned c, float near, float rest, float around) {
      write(m, p, s, c, near, rest, around / float(m.pixels));
    });
  }
  // Of the block's chunk.
  HIDA_DEVICE void write_chunk(Moments& own, const Tiling& m, const ThreadWork& p, const Shared& s) const {
    merge_threads(own, m, p, s, [&](unsigned c, float near, float rest, float around) {
      if (p.tile + c >= m.channels) return;
      of_chunk<3>(chunks, m, p, p.part, 0)[c] = near;
      of_chunk<3>(chunks, m, p, p.part, 1)[c] = rest;
      of_chunk<3>(chunks, m, p, p.part, 2)[c] = around;
    });
  }
  // The same as find(), of all chunks that were written.
  HIDA_DEVICE void find_of_chunks(const Tiling& m, const ThreadWork& p, const Shared& s) const {
    const float* const first = of_chunk<3>(chunks, m, p, 0, 0);
    merge_chunks<2>(
        m, p, s,
        [&](float (&v)[2], unsigned c, unsigned i) {
          const float* const chunk = of_chunk<3>(chunks, m, p, i, 0) + c;
          const float pixels = float(pixels_of(m, i)), gap = chunk[0] - first[c] + chunk[m.channels];
          v[0] += pixels * gap;
          v[1] += chunk[2 * m.channels] + pixels * gap * gap;
        },
        [&](unsigned c, const float (&v)[2]) {
          const float off = v[0] / float(m.pixels);
          write(m, p, s, c, p.tile + c < m.channels ? first[c] : 0.0f, off, v[1] / float(m.pixels) - off * off);
        });
  }
  // What was put into the table.
  HIDA_DEVICE void tell(const Tiling& m, const ThreadWork& p, const Shared& s, float (&mean_)[8], float (&rest)[8],
                        float (&rstd_)[8]) const {
    __syncthreads();
    s.tell(kMean, m, p, mean_);
    s.tell(kRest, m, p, rest);
    s.tell(kRstd, m, p, rstd_);
  }

 private:
  HIDA_DEVICE void write(const Tiling& m, const ThreadWork& p, const Shared& s, unsigned c, float near, float rest,
                         float variance) const {
    const float inverse = rstd_of(variance, eps);
    s.table[kMean * m.width() + c] = near;
    s.table[kRest * m.width() + c] = rest;
    s.table[kRstd * m.width() + c] = inverse;
    if (p.part != 0 || p.tile + c >= m.channels) return;
    const int64_t at = int64_t(p.n) * m.channels + p.tile + c;
    mean[at] = near + rest;
    rstd[at] = inverse;
  }
};

// In floats: what a workspace holds of chunks.
inline int64_t statistics_of(const Tiling& m, const Extent& e) {
  return m.chunks > 1 ? 3 * e.n * e.c * m.chunks : 0;
}

}  // namespace nhwc
}  // namespace cuda
}  // namespace hida
