// deform_conv2d, forward, on large maps: y[o] = Σ_c,tap W[o][c][tap]·mask·x[c](sampling point of the tap) + bias.
//
// An implicit product, rows C_out, columns the batch's output pixels, depth (tap, channel). A block owns 64×64 of y, or
// 128×64: it finds the sampling points of its 64 pixels, those of up to `run` taps at once, and then, for each tap,
// gathers and interpolates 128 bytes of channels of each into shared memory, 16 bytes at a time, and multiplies. No
// column is ever written to memory. Traffic: x, offsets and mask read once, y written once (n each), and x once more
// where it has to be rearranged; corners come from the second-level cache, C_out/128 times. Share of the floor: not
// measured.
#include "deform_launch.h"

namespace hida {
namespace cuda {
namespace {

struct Forward : Job {
  void* partial;  // (splits, C_out, pixels); null: straight to y
  int splits, out_tiles;
};

// Chunk after chunk, as the columns. Rows that are none are what follows: nobody asks for their sums.
template <class M>
struct Weights {
  using LoadsTogether = void;
  const Vec16* now;  // a thread's first vector of the chunk before
  int apart;         // distance of chunks in vectors
  HIDA_DEVICE void at(int) { now += apart; }
  template <int N>
  HIDA_DEVICE void vecs(int, int lines, int, Vec16 (&out)[N]) const {
#pragma unroll
    for (int i = 0; i < N; ++i) out[i] = load16_global(now + i * lines * 8);
  }
};

template <class M>
struct ForwardColumns : Columns<M> {
  HIDA_DEVICE void begin(const Sample<typename M::Real>* samples, int chunk) {
    this->now = samples;
    this->first = (chunk - 1) * 8;
  }
  HIDA_DEVICE void at(int) {
    this->first += 8;
    if (this->first >= this->end) {
      this->first = 0;
      this->now += kTileSide;
    }
  }
};

template <class M, int Rows>
__global__ void __launch_bounds__(kGemmThreadsOf<Rows>, kResident<M, Rows>)
    forward_kernel(const __grid_constant__ Forward job) {
  using Real = typename M::Real;
  HIDA_DYNAMIC_SHARED(char, shared);
  auto* samples = reinterpret_cast<Sample<Real>*>(shared + kTileBytes<M, Rows>);
  const int tiles = int(job.d.groups) * job.out_tiles;
  int64_t block = int64_t(blockIdx.x);
  const int tile = int(block % tiles), group = tile / job.out_tiles, output0 = tile % job.out_tiles * Rows;
  block /= tiles;
  const int split = int(block % job.splits);
  const int64_t pixel0 = block / job.splits * kTileSide;
  const int thread = int(threadIdx.x);
  const OutputPixel place = place_of(job, pixel0 + thread % kTileSide);

  const int per = job.chunks, chunks = job.taps * job.per_group * per;
  const int begin = int(int64_t(chunks) * split / job.splits), end = int(int64_t(chunks) * (split + 1) / job.splits);
  const int64_t output = int64_t(group) * job.outputs + output0;
  const int rows = job.outputs - output0 < Rows ? job.outputs - output0 : Rows;
  const int apart = int(job.d.out.c) * 8;
  Weights<M> weights{weight_at<M>(job, 0, output, 0) + (int64_t(begin) - 1) * apart + thread, apart};
  ForwardColumns<M> columns;
  columns.none = samples + job.run * kTileSide;
  columns.end = job.padded / kPerVec<M>;
  GemmTile<M, false, false, Rows> sums;
  sums.clear();
#pragma unroll 1
  for (int chunk = begin; chunk < end;) {
    const int first = chunk / per;
    const int most = (end - 1) / per + 1 - first, count = most < job.run ? most : job.run;
    find_columns<M, kGemmThreadsOf<Rows>>(
        job, count,
        [&](int i) {
          const int tap = divide(first + i, job.group_pieces);
          const int piece = group * job.per_group + first + i - tap * job.per_group;
          return TapPlace{place, divide(piece, job.deformable_pieces), tap, piece * job.padded};
        },
        samples, samples + job.run * kTileSide);
    columns.begin(samples, chunk - first * per);
    const int next = (first + count) * per < end ? (first + count) * per : end;
    multiply(sums, shared, chunk, next, weights, columns);
    chunk = next;
  }
  const Real* result = spread(sums, shared) + thread % kTileSide;
  // A thread has every few rows of its pixel; its warp's lanes have the bias of one row each.
  constexpr int every = kGemmThreadsOf<Rows> / kTileSide;
  const Image& y = job.d.y;
  const int row0 = thread / kTileSide, lane = thread % kWarp, bias_row = row0 + lane * every;
  Real bias = 0;
  if (job.d.bias.data && !job.partial && bias_row < rows)
    bias = read_as<Real>(job.d.bias.data, job.d.bias.dtype, (output + bias_row) * job.d.bias.c);
  int64_t at = job.partial ? (split * job.d.out.c + output + row0) * job.pixels + pixel0 + thread % kTileSide
                           : index_in(y, job.first + place.n, output + row0, place.row, place.column);
  const int64_t next = every * (job.partial ? job.pixels : y.c);
  for (int i = 0, row = row0; row < rows; ++i, row += every, at += next) {
    const Real value = result[row * kResultPitch<M>] + __shfl_sync(kAll, bias, i);
    if (!place.exists) continue;
    if (job.partial)
      static_cast<Real*>(job.partial)[at] = value;
    else if (y.dtype == M::dtype)
      write_as(y.data, M::dtype, at, value);
    else
      write_as(y.data, y.dtype, at, value);
  }
}

// The partial sums in order; one number of y per thread.
template <class M>
__global__ void __launch_bounds__(kGemmThreads)
    finish_kernel(const __grid_constant__ Job job, const void* partial, int splits) {
  using Real = typename M::Real;
  const int64_t id = int64_t(blockIdx.x) * kGemmThreads + threadIdx.x, o = id / job.pixels;
  if (o >= job.d.out.c) return;
  const OutputPixel place = place_of(job, id - o * job.pixels);
  Real value = 0;
  for (int split = 0; split < splits; ++split)
    value += static_cast<const Real*>(partial)[split * job.d.out.c * job.pixels + id];
  if (job.d.bias.data) value += read_as<Real>(job.d.bias.data, job.d.bias.dtype, o * job.d.bias.c);
  write_as(job.d.y.data, job.d.y.dtype, index_in(job.d.y, job.first + place.n, o, place.row, place.column), value);
}

}  // namespace

template <class M>
void finish_forward(const Job& job, const void* partial, int64_t splits, const Launch& l) {
  launch(finish_kernel<M>, grid_of(over(job.d.out.c * job.pixels, kGemmThreads)), kGemmThreads, 0, l, job, partial,
         int(splits));
}

#define HIDA_INSTANTIATE(M) template void finish_forward<M>(const Job&, const void*, int64_t, const Launch&);
HIDA_FOR_STORED(HIDA_INSTANTIATE)

namespace {

struct ForwardMemory {
  void *x, *weight, *partial;
};
ForwardMemory take_forward(Arena& arena, const Convolution& d, const DeformPlan& plan) {
  ForwardMemory m{};
  if (plan.pack_x) m.x = arena.take<char>(bytes_of_x(d, plan, plan.images));
  m.weight = arena.take<char>(bytes_of_weight(d, plan));
  if (plan.splits > 1)
    m.partial = arena.take<char>(plan.splits * d.out.c * plan.images * d.out.pixels() * (d.wide ? 8 : 4));
  return m;
}

// Of at most `most` images at a time, as many as take the fewest waves of blocks; of equals, the most.
int64_t images_at_a_time(const Convolution& d, int64_t most, int64_t blocks_of_tile, int64_t slots) {
  const auto waves = [&](int64_t images) {
    return over(blocks_of_tile * over(images * d.out.pixels(), kTileSide), slots);
  };
  int64_t best = 1, fewest = INT64_MAX;
  for (int64_t images = 1; images <= most; ++images) {
    const int64_t rest = d.in.n % images, all = d.in.n / images * waves(images) + (rest ? waves(rest) : 0);
    if (all <= fewest) best = images, fewest = all;
  }
  return best;
}

template <class M, int Rows>
void launch_rows(Forward& job, int64_t blocks, const Launch& l) {
  job.run = run_of<M, Rows>(job.taps * job.per_group, 0, l);
  const size_t shared = kTileBytes<M, Rows> + (job.run + 1) * bytes_of_samples<M>;
  launch(forward_kernel<M, Rows>, grid_of(blocks), kGemmThreadsOf<Rows>, shared, l, job);
}

template <class M>
void launch_forward(Forward& job, int64_t blocks, int rows, const Launch& l) {
  if constexpr (kPerVec<M> > 2) {
    if (rows == 128) return launch_rows<M, 128>(job, blocks, l);
  }
  launch_rows<M, 64>(job, blocks, l);
}

}  // namespace

DeformPlan plan_forward(const Convolution& d, const Launch& l, const Choice& choice) {
  DeformPlan plan;
  plan_layout(d, plan);
  const int64_t plane = d.out.pixels(), taps = d.taps();
  plan.tiny = tiny_takes(d) && choice.path != Choice::large && (choice.path == Choice::tiny || d.out.n * plane <= 4096);
  const int64_t depth = 128 / size_of(d.math), outputs = d.out.c / d.groups;
  if (plan.tiny) {
    plan.splits = tiny_splits(d, l);
    plan.bytes = tiny_bytes(d, plan, false);
    return plan;
  }
  // Taller tiles gather less often, unless their last one would be half empty.
  if (d.math != Dtype::f64 && (outputs - 1) % 128 >= 64) plan.rows = 128;
  const int64_t tiles = over(outputs, plan.rows) * d.groups;
  plan.images = std::min(d.in.n, INT32_MAX / plane);  // pixels at work have numbers of 31 bits
  if (plan.pack_x) {
    const int64_t room = aim_of(d, choice) - bytes_of_weight(d, plan) - kAlign;
    const int64_t most = std::max<int64_t>(1, std::min(plan.images, room / bytes_of_x(d, plan, 1)));
    plan.images = images_at_a_time(d, most, tiles, l.multiprocessors * (plan.rows == 128 ? 2 : 3));
  }
  const int64_t blocks = tiles * over(plan.images * plane, kTileSide);
  const int64_t chunks = taps * (d.in.c / d.groups / plan.piece) * over(plan.padded, depth);
  if (blocks < l.multiprocessors && plan.images == d.in.n)
    plan.splits = std::max<int64_t>(1, std::min(over(2 * l.multiprocessors, blocks), chunks / 4));
  Arena arena(nullptr);
  take_forward(arena, d, plan);
  plan.bytes = arena.used();
  return plan;
}

void deform_forward(const Convolution& d, const DeformPlan& plan, void* workspace, const Launch& l) {
  if (plan.tiny) return tiny_forward(d, plan, workspace, l);
  Arena arena(workspace);
  const ForwardMemory m = take_forward(arena, d, plan);
  with_math(d, [&](auto math) {
    using M = decltype(math);
    Forward job;
    static_cast<Job&>(job) = start_job(d, plan, m.weight);
    job.partial = m.partial;
    job.splits = int(plan.splits);
    job.out_tiles = int(over(job.outputs, plan.rows));
    pack_weight<Stored<M>>(job, plan, m.weight, l);
    for_lots(job, plan.images, [&](int64_t count) {
      take_x<Stored<M>>(job, plan, count, m.x, l);
      const int64_t blocks = d.groups * job.out_tiles * plan.splits * over(job.pixels, kTileSide);
      launch_forward<M>(job, blocks, plan.rows, l);
      if (job.partial) finish_forward<Stored<M>>(job, job.partial, plan.splits, l);
    });
  });
}

}  // namespace cuda
}  // namespace hida
