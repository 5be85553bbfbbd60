// What tensor cores do for a warp: ldmatrix and mma.sync. What a chip's tensor cores cannot multiply (bf16 and TF32
// before 8.0) is multiplied by the same lanes in float. In the emulation both are made of shuffles, so that addresses
// and fragments are those of the chip; tests/emulation/fragments.cu holds them against the tables of the PTX ISA.
#pragma once

#include "operands.h"

namespace hida {
namespace cuda {

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

}  // namespace cuda
}  // namespace hida
