// deform_conv2d, backward, on large maps. No floating-point atomics: the same bits every time.
//
// Gradients of offsets and mask (here): the columns' gradient, G[p][c] = mask·Σ_o W[o][c][tap]·dy[o][p], is made 64
// pixels × 64 channels of a tap at a time, and meets the corners of its sampling points while in shared memory. It is
// never written out. dx is a product of its own, from dy (deform_conv_grad_input.cu); so is dW
// (deform_conv_grad_weight.cu). Images are done a few at a time (aim_of). Traffic: x, dy, offsets and mask read once,
// twice that where x and dy have to be rearranged, dx, doffset, dmask written once; corners come from the second-level
// cache. Share of the floor: not measured.
#include "deform_launch.h"

namespace hida {
namespace cuda {
namespace {

// dy of some pixels, a line each.
template <class M>
struct Upstream {
  const Vec16* const* lines;
  int outputs, group, position = 0;  // group: its first vector
  HIDA_DEVICE void at(int chunk) { position = chunk * kDepth<M>; }
  HIDA_DEVICE Vec16 vec(int line, int u) const {
    const int o = position + u * kPerVec<M>;
    if (o >= outputs) return Vec16{};
    return load16_global(lines[line] + (group + o / kPerVec<M>));
  }
};

// Weights of one tap, a line for each output channel.
template <class M>
struct TapWeights {
  const Job& job;
  int64_t number, first;  // of tap and piece; output channel
  int position, left, output = 0;
  HIDA_DEVICE void at(int chunk) { output = chunk * kDepth<M>; }
  HIDA_DEVICE Vec16 vec(int o, int u) const {
    if (output + o >= job.outputs || u * kPerVec<M> >= left) return Vec16{};
    return load16_global(weight_at<M>(job, number, first + output + o, position + u * kPerVec<M>));
  }
};

// Four sums over the `Width` neighbouring lanes that share a pixel: a quarter of them gets each.
template <int Width, class Real>
HIDA_DEVICE Real lanes_sum(const Real (&x)[4], int lane) {
  const bool late = lane & Width / 2, odd = lane & Width / 4;
  Real two[2];
#pragma unroll
  for (int i = 0; i < 2; ++i)
    two[i] = (late ? x[2 + i] : x[i]) + __shfl_xor_sync(kAll, late ? x[i] : x[2 + i], Width / 2);
  Real sum = (odd ? two[1] : two[0]) + __shfl_xor_sync(kAll, odd ? two[0] : two[1], Width / 4);
#pragma unroll
  for (int bits = Width / 8; bits > 0; bits /= 2) sum += __shfl_xor_sync(kAll, sum, bits);
  return sum;
}

// Σ_c g·(v, v to the right − v, v below − v, the one to its right − that) over the corners of a point: all gradients of
// the point are made of these. Differences of corners come first, as they may be much smaller than the corners.
template <class Real>
struct CornerSums {
  Real of[4];
};
template <class Real, int V>
HIDA_DEVICE void add_corners(const Real (&g)[V], const Real (&v)[4][V], Real (&sum)[4]) {
#pragma unroll
  for (int i = 0; i < V; ++i) {
    sum[0] += g[i] * v[0][i];
    sum[1] += g[i] * (v[1][i] - v[0][i]);
    sum[2] += g[i] * (v[2][i] - v[0][i]);
    sum[3] += g[i] * (v[3][i] - v[2][i]);
  }
}
// Σ_c g·Σ row·column·v, for factors of the corners' rows and columns.
template <class Real>
HIDA_DEVICE Real combined(const Real (&sum)[4], const Real (&row)[2], const Real (&column)[2]) {
  const Real both = column[0] + column[1];
  return both * ((row[0] + row[1]) * sum[0] + row[1] * sum[2]) + column[1] * (row[0] * sum[1] + row[1] * sum[3]);
}

template <class M>
__global__ void __launch_bounds__(kGemmThreads, kResident<M>) sample_gradient_kernel(const __grid_constant__ Job job) {
  using Real = typename M::Real;
  constexpr int V = kPerVec<M>, across = kTileSide / V, apart = kGemmThreads / across;  // lanes that share a pixel
  HIDA_DYNAMIC_SHARED(char, shared);
  auto* lines = reinterpret_cast<const Vec16**>(shared + kTileBytes<M>);
  auto* corners = reinterpret_cast<Corners*>(lines + kTileSide);
  auto* sums = reinterpret_cast<CornerSums<Real>*>(corners + kTileSide);
  const int thread = int(threadIdx.x), u = thread % across;
  const int tap = int(blockIdx.x % job.taps), rest = int(blockIdx.x / job.taps);
  const int deformable = rest % int(job.d.deformable), piece0 = deformable * job.per_deformable;
  const int64_t pixel0 = int64_t(rest / int(job.d.deformable)) * kTileSide;
  const OutputPixel place = place_of(job, pixel0 + thread % kTileSide);
  Spot<Real> spot{};
  bool near = false;
  if (thread < kTileSide) {
    if (place.exists) spot = find_spot<Real>(job, deformable, tap, place);
    const int h = int(job.d.in.h), w = int(job.d.in.w);
    near = place.exists && is_near(spot.row, spot.column, h, w);
    corners[thread] =
        near ? corners_of<M>(job, between(spot.row, h), between(spot.column, w), place.n, 0) : no_corners(job);
    lines[thread] = grad_line<M>(job, place, 0);
    sums[thread] = CornerSums<Real>{};
  }
  __syncthreads();
#pragma unroll 1
  for (int piece = piece0; piece < piece0 + job.per_deformable; ++piece) {
    const int group = piece / job.per_group;
    const int64_t number = int64_t(tap) * job.per_group + piece % job.per_group;
#pragma unroll 1
    for (int from = 0; from < job.padded; from += kTileSide) {
      const int left = job.padded - from < kTileSide ? job.padded - from : kTileSide;
      Upstream<M> upstream{lines, job.outputs, group * (job.grad_padded / V)};
      TapWeights<M> weights{job, number, int64_t(group) * job.outputs, from, left};
      GemmTile<M, false, true> tile;
      tile.clear();
      multiply(tile, shared, 0, (job.outputs + kDepth<M> - 1) / kDepth<M>, upstream, weights);
      const Real* result = spread(tile, shared);
#pragma unroll 1
      for (int pixel = thread / across; pixel < kTileSide; pixel += 2 * apart) {
        Real sum[2][4] = {};
        if (u * V < left) {
          Vec16 vec[2][4];  // in flight together
#pragma unroll
          for (int i = 0; i < 2; ++i)
            load_corners(corners[pixel + i * apart], (piece * job.padded + from) / V + u, vec[i]);
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            Real g[V], v[4][V];
#pragma unroll
            for (int j = 0; j < V; ++j) g[j] = result[(pixel + i * apart) * kResultPitch<M> + u * V + j];
#pragma unroll
            for (int corner = 0; corner < 4; ++corner) unpack<M>(vec[i][corner], v[corner]);
            add_corners(g, v, sum[i]);
          }
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const Real one = lanes_sum<across>(sum[i], u);
          if (u % (across / 4) == 0) sums[pixel + i * apart].of[u / (across / 4)] += one;
        }
      }
      __syncthreads();
    }
  }
  if (thread >= kTileSide || !place.exists) return;
  const Between<Real> rows = between(near ? spot.row : Real(0), int(job.d.in.h));
  const Between<Real> columns = between(near ? spot.column : Real(0), int(job.d.in.w));
  const Real(&sum)[4] = sums[thread].of;
  const Real gradient[3] = {spot.mask * combined(sum, rows.slope, columns.share),
                            spot.mask * combined(sum, rows.share, columns.slope),
                            combined(sum, rows.share, columns.share)};
  const int64_t n = job.first + place.n, k = int64_t(deformable) * job.taps + tap;
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    const Image& to = i < 2 ? job.d.doffset : job.d.dmask;
    if (to.data)
      write_as(to.data, to.dtype, index_in(to, n, i < 2 ? 2 * k + i : k, place.row, place.column), gradient[i]);
  }
}

template <class M>
void sample_gradients(const Job& job, const Launch& l) {
  constexpr size_t each = sizeof(const Vec16*) + sizeof(Corners) + sizeof(CornerSums<typename M::Real>);
  const int64_t blocks = over(job.pixels, kTileSide) * job.taps * job.d.deformable;
  launch(sample_gradient_kernel<M>, grid_of(blocks), kGemmThreads, kTileBytes<M> + kTileSide * each, l, job);
}

struct BackwardMemory {
  void *x, *grad, *weight, *weights;
  CellLists lists;
};

bool wants_samples(const Convolution& d) {
  return d.doffset.data != nullptr || d.dmask.data != nullptr;
}

BackwardMemory take_backward(Arena& arena, const Convolution& d, const DeformPlan& plan) {
  BackwardMemory m{};
  if (plan.pack_x && (wants_samples(d) || d.dweight)) m.x = arena.take<char>(bytes_of_x(d, plan, plan.images));
  if (plan.pack_grad) m.grad = arena.take<char>(bytes_of_grad(d, plan, plan.images));
  if (d.dx.data || wants_samples(d) || d.dweight) m.weight = arena.take<char>(bytes_of_weight(d, plan));
  if (d.dx.data) m.lists = take_lists(arena, d, plan.images);
  if (d.dweight) m.weights = arena.take<char>(plan.splits * numbers_of_weight(d, plan) * (d.wide ? 8 : 4));
  return m;
}

}  // namespace

DeformPlan plan_backward(const Convolution& d, const Launch& l, const Choice& choice) {
  DeformPlan plan = plan_forward(d, l, choice);
  if (plan.tiny) {
    plan.bytes = tiny_bytes(d, plan, true);
    return plan;
  }
  const int64_t plane = d.out.pixels(), taps = d.taps(), pieces = d.in.c / plan.piece, aim = aim_of(d, choice);
  const auto used = [&](int64_t images) {
    plan.images = images;
    Arena arena(nullptr);
    take_backward(arena, d, plan);
    return arena.used();
  };
  // Blocks share the pixels of dW, if their sums leave room for images.
  const int64_t blocks =
      taps * pieces * over(plan.padded, kTileSide) * over(d.out.c / d.groups, rows_of_weights(d, plan));
  const int64_t sums = numbers_of_weight(d, plan) * (d.wide ? 8 : 4);
  plan.splits = std::max<int64_t>(1, std::min(over(2 * l.multiprocessors, blocks), aim / 4 / sums));
  const int64_t one = used(1), each = std::max<int64_t>(used(2) - one, 1);
  const int64_t most = std::min(d.in.n, (int64_t(1) << 31) / std::max(plane * taps, d.in.pixels()) - 1);
  const int64_t images = std::max<int64_t>(1, std::min(most, 1 + (aim - one) / each));
  plan.images = over(d.in.n, over(d.in.n, images));
  plan.splits = std::max<int64_t>(1, std::min(plan.splits, over(plan.images * plane, 128 / size_of(d.math)) / 8));
  plan.bytes = used(plan.images);
  return plan;
}

void deform_backward(const Convolution& d, const DeformPlan& plan, void* workspace, const Launch& l) {
  if (plan.tiny) return tiny_backward(d, plan, workspace, l);
  Arena arena(workspace);
  const BackwardMemory m = take_backward(arena, d, plan);
  with_math(d, [&](auto math) {
    using M = decltype(math);
    Job job = start_job(d, plan, m.weight);
    if (m.weight) pack_weight<Stored<M>>(job, plan, m.weight, l);
    for_lots(job, plan, [&](int64_t count) {
      if (wants_samples(d) || d.dweight) take_x<Stored<M>>(job, plan, count, m.x, l);
      job.grad = lines_of<Stored<M>>(d.grad, d.out, job.first, count, job.outputs, plan.grad_padded, m.grad, l);
      if (wants_samples(d)) sample_gradients<M>(job, l);
      if (d.dx.data) add_input_gradient<M>(job, m.lists, l);
      if (d.dweight) add_weight_gradient<M>(job, plan, m.weights, l);
    });
    if (d.dweight) finish_weight_gradient<M>(job, plan, m.weights, l);
  });
}

}  // namespace cuda
}  // namespace hida
