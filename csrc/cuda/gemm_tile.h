// Products of a 64×64 tile by a block of 128 threads, or of 128×64 by 256, operands in shared memory.
//
// An operand takes 144 bytes per row and holds 128 bytes of each row (kDepth<M> numbers), in one of two ways:
//   row by row   pitch 144 bytes; depth is contiguous
//   by depth     kDepth<M> lines of all rows, and eight more; rows are contiguous
// Both pitches are odd multiples of 16 bytes, or leave fragments on different banks: no conflicts in either.
// On tensor cores a warp has 32×32 of the tile (mma.h).
#pragma once

#include "mma.h"

namespace hida {
namespace cuda {

constexpr int kGemmThreads = 128, kTileSide = 64, kOperand = 9216, kRowPitch = 144;
template <int Rows>
constexpr int kGemmThreadsOf = Rows * kGemmThreads / kTileSide;

// Blocks that a multiprocessor should hold at least. (Turing has shared memory for one of 128 rows.)
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int kResidentTall = 1;
#else
constexpr int kResidentTall = 2;
#endif
template <class M, int Rows = kTileSide>
constexpr int kResident = Rows > kTileSide                ? kResidentTall
                          : sizeof(typename M::Real) == 8 ? 2
                                                          : 3;
template <class M>
constexpr int kDepth = int(128 / sizeof(typename M::Bits));
// Distance of two lines of an operand in bytes, vectors in a line.
template <class M, bool ByDepth, int Rows = kTileSide>
constexpr int kPitch = ByDepth ? (Rows + 8) * int(sizeof(typename M::Bits)) : kRowPitch;
template <class M, bool ByDepth, int Rows = kTileSide>
constexpr int kVecs = ByDepth ? Rows / kPerVec<M> : 8;

// TF32 keeps ten bits; tensor cores would cut the rest off, which is a bias.
template <class M>
HIDA_DEVICE Vec16 rounded(Vec16 vec) {
  if constexpr (std::is_same_v<M, Tf32>) {
#pragma unroll
    for (uint32_t& word : vec.word)
      if ((word & 0x7f800000u) != 0x7f800000u) word = (word + 0x0fffu + (word >> 13 & 1)) & ~0x1fffu;
  }
  return vec;
}

// The tile's sums, spread over the threads. AByDepth, BByDepth: how the operands are stored.
template <class M, bool AByDepth, bool BByDepth, int Rows = kTileSide, bool Tensor = M::tensor>
struct GemmTile;

template <class M, bool AByDepth, bool BByDepth, int Rows>
struct GemmTile<M, AByDepth, BByDepth, Rows, true> {
  float sum[2][4][4];

  HIDA_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < 32; ++i) sum[i / 16][i / 4 % 4][i % 4] = 0;
  }

  HIDA_DEVICE void add(const char* a, const char* b) {
    const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
    const int row0 = warp / 2 * 32, column0 = warp % 2 * 32;
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      uint32_t fa[2][4], fb[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        fragment<AByDepth, false>(fa[i], a, row0 + 16 * i, step, lane);
        fragment<BByDepth, true>(fb[i], b, column0 + 16 * i, step, lane);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) mma<M>(sum[i][j], fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
    }
  }

  template <class F>
  HIDA_DEVICE void each(F f) const {
    const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int k = 0; k < 4; ++k)
          f(warp / 2 * 32 + 16 * i + lane / 4 + k / 2 * 8, warp % 2 * 32 + 8 * j + lane % 4 * 2 + k % 2, sum[i][j][k]);
  }

 private:
  // Sixteen rows, 32 bytes of depth, as four 8×8 squares: for the left operand rows change first, for the right depth.
  template <bool ByDepth, bool Right>
  static HIDA_DEVICE void fragment(uint32_t (&r)[4], const char* from, int row, int step, int lane) {
    constexpr int pitch = kPitch < M, ByDepth, Right ? kTileSide : Rows > ;
    const int square = lane / 8;
    const int down = (Right ? square / 2 : square % 2) * 8, deep = Right ? square % 2 : square / 2;
    if constexpr (!ByDepth) {
      ldmatrix(r, from + (row + down + lane % 8) * pitch + step * 32 + deep * 16, false);
    } else if constexpr (kPerVec<M> == 8) {
      ldmatrix(r, from + (step * 16 + deep * 8 + lane % 8) * pitch + (row + down) * 2, true);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int d = Right ? i / 2 : i % 2, k = Right ? i % 2 : i / 2;
        r[i] = *reinterpret_cast<const uint32_t*>(from + (step * 8 + 4 * k + lane % 4) * pitch +
                                                  (row + 8 * d + lane / 4) * 4);
      }
    }
  }
};

template <class M, bool AByDepth, bool BByDepth, int Rows>
struct GemmTile<M, AByDepth, BByDepth, Rows, false> {
  using Real = typename M::Real;
  static constexpr int V = kPerVec<M>;
  Real sum[4][8];

  HIDA_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < 32; ++i) sum[i / 8][i % 8] = 0;
  }

  HIDA_DEVICE void add(const char* a, const char* b) {
    const int ty = int(threadIdx.x) / 8, tx = int(threadIdx.x) % 8;
#pragma unroll 1
    for (int vec = 0; vec < 8; ++vec) {
      Real x[4][V], y[V], line[8];
#pragma unroll
      for (int i = 0; i < (AByDepth ? V : 4); ++i) {
        if constexpr (!AByDepth) {
          unpack<M>(load16(a + row(ty, i) * kRowPitch + vec * 16), x[i]);
        } else {
#pragma unroll
          for (int part = 0; part < 4 / V; ++part) {
            unpack<M>(load16(a + (vec * V + i) * kPitch<M, true, Rows> + row(ty, part * V) * int(sizeof(Real))), y);
#pragma unroll
            for (int j = 0; j < V; ++j) x[part * V + j][i] = y[j];
          }
        }
      }
      if constexpr (!BByDepth) {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          unpack<M>(load16(b + column(tx, j) * kRowPitch + vec * 16), y);
#pragma unroll
          for (int k = 0; k < V; ++k)
#pragma unroll
            for (int i = 0; i < 4; ++i) sum[i][j] += x[i][k] * y[k];
        }
      } else {
#pragma unroll
        for (int k = 0; k < V; ++k) {
#pragma unroll
          for (int part = 0; part < 8 / V; ++part) {
            unpack<M>(load16(b + (vec * V + k) * kPitch<M, true> + column(tx, part * V) * int(sizeof(Real))), y);
#pragma unroll
            for (int j = 0; j < V; ++j) line[part * V + j] = y[j];
          }
#pragma unroll
          for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 8; ++j) sum[i][j] += x[i][k] * line[j];
        }
      }
    }
  }

  template <class F>
  HIDA_DEVICE void each(F f) const {
    const int ty = int(threadIdx.x) / 8, tx = int(threadIdx.x) % 8;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j) f(row(ty, i), column(tx, j), sum[i][j]);
  }

 private:
  // Units of rows where a line of them is contiguous, else one by one: either way a warp's reads are conflict-free.
  static HIDA_DEVICE int row(int ty, int i) {
    constexpr int run = AByDepth ? V : 1;
    return i / run * (Rows / 4) * run + ty * run + i % run;
  }
  static HIDA_DEVICE int column(int tx, int j) {
    constexpr int run = BByDepth ? V : 1;
    return j / run * 8 * run + tx * run + j % run;
  }
};

// What a block keeps in shared memory for a product: two operands, later the results, kResultPitch<M> apart.
template <class M>
constexpr int kResultPitch = kTileSide + kPerVec<M> % 8 + (kPerVec<M> == 8 ? 4 : 0);
template <class M, int Rows = kTileSide>
constexpr int kTileBytes = std::max(Rows * kResultPitch<M> * int(sizeof(typename M::Real)), Rows* kRowPitch + kOperand);

// A thread's part of a chunk: vector u of lines line, line + apart, …. Loaders that load several together have `vecs`
// for that, and say so.
template <class Loader, class = void>
constexpr bool kLoadsTogether = false;
template <class Loader>
constexpr bool kLoadsTogether<Loader, std::void_t<typename Loader::LoadsTogether>> = true;
template <class Loader, int N>
HIDA_DEVICE void load_lines(const Loader& from, int line, int apart, int u, Vec16 (&out)[N]) {
  if constexpr (kLoadsTogether<Loader>) {
    from.vecs(line, apart, u, out);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) out[i] = from.vec(line + i * apart, u);
  }
}

// Loads and stores the vectors of a thread: N of them, `Vecs` vectors in a line, `Pitch` bytes from line to line.
template <class M, int N, int Threads, int Vecs, int Pitch>
struct Part {
  static_assert(Threads % Vecs == 0);
  static constexpr int apart = Threads / Vecs;
  Vec16 ahead[N];
  template <class Loader>
  HIDA_DEVICE void load(Loader& from, int chunk) {
    from.at(chunk);
    load_lines(from, int(threadIdx.x) / Vecs, apart, int(threadIdx.x) % Vecs, ahead);
  }
  HIDA_DEVICE void store(char* to) const {
    to += int(threadIdx.x) / Vecs * Pitch + int(threadIdx.x) % Vecs * 16;
#pragma unroll
    for (int i = 0; i < N; ++i) store16(to + i * apart * Pitch, rounded<M>(ahead[i]));
  }
};

// tile += A·B over chunks [begin, end) of kDepth<M> numbers. A loader is asked `at(chunk)`, then for vectors of lines;
// what is next is loaded into registers while the tensor cores work. `prepare(chunk)` runs a whole phase before a chunk
// is loaded: it may write shared memory that the loaders of earlier chunks do not read. What is written to other shared
// memory than the tile's before a call is seen by its loaders; after it no thread's loaders read any more.
template <class M, bool AByDepth, bool BByDepth, int Rows, class A, class B, class Prepare>
HIDA_DEVICE void multiply(GemmTile<M, AByDepth, BByDepth, Rows>& tile, char* memory, int begin, int end, A& a, B& b,
                          Prepare prepare) {
  constexpr int threads = kGemmThreadsOf<Rows>, offset = Rows * kRowPitch;
  if (begin >= end) return;
  Part<M, 4, threads, kVecs<M, AByDepth, Rows>, kPitch<M, AByDepth, Rows>> left;
  Part<M, 4 * kTileSide / Rows, threads, kVecs<M, BByDepth>, kPitch<M, BByDepth>> right;
  const auto load = [&](int chunk) {
    right.load(b, chunk);  // first what takes more registers on the way
    left.load(a, chunk);
  };
  prepare(begin);
  __syncthreads();
  if (begin + 1 < end) prepare(begin + 1);
  load(begin);
#pragma unroll 1
  for (int chunk = begin; chunk < end; ++chunk) {
    __syncthreads();
    left.store(memory);
    right.store(memory + offset);
    __syncthreads();
    if (chunk + 2 < end) prepare(chunk + 2);
    if (chunk + 1 < end) load(chunk + 1);
    tile.add(memory, memory + offset);
  }
}
template <class M, bool AByDepth, bool BByDepth, int Rows, class A, class B>
HIDA_DEVICE void multiply(GemmTile<M, AByDepth, BByDepth, Rows>& tile, char* memory, int begin, int end, A& a, B& b) {
  multiply(tile, memory, begin, end, a, b, [](int) {});
}

// The tile's sums to shared memory, row by row.
template <class M, bool AByDepth, bool BByDepth, int Rows>
HIDA_DEVICE typename M::Real* spread(const GemmTile<M, AByDepth, BByDepth, Rows>& tile, char* memory) {
  auto* result = reinterpret_cast<typename M::Real*>(memory);
  __syncthreads();
  tile.each([&](int row, int column, typename M::Real x) { result[row * kResultPitch<M> + column] = x; });
  __syncthreads();
  return result;
}

}  // namespace cuda
}  // namespace hida
