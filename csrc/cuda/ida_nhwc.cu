// ida and instance_norm_modulate, forward, in the usual channels_last case (nhwc.h).
// Traffic: 5n (read x, logits, γ, β; write y), n more for a residual of its own; x and logits are read twice:
//   up to 1024 pixels   a block has some channels of a plane as a whole, and reads again from the first-level cache.
//   more                two kernels: statistics of chunks first, y second. 7n; the second begins with the chunks that
//                       were read last, so that it has from the second-level cache what that holds of x and logits.
//                       (One kernel in clusters took 24 to 29 % longer.)
// What is read for the last time is marked as not wanted any more, and read backwards, so that caches have more of it.
// f is computed twice: 14 instructions per element cost less than its bytes. Statistics of a thread are sums off its
// first element, of which it has a few dozen; those of a block are off its mean, those of a plane off its first
// chunk's: so no sum of squares is much larger than what is left of it, whatever the mean and wherever an outlier is.
// Always the same order, no atomics. Share of the floor (ida, bfloat16, 16 images on an H100; before a block's squares
// were taken off its mean): 64 channels of 128×128 59 %, 128 of 64×64 58 %; instance_norm_modulate: not measured.
#include "nhwc.h"

namespace hida {
namespace cuda {
namespace nhwc {
namespace {

enum Stage { kStatistics = 1, kApply = 2, kBoth = 3 };

// Rows of the table.
enum Row { kMean, kRest, kRstd };

// Packs of a tensor that a thread has in flight at a time.
template <Dtype D>
constexpr unsigned kReading = D == Dtype::f32 ? 2 : 4;
template <Dtype D>
constexpr unsigned kWriting = D == Dtype::f32 ? 1 : 2;

HIDA_DEVICE void write_statistics(const Adapt& a, const Tiling& m, const ThreadWork& p, const Shared& s, unsigned c,
                                  float mean, float rest, float variance) {
  const float rstd = inverse_root((variance < 0 ? 0.0f : variance) + float(a.eps));  // NaN stays
  s.table[kMean * m.width() + c] = mean;
  s.table[kRest * m.width() + c] = rest;
  s.table[kRstd * m.width() + c] = rstd;
  if (p.part != 0 || p.tile + c >= m.channels) return;
  const int64_t at = int64_t(p.n) * m.channels + p.tile + c;
  static_cast<float*>(a.mean)[at] = mean + rest;
  static_cast<float*>(a.rstd)[at] = rstd;
}

// partial: (3, N, chunks, C), of each chunk a number near its mean, how far off it is, the squares around the mean.
HIDA_DEVICE void merge_chunks(const Adapt& a, const Tiling& m, const ThreadWork& p, const Shared& s,
                              const float* partial) {
  const unsigned t = threadIdx.x, threads = m.threads(), width = m.width();
  const unsigned parts = threads < 2 * width ? 1 : threads / width;
  const int64_t apart = a.planes.extent.n * int64_t(m.chunks) * m.channels;
  const float* const here = partial + int64_t(p.n) * m.chunks * m.channels + p.tile;
  for (unsigned job = t; job < width * parts; job += threads) {
    const unsigned c = job % width;
    float off = 0, squares = 0;
    if (p.tile + c < m.channels) {
      const float* const means = here + c;
      const float mean = means[0];
#pragma unroll 4
      for (unsigned i = job / width; i < m.chunks; i += parts) {
        const float* const from = means + size_t(i) * m.channels;
        const float size = float(pixels_of(m, i)), gap = from[0] - mean + from[apart];
        off += size * gap;
        squares += from[2 * apart] + size * gap * gap;
      }
    }
    s.jobs[job] = off;
    s.jobs[s.apart + job] = squares;
  }
  __syncthreads();
  for (unsigned c = t; c < width; c += threads) {
    float off = 0, squares = 0;
    for (unsigned i = 0; i < parts; ++i) off += s.jobs[i * width + c], squares += s.jobs[s.apart + i * width + c];
    const float count = float(m.pixels), rest = off / count;
    write_statistics(a, m, p, s, c, p.tile + c < m.channels ? here[c] : 0.0f, rest, squares / count - rest * rest);
  }
}

template <Dtype D, Logits L>
__global__ void __launch_bounds__(kMost, 1)
    kernel(const __grid_constant__ Adapt a, const __grid_constant__ Tiling m, int stage, float* partial) {
  HIDA_DYNAMIC_SHARED(float, memory);
  const Shared s(memory, m);
  const ThreadWork p(m, stage == kApply);
  const View<D> x(a.x, p), logits(a.logits, p);
  const Slopes<D, L> slopes(a.logits, a.p1, a.p2, p);
  if (stage & kStatistics) {
    float shift[8] = {}, sum[8] = {}, squares[8] = {}, count = 0;
    for (unsigned pixel = p.first; p.has(pixel); pixel += kReading<D> * p.lanes) {
      Eight<D> x_packs[kReading<D>], packs[kReading<D>];
#pragma unroll
      for (unsigned u = 0; u < kReading<D>; ++u) {
        const unsigned at = p.has(pixel + u * p.lanes) ? pixel + u * p.lanes : pixel;
        x_packs[u] = x.read(at);
        if (L == Logits::whole) packs[u] = logits.read(at);
      }
#pragma unroll
      for (unsigned u = 0; u < kReading<D>; ++u) {
        // No branches, behind which the loads would be moved: what is missing counts as the shift.
        const bool has = p.has(pixel + u * p.lanes);
        float f[8];
        slopes.value(x_packs[u], packs[u], f);
#pragma unroll
        for (int k = 0; k < 8; ++k) {
          if (u == 0) shift[k] = count == 0 ? f[k] : shift[k];
          const float off = (has ? f[k] : shift[k]) - shift[k];
          sum[k] += off;
          squares[k] += off * off;
        }
        count += has ? 1.0f : 0.0f;
      }
    }
    const float share = count > 0 ? 1 / count : 0;
    // The first lane always has a pixel, if its channels are there.
    if (threadIdx.x < m.groups) {
#pragma unroll
      for (int k = 0; k < 8; ++k) s.table[p.at + unsigned(k)] = shift[k] + sum[k] * share;
    }
    __syncthreads();
    float middle[8];
    s.tell(kMean, m, p, middle);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const float own = sum[k] * share, gap = shift[k] - middle[k] + own;
      squares[k] = count > 0 ? squares[k] - sum[k] * own : 0;
      sum[k] = count > 0 ? count * gap : 0;
    }
    add_lanes(sum, m, s, [&](unsigned c, float off) { s.table[kRest * m.width() + c] = off; });
    const float size = float(pixels_of(m, p.part));
    __syncthreads();
    s.tell(kRest, m, p, middle);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const float gap = sum[k] * share - middle[k] * (1 / size);
      squares[k] += count > 0 ? count * gap * gap : 0.0f;
    }
    add_lanes(squares, m, s, [&](unsigned c, float around) {
      const float near = s.table[kMean * m.width() + c], off = s.table[kRest * m.width() + c] / size;
      const float mean = near + off, rest = near - mean + off;
      if (stage == kBoth) return write_statistics(a, m, p, s, c, mean, rest, around / size);
      if (p.tile + c >= m.channels) return;
      const int64_t apart = a.planes.extent.n * int64_t(m.chunks) * m.channels;
      float* const to = partial + (int64_t(p.n) * m.chunks + p.part) * m.channels + p.tile + c;
      to[0] = mean;
      to[apart] = rest;
      to[2 * apart] = around;
    });
    if (stage == kStatistics) return;
  } else {
    merge_chunks(a, m, p, s, partial);
  }
  __syncthreads();
  float mean[8], rest[8], rstd[8];
  s.tell(kMean, m, p, mean);
  s.tell(kRest, m, p, rest);
  s.tell(kRstd, m, p, rstd);
  // Where the result has 16 bits, one float has enough of the mean.
#pragma unroll
  for (int k = 0; k < 8; ++k)
    if (D != Dtype::f32) mean[k] += rest[k];
  const View<D> gamma(a.gamma, p), beta(a.beta, p), added(a.added, p), y(a.y, p);
  const bool adds = a.residual == Residual::tensor;
  // Backwards: what was read last is in the nearest cache.
  for (unsigned left = p.count(); left > 0; left = left > kWriting<D> ? left - kWriting<D> : 0) {
    Eight<D> x_packs[kWriting<D>], packs[kWriting<D>], gammas[kWriting<D>], betas[kWriting<D>], more[kWriting<D>];
#pragma unroll
    for (unsigned u = 0; u < kWriting<D>; ++u) {
      const unsigned at = p.first + (left - 1 - (u < left ? u : 0)) * p.lanes;
      x_packs[u] = x.read_last(at);
      if (L == Logits::whole) packs[u] = logits.read_last(at);
      gammas[u] = gamma.read_last(at);
      betas[u] = beta.read_last(at);
      if (adds) more[u] = added.read_last(at);
    }
#pragma unroll
    for (unsigned u = 0; u < kWriting<D>; ++u) {
      if (u >= left) break;
      float f[8], v[8], w[8];
      slopes.value(x_packs[u], packs[u], f);
      gammas[u].unpack(v);
      betas[u].unpack(w);
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const float off = D == Dtype::f32 ? f[k] - mean[k] - rest[k] : f[k] - mean[k];
        v[k] = modulate(off * rstd[k], v[k], w[k]) + m.joins * f[k];  // if f is not finite, nor is y
      }
      if (adds) {
        more[u].unpack(w);
#pragma unroll
        for (int k = 0; k < 8; ++k) v[k] += w[k];
      }
      y.write(p.first + (left - 1 - u) * p.lanes, v);
    }
  }
}

using Kernel = void (*)(const Adapt, const Tiling, int, float*);
template <Dtype D>
Kernel kernel_for(Logits logits) {
  return logits == Logits::none    ? kernel<D, Logits::none>
         : logits == Logits::plane ? kernel<D, Logits::plane>
                                   : kernel<D, Logits::whole>;
}

Tiling tiling_for(const Adapt& a, const Launch& l) {
  const Extent& e = a.planes.extent;
  return e.pixels() <= kWholePixels ? whole_planes(e, l) : chunked(e, l);
}

}  // namespace

int64_t adapt_workspace(const Adapt& a, const Launch& l) {
  const Tiling m = tiling_for(a, l);
  return m.chunks > 1 ? 3 * a.planes.extent.n * a.planes.extent.c * m.chunks : 0;
}

void adapt(const Adapt& a, void* workspace, const Launch& l) {
  Tiling m = tiling_for(a, l);
  m.joins = a.residual == Residual::activated ? 1.0f : 0.0f;
  const Logits logits = kind_of(a.logits);
  const Kernel kernel = with_dtype(a.x.dtype, [&](auto d) { return kernel_for<decltype(d)::value>(logits); });
  const auto stage = [&](int which) { run(kernel, m, shared_of(m), l, a, m, which, static_cast<float*>(workspace)); };
  if (m.chunks == 1) return stage(kBoth);
  stage(kStatistics);
  stage(kApply);
}

}  // namespace nhwc
}  // namespace cuda
}  // namespace hida
