// Planes that no block can hold, channels_last, both sweeps in one launch. A unit is an image's tile of channels; a job
// is a chunk of its pixels, in the first sweep (sums over the plane) or the second (results from them). Blocks stay,
// and take the next job when they have done one. Jobs of the second sweep come in turns with first ones of a later
// unit, so soon after their own first sweep that they read from the second-level cache what that has read:
//   first sweeps of units 0 … ahead − 1; then by turns one job of the second sweep of unit u, one of the first of
//   unit u + ahead; at the end the second sweeps that are left.
// The block that does a unit's last job of a sweep merges the sums of all its chunks, always in the same order.
//
// That nothing waits for ever, however many blocks a chip runs at a time, in whatever order: jobs are numbered in the
// order above and handed out in it, by one counter. A job waits only for jobs of smaller numbers, the first sweep of
// its unit. A block holds the job that it does and the number of the one after. So the unfinished job of the smallest
// number is being done, not held, and waits for nobody: it ends, and so on.
#pragma once

#include "nhwc.h"

namespace hida {
namespace cuda {
namespace nhwc {

constexpr unsigned kTurnThreads = 256;

struct Turns {
  unsigned units = 0, jobs = 0, ahead = 0;  // jobs: of a unit and a sweep; ahead: units
  // Jobs handed out; for each unit how many jobs of the first sweep are done, plus one once they are merged; the same
  // of the second.
  unsigned* counters = nullptr;

  HIDA_MATH unsigned total() const { return 2 * units * jobs; }
  HIDA_MATH unsigned* done(bool first, unsigned unit) const { return counters + 1 + (first ? 0 : units) + unit; }
};

// ---- on the chip ------------------------------------------------------------------------------------------------

struct Job {
  bool first;
  unsigned unit, part;

  HIDA_DEVICE Job(const Turns& t, unsigned number) {
    const unsigned alone = t.ahead * t.jobs, paired = 2 * (t.units - t.ahead) * t.jobs;
    unsigned job = number;
    if (number < alone) {
      first = true;
    } else if (number < alone + paired) {
      first = (number - alone) % 2 != 0;
      job = (number - alone) / 2 + (first ? alone : 0);
    } else {
      first = false;
      job = number - alone - paired / 2;
    }
    unit = job / t.jobs;
    part = job % t.jobs;
  }
};

// Hands out the jobs. Thread 0 asks for the next one when a job begins, so that nobody waits for the answer.
class Tickets {
 public:
  HIDA_DEVICE explicit Tickets(const Turns& t) : counter_(t.counters) { ask(); }
  // The number of the block's next job; of none if it is not below the total. All threads have to come, and what they
  // had in shared memory may be overwritten afterwards.
  HIDA_DEVICE unsigned next() {
    __syncthreads();
    if (threadIdx.x == 0) {
      *place() = upcoming_;
      ask();
    }
    __syncthreads();
    return now();
  }
  // The same again, behind a barrier: so that no register has to keep it.
  HIDA_DEVICE unsigned now() const { return *place(); }

 private:
  static HIDA_DEVICE unsigned* place() {
    HIDA_SHARED(unsigned, number, [1]);
    return number;
  }
  HIDA_DEVICE void ask() {
    if (threadIdx.x == 0) upcoming_ = atomicAdd(counter_, 1u);
  }
  unsigned* counter_;
  unsigned upcoming_ = 0;
};

// Does f(job, the thread's work in it, tickets) for every job that the block gets.
template <class F>
HIDA_DEVICE void do_jobs(const Turns& t, const Tiling& m, F f) {
  Tickets tickets(t);
  for (unsigned number = tickets.next(); number < t.total(); number = tickets.next()) {
    const Job job(t, number);
    f(job, ThreadWork(m, job.unit / m.tiles, job.unit % m.tiles, job.part), tickets);
  }
}

// Says whether this was the last of a unit's jobs; if so, every thread sees what the others have written.
HIDA_DEVICE bool is_last(unsigned* done, unsigned jobs) {
  HIDA_SHARED(unsigned, before, [1]);
  __syncthreads();
  if (threadIdx.x == 0) {  // its fences are for the whole block, on the other side of the barriers
    __threadfence();
    before[0] = atomicAdd(done, 1u);
    __threadfence();
  }
  __syncthreads();
  return before[0] + 1 == jobs;
}
// Lets the unit's second sweep begin, which waits for it.
HIDA_DEVICE void open(unsigned* done) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(done, 1u);
  }
}
HIDA_DEVICE void wait_until_open(const unsigned* done, unsigned jobs) {
  if (threadIdx.x == 0) wait_until(done, jobs + 1);
  __syncthreads();
}

// A unit's sums over chunks: (chunks, `kinds`, channels of a tile), kept by unit.
template <int Kinds>
struct ChunkArray {
  float* base;
  const Tiling* m;
  HIDA_DEVICE ChunkArray(float* all, const Tiling& m_, unsigned unit)
      : base(all + size_t(unit) * m_.chunks * Kinds * m_.width()), m(&m_) {}
  HIDA_DEVICE float* at(unsigned part, int kind) const { return base + (size_t(part) * Kinds + kind) * m->width(); }
};

// Merges the chunks of a unit: add(sums, channel of the tile, chunk) for a part of the chunks in each thread, then
// take(channel of the tile, sums) in one thread for each channel. Every thread of the block has to come.
template <int N, class Add, class Take>
HIDA_DEVICE void merge(const Tiling& m, const Shared& s, Add add, Take take) {
  const unsigned t = threadIdx.x, threads = m.threads(), width = m.width();
  const unsigned parts = threads < 2 * width ? 1 : threads / width;
  for (unsigned job = t; job < width * parts; job += threads) {
    float sums[N] = {};
#pragma unroll 4
    for (unsigned i = job / width; i < m.chunks; i += parts) add(sums, job % width, i);
#pragma unroll
    for (int k = 0; k < N; ++k) s.lanes[k * width * parts + job] = sums[k];
  }
  __syncthreads();
  for (unsigned c = t; c < width; c += threads) {
    float sums[N] = {};
    for (unsigned i = 0; i < parts; ++i) {
#pragma unroll
      for (int k = 0; k < N; ++k) sums[k] += s.lanes[(k * parts + i) * width + c];
    }
    take(c, sums);
  }
}

// Two sums over planes that come in turns, of the first sweep for the second. totals: (2, N, C); chunks: of each unit
// and chunk.
struct TurnSums {
  float *totals, *chunks;
  int64_t planes;

  HIDA_DEVICE void read(int kind, const Tiling& m, const ThreadWork& p, float (&v)[8]) const {
    if (p.valid) read_shared_eight(totals + kind * planes, m, p, v);
  }
  // The block's own; then, if they are the unit's last, all of them merged.
  HIDA_DEVICE void write(const float (&own)[2][8], const Turns& t, const Job& job, const Tiling& m, const ThreadWork& p,
                         const Shared& s) const {
    const ChunkArray<2> of(chunks, m, job.unit);
#pragma unroll
    for (int i = 0; i < 2; ++i) add_lanes(own[i], m, s, [&](unsigned c, float sum) { of.at(job.part, i)[c] = sum; });
    unsigned* const done = t.done(true, job.unit);
    if (!is_last(done, t.jobs)) return;
    merge<2>(
        m, s,
        [&](float (&v)[2], unsigned c, unsigned i) {
          v[0] += __ldcg(of.at(i, 0) + c);
          v[1] += __ldcg(of.at(i, 1) + c);
        },
        [&](unsigned c, const float (&v)[2]) {
          if (p.tile + c >= m.channels) return;
          const int64_t at = int64_t(p.n) * m.channels + p.tile + c;
          totals[at] = v[0];
          totals[planes + at] = v[1];
        });
    open(done);
  }
};

// ---- on the host ------------------------------------------------------------------------------------------------

// `bytes`: of an element of all tensors that the second sweep reads again.
inline Tiling turn_tiling(const Extent& e, int64_t bytes, const Launch& l) {
  const int64_t fill = 2 * l.multiprocessors;
  Tiling m;
  const auto cut = [&](unsigned groups, int64_t packs) {
    m = tiling_of(e, groups, kTurnThreads);
    const int64_t chunk = packs * m.lanes;
    m.chunk = unsigned(chunk < m.pixels ? chunk : m.pixels);
    m.chunks = (m.pixels + m.chunk - 1) / m.chunk;
    m.blocks = e.n * m.tiles * m.chunks;
  };
  // Narrow where a unit would fill the second-level cache, but no less than 64 bytes of 16-bit channels.
  const unsigned groups = 64 * bytes * e.pixels() > (12 << 20) ? 4 : 8;
  cut(groups, 8);
  for (int64_t packs = 4; packs >= 2 && m.blocks < fill; packs /= 2) cut(4, packs);
  // The block that merges a unit's chunks reads them alone.
  for (int64_t packs = 16; m.chunks > 512; packs *= 2) cut(groups, packs);
  return m;
}

// As many units ahead as blocks that run at a time have jobs of the first sweep, and half as many again, so that a
// unit's sums are merged before its second sweep begins.
inline Turns turns_of(const Tiling& m, unsigned blocks) {
  Turns t;
  t.units = unsigned(m.blocks / m.chunks);
  t.jobs = m.chunks;
  t.ahead = 3 * blocks / 4 / t.jobs + 1;  // at least one: a unit's second sweep comes after its first
  if (t.ahead > t.units) t.ahead = t.units;
  return t;
}

// The counters' share of a workspace, in floats.
inline int64_t counters_of(const Tiling& m) {
  return (1 + 2 * (m.blocks / m.chunks) + 3) / 4 * 4;
}

// In floats: what a workspace holds for TurnSums, behind the counters.
inline int64_t sums_of(const Tiling& m, const Extent& e) {
  return 2 * (e.n * e.c + m.blocks * m.width());
}
inline TurnSums turn_sums(const Tiling& m, const Extent& e, void* workspace) {
  float* const totals = static_cast<float*>(workspace) + counters_of(m);
  return {totals, totals + 2 * e.n * e.c, e.n * e.c};
}

// Runs kernel(args…, turns) with blocks that fill the chip, `resident` on each multiprocessor. The workspace begins
// with the counters.
template <class... P, class... A>
void run_turns(void (*kernel)(P...), const Tiling& m, unsigned resident, size_t shared, void* workspace,
               const Launch& l, A... args) {
#if defined(HIDA_EMULATE_CUDA)
  ++emulation::usual;  // tests ask for it
#endif
  if (m.blocks > 1 << 30) throw std::runtime_error("hida: the tensor has too many planes for one launch.");
  const unsigned fill = resident * unsigned(l.multiprocessors), jobs = unsigned(2 * m.blocks);
  Turns t = turns_of(m, fill);
  t.counters = static_cast<unsigned*>(workspace);
  clear(workspace, size_t(counters_of(m)) * sizeof(float), l);
  launch(kernel, dim3(fill < jobs ? fill : jobs), dim3(m.threads()), shared, l, args..., t);
}

}  // namespace nhwc
}  // namespace cuda
}  // namespace hida
