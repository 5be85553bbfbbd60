// Products of a 64×64 tile by a block of 128 threads, or of 128×64 by 256, operands in shared memory.
//
// An operand takes 144 bytes a row and holds 128 bytes of each row (kDepth<M> numbers), in one of two ways:
//   row by row   pitch 144 bytes; depth is contiguous
//   by depth     kDepth<M> lines of all rows, and eight more; rows are contiguous
// Both pitches are odd multiples of 16 bytes, or leave fragments on different banks: no conflicts in either.
// Tensor cores: mma.sync through ldmatrix, a warp 32×32. What a chip's tensor cores cannot multiply (bf16 and
// TF32 before 8.0) is multiplied by the same lanes in float. In the emulation both instructions are made of shuffles,
// so that addresses and fragments are those of the chip.
#pragma once

#include "units.h"

namespace hida {
namespace cuda {

constexpr int kThreads = 128, kTile64 = 64, kOperand = 9216, kRowPitch = 144;
template <int Rows>
constexpr int kThreadsOf = Rows * kThreads / kTile64;

// Blocks that a multiprocessor should hold at least. (Turing has shared memory for one of 128 rows.)
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int kResidentTall = 1;
#else
constexpr int kResidentTall = 2;
#endif
template <class M, int Rows = kTile64>
constexpr int kResident = Rows > kTile64                  ? kResidentTall
                          : sizeof(typename M::Real) == 8 ? 2
                                                          : 3;
template <class M>
constexpr int kDepth = int(128 / sizeof(typename M::Bits));
// Distance of two lines of an operand in bytes, units in a line.
template <class M, bool ByDepth, int Rows = kTile64>
constexpr int kPitch = ByDepth ? (Rows + 8) * int(sizeof(typename M::Bits)) : kRowPitch;
template <class M, bool ByDepth, int Rows = kTile64>
constexpr int kUnits = ByDepth ? Rows / kUnit<M> : 8;

HIDA_DEVICE void ldmatrix(uint32_t (&r)[4], const char* row, bool transposed) {
#if defined(HIDA_EMULATE_CUDA)
  const auto rows = emulation::show(kAll, row, __LINE__);
  const int lane = int(emulation::current->lane);
  for (int i = 0; i < 4; ++i) {
    if (!transposed) {
      memcpy(&r[i], rows[8 * i + lane / 4] + lane % 4 * 4, 4);
    } else {
      uint16_t two[2];
      for (int j = 0; j < 2; ++j) memcpy(&two[j], rows[8 * i + lane % 4 * 2 + j] + lane / 4 * 2, 2);
      r[i] = two[0] | uint32_t(two[1]) << 16;
    }
  }
#else
  const uint32_t address = uint32_t(__cvta_generic_to_shared(row));
  if (transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
#endif
}

#if defined(HIDA_EMULATE_CUDA)
constexpr bool kEmulated = true;
#else
constexpr bool kEmulated = false;
#endif

// d += a·b for a 16 rows, b 8 columns and 32 bytes of depth: 16 half or 8 TF32 numbers.
template <class M>
HIDA_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<M, Bf16>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else if constexpr (std::is_same_v<M, Fp16>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  if constexpr (std::is_same_v<M, Fp16> && !kEmulated) {
#if defined(__CUDA_ARCH__)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                   : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                   : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(half ? b1 : b0));
#endif
  } else {
    // Lane 4·g + t holds rows g, g + 8 of a, column g of b, and of d rows g, g + 8 in columns 2t, 2t + 1.
    const int lane = int(threadIdx.x) % kWarp, g = lane / 4, t = lane % 4;
    const auto add = [&](uint32_t up, uint32_t low, uint32_t left, uint32_t right) {
      constexpr int numbers = int(4 / sizeof(typename M::Bits));
#pragma unroll
      for (int i = 0; i < numbers; ++i) {
        const auto number = [i](uint32_t word) {
          if constexpr (numbers == 2)
            return M::read(i ? word >> 16 : word & 0xffffu);
          else
            return __uint_as_float(word);
        };
        d[0] += number(up) * number(left);
        d[1] += number(up) * number(right);
        d[2] += number(low) * number(left);
        d[3] += number(low) * number(right);
      }
    };
#if defined(HIDA_EMULATE_CUDA)
    struct Fragments {
      uint32_t a[4], b[2];
    };
    const auto shown = emulation::show(kAll, Fragments{{a[0], a[1], a[2], a[3]}, {b0, b1}}, __LINE__);
    for (int from = 0; from < 4; ++from)
      for (int k = 0; k < 2; ++k)
        add(shown[4 * g + from].a[2 * k], shown[4 * g + from].a[2 * k + 1], shown[8 * t + from].b[k],
            shown[8 * t + 4 + from].b[k]);
#else
#pragma unroll 1
    for (int from = 0; from < 4; ++from) {
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const uint32_t up = __shfl_sync(kAll, a[2 * k], 4 * g + from);
        const uint32_t low = __shfl_sync(kAll, a[2 * k + 1], 4 * g + from);
        const uint32_t left = __shfl_sync(kAll, k ? b1 : b0, 8 * t + from);
        const uint32_t right = __shfl_sync(kAll, k ? b1 : b0, 8 * t + 4 + from);
        add(up, low, left, right);
      }
    }
#endif
  }
#endif
}

// TF32 keeps ten bits; tensor cores would cut the rest off, which is a bias.
template <class M>
HIDA_DEVICE Unit rounded(Unit unit) {
  if constexpr (std::is_same_v<M, Tf32>) {
#pragma unroll
    for (uint32_t& word : unit.word)
      if ((word & 0x7f800000u) != 0x7f800000u) word = (word + 0x0fffu + (word >> 13 & 1)) & ~0x1fffu;
  }
  return unit;
}

// The tile's sums, spread over the threads. AByDepth, BByDepth: how the operands lie.
template <class M, bool AByDepth, bool BByDepth, int Rows = kTile64, bool Tensor = M::tensor>
struct Tile;

template <class M, bool AByDepth, bool BByDepth, int Rows>
struct Tile<M, AByDepth, BByDepth, Rows, true> {
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
    constexpr int pitch = kPitch < M, ByDepth, Right ? kTile64 : Rows > ;
    const int square = lane / 8;
    const int down = (Right ? square / 2 : square % 2) * 8, deep = Right ? square % 2 : square / 2;
    if constexpr (!ByDepth) {
      ldmatrix(r, from + (row + down + lane % 8) * pitch + step * 32 + deep * 16, false);
    } else if constexpr (kUnit<M> == 8) {
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
struct Tile<M, AByDepth, BByDepth, Rows, false> {
  using Real = typename M::Real;
  static constexpr int V = kUnit<M>;
  Real sum[4][8];

  HIDA_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < 32; ++i) sum[i / 8][i % 8] = 0;
  }

  HIDA_DEVICE void add(const char* a, const char* b) {
    const int ty = int(threadIdx.x) / 8, tx = int(threadIdx.x) % 8;
#pragma unroll 1
    for (int unit = 0; unit < 8; ++unit) {
      Real x[4][V], y[V], line[8];
#pragma unroll
      for (int i = 0; i < (AByDepth ? V : 4); ++i) {
        if constexpr (!AByDepth) {
          unpack<M>(load_unit(a + row(ty, i) * kRowPitch + unit * 16), x[i]);
        } else {
#pragma unroll
          for (int part = 0; part < 4 / V; ++part) {
            unpack<M>(load_unit(a + (unit * V + i) * kPitch<M, true, Rows> + row(ty, part * V) * int(sizeof(Real))), y);
#pragma unroll
            for (int j = 0; j < V; ++j) x[part * V + j][i] = y[j];
          }
        }
      }
      if constexpr (!BByDepth) {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          unpack<M>(load_unit(b + column(tx, j) * kRowPitch + unit * 16), y);
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
            unpack<M>(load_unit(b + (unit * V + k) * kPitch<M, true> + column(tx, part * V) * int(sizeof(Real))), y);
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
constexpr int kResultPitch = kTile64 + kUnit<M> % 8 + (kUnit<M> == 8 ? 4 : 0);
template <class M, int Rows = kTile64>
constexpr int kTileBytes = std::max(Rows * kResultPitch<M> * int(sizeof(typename M::Real)), Rows* kRowPitch + kOperand);

// tile += A·B over chunks [begin, end) of kDepth<M> numbers. A loader is asked `at(chunk)`, then `unit(line, unit)`;
// what is next is loaded into registers while the tensor cores work. `prepare(chunk)` runs a whole phase before a
// chunk is loaded: it may write shared memory that the loaders of earlier chunks do not read.
template <class M, bool AByDepth, bool BByDepth, int Rows, class A, class B, class Prepare>
HIDA_DEVICE void multiply(Tile<M, AByDepth, BByDepth, Rows>& tile, char* memory, int begin, int end, A& a, B& b,
                          Prepare prepare) {
  constexpr int threads = kThreadsOf<Rows>, left = 4, right = 4 * kTile64 / Rows, offset = Rows * kRowPitch;
  if (begin >= end) return;
  Unit ahead[left + right];
  const auto load = [&](int chunk) {
    b.at(chunk);  // first what takes more registers on the way
#pragma unroll
    for (int i = 0; i < right; ++i) {
      const int e = int(threadIdx.x) + i * threads;
      ahead[left + i] = b.unit(e / kUnits<M, BByDepth>, e % kUnits<M, BByDepth>);
    }
    a.at(chunk);
#pragma unroll
    for (int i = 0; i < left; ++i) {
      const int e = int(threadIdx.x) + i * threads;
      ahead[i] = a.unit(e / kUnits<M, AByDepth, Rows>, e % kUnits<M, AByDepth, Rows>);
    }
  };
  prepare(begin);
  __syncthreads();
  if (begin + 1 < end) prepare(begin + 1);
  load(begin);
  for (int chunk = begin; chunk < end; ++chunk) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < left; ++i) {
      const int e = int(threadIdx.x) + i * threads;
      store_unit(
          memory + e / kUnits<M, AByDepth, Rows> * kPitch<M, AByDepth, Rows> + e % kUnits<M, AByDepth, Rows> * 16,
          rounded<M>(ahead[i]));
    }
#pragma unroll
    for (int i = 0; i < right; ++i) {
      const int e = int(threadIdx.x) + i * threads;
      store_unit(memory + offset + e / kUnits<M, BByDepth> * kPitch<M, BByDepth> + e % kUnits<M, BByDepth> * 16,
                 rounded<M>(ahead[left + i]));
    }
    __syncthreads();
    if (chunk + 2 < end) prepare(chunk + 2);
    if (chunk + 1 < end) load(chunk + 1);
    tile.add(memory, memory + offset);
  }
}

// The tile's sums to shared memory, row by row.
template <class M, bool AByDepth, bool BByDepth, int Rows>
HIDA_DEVICE typename M::Real* spread(const Tile<M, AByDepth, BByDepth, Rows>& tile, char* memory) {
  auto* result = reinterpret_cast<typename M::Real*>(memory);
  __syncthreads();
  tile.each([&](int row, int column, typename M::Real x) { result[row * kResultPitch<M> + column] = x; });
  __syncthreads();
  return result;
}

}  // namespace cuda
}  // namespace hida
