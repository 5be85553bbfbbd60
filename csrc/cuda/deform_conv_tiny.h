// What the two files of deform_conv2d for small, few planes call of each other.
#pragma once

#include "deform_launch.h"

namespace hida {
namespace cuda {

// Writes what the products read, in one launch; null: not wanted.
//   columns   M, (pixels, `pitch`): C_in·taps numbers of each output pixel, channel·taps + tap
//   grad      M, (pixels, groups · grad_padded): dy, channels last
template <class M>
void tiny_operands(const Job&, void* columns, int64_t pitch, void* grad, const Launch&);

// dx, and the gradients of offsets and mask, in one launch, from the columns' gradient: float, (pixels, C_in·taps).
template <class M>
void tiny_gradients(const Job&, const float* gradient, const Launch&);

}  // namespace cuda
}  // namespace hida
