// The kernels on the CPU. Each works on a range of work items, which the caller spreads over threads; an item's result
// does not depend on the range it came in, so that neither the number of threads nor their order shows in a result.
//
// This is the one list of them: the table that the operators call through, the declarations of each instruction set and
// its table (table.cpp) are made of it. A kernel's work items:
//   info_acon, adapt                         planes
//   *_nhwc but conv_to_one_nhwc              (image, block of kChannels channels)
//   conv_to_one_nhwc, .._backward            (image, kToOneRows rows of y; of x)
//   deform_rearrange                         (image, block)
//   deform_tiles                             tiles of kPixelsAtATime output pixels
//   deform_columns, deform_product           blocks; kRowsAtATime output channels. For few pixels
//   deform_backward, deform_sum_samples      (part of the batch, block); (image, deformable group, tap)
//   im2col                                   input channels; no offsets, no mask
//   conv_transpose                           `channels` output channels, or (image, kTransposeRows input rows)
//   winograd_input, winograd_output          (block, kBlock input channels); `rows` rows of the products
#pragma once

#include "cpu_only.h"

#define HIDA_CPU_KERNELS(KERNEL)               \
  KERNEL(info_acon, InfoAcon)                  \
  KERNEL(info_acon_backward, InfoAcon)         \
  KERNEL(info_acon_nhwc, InfoAcon)             \
  KERNEL(info_acon_nhwc_backward, InfoAcon)    \
  KERNEL(adapt, Adapt)                         \
  KERNEL(adapt_backward, Adapt)                \
  KERNEL(adapt_nhwc, Adapt)                    \
  KERNEL(adapt_nhwc_backward, Adapt)           \
  KERNEL(leaky_norm_nhwc, LeakyNorm)           \
  KERNEL(leaky_norm_nhwc_backward, LeakyNorm)  \
  KERNEL(plane_sums_nhwc, PlaneSums)           \
  KERNEL(conv_to_one_nhwc, ConvToOne)          \
  KERNEL(conv_to_one_nhwc_backward, ConvToOne) \
  KERNEL(deform_rearrange, Deform)             \
  KERNEL(deform_tiles, Deform)                 \
  KERNEL(deform_columns, Deform)               \
  KERNEL(deform_product, Deform)               \
  KERNEL(deform_backward, Deform)              \
  KERNEL(deform_sum_samples, Deform)           \
  KERNEL(im2col, Deform)                       \
  KERNEL(conv_transpose, ConvTranspose)        \
  KERNEL(winograd_input, Winograd)             \
  KERNEL(winograd_output, Winograd)

namespace hida {

#define HIDA_KERNEL_POINTER(name, Arguments) void (*name)(const Arguments&, int64_t begin, int64_t end);
struct Kernels {
  const char* isa;
  HIDA_CPU_KERNELS(HIDA_KERNEL_POINTER)
};
#undef HIDA_KERNEL_POINTER

// The best table that this processor can run, or the one that the environment variable HIDA_CPU names. (dispatch.cpp)
const Kernels& kernels();

}  // namespace hida
