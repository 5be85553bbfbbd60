// deform_conv2d, forward: y[o] = Σ_c,tap W[o][c][tap]·mask·x[c](sampling point of the tap) + bias.
//
// A tile of kPixelsAtATime output pixels and a block of kBlock channels at a time: sample into a small column tile,
// then multiply it by the weights, which stay as they are. No im2col: the columns of a block fit the second-level
// cache.
//
// Few output pixels (HIDA's own layers) make few tiles; then the columns are built once, and the output channels, hence
// the weights, which are all the traffic there is, are spread over the threads.
#include "deform_sampling.h"
#include "gemm.h"
#include "kernels.h"

namespace hida {
namespace HIDA_ISA {
namespace {

// Columns of one block: out[(c·taps + tap)·row + pixel]; pixels are padded with zeros to a multiple of kBlock.
template <class Real>
void sample_block(const Deform& d, const ChannelBlock& block, const Real* x, const Sample<Real>* samples, int64_t count,
                  Real* out, int64_t row) {
  constexpr int L = kLanes<Real>;
  using V = Vec<Real>;
  const int64_t taps = d.taps();
  alignas(64) Real square[kBlock * kBlock], turned[kBlock * kBlock];
  for (int64_t tap = 0; tap < taps; ++tap) {
    for (int64_t first = 0; first < count; first += kBlock) {
      const int64_t run = count - first < kBlock ? count - first : kBlock;
      for (int64_t i = 0; i < run; ++i) {
        const Sample<Real>& s = samples[tap * kPixelsAtATime + first + i];
        for (int64_t c = 0; c < kBlock; c += L) {
          const V value = s.share[0] * load(x + s.at[0] + c) + s.share[1] * load(x + s.at[1] + c) +
                          s.share[2] * load(x + s.at[2] + c) + s.share[3] * load(x + s.at[3] + c);
          store(square + i * kBlock + c, value * s.mask);
        }
      }
      for (int64_t i = run * kBlock; i < kBlock * kBlock; ++i) square[i] = 0;
      if (block.count == kBlock) {
        transpose(square, kBlock, out + tap * row + first, taps * row);
      } else {
        transpose(square, kBlock, turned, kBlock);
        for (int64_t c = 0; c < block.count; ++c)
          std::memcpy(out + (c * taps + tap) * row + first, turned + c * kBlock, kBlock * sizeof(Real));
      }
    }
  }
}

// Write rows [o0, o1) of a tile of results: result[(o − o0)·kPixelsAtATime + pixel].
template <class Real>
void write_rows(const Deform& d, int64_t o0, int64_t o1, int64_t first, int64_t count, Real* result) {
  for (int64_t o = o0; o < o1; ++o) {
    Real* line = result + (o - o0) * kPixelsAtATime;
    if (d.bias.data) {
      const Real bias = read_one<Real>(d.bias, 0, o);
      for (int64_t i = 0; i < count; ++i) line[i] += bias;
    }
    for_images(d, first, count, [&](int64_t n, int64_t pixel, int64_t done, int64_t run) {
      write_line(d.y, d.out, n, o, pixel, run, line + done, line + done);
    });
  }
}

template <class Real>
void tiles(const Deform& d, int64_t begin, int64_t end) {
  const int64_t taps = d.taps(), blocks = d.blocks, image = blocked_image(d), total = d.out.n * d.out.pixels();
  const int64_t inputs = d.in.c / d.groups * taps, outputs = d.out.c / d.groups;
  const Real* x = static_cast<const Real*>(d.blocked);
  const Real* weight = static_cast<const Real*>(d.weight);
  Scratch<Sample<Real>> samples(taps * kPixelsAtATime);
  Scratch<Real> columns(kBlock * taps * kPixelsAtATime), result(d.out.c * kPixelsAtATime);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t first = item * kPixelsAtATime,
                  count = total - first < kPixelsAtATime ? total - first : kPixelsAtATime;
    const int64_t width = (count + kBlock - 1) / kBlock * kBlock;
    std::memset(result.get(), 0, size_t(d.out.c * kPixelsAtATime) * sizeof(Real));
    int64_t found = -1;
    for (int64_t b = 0; b < blocks; ++b) {
      const ChannelBlock block = block_at(d, b);
      if (block.deformable != found)
        find_samples(d, found = block.deformable, first, count, 0, blocks * image, samples.get());
      sample_block(d, block, x + b * image, samples.get(), count, columns.get(), kPixelsAtATime);
      const int64_t k = (block.channel - block.group * (d.in.c / d.groups)) * taps;
      gemm(outputs, width, block.count * taps, weight + block.group * outputs * inputs + k, inputs, int64_t(1),
           columns.get(), kPixelsAtATime, result.get() + block.group * outputs * kPixelsAtATime, kPixelsAtATime);
    }
    write_rows(d, 0, d.out.c, first, count, result.get());
  }
}

// Few pixels: the columns of one block after another, into one matrix of C_in·taps rows.
template <class Real>
void columns(const Deform& d, int64_t begin, int64_t end) {
  const int64_t taps = d.taps(), image = blocked_image(d), count = d.out.n * d.out.pixels();
  const int64_t width = (count + kBlock - 1) / kBlock * kBlock;
  Scratch<Sample<Real>> samples(taps * kPixelsAtATime);
  int64_t found = -1;
  for (int64_t b = begin; b < end; ++b) {
    const ChannelBlock block = block_at(d, b);
    if (block.deformable != found)
      find_samples(d, found = block.deformable, 0, count, 0, d.blocks * image, samples.get());
    sample_block(d, block, static_cast<const Real*>(d.blocked) + b * image, samples.get(), count,
                 static_cast<Real*>(d.columns) + block.channel * taps * width, width);
  }
}

// A work item is kRowsAtATime output channels. kDepth rows of the columns at a time stay in the first-level cache.
constexpr int64_t kDepth = 256;

template <class Real>
void product(const Deform& d, int64_t begin, int64_t end) {
  const int64_t inputs = d.in.c / d.groups * d.taps(), outputs = d.out.c / d.groups;
  const int64_t total = d.out.n * d.out.pixels(), row = (total + kBlock - 1) / kBlock * kBlock;
  Scratch<Real> result(kRowsAtATime * kPixelsAtATime);
  for (int64_t item = begin; item < end; ++item) {
    for (int64_t o = item * kRowsAtATime; o < (item + 1) * kRowsAtATime && o < d.out.c;) {
      const int64_t group = o / outputs, last = (group + 1) * outputs, stop = (item + 1) * kRowsAtATime;
      const int64_t rows = (last < stop ? last : stop) - o;
      for (int64_t first = 0; first < total; first += kPixelsAtATime) {
        const int64_t count = total - first < kPixelsAtATime ? total - first : kPixelsAtATime;
        const int64_t width = (count + kBlock - 1) / kBlock * kBlock;
        std::memset(result.get(), 0, size_t(rows * kPixelsAtATime) * sizeof(Real));
        for (int64_t k = 0; k < inputs; k += kDepth)
          gemm(rows, width, inputs - k < kDepth ? inputs - k : kDepth,
               static_cast<const Real*>(d.weight) + o * inputs + k, inputs, int64_t(1),
               static_cast<const Real*>(d.columns) + (group * inputs + k) * row + first, row, result.get(),
               kPixelsAtATime);
        write_rows(d, o, o + rows, first, count, result.get());
      }
      o += rows;
    }
  }
}

template <class Real>
void rearrange(const Deform& d, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item)
    block_image(d, block_at(d, item % d.blocks), item / d.blocks,
                static_cast<Real*>(d.blocked) + item * blocked_image(d));
}

}  // namespace

void deform_rearrange(const Deform& d, int64_t begin, int64_t end) {
  d.wide ? rearrange<double>(d, begin, end) : rearrange<float>(d, begin, end);
}
void deform_tiles(const Deform& d, int64_t begin, int64_t end) {
  d.wide ? tiles<double>(d, begin, end) : tiles<float>(d, begin, end);
}
void deform_columns(const Deform& d, int64_t begin, int64_t end) {
  d.wide ? columns<double>(d, begin, end) : columns<float>(d, begin, end);
}
void deform_product(const Deform& d, int64_t begin, int64_t end) {
  d.wide ? product<double>(d, begin, end) : product<float>(d, begin, end);
}

}  // namespace HIDA_ISA
}  // namespace hida
