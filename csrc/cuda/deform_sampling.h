// What the kernels of deform_conv2d share: pieces of channels, sampling points, gathering.
//
// Gathers want channels last: a corner of a sampling point is then 16-byte loads of neighbouring channels, where NCHW
// would take a load for each number. So x (and the upstream gradient) is rearranged, a few images at a time, unless it
// lies so. Channels are cut into pieces of equal length that share a group and a deformable group; each is padded with
// zeros to whole units. A `position` counts channels with that padding.
#pragma once

#include "deform_conv.h"
#include "tile.h"

namespace hida {
namespace cuda {

// Channels last: distances of images, rows and pixels in numbers.
struct Lines {
  const void* data = nullptr;
  int64_t n = 0, row = 0, step = 0;
};

struct Job {
  Convolution d;
  int piece, padded, per_group, per_deformable;  // length of a piece; pieces of a group, of a deformable group
  int grad_padded;
  int taps, outputs;   // C_out / groups
  int64_t first;       // image, of those at work
  int64_t pixels;      // of their output
  Lines x, grad;       // the first of them
  const void* weight;  // (taps, C_out, per_group · padded)
  HIDA_MATH int line() const { return per_group * padded; }
};

// An output pixel.
struct Place {
  int64_t n;  // counted from the first image at work
  int pixel, row, column;
  bool exists;
};

HIDA_DEVICE Place place_of(const Job& job, int64_t p) {
  Place place{0, 0, 0, 0, p < job.pixels};
  if (!place.exists) return place;
  const int64_t plane = job.d.out.h * job.d.out.w;
  place.n = p / plane;
  place.pixel = int(p - place.n * plane);
  place.row = place.pixel / int(job.d.out.w);
  place.column = place.pixel - place.row * int(job.d.out.w);
  return place;
}
HIDA_DEVICE int64_t index_in(const Image& image, int64_t n, int64_t c, int row, int column) {
  return n * image.n + c * image.c + row * image.row + column * image.step;
}

// Where an output pixel begins; −1 where it does not exist.
HIDA_DEVICE int64_t line_of(const Lines& lines, const Place& place) {
  return place.exists ? place.n * lines.n + place.row * lines.row + place.column * lines.step : -1;
}

// inside: a bit for each corner within the image. at: the top left corner, which need not be.
template <class Real>
struct Sample {
  int64_t at;
  Real down, right, mask;
  int inside;
};

// The same, as rows and columns of the input; top and left from −1.
template <class Real>
struct Cell {
  int top, left, inside;
  Real down, right, mask;
};

// Where a tap of an output pixel samples, in pixels of the input.
template <class Real>
struct Spot {
  Real row, column, mask;
};

template <class Real>
HIDA_DEVICE Spot<Real> find_spot(const Job& job, int deformable, int tap, const Place& place) {
  const Deform& d = job.d;
  const int64_t n = job.first + place.n, k = int64_t(deformable) * job.taps + tap;
  const int i = tap / int(d.kernel_w), j = tap - i * int(d.kernel_w);
  const auto read = [&](const Image& image, int64_t c) {
    return read_as<Real>(image.data, image.dtype, index_in(image, n, c, place.row, place.column));
  };
  return {Real(place.row * d.stride_h - d.pad_h + i * d.dilation_h) + read(d.offset, 2 * k),
          Real(place.column * d.stride_w - d.pad_w + j * d.dilation_w) + read(d.offset, 2 * k + 1),
          d.mask.data ? read(d.mask, k) : Real(1)};
}

template <class Real>
HIDA_DEVICE Cell<Real> find_cell(const Job& job, int deformable, int tap, const Place& place) {
  Cell<Real> cell{-1, -1, 0, 0, 0, 0};
  if (!place.exists) return cell;
  const Deform& d = job.d;
  const Spot<Real> spot = find_spot<Real>(job, deformable, tap, place);
  cell.mask = spot.mask;
  const Point<Real> point = locate(spot.row, spot.column, d.in.h, d.in.w, int64_t(-1));
  cell.down = point.down;
  cell.right = point.right;
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    if (point.pixel[corner] < 0) continue;
    const int pixel = int(point.pixel[corner]);
    cell.inside |= 1 << corner;
    cell.top = pixel / int(d.in.w) - corner / 2;
    cell.left = pixel % int(d.in.w) - corner % 2;
  }
  return cell;
}

template <class Real>
HIDA_DEVICE Sample<Real> find_sample(const Job& job, int deformable, int tap, const Place& place) {
  const Cell<Real> cell = find_cell<Real>(job, deformable, tap, place);
  return {place.n * job.x.n + cell.top * job.x.row + cell.left * job.x.step, cell.down, cell.right, cell.mask,
          cell.inside};
}

template <class Real>
HIDA_DEVICE void shares_of(Real down, Real right, Real (&share)[4]) {
  Point<Real> point;
  point.down = down;
  point.right = right;
  shares(point, share);
}

template <class M>
HIDA_DEVICE void load_corners(const Lines& x, const Sample<typename M::Real>& s, int position, Unit (&unit)[4]) {
  const auto* from = static_cast<const typename M::Bits*>(x.data) + s.at + position;
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    unit[corner] = Unit{};
    if (s.inside >> corner & 1) unit[corner] = load_unit(from + corner / 2 * x.row + corner % 2 * x.step);
  }
}

// Interpolated, times mask. Pixels outside do not take part, whatever the shares.
template <class M>
HIDA_DEVICE Unit gather(const Lines& x, const Sample<typename M::Real>& s, int position) {
  using Real = typename M::Real;
  Unit unit[4];
  load_corners<M>(x, s, position, unit);
  Real share[4];
  shares_of(s.down, s.right, share);
  if constexpr (kUnit<M> == 8) {
#pragma unroll
    for (int w = 0; w < 4; ++w) {  // a word at a time: two numbers want few registers
      Real low = 0, high = 0;
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) {
        low += share[corner] * M::read(unit[corner].word[w] & 0xffffu);
        high += share[corner] * M::read(unit[corner].word[w] >> 16);
      }
      unit[0].word[w] = M::write(low * s.mask) | M::write(high * s.mask) << 16;
    }
    return unit[0];
  } else {
    Real v[4][kUnit<M>];
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) unpack<M>(unit[corner], v[corner]);
#pragma unroll
    for (int i = 0; i < kUnit<M>; ++i)
      v[0][i] = (share[0] * v[0][i] + share[1] * v[1][i] + share[2] * v[2][i] + share[3] * v[3][i]) * s.mask;
    return pack<M>(v[0]);
  }
}

// ---- launched by both directions; see deform_conv_layout.cu ----
constexpr int64_t kAlign = kWorkspaceAlign;

// Hands out parts of the workspace; without memory, it adds up what would be needed.
class Arena {
 public:
  explicit Arena(void* memory) : at_(static_cast<char*>(memory)) {}
  template <class T>
  T* take(int64_t count) {
    char* here = at_ ? at_ + used_ : nullptr;
    used_ += (count * int64_t(sizeof(T)) + kAlign - 1) / kAlign * kAlign;
    return reinterpret_cast<T*>(here);
  }
  int64_t used() const { return used_; }

 private:
  char* at_;
  int64_t used_ = 0;
};

inline int64_t over(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
inline int64_t padded_to(int64_t a, int64_t b) {
  return over(a, b) * b;
}

// f(M{}): the kernels' numbers.
template <class F>
void with_math(const Convolution& d, F f) {
  switch (d.math) {
    case Dtype::f64:
      return f(Fp64{});
    case Dtype::bf16:
      return f(Bf16{});
    case Dtype::f16:
      return f(Fp16{});
    default:
      return d.tf32 ? f(Tf32{}) : f(Fp32{});
  }
}

Job start_job(const Convolution&, const Plan&);
// Images [first, first + count) of an (n, c, h, w) tensor to channels last, pieces of `piece` channels padded.
template <class M>
void pack_lines(const Image&, const Extent&, int64_t first, int64_t count, int piece, int padded, void* to,
                const Launch&);
template <class M>
void pack_weight(const Job&, void* to, const Launch&);
// What pieces, padding and layouts come to: fills these fields of a plan.
void plan_layout(const Convolution&, Plan&);
// Bytes of workspace to aim at.
int64_t aim_of(const Convolution&, const Choice&);
// Memory that packed x, dy, weights take.
int64_t bytes_of_x(const Convolution&, const Plan&, int64_t images);
int64_t bytes_of_grad(const Convolution&, const Plan&, int64_t images);
int64_t bytes_of_weight(const Convolution&, const Plan&);
// Images [first, first + count) of x or dy, channels last: packed into `memory`, or where they lie.
template <class M>
Lines lines_of(const Image&, const Extent&, int64_t first, int64_t count, int piece, int padded, void* memory,
               const Launch&);
// f(images at work) for one lot after the other: sets job.first and job.pixels.
template <class J, class F>
void for_lots(J& job, const Plan& plan, F f) {
  for (job.first = 0; job.first < job.d.in.n; job.first += plan.images) {
    const int64_t count = std::min(plan.images, job.d.in.n - job.first);
    job.pixels = count * job.d.out.pixels();
    f(count);
  }
}

// out = A·B for each group, `splits` parts of the depth apart; for few pixels (deform_conv_tiny.cu).
struct Operand {
  const void* data;
  Dtype dtype;
  int64_t pitch, group;  // distance of lines, of groups
  bool aligned;          // whole units may be read as vectors
};
struct Matmul {
  Operand a, b;
  int64_t rows, columns, depth, groups, splits;
  void* out;  // Real
  int64_t out_pitch, out_group, out_split;
};
void tiny_forward(const Convolution&, const Plan&, void* workspace, const Launch&);
void tiny_backward(const Convolution&, const Plan&, void* workspace, const Launch&);
int64_t tiny_bytes(const Convolution&, const Plan&, bool backward);

// y = Σ partial + bias over (splits, C_out, pixels).
template <class M>
void finish_forward(const Job&, const void* partial, int64_t splits, const Launch&);

// dW (deform_conv_weight.cu): adds that of the images at work to `sums`, Real (splits, taps, C_out, line), begun with
// the first image; then puts it where it is wanted.
int rows_of_weights(const Convolution&, const Plan&);
template <class M>
void add_weight_gradient(const Job&, const Plan&, void* sums, const Launch&);
template <class M>
void finish_weight_gradient(const Job&, const Plan&, const void* sums, const Launch&);

// dx (deform_conv_gather.cu). The lists: for each cell of the input, the sampling points of a deformable group in it,
// in order; of the images at work.
struct Lists {
  int *count, *start, *cursor;
  uint32_t *list, *sorted;  // tap · pixels of an image + pixel
};
Lists take_lists(Arena&, const Convolution&, int64_t images);
template <class M>
void add_input_gradient(const Job&, const Lists&, const Launch&);

}  // namespace cuda
}  // namespace hida
