// C[m][n] += Σ_k A[m][k]·B[k][n], the one matrix product of the deformable convolution. Columns of B and C lie in
// vector lanes and are contiguous; an element of A is broadcast, so that A may have any strides and nothing needs to
// be packed or transposed first.
#pragma once

#include "vectors.h"

namespace hida {
namespace HIDA_ISA {

// Rows by two vectors fill the registers: 32 of them in AVX-512, 16 elsewhere.
#if defined(__AVX512F__)
constexpr int kRows = 12;
#else
constexpr int kRows = 6;
#endif

template <class Real, int kVectors>
HIDA_INLINE void multiply_tile(int64_t rows, int64_t depth, const Real* a, int64_t a_row, int64_t a_depth,
                               const Real* b, int64_t b_row, Real* c, int64_t c_row) {
  using V = Vec<Real>;
  constexpr int L = kLanes<Real>;
  const Real* from[kRows];
  V total[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    from[r] = a + (r < rows ? r : rows - 1) * a_row;  // a missing row repeats the last; it is not stored
    for (int v = 0; v < kVectors; ++v) total[r][v] = V{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    V line[kVectors];
    for (int v = 0; v < kVectors; ++v) line[v] = load(b + k * b_row + v * L);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const Real factor = from[r][k * a_depth];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) total[r][v] += factor * line[v];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    if (r >= rows) break;
    for (int v = 0; v < kVectors; ++v) store(c + r * c_row + v * L, load(c + r * c_row + v * L) + total[r][v]);
  }
}

// `columns` is a whole number of vectors: callers pad B and C.
template <class Real>
inline void multiply(int64_t rows, int64_t columns, int64_t depth, const Real* a, int64_t a_row, int64_t a_depth,
                     const Real* b, int64_t b_row, Real* c, int64_t c_row) {
  constexpr int L = kLanes<Real>;
  for (int64_t m = 0; m < rows; m += kRows) {
    const int64_t some = rows - m < kRows ? rows - m : kRows;
    int64_t n = 0;
    for (; n + 2 * L <= columns; n += 2 * L)
      multiply_tile<Real, 2>(some, depth, a + m * a_row, a_row, a_depth, b + n, b_row, c + m * c_row + n, c_row);
    for (; n < columns; n += L)
      multiply_tile<Real, 1>(some, depth, a + m * a_row, a_row, a_depth, b + n, b_row, c + m * c_row + n, c_row);
  }
}

}  // namespace HIDA_ISA
}  // namespace hida
