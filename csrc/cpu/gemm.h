// C[m][n] += Σ_k A[m][k]·B[k][n], the one matrix product of the deformable convolution. Columns of B and C are in
// vector lanes and are contiguous; an element of A is broadcast, so that A may have any strides and nothing needs to
// be packed or transposed first.
#pragma once

#include "simd.h"

namespace hida {
namespace HIDA_ISA {

// Rows by two vectors fill the registers: 32 of them in AVX-512, 16 elsewhere.
#if defined(__AVX512F__)
constexpr int kRows = 12;
#else
constexpr int kRows = 6;
#endif

template <class Real, int kHeight, int kVectors>
HIDA_INLINE void gemm_tile(int64_t depth, const Real* a, int64_t a_row, int64_t a_depth, const Real* b, int64_t b_row,
                           Real* c, int64_t c_row) {
  using V = Vec<Real>;
  constexpr int L = kLanes<Real>;
  const Real* from[(kHeight + 2) / 3];  // every third row: the processor adds one and two rows in an address
  for (int r = 0; r < kHeight; r += 3) from[r / 3] = a + r * a_row;
  V total[kHeight][kVectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    V line[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) line[v] = load(b + v * L);
#pragma GCC unroll 12
    for (int r = 0; r < kHeight; ++r) {
      const Real factor = from[r / 3][r % 3 * a_row];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) total[r][v] += factor * line[v];
    }
#pragma GCC unroll 4
    for (int r = 0; r < kHeight; r += 3) from[r / 3] += a_depth;
    b += b_row;
  }
#pragma GCC unroll 12
  for (int r = 0; r < kHeight; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) store(c + r * c_row + v * L, load(c + r * c_row + v * L) + total[r][v]);
  }
}

template <class Real, int kHeight>
HIDA_INLINE void gemm_rows(int64_t columns, int64_t depth, const Real* a, int64_t a_row, int64_t a_depth, const Real* b,
                           int64_t b_row, Real* c, int64_t c_row) {
  constexpr int L = kLanes<Real>;
  int64_t n = 0;
  for (; n + 2 * L <= columns; n += 2 * L)
    gemm_tile<Real, kHeight, 2>(depth, a, a_row, a_depth, b + n, b_row, c + n, c_row);
  for (; n < columns; n += L) gemm_tile<Real, kHeight, 1>(depth, a, a_row, a_depth, b + n, b_row, c + n, c_row);
}

// `columns` is a whole number of vectors: callers pad B and C.
template <class Real>
inline void gemm(int64_t rows, int64_t columns, int64_t depth, const Real* a, int64_t a_row, int64_t a_depth,
                 const Real* b, int64_t b_row, Real* c, int64_t c_row) {
  int64_t m = 0;
  for (; m + kRows <= rows; m += kRows)
    gemm_rows<Real, kRows>(columns, depth, a + m * a_row, a_row, a_depth, b, b_row, c + m * c_row, c_row);
  for (; m + 3 <= rows; m += 3)
    gemm_rows<Real, 3>(columns, depth, a + m * a_row, a_row, a_depth, b, b_row, c + m * c_row, c_row);
  for (; m < rows; ++m)
    gemm_rows<Real, 1>(columns, depth, a + m * a_row, a_row, a_depth, b, b_row, c + m * c_row, c_row);
}

}  // namespace HIDA_ISA
}  // namespace hida
