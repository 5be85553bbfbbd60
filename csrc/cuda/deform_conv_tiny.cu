// deform_conv2d where planes are small and few, as in HIDA's own layers (512→512 at 2², 1024→512 at 4²).
//
// The weights are all the traffic there is: they are read once, in place. The columns, (pixel,
// channel·taps + tap), are small and are written out; y, the columns' gradient and dW are products of plain matrices,
// spread over the chip by rows, columns and, forward, parts of the depth, which are added in order.
//   forward   columns = S·x;  y = W·columns          backward   G = dyᵀ·W;  dW = dy·columns;  dx = Sᵀ·G;  dS = G·xᵀ
// S, the sampling matrix, has four numbers in a row: it is applied as such, never stored. In dx a thread owns a
// channel, a block all pixels of an image: no atomics, one order. Share of the floor: not measured.
#include "deform_launch.h"

namespace hida {
namespace cuda {
namespace {

constexpr int kTaps = 25;  // at most; see plan_forward

template <class M, bool ByDepth>
struct Matrix {
  const Operand& o;
  int64_t base, rows, depth, row0, chunk0 = 0;
  HIDA_DEVICE void at(int chunk) { chunk0 = int64_t(chunk) * kDepth<M>; }
  HIDA_DEVICE Vec16 vec(int line, int u) const {
    const int64_t row = row0 + (ByDepth ? u * kPerVec<M> : line), k = chunk0 + (ByDepth ? line : u * kPerVec<M>);
    if (row >= rows || k >= depth) return Vec16{};
    const int64_t left = ByDepth ? rows - row : depth - k;
    return read16<M>(o.data, o.dtype, base + (ByDepth ? k * o.pitch + row : row * o.pitch + k),
                     int(left < kPerVec<M> ? left : kPerVec<M>), o.aligned);
  }
};

template <class M, bool AByDepth, bool BByDepth>
__global__ void __launch_bounds__(kGemmThreads, 2) matmul_kernel(const __grid_constant__ Matmul job) {
  using Real = typename M::Real;
  HIDA_DYNAMIC_SHARED(char, shared);
  int64_t block = int64_t(blockIdx.x);
  const auto digit = [&block](int64_t base) {
    const int64_t d = block % base;
    block /= base;
    return d;
  };
  const int64_t column0 = digit((job.columns + kTileSide - 1) / kTileSide) * kTileSide;
  const int64_t row0 = digit((job.rows + kTileSide - 1) / kTileSide) * kTileSide;
  const int64_t group = digit(job.groups), split = block;
  const int64_t chunks = (job.depth + kDepth<M> - 1) / kDepth<M>;
  Matrix<M, AByDepth> a{job.a, group * job.a.group, job.rows, job.depth, row0};
  Matrix<M, BByDepth> b{job.b, group * job.b.group, job.columns, job.depth, column0};
  GemmTile<M, AByDepth, BByDepth> tile;
  tile.clear();
  multiply(tile, shared, int(chunks * split / job.splits), int(chunks * (split + 1) / job.splits), a, b, [](int) {});
  const Real* result = spread(tile, shared);
  const int64_t column = column0 + threadIdx.x % kTileSide;
  if (column >= job.columns) return;
  Real* out = static_cast<Real*>(job.out) + group * job.out_group + split * job.out_split + column;
  for (int row = int(threadIdx.x) / kTileSide; row < kTileSide && row0 + row < job.rows;
       row += kGemmThreads / kTileSide)
    out[(row0 + row) * job.out_pitch] = result[row * kResultPitch<M> + threadIdx.x % kTileSide];
}

// What a block of the other kernels works on: a pixel (or an image), a deformable group, 128 of its channels.
struct Share {
  int64_t what;
  int deformable, channel, count;
};
HIDA_DEVICE Share share_of(const Job& job, bool all_channels) {
  const int each = int(job.d.in.c / job.d.deformable),
            parts = all_channels ? 1 : (each + kGemmThreads - 1) / kGemmThreads;
  const int64_t block = int64_t(blockIdx.x), rest = block / parts;
  const int first = int(block % parts) * kGemmThreads, deformable = int(rest % job.d.deformable);
  return {rest / job.d.deformable, deformable, deformable * each + first,
          all_channels || each - first < kGemmThreads ? each - first : kGemmThreads};
}

template <class Real>
HIDA_DEVICE void read_corners(const Job& job, const Cell<Real>& cell, int64_t n, int64_t c, Real (&v)[4]) {
#pragma unroll
  for (int corner = 0; corner < 4; ++corner)
    v[corner] = cell.inside >> corner & 1
                    ? read_as<Real>(job.d.x.data, job.d.x.dtype,
                                    index_in(job.d.x, n, c, cell.top + corner / 2, cell.left + corner % 2))
                    : Real(0);
}

template <class M>
__global__ void __launch_bounds__(kGemmThreads)
    columns_kernel(const __grid_constant__ Job job, void* columns, int64_t pitch) {
  using Real = typename M::Real;
  HIDA_SHARED(Cell<Real>, cells, [kTaps]);
  HIDA_DYNAMIC_SHARED(Real, line);  // (channel, tap), as in memory
  const Share share = share_of(job, false);
  const int thread = int(threadIdx.x);
  const OutputPixel place = place_of(job, share.what);
  if (thread < job.taps) cells[thread] = find_cell<Real>(job, share.deformable, thread, place);
  __syncthreads();
  if (thread < share.count) {
    for (int tap = 0; tap < job.taps; ++tap) {
      const Cell<Real>& cell = cells[tap];
      Real v[4], part[4];
      read_corners(job, cell, place.n, share.channel + thread, v);
      shares_of(cell.down, cell.right, part);
      line[thread * job.taps + tap] = (part[0] * v[0] + part[1] * v[1] + part[2] * v[2] + part[3] * v[3]) * cell.mask;
    }
  }
  __syncthreads();
  const int64_t to = share.what * pitch + int64_t(share.channel) * job.taps;
  for (int i = thread; i < share.count * job.taps; i += kGemmThreads) write_as(columns, M::dtype, to + i, line[i]);
}

// dx of an image. gradient: G, Real (pixels, C_in·taps).
template <class Real>
__global__ void __launch_bounds__(kGemmThreads)
    tiny_input_kernel(const __grid_constant__ Job job, const void* gradient) {
  HIDA_SHARED(Cell<Real>, cells, [kTaps]);
  HIDA_DYNAMIC_SHARED(Real, memory);
  const Share share = share_of(job, false);
  const int thread = int(threadIdx.x), plane = int(job.d.in.h * job.d.in.w), w = int(job.d.in.w);
  const int pixels = int(job.d.out.h * job.d.out.w);
  constexpr int pitch = kGemmThreads + 1;
  Real* sums = memory;  // (pixel of the input, channel)
  Real* line = memory + plane * pitch;
  for (int i = thread; i < plane * pitch; i += kGemmThreads) sums[i] = 0;
  for (int pixel = 0; pixel < pixels; ++pixel) {
    const int64_t p = share.what * pixels + pixel;
    const Real* from = static_cast<const Real*>(gradient) + (p * job.d.in.c + share.channel) * job.taps;
    __syncthreads();
    for (int i = thread; i < share.count * job.taps; i += kGemmThreads) line[i] = from[i];
    if (thread < job.taps) cells[thread] = find_cell<Real>(job, share.deformable, thread, place_of(job, p));
    __syncthreads();
    if (thread >= share.count) continue;
    for (int tap = 0; tap < job.taps; ++tap) {
      const Cell<Real>& cell = cells[tap];
      const Real g = line[thread * job.taps + tap] * cell.mask;
      Real part[4];
      shares_of(cell.down, cell.right, part);
      Real* at = sums + (cell.top * w + cell.left) * pitch + thread;
#pragma unroll
      for (int corner = 0; corner < 4; ++corner)
        if (cell.inside >> corner & 1) at[(corner / 2 * w + corner % 2) * pitch] += part[corner] * g;
    }
  }
  __syncthreads();
  const bool last = job.d.dx.c == 1;
  for (int i = thread; i < share.count * plane; i += kGemmThreads) {
    const int c = last ? i % share.count : i / plane, pixel = last ? i / share.count : i % plane;
    write_as(job.d.dx.data, job.d.dx.dtype, index_in(job.d.dx, share.what, share.channel + c, pixel / w, pixel % w),
             sums[pixel * pitch + c]);
  }
}

// Gradients of offsets and mask at a pixel; a warp for each tap, lanes across channels.
template <class Real>
__global__ void __launch_bounds__(kGemmThreads)
    tiny_samples_kernel(const __grid_constant__ Job job, const void* gradient) {
  const Share share = share_of(job, true);
  const int lane = int(threadIdx.x) % kWarp;
  const OutputPixel place = place_of(job, share.what);
  const Real* from = static_cast<const Real*>(gradient) + (share.what * job.d.in.c + share.channel) * job.taps;
  for (int tap = int(threadIdx.x) / kWarp; tap < job.taps; tap += kGemmThreads / kWarp) {
    const Cell<Real> cell = find_cell<Real>(job, share.deformable, tap, place);
    Real sum[3] = {}, part[4];
    shares_of(cell.down, cell.right, part);
    for (int c = lane; c < share.count; c += kWarp) {
      const Real g = from[int64_t(c) * job.taps + tap], masked = g * cell.mask;
      Real v[4];
      read_corners(job, cell, place.n, share.channel + c, v);
      sum[0] += masked * ((v[2] - v[0]) * (1 - cell.right) + (v[3] - v[1]) * cell.right);
      sum[1] += masked * ((v[1] - v[0]) * (1 - cell.down) + (v[3] - v[2]) * cell.down);
      sum[2] += g * (part[0] * v[0] + part[1] * v[1] + part[2] * v[2] + part[3] * v[3]);
    }
    const int64_t k = int64_t(share.deformable) * job.taps + tap;
#pragma unroll
    for (int i = 0; i < 3; ++i) {
#pragma unroll
      for (int bits = kWarp / 2; bits > 0; bits /= 2) sum[i] += __shfl_xor_sync(kAll, sum[i], bits);
      const Image& to = i < 2 ? job.d.doffset : job.d.dmask;
      if (lane == 0 && to.data)
        write_as(to.data, to.dtype, index_in(to, place.n, i < 2 ? 2 * k + i : k, place.row, place.column), sum[i]);
    }
  }
}

template <class M, bool AByDepth, bool BByDepth>
void matmul(const Matmul& job, const Launch& l) {
  const int64_t blocks = over(job.rows, kTileSide) * over(job.columns, kTileSide) * job.groups * job.splits;
  launch(matmul_kernel<M, AByDepth, BByDepth>, grid_of(blocks), kGemmThreads, kTileBytes<M>, l, job);
}

struct Memory {
  void *columns, *partial, *grad, *gradient;
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

template <class M>
void make_columns(const Job& job, const Memory& m, const Launch& l) {
  const int64_t parts = over(job.d.in.c / job.d.deformable, kGemmThreads);
  launch(columns_kernel<M>, grid_of(job.pixels * job.d.deformable * parts), kGemmThreads,
         size_t(kGemmThreads) * job.taps * sizeof(float), l, job, m.columns, m.pitch);
}

template <class F>
void with_small_math(const Convolution& d, F f) {
  if (d.math == Dtype::bf16) return f(Bf16{});
  if (d.math == Dtype::f16) return f(Fp16{});
  return d.tf32 ? f(Tf32{}) : f(Fp32{});
}

bool is_aligned(const void* data, int64_t pitch, int vec) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && pitch % vec == 0;
}

}  // namespace

int64_t tiny_bytes(const Convolution& d, const DeformPlan& plan, bool backward) {
  Arena arena(nullptr);
  take(arena, d, plan, backward);
  return arena.used();
}

void tiny_forward(const Convolution& d, const DeformPlan& plan, void* workspace, const Launch& l) {
  Arena arena(workspace);
  const Memory m = take(arena, d, plan, false);
  const Job job = start_job(d, plan);
  const int64_t depth = d.in.c / d.groups * d.taps();
  with_small_math(d, [&](auto math) {
    using M = decltype(math);
    make_columns<Stored<M>>(job, m, l);
    Matmul y{};
    y.a = {d.weight, d.weight_dtype, depth, job.outputs * depth, is_aligned(d.weight, depth, kPerVec<M>)};
    y.b = {m.columns, M::dtype, m.pitch, depth, d.groups == 1 || depth % kPerVec<M> == 0};
    y.rows = job.outputs, y.columns = job.pixels, y.depth = depth, y.groups = d.groups, y.splits = plan.splits;
    y.out = m.partial, y.out_pitch = job.pixels, y.out_group = job.outputs * job.pixels;
    y.out_split = d.out.c * job.pixels;
    matmul<M, false, false>(y, l);
    finish_forward<Stored<M>>(job, m.partial, plan.splits, l);
  });
}

void tiny_backward(const Convolution& d, const DeformPlan& plan, void* workspace, const Launch& l) {
  Arena arena(workspace);
  const Memory m = take(arena, d, plan, true);
  const Job job = start_job(d, plan);
  const int64_t depth = d.in.c / d.groups * d.taps(), line = d.groups * plan.grad_padded;
  with_small_math(d, [&](auto math) {
    using M = decltype(math);
    pack_lines<Stored<M>>(d.grad, d.out, 0, d.out.n, job.outputs, plan.grad_padded, m.grad, l);
    const Operand upstream{m.grad, M::dtype, line, plan.grad_padded, true};
    if (m.gradient) {
      Matmul g{};
      g.a = upstream;
      g.b = {d.weight, d.weight_dtype, depth, job.outputs * depth, is_aligned(d.weight, depth, kPerVec<M>)};
      g.rows = job.pixels, g.columns = depth, g.depth = job.outputs, g.groups = d.groups, g.splits = 1;
      g.out = m.gradient, g.out_pitch = d.groups * depth, g.out_group = depth;
      matmul<M, false, true>(g, l);
    }
    if (d.dweight) {
      make_columns<Stored<M>>(job, m, l);
      Matmul w{};
      w.a = upstream;
      w.b = {m.columns, M::dtype, m.pitch, depth, d.groups == 1 || depth % kPerVec<M> == 0};
      w.rows = job.outputs, w.columns = depth, w.depth = job.pixels, w.groups = d.groups, w.splits = 1;
      w.out = d.dweight, w.out_pitch = depth, w.out_group = job.outputs * depth;
      matmul<M, true, true>(w, l);
    }
  });
  const int64_t each = d.in.c / d.deformable;
  if (d.dx.data) {
    const size_t shared =
        (size_t(d.in.pixels()) * (kGemmThreads + 1) + size_t(kGemmThreads) * job.taps) * sizeof(float);
    launch(tiny_input_kernel<float>, grid_of(d.in.n * d.deformable * over(each, kGemmThreads)), kGemmThreads, shared, l,
           job, static_cast<const void*>(m.gradient));
  }
  if (d.doffset.data || d.dmask.data)
    launch(tiny_samples_kernel<float>, grid_of(job.pixels * d.deformable), kGemmThreads, 0, l, job,
           static_cast<const void*>(m.gradient));
}

}  // namespace cuda
}  // namespace hida
