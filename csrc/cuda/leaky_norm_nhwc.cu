// leaky_norm in the usual channels_last case (nhwc.h):
//   f = l₁(x);  x̂ = (f − μ)/√(var + eps);  y = l₂(x̂);   l the leaky ReLU, of slope `before` and `after`, 1 for none
//   d = grad·l₂'(x̂);  df = (d − mean(d) − x̂·mean(d·x̂))/√(var + eps);  dx = df·l₁'(x)
// Traffic: 2n forward (read x; write y), 3n backward (read grad, x; write dx); what is read is read twice:
//   up to 2048 pixels   a block has some channels of a plane as a whole, and reads again from the first-level cache.
//   more                two kernels: sums of chunks first, the result second, which begins with the chunks that were
//                       read last: 3n and 5n, less what it has from the second-level cache.
// Statistics are taken as in ida_nhwc.cu: off a thread's first element, off a block's mean, off a plane's first chunk,
// so that no sum of squares is much larger than what is left of it. Always the same order, no atomics.
// Share of the floor: not measured.
#include "nhwc.h"

namespace hida {
namespace cuda {
namespace nhwc {
namespace {

enum Stage { kSums = 1, kApply = 2, kBoth = 3 };

// Rows of the table forward; backward they are the sums of d and of d·x̂.
enum Row { kMean, kRest, kRstd };

// Pixels that a thread has in flight at a time: four loads of 16 bytes.
template <Dtype D>
constexpr unsigned kForward = D == Dtype::f32 ? 2 : 4;
template <Dtype D>
constexpr unsigned kBackward = D == Dtype::f32 ? 1 : 2;

// Twice as many as where two tensors are read: x alone, forward, is 64 KB of 16 bits again.
constexpr int64_t kWholeOfOne = 2 * kWholePixels;

// `value` where x is positive, else slope·value.
HIDA_DEVICE float leaky(float x, float value, float slope) {
  return x > 0 ? value : value * slope;
}

// ---- forward ----------------------------------------------------------------------------------------------------

// Sums over the pixels of a thread, off the first of them.
struct Moments {
  float shift[8] = {}, sum[8] = {}, squares[8] = {}, count = 0;

  // has: no branch, behind which the loads would be moved; what is missing counts as the shift.
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

// Merges those of a block's threads: take(channel of the tile, a number near the mean, how far off it is, the squares
// around the mean) by one thread for each channel.
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
    take(c, near + off, near - (near + off) + off, around);
  });
}

HIDA_DEVICE void write_statistics(const LeakyNorm& a, const Tiling& m, const ThreadWork& p, const Shared& s, unsigned c,
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

// partial: (kinds, N, chunks, C), what is known of each chunk. Here: kind 0 of the first chunk, first channel of a tile.
HIDA_DEVICE float* partial_of(float* partial, const Tiling& m, const ThreadWork& p) {
  return partial + int64_t(p.n) * m.chunks * m.channels + p.tile;
}
HIDA_DEVICE int64_t kinds_apart(const LeakyNorm& a, const Tiling& m) {
  return a.extent.n * int64_t(m.chunks) * m.channels;
}

// Adds two numbers over the chunks of each channel: of(where kind 0 is, chunk, sums) adds those of a chunk,
// take(channel of the tile, sums) gets the totals.
template <class Of, class Take>
HIDA_DEVICE void merge_chunks(const Tiling& m, const ThreadWork& p, const Shared& s, const float* here, Of of,
                              Take take) {
  const unsigned t = threadIdx.x, threads = m.threads(), width = m.width();
  const unsigned parts = threads < 2 * width ? 1 : threads / width;
  for (unsigned job = t; job < width * parts; job += threads) {
    const unsigned c = job % width;
    float sums[2] = {0, 0};
    if (p.tile + c < m.channels) {
#pragma unroll 4
      for (unsigned i = job / width; i < m.chunks; i += parts) of(here + c, i, sums);
    }
    s.jobs[job] = sums[0];
    s.jobs[s.apart + job] = sums[1];
  }
  __syncthreads();
  for (unsigned c = t; c < width; c += threads) {
    float sums[2] = {0, 0};
    for (unsigned i = 0; i < parts; ++i) sums[0] += s.jobs[i * width + c], sums[1] += s.jobs[s.apart + i * width + c];
    take(c, sums);
  }
}

// partial: of each chunk a number near its mean, how far off it is, the squares around the mean.
template <Dtype D>
__global__ void __launch_bounds__(kMost, 1)
    forward(const __grid_constant__ LeakyNorm a, const __grid_constant__ Tiling m, int stage, float* partial) {
  HIDA_DYNAMIC_SHARED(float, memory);
  const Shared s(memory, m);
  const ThreadWork p(m, stage == kApply);
  const View<D> x(a.x, p);
  const float before = float(a.before), after = float(a.after);
  float* const here = partial_of(partial, m, p);
  const int64_t apart = kinds_apart(a, m);
  if (stage & kSums) {
    Moments own;
    for (unsigned pixel = p.first; p.has(pixel); pixel += kForward<D> * p.lanes) {
      Eight<D> packs[kForward<D>];
#pragma unroll
      for (unsigned u = 0; u < kForward<D>; ++u)
        packs[u] = x.read(p.has(pixel + u * p.lanes) ? pixel + u * p.lanes : pixel);
#pragma unroll
      for (unsigned u = 0; u < kForward<D>; ++u) {
        float f[8];
        packs[u].unpack(f);
#pragma unroll
        for (int k = 0; k < 8; ++k) f[k] = leaky(f[k], f[k], before);
        own.add(f, u == 0, p.has(pixel + u * p.lanes));
      }
    }
    merge_threads(own, m, p, s, [&](unsigned c, float mean, float rest, float around) {
      if (stage == kBoth) return write_statistics(a, m, p, s, c, mean, rest, around / float(m.pixels));
      if (p.tile + c >= m.channels) return;
      float* const to = here + int64_t(p.part) * m.channels + c;
      to[0] = mean;
      to[apart] = rest;
      to[2 * apart] = around;
    });
    if (stage == kSums) return;
  } else {
    const auto add = [&](const float* first, unsigned i, float (&sums)[2]) {
      const float* const from = first + size_t(i) * m.channels;
      const float size = float(pixels_of(m, i)), gap = from[0] - first[0] + from[apart];
      sums[0] += size * gap;
      sums[1] += from[2 * apart] + size * gap * gap;
    };
    merge_chunks(m, p, s, here, add, [&](unsigned c, const float (&sums)[2]) {
      const float count = float(m.pixels), rest = sums[0] / count, mean = p.tile + c < m.channels ? here[c] : 0.0f;
      write_statistics(a, m, p, s, c, mean, rest, sums[1] / count - rest * rest);
    });
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
  const View<D> y(a.y, p);
  // Backwards: what was read last is in the nearest cache.
  for (unsigned left = p.count(); left > 0; left = left > kForward<D> ? left - kForward<D> : 0) {
    Eight<D> packs[kForward<D>];
    unsigned at[kForward<D>];
#pragma unroll
    for (unsigned u = 0; u < kForward<D>; ++u) {
      at[u] = p.first + (left - 1 - (u < left ? u : 0)) * p.lanes;
      packs[u] = x.read_last(at[u]);
    }
#pragma unroll
    for (unsigned u = 0; u < kForward<D>; ++u) {
      float v[8];
      packs[u].unpack(v);
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const float f = leaky(v[k], v[k], before), off = D == Dtype::f32 ? f - mean[k] - rest[k] : f - mean[k];
        const float normalised = off * rstd[k];
        v[k] = leaky(normalised, normalised, after);
      }
      y.write(at[u], v);
    }
  }
}

// ---- backward ---------------------------------------------------------------------------------------------------

// The operands of a pack of channels of some pixels.
template <Dtype D>
struct Operands {
  Eight<D> x, grad;
};

// What the gradient is made of: the normalised value and d.
struct Derived {
  float normalised[8], d[8];

  template <Dtype D>
  HIDA_DEVICE Derived(const Operands<D>& packs, float before, float after, const float (&mean)[8],
                      const float (&rstd)[8], float (&x)[8]) {
    packs.x.unpack(x);
    packs.grad.unpack(d);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      normalised[k] = normalise(leaky(x[k], x[k], before), mean[k], rstd[k]);
      d[k] = leaky(normalised[k], d[k], after);
    }
  }
};

// partial: of each chunk the sums of d and of d·x̂.
template <Dtype D>
__global__ void __launch_bounds__(kMost / 2, 3)
    backward(const __grid_constant__ LeakyNorm a, const __grid_constant__ Tiling m, int stage, float* partial) {
  HIDA_DYNAMIC_SHARED(float, memory);
  const Shared s(memory, m);
  const ThreadWork p(m, stage == kApply);
  const View<D> x(a.x, p), grad(a.grad, p);
  const float before = float(a.before), after = float(a.after);
  float mean[8] = {}, rstd[8] = {};
  if (p.valid) {
    read_eight(a.mean, m, p, mean);
    read_eight(a.rstd, m, p, rstd);
  }
  float* const here = partial_of(partial, m, p);
  const int64_t apart = kinds_apart(a, m);
  if (stage & kSums) {
    float sums[2][8] = {};
    for (unsigned pixel = p.first; p.has(pixel); pixel += kBackward<D> * p.lanes) {
      Operands<D> packs[kBackward<D>];
#pragma unroll
      for (unsigned u = 0; u < kBackward<D>; ++u) {
        const unsigned at = p.has(pixel + u * p.lanes) ? pixel + u * p.lanes : pixel;
        packs[u] = {x.read(at), grad.read(at)};
      }
#pragma unroll
      for (unsigned u = 0; u < kBackward<D>; ++u) {
        const bool has = p.has(pixel + u * p.lanes);  // no branch, behind which the loads would be moved
        float v[8];
        const Derived here_of(packs[u], before, after, mean, rstd, v);
#pragma unroll
        for (int k = 0; k < 8; ++k) {
          const float d = has ? here_of.d[k] : 0.0f;
          sums[0][k] += d;
          sums[1][k] += d * here_of.normalised[k];
        }
      }
    }
#pragma unroll
    for (unsigned i = 0; i < 2; ++i) {
      add_lanes(sums[i], m, s, [&](unsigned c, float sum) {
        if (stage == kBoth)
          s.table[i * m.width() + c] = sum;
        else if (p.tile + c < m.channels)
          here[i * apart + int64_t(p.part) * m.channels + c] = sum;
      });
    }
    if (stage == kSums) return;
  } else {
    const auto add = [&](const float* first, unsigned i, float (&sums)[2]) {
      const float* const from = first + size_t(i) * m.channels;
      sums[0] += from[0];
      sums[1] += from[apart];
    };
    merge_chunks(m, p, s, here, add, [&](unsigned c, const float (&sums)[2]) {
      s.table[c] = sums[0];
      s.table[m.width() + c] = sums[1];
    });
  }
  __syncthreads();
  float mean_d[8], mean_dx[8];
  s.tell(0, m, p, mean_d);
  s.tell(1, m, p, mean_dx);
  const float share = 1 / float(m.pixels);
#pragma unroll
  for (int k = 0; k < 8; ++k) mean_d[k] *= share, mean_dx[k] *= share;
  const View<D> dx(a.dx, p);
  // Backwards: what was read last is in the nearest cache.
  for (unsigned left = p.count(); left > 0; left = left > kBackward<D> ? left - kBackward<D> : 0) {
    Operands<D> packs[kBackward<D>];
    unsigned at[kBackward<D>];
#pragma unroll
    for (unsigned u = 0; u < kBackward<D>; ++u) {
      at[u] = p.first + (left - 1 - (u < left ? u : 0)) * p.lanes;
      packs[u] = {x.read_last(at[u]), grad.read_last(at[u])};
    }
#pragma unroll
    for (unsigned u = 0; u < kBackward<D>; ++u) {
      float v[8];
      const Derived here_of(packs[u], before, after, mean, rstd, v);
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const float df = normalise_gradient(here_of.d[k], here_of.normalised[k], mean_d[k], mean_dx[k], rstd[k]);
        v[k] = leaky(v[k], df, before);
      }
      dx.write(at[u], v);
    }
  }
}

// ---- on the host ------------------------------------------------------------------------------------------------

Tiling tiling_for(const LeakyNorm& a, const Launch& l) {
  return a.extent.pixels() <= kWholeOfOne ? whole_planes(a.extent, l) : chunked(a.extent, l);
}

using Kernel = void (*)(const LeakyNorm, const Tiling, int, float*);
void run_stages(Kernel kernel, const LeakyNorm& a, void* workspace, const Launch& l) {
  const Tiling m = tiling_for(a, l);
  const auto stage = [&](int which) { run(kernel, m, shared_of(m), l, a, m, which, static_cast<float*>(workspace)); };
  if (m.chunks == 1) return stage(kBoth);
  stage(kSums);
  stage(kApply);
}

int64_t workspace_for(const LeakyNorm& a, const Launch& l, int kinds) {
  const Tiling m = tiling_for(a, l);
  return m.chunks > 1 ? kinds * a.extent.n * a.extent.c * m.chunks : 0;
}

}  // namespace
}  // namespace nhwc

bool leaky_norm_takes(const Image& image, const Extent& e) {
  Image given = image;
  if (e.pixels() == 1) given.row = given.step = 0;  // one pixel is at no distance from others
  return image.dtype != Dtype::f64 && e.c > 0 && e.c % 8 == 0 && e.pixels() <= 1 << 28 && e.n * e.c <= 0x7fffffff &&
         nhwc::is_packed(given, e, image.dtype);
}

int64_t leaky_norm_workspace(const LeakyNorm& a, const Launch& l) {
  return nhwc::workspace_for(a, l, 3);
}

void leaky_norm(const LeakyNorm& a, void* workspace, const Launch& l) {
  const auto kernel = with_dtype(a.x.dtype, [](auto d) { return nhwc::Kernel(nhwc::forward<decltype(d)::value>); });
  nhwc::run_stages(kernel, a, workspace, l);
}

int64_t leaky_norm_backward_workspace(const LeakyNorm& a, const Launch& l) {
  return nhwc::workspace_for(a, l, 2);
}

void leaky_norm_backward(const LeakyNorm& a, void* workspace, const Launch& l) {
  const auto kernel = with_dtype(a.x.dtype, [](auto d) { return nhwc::Kernel(nhwc::backward<decltype(d)::value>); });
  nhwc::run_stages(kernel, a, workspace, l);
}

}  // namespace cuda
}  // namespace hida
