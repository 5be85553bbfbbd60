// deform_conv2d, backward. A work item owns a block of channels in a part of the batch and walks its pixels tile by
// tile: the gradient of the columns (weightsᵀ × upstream gradient) is used while the tile is in cache, for the
// gradients of the input, of the offsets and of the mask; the columns are sampled again beside it, for the weights'
// gradient. Nobody else writes what an item writes, and it adds in the order of the pixels: no atomics, the same bits
// every time.
#include "deform_sampling.h"
#include "gemm.h"
#include "kernels.h"

namespace hida {
namespace HIDA_ISA {
namespace {

template <class Real>
HIDA_INLINE Real total_of(Vec<Real> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(Real) == 4) return _mm512_reduce_add_ps((__m512)v);
#endif
  Real total = 0;
  for (int i = 0; i < kLanes<Real>; ++i) total += v[i];
  return total;
}

template <class Real>
struct Work {
  const Deform& d;
  const ChannelBlock block;
  const int64_t taps, inputs, outputs;
  const bool samples_matter;  // a gradient other than the weights' is wanted
  Scratch<Sample<Real>> samples;
  Scratch<Real> upstream, dcolumns, columns, square, turned, dweight;

  Work(const Deform& deform, const ChannelBlock& b)
      : d(deform),
        block(b),
        taps(d.taps()),
        inputs(d.in.c / d.groups * taps),
        outputs(d.out.c / d.groups),
        samples_matter(d.dx.data != nullptr || d.dsampling != nullptr),
        samples(taps * kPixelsAtATime),
        upstream(outputs * kPixelsAtATime),
        dcolumns(kBlock * taps * kPixelsAtATime),
        columns(kPixelsAtATime * taps * kBlock),
        square(kBlock * kBlock),
        turned(kBlock * kBlock),
        dweight(outputs * taps * kBlock) {
    std::memset(dweight.get(), 0, size_t(outputs * taps * kBlock) * sizeof(Real));
    std::memset(dcolumns.get(), 0, size_t(kBlock * taps * kPixelsAtATime) * sizeof(Real));
  }

  int64_t first_weight() const {
    return block.group * outputs * inputs + (block.channel - block.group * (d.in.c / d.groups)) * taps;
  }

  // x and dx: the block's images from `first_image` on. dsampling: this block's sums, (3, taps, N·H_out·W_out).
  void tile(int64_t first, int64_t count, int64_t first_image, const Real* x, Real* dx, Real* dsampling) {
    find_samples(d, block.deformable, first, count, first_image, blocked_image(d), samples.get());
    const int64_t width = (count + kBlock - 1) / kBlock * kBlock;
    for (int64_t o = 0; o < outputs; ++o) {
      Real* line = upstream.get() + o * kPixelsAtATime;
      for_images(d, first, count, [&](int64_t n, int64_t pixel, int64_t done, int64_t run) {
        alignas(64) Real copy[kPixelsAtATime + 64];
        copy_line(d.grad, d.out, n, block.group * outputs + o, pixel, run, copy);
        std::memcpy(line + done, copy, size_t(run) * sizeof(Real));
      });
      for (int64_t i = count; i < width; ++i) line[i] = 0;
    }
    if (samples_matter) {
      std::memset(dcolumns.get(), 0, size_t(block.count * taps * kPixelsAtATime) * sizeof(Real));
      gemm(block.count * taps, width, outputs, static_cast<const Real*>(d.weight) + first_weight(), int64_t(1), inputs,
           upstream.get(), kPixelsAtATime, dcolumns.get(), kPixelsAtATime);
    }
    for (int64_t tap = 0; tap < taps; ++tap)
      for (int64_t i = 0; i < count; i += kBlock)
        sweep(tap, i, count - i < kBlock ? count - i : kBlock, first, x, dx, dsampling);
    if (d.dweight)
      gemm(outputs, taps * kBlock, count, upstream.get(), kPixelsAtATime, int64_t(1), columns.get(), taps * kBlock,
           dweight.get(), taps * kBlock);
  }

  void sweep(int64_t tap, int64_t start, int64_t run, int64_t first, const Real* x, Real* dx, Real* dsampling) {
    using V = Vec<Real>;
    constexpr int L = kLanes<Real>;
    const int64_t all = d.out.n * d.out.pixels();
    // Rows of channels beyond the block's stay zero.
    if (samples_matter)
      transpose(dcolumns.get() + tap * kPixelsAtATime + start, taps * kPixelsAtATime, turned.get(), kBlock);
    for (int64_t i = 0; i < run; ++i) {
      const Sample<Real>& s = samples[tap * kPixelsAtATime + start + i];
      V to_row{}, to_column{}, to_mask{};
      for (int64_t c = 0; c < kBlock; c += L) {
        const V a = load(x + s.at[0] + c), b = load(x + s.at[1] + c), e = load(x + s.at[2] + c),
                f = load(x + s.at[3] + c);
        const V value = s.share[0] * a + s.share[1] * b + s.share[2] * e + s.share[3] * f;
        store(columns.get() + (start + i) * taps * kBlock + tap * kBlock + c, value * s.mask);
        if (!samples_matter) continue;
        const V g = load(turned.get() + i * kBlock + c), masked = g * s.mask;
        if (dx) {
          for (int corner = 0; corner < 4; ++corner) {
            Real* to = dx + s.at[corner] + c;
            store(to, load(to) + s.share[corner] * masked);
          }
        }
        to_mask += g * value;
        to_row += masked * ((e - a) * (1 - s.right) + (f - b) * s.right);
        to_column += masked * ((b - a) * (1 - s.down) + (f - e) * s.down);
      }
      if (dsampling) {
        Real* to = dsampling + tap * all + first + start + i;
        to[0] = total_of<Real>(to_row);
        to[taps * all] = total_of<Real>(to_column);
        to[2 * taps * all] = total_of<Real>(to_mask);
      }
    }
  }

  void write_weights(Real* to) const {
    for (int64_t o = 0; o < outputs; ++o)
      for (int64_t c = 0; c < block.count; ++c)
        for (int64_t tap = 0; tap < taps; ++tap)
          to[first_weight() + o * inputs + c * taps + tap] = dweight[o * taps * kBlock + tap * kBlock + c];
  }
};

template <class Real>
void backward(const Deform& d, int64_t begin, int64_t end) {
  const int64_t pixels = d.out.pixels(), image = blocked_image(d), taps = d.taps();
  for (int64_t item = begin; item < end; ++item) {
    const int64_t part = item / d.blocks, b = item % d.blocks;
    const int64_t n0 = d.out.n * part / d.parts, n1 = d.out.n * (part + 1) / d.parts;
    const ChannelBlock block = block_at(d, b);
    Work<Real> work(d, block);
    // Images smaller than a tile share tiles.
    const int64_t together = pixels >= kPixelsAtATime ? 1 : n1 - n0;
    Scratch<Real> x(together * image), dx(d.dx.data ? together * image : 0);
    Real* dsampling = d.dsampling ? static_cast<Real*>(d.dsampling) + b * 3 * taps * d.out.n * pixels : nullptr;
    for (int64_t n = n0; n < n1; n += together) {
      for (int64_t i = 0; i < together; ++i) block_image(d, block, n + i, x.get() + i * image);
      if (d.dx.data) std::memset(dx.get(), 0, size_t(together * image) * sizeof(Real));
      const int64_t last = (n + together) * pixels;
      for (int64_t first = n * pixels; first < last; first += kPixelsAtATime)
        work.tile(first, last - first < kPixelsAtATime ? last - first : kPixelsAtATime, n, x.get(),
                  d.dx.data ? dx.get() : nullptr, dsampling);
      if (d.dx.data)
        for (int64_t i = 0; i < together; ++i) unblock_image(d, block, n + i, dx.get() + i * image);
    }
    if (d.dweight) work.write_weights(static_cast<Real*>(d.dweight) + part * d.out.c * work.inputs);
  }
}

// Add up the blocks of each deformable group, in order. A work item is one (image, deformable group, tap).
template <class Real>
void sum_samples(const Deform& d, int64_t begin, int64_t end) {
  const int64_t taps = d.taps(), pixels = d.out.pixels(), all = d.out.n * pixels;
  alignas(64) Real total[kLine];
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / (d.deformable * taps), k = item % (d.deformable * taps);
    for (int64_t which = 0; which < 3; ++which) {
      const Image& to = which < 2 ? d.doffset : d.dmask;
      if (to.data == nullptr) continue;
      for (int64_t first = 0; first < pixels; first += kLine) {
        const int64_t count = pixels - first < kLine ? pixels - first : kLine;
        for (int64_t i = 0; i < count; ++i) total[i] = 0;
        for (int64_t b = 0; b < d.blocks; ++b) {
          if (block_at(d, b).deformable != k / taps) continue;
          const Real* from =
              static_cast<const Real*>(d.dsampling) + ((b * 3 + which) * taps + k % taps) * all + n * pixels + first;
          for (int64_t i = 0; i < count; ++i) total[i] += from[i];
        }
        write_line(to, d.out, n, which < 2 ? 2 * k + which : k, first, count, total, total);
      }
    }
  }
}

}  // namespace

void deform_backward(const Deform& d, int64_t begin, int64_t end) {
  d.wide ? backward<double>(d, begin, end) : backward<float>(d, begin, end);
}
void deform_sum_samples(const Deform& d, int64_t begin, int64_t end) {
  d.wide ? sum_samples<double>(d, begin, end) : sum_samples<float>(d, begin, end);
}

}  // namespace HIDA_ISA
}  // namespace hida
