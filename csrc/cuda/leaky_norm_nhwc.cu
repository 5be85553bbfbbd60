// leaky_norm, forward, in the usual channels_last case. The formula and the paths: leaky_norm_nhwc.h.
// Traffic: 2n (read x; write y); 3n in two kernels, less what the second has from the second-level cache.
// Statistics are taken as in ida_nhwc.cu: off a thread's first element, off a block's mean, off a plane's first chunk,
// so that no sum of squares is much larger than what is left of it. Share of the floor: not measured.
#include "leaky_norm_nhwc.h"

namespace hida {
namespace cuda {
namespace nhwc {
namespace {

// Rows of the table.
enum Row { kMean, kRest, kRstd };

// Pixels that a thread has in flight at a time: four loads of 16 bytes.
template <Dtype D>
constexpr unsigned kReading = D == Dtype::f32 ? 2 : 4;

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

// partial: of each chunk a number near its mean, how far off it is, the squares around the mean.
template <Dtype D>
__global__ void __launch_bounds__(kNormThreads, 4)
    forward(const __grid_constant__ LeakyNorm a, const __grid_constant__ Tiling m, float before, float after, int stage,
            float* partial) {
  HIDA_DYNAMIC_SHARED(float, memory);
  const Shared s(memory, m);
  const ThreadWork p(m);
  const View<D> x(a.x, p);
  float* const here = partial_of(partial, m, p);
  const int64_t apart = kinds_apart(a, m);
  if (stage & kSums) {
    Moments own;
    for (unsigned pixel = p.first; p.has(pixel); pixel += kReading<D> * p.lanes) {
      Eight<D> packs[kReading<D>];
#pragma unroll
      for (unsigned u = 0; u < kReading<D>; ++u)
        packs[u] = x.read(p.has(pixel + u * p.lanes) ? pixel + u * p.lanes : pixel);
#pragma unroll
      for (unsigned u = 0; u < kReading<D>; ++u) {
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
  // Backwards: what was read last is in the nearest cache. Where fewer are left, one is done again, for no branch
  // either.
  for (unsigned left = p.count(); left > 0; left = left > kReading<D> ? left - kReading<D> : 0) {
    Eight<D> packs[kReading<D>];
    unsigned at[kReading<D>];
#pragma unroll
    for (unsigned u = 0; u < kReading<D>; ++u) {
      at[u] = p.first + (left - 1 - (u < left ? u : 0)) * p.lanes;
      packs[u] = x.read_last(at[u]);
    }
#pragma unroll
    for (unsigned u = 0; u < kReading<D>; ++u) {
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
  const auto kernel = [](auto d) -> nhwc::NormKernel { return nhwc::forward<decltype(d)::value>; };
  nhwc::run_stages(with_dtype(a.x.dtype, kernel), a, workspace, l);
}

}  // namespace cuda
}  // namespace hida
