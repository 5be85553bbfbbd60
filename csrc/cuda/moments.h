// Mean and variance of channels_last planes. Sums of a thread are off its first element, of which it has a few dozen;
// those of a block are off its mean, those of a plane off its first chunk's: so no sum of squares is much larger than
// what is left of it, whatever the mean is and wherever an outlier is. A mean comes in two floats, the second what
// rounding took from the first.
#pragma once

#include "turns.h"

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
  float middle[8];
  s.tell(kMean, m, p, middle);
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    const float own = t.sum[k] * share, gap = t.shift[k] - middle[k] + own;
    t.squares[k] = t.count > 0 ? t.squares[k] - t.sum[k] * own : 0;
    t.sum[k] = t.count > 0 ? t.count * gap : 0;
  }
  add_lanes(t.sum, m, s, [&](unsigned c, float off) { s.table[kRest * m.width() + c] = off; });
  __syncthreads();
  s.tell(kRest, m, p, middle);
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    const float gap = t.sum[k] * share - middle[k] * (1 / size);
    t.squares[k] += t.count > 0 ? t.count * gap * gap : 0.0f;
  }
  add_lanes(t.squares, m, s, [&](unsigned c, float around) {
    const float near = s.table[kMean * m.width() + c], off = s.table[kRest * m.width() + c] / size;
    const float mean = near + off;
    take(c, mean, near - mean + off, around);
  });
}

HIDA_DEVICE float rstd_of(float variance, double eps) {
  return inverse_root((variance < 0 ? 0.0f : variance) + float(eps));  // NaN stays
}

// Where the statistics of a plane go that a block has as a whole: to the arrays (N, C), and to the table.
struct PlaneStatistics {
  float *mean, *rstd;
  double eps;

  // Of the block's pixels: merged, written, and told to its threads. Every thread of the block has to come.
  HIDA_DEVICE void find(Moments& own, const Tiling& m, const ThreadWork& p, const Shared& s, float (&mean_)[8],
                        float (&rest)[8], float (&rstd_)[8]) const {
    merge_threads(own, m, p, s, [&](unsigned c, float near, float off, float around) {
      write(m, p, s, c, near, off, around / float(m.pixels));
    });
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
    if (p.tile + c >= m.channels) return;
    const int64_t at = int64_t(p.n) * m.channels + p.tile + c;
    mean[at] = near + rest;
    rstd[at] = inverse;
  }
};

// The statistics of planes that come in turns. rests: (N, C), of the means. chunks: of each unit and chunk a mean, its
// rest, the squares around it.
struct TurnStatistics {
  float *mean, *rstd, *rests, *chunks;
  double eps;

  // What the second sweep is to know; Rest: the mean's second float, too.
  template <bool Rest>
  HIDA_DEVICE void read(const Tiling& m, const ThreadWork& p, float (&mean_)[8], float (&rest)[8],
                        float (&rstd_)[8]) const {
    if (!p.valid) return;
    read_shared_eight(mean, m, p, mean_);
    read_shared_eight(rstd, m, p, rstd_);
    if (Rest) read_shared_eight(rests, m, p, rest);
  }
  // The block's own; then, if they are the unit's last, all of them merged.
  HIDA_DEVICE void write(Moments& own, const Turns& t, const Job& job, const Tiling& m, const ThreadWork& p,
                         const Shared& s) const {
    const ChunkArray<3> of(chunks, m, job.unit);
    merge_threads(own, m, p, s, [&](unsigned c, float near, float rest, float around) {
      of.at(job.part, 0)[c] = near;
      of.at(job.part, 1)[c] = rest;
      of.at(job.part, 2)[c] = around;
    });
    unsigned* const done = t.done(true, job.unit);
    if (!is_last(done, t.jobs)) return;
    const float* const first = of.at(0, 0);
    merge<2>(
        m, s,
        [&](float (&v)[2], unsigned c, unsigned i) {
          const float* const chunk = of.at(i, 0) + c;
          const float pixels = float(pixels_of(m, i));
          const float gap = __ldcg(chunk) - __ldcg(first + c) + __ldcg(chunk + m.width());
          v[0] += pixels * gap;
          v[1] += __ldcg(chunk + 2 * m.width()) + pixels * gap * gap;
        },
        [&](unsigned c, const float (&v)[2]) {
          if (p.tile + c >= m.channels) return;
          const float near = __ldcg(first + c), off = v[0] / float(m.pixels), all = near + off;
          const int64_t at = int64_t(p.n) * m.channels + p.tile + c;
          mean[at] = all;
          rstd[at] = rstd_of(v[1] / float(m.pixels) - off * off, eps);
          rests[at] = near - all + off;
        });
    open(done);
  }
};

// ---- on the host ------------------------------------------------------------------------------------------------

// In floats: what a workspace holds, behind the counters.
inline int64_t statistics_of(const Tiling& m, const Extent& e) {
  return e.n * e.c + 3 * m.blocks * m.width();
}
inline TurnStatistics turn_statistics(const Tiling& m, const Extent& e, void* mean, void* rstd, double eps,
                                      void* workspace) {
  float* const rests = static_cast<float*>(workspace) + counters_of(m);
  return {static_cast<float*>(mean), static_cast<float*>(rstd), rests, rests + e.n * e.c, eps};
}

}  // namespace nhwc
}  // namespace cuda
}  // namespace hida
