// deform_conv2d where planes are small and few, as in HIDA's own layers (512→512 at 2², 1024→512 at 4²).
//
// The weights are all the traffic there is: they are read in place. The columns, (pixel, channel·taps + tap), are small
// and are written out; y, the columns' gradient and dW are products of plain matrices, spread over the chip by rows,
// columns and, forward, parts of the depth, which are added in order.
//   forward   columns = S·x;  y = W·columns          backward   G = dyᵀ·W;  dW = dy·columns;  dx = Sᵀ·G;  dS = G·xᵀ
// S, the sampling matrix, has four numbers in a row: it is applied as such (deform_conv_tiny_operands.cu,
// deform_conv_tiny_gradients.cu), never stored. Times are latencies: each direction is three launches, of what does not
// depend on each other, and in each what a block needs is loaded together. Share of the floor: not measured.
//   forward   columns | products | sums of parts     backward   columns, dy rearranged | G, dW | dx, offsets and mask
#include "deform_conv_tiny.h"

namespace hida {
namespace cuda {
namespace {

// out = A·B for each group, `splits` parts of the depth apart.
struct Operand {
  const void* data;
  Dtype dtype;
  int64_t pitch, group;  // distance of lines, of groups
};
// What the two halves of a block do: halves of the depth, of which the sums are added; or a tile each, side by side,
// which share an operand (the first-level cache has it).
enum class Halves : int { of_depth, of_rows, of_columns };
struct Matmul {
  Operand a, b;
  int rows, columns, depth, groups, splits;
  Halves halves;
  void* out;  // Real
  int64_t out_pitch, out_group, out_split;
  HIDA_MATH int tiles_down() const { return tiles(rows, halves == Halves::of_rows); }
  HIDA_MATH int tiles_across() const { return tiles(columns, halves == Halves::of_columns); }
  HIDA_MATH int64_t blocks() const { return int64_t(tiles_down()) * tiles_across() * groups * splits; }

 private:
  static HIDA_MATH int tiles(int count, bool two) {
    const int side = two ? 2 * kTileSide : kTileSide;
    return (count + side - 1) / side;
  }
};

// How an operand is read. Whole vectors of the products' dtype, or of float: no branches, so that a thread's loads are
// in flight together.
enum class Source : int { whole, floats, any };

template <class M, bool ByDepth, Source From>
struct Matrix {
  static constexpr int V = kPerVec<M>;
  const Operand& o;
  int64_t first;             // of the tile's first row
  int rows, depth, end = 0;  // left of the rows, of the depth; of a line at the chunk
  int64_t now = 0;
  int lines = 0;
  HIDA_DEVICE Matrix(const Operand& operand, int group, int row0, int row_end, int depth_end)
      : o(operand),
        first(group * operand.group + (ByDepth ? row0 : row0 * operand.pitch)),
        rows(row_end - row0),
        depth(depth_end) {}
  HIDA_DEVICE void at(int chunk) {
    const int position = chunk * kDepth<M>;
    now = first + (ByDepth ? position * o.pitch : position);
    lines = ByDepth ? depth - position : rows;
    end = ByDepth ? rows : depth - position;
  }
  HIDA_DEVICE Vec16 vec(int line, int u) const {
    if (line >= lines || u * V >= end) return Vec16{};
    const int64_t index = now + line * o.pitch + u * V;
    if constexpr (From == Source::whole) {
      return load16(static_cast<const typename M::Bits*>(o.data) + index);
    } else if constexpr (From == Source::floats) {
      const float* from = static_cast<const float*>(o.data) + index;
      const Vec16 low = load16(from), high = load16(from + 4);
      float x[V];
#pragma unroll
      for (int i = 0; i < V; ++i) x[i] = __uint_as_float(i < 4 ? low.word[i % 4] : high.word[i % 4]);
      return pack<M>(x);
    } else {
      return read16<M>(o.data, o.dtype, index, end - u * V < V ? end - u * V : V, false);
    }
  }
};

constexpr int kHalves = 2;
// Blocks that a multiprocessor should hold at least. Float products, and numbers one by one, take more registers;
// Turing has shared memory for one block.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
template <class M, Source From>
constexpr int kBlocks = 1;
#else
template <class M, Source From>
constexpr int kBlocks = kPerVec<M> == 8 && From != Source::any ? 2 : 1;
#endif

template <class M, bool AByDepth, bool BByDepth, Source A, Source B>
HIDA_DEVICE void product(const Matmul& job, int block, char* memory) {
  using Real = typename M::Real;
  const auto digit = [&block](int base) {
    const int d = int(unsigned(block) % unsigned(base));
    block = int(unsigned(block) / unsigned(base));
    return d;
  };
  const int half = int(threadIdx.y), thread = int(threadIdx.x);
  const bool rows = job.halves == Halves::of_rows, columns = job.halves == Halves::of_columns;
  const int column0 =
      digit(job.tiles_across()) * kTileSide * (columns ? kHalves : 1) + (columns ? half * kTileSide : 0);
  const int row0 = digit(job.tiles_down()) * kTileSide * (rows ? kHalves : 1) + (rows ? half * kTileSide : 0);
  const int group = digit(job.groups), split = block;
  HIDA_SHARED(int, kept, [kHalves][4]);  // until the results are written: registers are short in between
  if (thread == 0) kept[half][0] = row0, kept[half][1] = column0, kept[half][2] = group, kept[half][3] = split;
  const int chunks = (job.depth + kDepth<M> - 1) / kDepth<M>;
  int begin = chunks * split / job.splits, end = chunks * (split + 1) / job.splits;
  const int depth = end * kDepth<M> < job.depth ? end * kDepth<M> : job.depth;
  if (job.halves == Halves::of_depth) {  // the same number of chunks each, the last perhaps of zeros
    const int each = (end - begin + kHalves - 1) / kHalves;
    begin += half * each;
    end = begin + each;
  }
  Matrix<M, AByDepth, A> a(job.a, group, row0, job.rows, depth);
  Matrix<M, BByDepth, B> b(job.b, group, column0, job.columns, depth);
  GemmTile<M, AByDepth, BByDepth> tile;
  tile.clear();
  multiply(tile, memory + half * kTileBytes<M>, begin, end, a, b, [](int) {});
  const Real* result = spread(tile, memory + half * kTileBytes<M>);
  const int row1 = kept[half][0], column = kept[half][1] + thread % kTileSide;
  if (column >= job.columns) return;
  Real* out = static_cast<Real*>(job.out) + kept[half][2] * job.out_group + kept[half][3] * job.out_split + column;
  constexpr int apart = kGemmThreads / kTileSide;
  if (job.halves == Halves::of_depth) {
    const auto* first = reinterpret_cast<const Real*>(memory) + thread % kTileSide;
    const auto* second = reinterpret_cast<const Real*>(memory + kTileBytes<M>) + thread % kTileSide;
    for (int row = half * apart + thread / kTileSide; row < kTileSide && row1 + row < job.rows; row += kHalves * apart)
      out[int64_t(row1 + row) * job.out_pitch] = first[row * kResultPitch<M>] + second[row * kResultPitch<M>];
  } else {
    for (int row = thread / kTileSide; row < kTileSide && row1 + row < job.rows; row += apart)
      out[int64_t(row1 + row) * job.out_pitch] = result[row * kResultPitch<M> + thread % kTileSide];
  }
}

// How the operands that are not weights are read.
template <Source Weights>
constexpr Source kOthers = Weights == Source::any ? Source::any : Source::whole;

template <class M, Source Weights>
__global__ void __launch_bounds__(kHalves* kGemmThreads, kBlocks<M, Weights>)
    forward_kernel(const __grid_constant__ Matmul job) {
  HIDA_DYNAMIC_SHARED(char, memory);
  product<M, false, false, Weights, kOthers<Weights>>(job, int(blockIdx.x), memory);
}

template <class M, Source Weights>
__global__ void __launch_bounds__(kHalves* kGemmThreads, kBlocks<M, Weights>)
    backward_kernel(const __grid_constant__ Matmul columns, const __grid_constant__ Matmul weights, int first) {
  HIDA_DYNAMIC_SHARED(char, memory);
  constexpr Source from = kOthers<Weights>;
  const int block = int(blockIdx.x);
  if (block < first)
    product<M, false, true, from, Weights>(columns, block, memory);
  else
    product<M, true, true, from, from>(weights, block - first, memory);
}

// y: the partial sums in order, and the bias; one number per thread.
template <class M>
__global__ void __launch_bounds__(kGemmThreads)
    sum_kernel(const __grid_constant__ Job job, const float* partial, int splits) {
  const Deform& d = job.d;
  const unsigned pixels = unsigned(job.pixels), plane = unsigned(d.out.h * d.out.w), w = unsigned(d.out.w);
  const unsigned id = blockIdx.x * kGemmThreads + threadIdx.x, o = id / pixels, p = id - o * pixels;
  if (o >= unsigned(d.out.c)) return;
  const int64_t apart = d.out.c * job.pixels;
  const float bias = d.bias.data ? read_as<float>(d.bias.data, d.bias.dtype, o * d.bias.c) : 0;
  float value = 0;
#pragma unroll 8
  for (int split = 0; split < splits; ++split) value += partial[split * apart + id];
  const unsigned n = p / plane, pixel = p - n * plane, row = pixel / w;
  write_as(d.y.data, M::dtype, index_in(d.y, n, o, int(row), int(pixel - row * w)), value + bias);
}

struct Memory {
  void *columns, *grad;
  float *partial, *gradient;
  int64_t pitch;  // of the columns
};

Memory take(Arena& arena, const Convolution& d, const DeformPlan& plan, bool backward) {
  const int64_t size = d.math == Dtype::f32 ? 4 : 2, pixels = d.out.n * d.out.pixels(), depth = d.in.c * d.taps();
  Memory m{};
  m.pitch = padded_to(depth, 16 / size);
  if (!backward || d.dweight) m.columns = arena.take<char>(pixels * m.pitch * size);
  if (!backward) m.partial = arena.take<float>(plan.splits * d.out.c * pixels);
  if (backward) m.grad = arena.take<char>(pixels * d.groups * plan.grad_padded * size);
  if (backward && (d.dx.data || d.doffset.data || d.dmask.data)) m.gradient = arena.take<float>(pixels * depth);
  return m;
}

template <class F>
void with_small_math(const Convolution& d, F f) {
  if (d.math == Dtype::bf16) return f(Bf16{});
  if (d.math == Dtype::f16) return f(Fp16{});
  return d.tf32 ? f(Tf32{}) : f(Fp32{});
}

// length: of what is contiguous in an operand.
template <class M>
Source source_of(const Operand& o, int64_t length) {
  constexpr int V = kPerVec<M>;
  if (reinterpret_cast<uintptr_t>(o.data) % 16 != 0 || o.pitch % V != 0 || o.group % V != 0 || length % V != 0)
    return Source::any;
  if (o.dtype == M::dtype) return Source::whole;
  return o.dtype == Dtype::f32 ? Source::floats : Source::any;
}

// f(std::integral_constant): how the weights are read, where the others are whole or not.
template <class M, class F>
void with_source(Source weights, bool whole, F f) {
  if (whole && weights == Source::whole) return f(std::integral_constant<Source, Source::whole>{});
  if constexpr (kPerVec<M> == 8) {
    if (whole && weights == Source::floats) return f(std::integral_constant<Source, Source::floats>{});
  }
  f(std::integral_constant<Source, Source::any>{});
}

// Tiles in twos where that leaves work for the whole chip, else parts of the depth.
Matmul forward_product(const Convolution& d, const Launch& l) {
  Matmul y{};
  y.rows = int(d.out.c / d.groups), y.columns = int(d.out.n * d.out.pixels());
  y.depth = int(d.in.c / d.groups * d.taps()), y.groups = int(d.groups), y.splits = 1, y.halves = Halves::of_rows;
  const int64_t chunks = over(y.depth, 128 / size_of(d.math)), slots = 2 * l.multiprocessors;
  if (y.rows <= kTileSide || y.blocks() * 16 < slots) y.halves = Halves::of_depth;
  y.splits = int(std::max<int64_t>(1, std::min(slots / y.blocks(), chunks / 4)));
  return y;
}

}  // namespace

bool tiny_takes(const Convolution& d) {
  const int64_t pixels = d.out.n * d.out.pixels(), columns = d.in.c * d.taps();
  const auto reach = [](const Image& image, const Extent& e) {  // within an image: counted in 32 bits
    return e.c * image.c + e.h * image.row + e.w * image.step;
  };
  return d.math != Dtype::f64 && d.grad.dtype != Dtype::f64 && d.out.pixels() <= 64 && d.in.pixels() <= 64 &&
         d.taps() <= 25 &&
         std::max({pixels * d.out.c, pixels * d.deformable, columns * 64, reach(d.x, d.in), reach(d.grad, d.out)}) <
             INT32_MAX / 2;
}

int64_t tiny_splits(const Convolution& d, const Launch& l) {
  return forward_product(d, l).splits;
}

int64_t tiny_bytes(const Convolution& d, const DeformPlan& plan, bool backward) {
  Arena arena(nullptr);
  take(arena, d, plan, backward);
  return arena.used();
}

void tiny_forward(const Convolution& d, const DeformPlan& plan, void* workspace, const Launch& l) {
  Arena arena(workspace);
  const Memory m = take(arena, d, plan, false);
  const Job job = start_job(d, plan);
  with_small_math(d, [&](auto math) {
    using M = decltype(math);
    tiny_operands<Stored<M>>(job, m.columns, m.pitch, nullptr, l);
    Matmul y = forward_product(d, l);
    const int64_t numbers = int64_t(y.rows) * y.columns;
    y.a = {d.weight, d.weight_dtype, y.depth, int64_t(y.rows) * y.depth};
    y.b = {m.columns, M::dtype, m.pitch, y.depth};
    y.out = m.partial, y.out_pitch = y.columns, y.out_group = numbers, y.out_split = d.groups * numbers;
    with_source<M>(source_of<M>(y.a, y.depth), source_of<M>(y.b, y.depth) == Source::whole, [&](auto weights) {
      launch(forward_kernel<M, decltype(weights)::value>, grid_of(y.blocks()), dim3(kGemmThreads, kHalves),
             kHalves * kTileBytes<M>, l, y);
    });
    launch(sum_kernel<Stored<M>>, grid_of(over(d.groups * numbers, kGemmThreads)), kGemmThreads, 0, l, job,
           static_cast<const float*>(m.partial), int(y.splits));
  });
}

void tiny_backward(const Convolution& d, const DeformPlan& plan, void* workspace, const Launch& l) {
  Arena arena(workspace);
  const Memory m = take(arena, d, plan, true);
  const Job job = start_job(d, plan);
  const int64_t depth = d.in.c / d.groups * d.taps(), line = d.groups * plan.grad_padded;
  with_small_math(d, [&](auto math) {
    using M = decltype(math);
    tiny_operands<Stored<M>>(job, m.columns, m.pitch, m.grad, l);
    const Operand upstream{m.grad, M::dtype, line, plan.grad_padded};
    Matmul g{}, w{};
    Source weights = Source::whole;
    bool whole = job.outputs % kPerVec<M> == 0;
    int64_t g_blocks = 0, w_blocks = 0;
    if (m.gradient) {
      g.a = upstream, g.b = {d.weight, d.weight_dtype, depth, job.outputs * depth};
      g.rows = int(job.pixels), g.columns = int(depth), g.depth = job.outputs, g.groups = int(d.groups), g.splits = 1;
      g.halves = Halves::of_rows;
      if (g.rows <= kTileSide || g.blocks() < l.multiprocessors) g.halves = Halves::of_depth;
      g.out = m.gradient, g.out_pitch = d.groups * depth, g.out_group = depth;
      weights = source_of<M>(g.b, depth);
      g_blocks = g.blocks();
    }
    if (d.dweight) {
      w.a = upstream, w.b = {m.columns, M::dtype, m.pitch, depth};
      w.rows = job.outputs, w.columns = int(depth), w.depth = int(job.pixels), w.groups = int(d.groups), w.splits = 1;
      w.halves = Halves::of_columns;
      w.out = d.dweight, w.out_pitch = depth, w.out_group = job.outputs * depth;
      whole = whole && source_of<M>(w.b, depth) == Source::whole;
      w_blocks = w.blocks();
    }
    if (g_blocks + w_blocks == 0) return;
    with_source<M>(weights, whole, [&](auto from) {
      launch(backward_kernel<M, decltype(from)::value>, grid_of(g_blocks + w_blocks), dim3(kGemmThreads, kHalves),
             kHalves * kTileBytes<M>, l, g, w, int(g_blocks));
    });
    if (m.gradient) tiny_gradients<Stored<M>>(job, m.gradient, l);
  });
}

}  // namespace cuda
}  // namespace hida
