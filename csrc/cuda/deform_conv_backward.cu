// deform_conv2d, backward, on large maps. No floating-point atomics: the same bits every time.
//
// Gradients of offsets and mask (here): the columns' gradient, G[p][c] = mask·Σ_o W[o][c][tap]·dy[o][p], is made 64
// pixels × 64 channels of a tap at a time, and meets the corners of its sampling points while in shared memory. It is
// never written out. dx is a product of its own, from dy (deform_conv_grad_input.cu); so is dW
// (deform_conv_grad_weight.cu). Images are done a few at a time (aim_of): for dx, whose sorted sampling points take the
// most memory, in lots of their own, so that the other gradients are done in few lots, or, where nothing is rearranged,
// in one. Traffic: x, dy, offsets and mask read once, twice that where x and dy have to be rearranged, dx, doffset,
// dmask written once; corners come from the second-level cache. Share of the floor: not measured.
#include "deform_launch.h"

namespace hida {
namespace cuda {
namespace {

struct SampleGradient : Job {
  int taps_of_block, tap_parts;
};

// dy of some pixels, a line each, and zeros behind it.
template <class M>
struct Upstream {
  const Vec16* const* lines;
  const Vec16* zeros;
  int group, vecs, first = 0;  // the group's first vector, and how many it has
  HIDA_DEVICE void at(int chunk) { first = chunk * 8; }
  HIDA_DEVICE Vec16 vec(int line, int u) const {
    return load16_global(first + u < vecs ? lines[line] + (group + first + u) : zeros);
  }
};

// Weights of one tap, a line for each output channel. Behind the last one it is that again, which dy's zeros multiply;
// of vectors that are none the first, whose products nobody asks for.
template <class M>
struct TapWeights {
  const Vec16* first;
  int outputs, vecs, chunk;  // chunk: distance of chunks in vectors
  int output = 0;
  HIDA_DEVICE void at(int number) { output = number * kDepth<M>; }
  HIDA_DEVICE Vec16 vec(int o, int u) const {
    if (u >= vecs) u = 0;
    const int line = output + o < outputs ? output + o : outputs - 1;
    return load16_global(first + (line * 8 + u % 8 + u / 8 * chunk));
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

// The gradients of a point: spot (row, column, mask; a row and a column of 0 where it is elsewhere), sums.
template <class Real>
HIDA_DEVICE void write_gradients(const Job& job, int deformable, int tap, const OutputPixel& place,
                                 const Real (&spot)[4], const Real (&sum)[4]) {
  const Between<Real> rows = between(spot[0], int(job.d.in.h)), columns = between(spot[1], int(job.d.in.w));
  const Real gradient[3] = {spot[2] * combined(sum, rows.slope, columns.share),
                            spot[2] * combined(sum, rows.share, columns.slope),
                            combined(sum, rows.share, columns.share)};
  const int64_t n = job.first + place.n, k = int64_t(deformable) * job.taps + tap;
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    const Image& to = i < 2 ? job.d.doffset : job.d.dmask;
    if (to.data)
      write_as(to.data, to.dtype, index_in(to, n, i < 2 ? 2 * k + i : k, place.row, place.column), gradient[i]);
  }
}

// A block does some taps of a deformable group for its tile of pixels. Samples keep their spots instead of shares.
template <class M>
__global__ void __launch_bounds__(kGemmThreads, kResident<M>)
    sample_gradient_kernel(const __grid_constant__ SampleGradient job) {
  using Real = typename M::Real;
  constexpr int V = kPerVec<M>, across = kTileSide / V, apart = kGemmThreads / across;  // lanes that share a pixel
  HIDA_DYNAMIC_SHARED(char, shared);
  auto* samples = reinterpret_cast<Sample<Real>*>(shared + kTileBytes<M>);
  auto* sums = reinterpret_cast<CornerSums<Real>*>(samples + job.run * kTileSide);
  auto* lines = reinterpret_cast<const Vec16**>(sums + job.run * kTileSide);
  const int thread = int(threadIdx.x), u = thread % across, h = int(job.d.in.h), w = int(job.d.in.w);
  const int part = int(blockIdx.x) % job.tap_parts, rest = int(blockIdx.x) / job.tap_parts;
  const int deformable = rest % int(job.d.deformable), piece0 = deformable * job.per_deformable;
  const int tap0 = part * job.taps_of_block;
  const int tap1 = tap0 + job.taps_of_block < job.taps ? tap0 + job.taps_of_block : job.taps;
  const int64_t pixel0 = int64_t(rest / int(job.d.deformable)) * kTileSide;
  const OutputPixel place = place_of(job, pixel0 + thread % kTileSide);
  if (thread < kTileSide) lines[thread] = grad_line<M>(job, place, 0);
#pragma unroll 1
  for (int first = tap0; first < tap1; first += job.run) {
    const int count = tap1 - first < job.run ? tap1 - first : job.run;
    find_samples<M, kGemmThreads>(
        job, count, [&](int i) { return TapPlace{place, deformable, first + i, 0}; }, samples,
        [&](const Spot<Real>& spot, const TapPlace&) {
          const bool near = place.exists && is_near(spot.row, spot.column, h, w);
          Sample<Real> sample{no_corners(job), {near ? spot.row : Real(0), near ? spot.column : Real(0), spot.mask, 0}};
          if (near) sample.corners = corners_of<M>(job, between(spot.row, h), between(spot.column, w), place.n, 0);
          return sample;
        });
    for (int i = thread; i < count * kTileSide; i += kGemmThreads) sums[i] = CornerSums<Real>{};
    __syncthreads();
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      const Sample<Real>* sample = samples + i * kTileSide;
      CornerSums<Real>* sum_of = sums + i * kTileSide;
#pragma unroll 1
      for (int piece = piece0; piece < piece0 + job.per_deformable; ++piece) {
        const int group = piece / job.per_group;
        const int64_t number = int64_t(first + i) * job.per_group + piece % job.per_group;
#pragma unroll 1
        for (int from = 0; from < job.padded; from += kTileSide) {
          const int left = (job.padded - from) / V, vecs = left < across ? left : across, vec0 = job.grad_padded / V;
          Upstream<M> upstream{lines, static_cast<const Vec16*>(job.zeros), group * vec0, vec0};
          TapWeights<M> weights{weight_at<M>(job, number, int64_t(group) * job.outputs, from), job.outputs, vecs,
                                int(job.d.out.c) * 8};
          GemmTile<M, false, true> tile;
          tile.clear();
          multiply(tile, shared, 0, (job.outputs + kDepth<M> - 1) / kDepth<M>, upstream, weights);
          const Real* result = spread(tile, shared);
#pragma unroll 1
          for (int pixel = thread / across; pixel < kTileSide; pixel += 2 * apart) {
            Real sum[2][4] = {};
            if (u < vecs) {
              Vec16 vec[2][4];  // in flight together
#pragma unroll
              for (int j = 0; j < 2; ++j)
                load_corners(sample[pixel + j * apart].corners, (piece * job.padded + from) / V + u, vec[j]);
#pragma unroll
              for (int j = 0; j < 2; ++j) {
                Real g[V], v[4][V];
#pragma unroll
                for (int k = 0; k < V; ++k) g[k] = result[(pixel + j * apart) * kResultPitch<M> + u * V + k];
#pragma unroll
                for (int corner = 0; corner < 4; ++corner) unpack<M>(vec[j][corner], v[corner]);
                add_corners(g, v, sum[j]);
              }
            }
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              const Real one = lanes_sum<across>(sum[j], u);
              if (u % (across / 4) == 0) sum_of[pixel + j * apart].of[u / (across / 4)] += one;
            }
          }
        }
      }
    }
    __syncthreads();
    if (place.exists) {
      for (int i = thread / kTileSide; i < count; i += kGemmThreads / kTileSide)
        write_gradients(job, deformable, first + i, place, samples[i * kTileSide + thread % kTileSide].share,
                        sums[i * kTileSide + thread % kTileSide].of);
    }
    __syncthreads();
  }
}

template <class M>
void sample_gradients(const Job& base, const Launch& l) {
  constexpr int sums = kTileSide * int(sizeof(CornerSums<typename M::Real>)), lines = kTileSide * int(sizeof(Vec16*));
  SampleGradient job;
  static_cast<Job&>(job) = base;
  const int64_t tiles = over(job.pixels, kTileSide) * job.d.deformable;
  // A block does all taps, if there are blocks for every multiprocessor.
  const int64_t parts = std::min<int64_t>(job.taps, over(3 * l.multiprocessors, tiles));
  job.taps_of_block = int(over(job.taps, parts));
  job.tap_parts = int(over(job.taps, job.taps_of_block));
  job.run = run_of<M, kTileSide>(job.taps_of_block, sums, l);
  const size_t shared = kTileBytes<M> + job.run * (bytes_of_samples<M> + sums) + lines;
  launch(sample_gradient_kernel<M>, grid_of(tiles * job.tap_parts), kGemmThreads, shared, l, job);
}

// Of the lots for dx, or of the others.
struct BackwardMemory {
  void *weight, *grad, *x, *weights;
  CellLists lists;
};

bool wants_samples(const Convolution& d) {
  return d.doffset.data != nullptr || d.dmask.data != nullptr;
}

// Whether there are lots for dx, or others.
bool wants(const Convolution& d, bool dx) {
  return dx ? d.dx.data != nullptr : wants_samples(d) || d.dweight != nullptr;
}

BackwardMemory take_backward(Arena& arena, const Convolution& d, const DeformPlan& plan, bool dx) {
  BackwardMemory m{};
  const int64_t images = dx ? plan.images_of_dx : plan.images;
  m.weight = arena.take<char>(bytes_of_weight(d, plan));
  if (plan.pack_grad) m.grad = arena.take<char>(bytes_of_grad(d, plan, images));
  if (dx) {
    m.lists = take_lists(arena, d, images);
    return m;
  }
  if (plan.pack_x) m.x = arena.take<char>(bytes_of_x(d, plan, images));
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
  const int64_t most = std::min(d.in.n, (int64_t(1) << 31) / std::max(plane * taps, d.in.pixels()) - 1);
  // Images of a lot: as many as the aim has memory for, in lots of equal size.
  const auto fit = [&](bool dx, int64_t& lot) {
    const auto used = [&](int64_t images) {
      lot = images;
      Arena arena(nullptr);
      take_backward(arena, d, plan, dx);
      return arena.used();
    };
    const int64_t one = used(1), each = std::max<int64_t>(used(2) - one, 1);
    const int64_t images = std::max<int64_t>(1, std::min(most, 1 + (aim - one) / each));
    return used(over(d.in.n, over(d.in.n, images)));
  };
  // Blocks share the pixels of dW, as many as run at a time, if their sums leave room for images.
  const int64_t blocks =
      taps * pieces * over(plan.padded, kTileSide) * over(d.out.c / d.groups, rows_of_weights(d, plan));
  const int64_t sums = numbers_of_weight(d, plan) * (d.wide ? 8 : 4);
  const int64_t at_a_time = (rows_of_weights(d, plan) == 128 ? 2 : 3) * l.multiprocessors;
  const int64_t room = plan.pack_x || plan.pack_grad ? aim / 4 : aim / 4 * 3;
  plan.splits = std::max<int64_t>(1, std::min(at_a_time / blocks, room / sums));
  if (wants(d, true)) plan.bytes = fit(true, plan.images_of_dx);
  if (wants(d, false)) plan.bytes = std::max(plan.bytes, fit(false, plan.images));
  plan.splits = std::max<int64_t>(1, std::min(plan.splits, over(plan.images * plane, 128 / size_of(d.math)) / 8));
  return plan;
}

void deform_backward(const Convolution& d, const DeformPlan& plan, void* workspace, const Launch& l) {
  if (plan.tiny) return tiny_backward(d, plan, workspace, l);
  Arena arena(workspace), of_dx(workspace);
  const BackwardMemory m = take_backward(arena, d, plan, false), dx = take_backward(of_dx, d, plan, true);
  with_math(d, [&](auto math) {
    using M = decltype(math);
    Job job = start_job(d, plan, m.weight);
    pack_weight<Stored<M>>(job, plan, m.weight, l);
    const auto take_grad = [&](int64_t count) {
      job.grad = lines_of<Stored<M>>(d.grad, d.out, job.first, count, job.outputs, plan.grad_padded, m.grad, l);
    };
    if (wants(d, false)) {
      for_lots(job, plan.images, [&](int64_t count) {
        take_x<Stored<M>>(job, plan, count, m.x, l);
        take_grad(count);
        if (wants_samples(d)) sample_gradients<M>(job, l);
        if (d.dweight) add_weight_gradient<M>(job, plan, m.weights, l);
      });
      if (d.dweight) finish_weight_gradient<M>(job, plan, m.weights, l);
    }
    if (!wants(d, true)) return;
    // Where every lot is all images, dy is there already.
    const bool there = wants(d, false) && std::min(plan.images, plan.images_of_dx) == d.in.n;
    for_lots(job, plan.images_of_dx, [&](int64_t count) {
      if (!there) take_grad(count);
      add_input_gradient<M>(job, dx.lists, l);
    });
  });
}

}  // namespace cuda
}  // namespace hida
