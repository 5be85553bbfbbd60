// Which lane holds what of an operand, by the tables of the PTX ISA (chapters "Matrix Fragments for mma.m16n8k16",
// "mma.m16n8k8" and "ldmatrix"), against csrc/cuda/mma.h as emulated: what differs is printed, and counted.
#include <cstdio>

#include "cuda/mma.h"

namespace hida {
namespace cuda {
namespace {

struct At {
  int row, column;
};

// Element i of a lane's fragments.
At a_of_k16(int lane, int i) {
  return {lane / 4 + (i / 2 % 2 ? 8 : 0), lane % 4 * 2 + i % 2 + (i >= 4 ? 8 : 0)};
}
At b_of_k16(int lane, int i) {
  return {lane % 4 * 2 + i % 2 + (i >= 2 ? 8 : 0), lane / 4};
}
At a_of_tf32(int lane, int i) {
  return {lane / 4 + (i % 2 ? 8 : 0), lane % 4 + (i >= 2 ? 4 : 0)};
}
At b_of_tf32(int lane, int i) {
  return {lane % 4 + (i ? 4 : 0), lane / 4};
}
At a_of_k8(int lane, int i) {
  return {lane / 4 + (i >= 2 ? 8 : 0), lane % 4 * 2 + i % 2};
}
At b_of_k8(int lane, int i) {
  return {lane % 4 * 2 + i, lane / 4};
}
At d_of(int lane, int i) {
  return {lane / 4 + (i >= 2 ? 8 : 0), lane % 4 * 2 + i % 2};
}

float a_at(int row, int k) {
  return float((row * 5 + k * 3) % 11 - 5);
}
float b_at(int k, int column) {
  return float((k * 7 + column * 2) % 13 - 6);
}

int wrong = 0;

void expect(bool right, const char* what, int lane, int i) {
  if (right) return;
  ++wrong;
  std::printf("%s: lane %d, element %d\n", what, lane, i);
}

template <class M>
uint32_t word_of(At (*at)(int, int), float (*value)(int, int), int lane, int reg) {
  if constexpr (kPerVec<M> == 8) {
    const At low = at(lane, 2 * reg), high = at(lane, 2 * reg + 1);
    return M::write(value(low.row, low.column)) | M::write(value(high.row, high.column)) << 16;
  } else {
    const At one = at(lane, reg);
    return __float_as_uint(value(one.row, one.column));
  }
}

template <class M>
__global__ void product(const char* name) {
  constexpr bool half = kPerVec<M> == 8;
  constexpr int depth = half ? 16 : 8;
  const int lane = int(threadIdx.x);
  uint32_t a[4], b[2];
  for (int r = 0; r < 4; ++r) a[r] = word_of<M>(half ? a_of_k16 : a_of_tf32, a_at, lane, r);
  for (int r = 0; r < 2; ++r) b[r] = word_of<M>(half ? b_of_k16 : b_of_tf32, b_at, lane, r);
  float d[4] = {1, 2, 3, 4};
  mma<M>(d, a, b[0], b[1]);
  for (int i = 0; i < 4; ++i) {
    const At at = d_of(lane, i);
    float sum = float(i + 1);
    for (int k = 0; k < depth; ++k) sum += a_at(at.row, k) * b_at(k, at.column);
    expect(d[i] == sum, name, lane, i);
  }
}

// Four squares of 8×8; lanes 8·s to 8·s + 7 give the rows of square s.
__global__ void loads(int transposed) {
  HIDA_DYNAMIC_SHARED(uint16_t, memory);
  const int lane = int(threadIdx.x), square = lane / 8;
  for (int i = 0; i < 8; ++i) memory[lane * 8 + i] = uint16_t(lane * 8 + i);
  __syncwarp();
  uint32_t r[4];
  ldmatrix(r, reinterpret_cast<const char*>(memory + (square * 8 + lane % 8) * 8), transposed != 0);
  for (int s = 0; s < 4; ++s)
    for (int i = 0; i < 2; ++i) {
      const int row = transposed ? lane % 4 * 2 + i : lane / 4, column = transposed ? lane / 4 : lane % 4 * 2 + i;
      expect((r[s] >> 16 * i & 0xffffu) == uint32_t((s * 8 + row) * 8 + column), "ldmatrix", lane, 2 * s + i);
    }
}

// Turing multiplies a depth of 16 as two of 8: with registers 2·h and 2·h + 1 of a, and h of b.
void halves() {
  for (int lane = 0; lane < kWarp; ++lane)
    for (int h = 0; h < 2; ++h) {
      for (int i = 0; i < 4; ++i) {
        const At whole = a_of_k16(lane, 4 * h + i), half = a_of_k8(lane, i);
        expect(whole.row == half.row && whole.column == half.column + 8 * h, "a of m16n8k8", lane, i);
      }
      for (int i = 0; i < 2; ++i) {
        const At whole = b_of_k16(lane, 2 * h + i), half = b_of_k8(lane, i);
        expect(whole.row == half.row + 8 * h && whole.column == half.column, "b of m16n8k8", lane, i);
      }
    }
}

}  // namespace
}  // namespace cuda
}  // namespace hida

int main() {
  using namespace hida::cuda;
  const Launch l;
  launch(product<Bf16>, dim3(1), dim3(32), 0, l, "bf16");
  launch(product<Fp16>, dim3(1), dim3(32), 0, l, "fp16");
  launch(product<Tf32>, dim3(1), dim3(32), 0, l, "tf32");
  for (int transposed : {0, 1}) launch(loads, dim3(1), dim3(32), 512, l, transposed);
  halves();
  std::printf("%d wrong\n", wrong);
  return wrong != 0;
}
