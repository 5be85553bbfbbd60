// What the operator deform_conv2d checks on any device, and how its arguments reach the kernels.
#pragma once

#include <optional>

#include "tensors.h"

namespace hida {

using torch::stable::new_empty;
using Pair = std::vector<int64_t>;

// Without memory of the kernels' own: weight, workspace and results are for the caller to add.
inline Deform describe_convolution(const Tensor& x, const Tensor& offset, const Tensor& weight, const Tensor* bias,
                                   const Pair& stride, const Pair& padding, const Pair& dilation,
                                   const std::optional<Tensor>& mask) {
  Deform d;
  d.in = extent_of("x", x);
  const Extent w = extent_of("weight", weight), o = extent_of("offset", offset);
  for (const Pair* pair : {&stride, &padding, &dilation})
    if (pair->size() != 2) fail("stride, padding and dilation must be pairs.");
  if (stride[0] < 1 || stride[1] < 1 || padding[0] < 0 || padding[1] < 0 || dilation[0] < 1 || dilation[1] < 1)
    fail("stride and dilation must be at least 1, padding at least 0.");
  d.kernel_h = w.h, d.kernel_w = w.w;
  d.stride_h = stride[0], d.stride_w = stride[1];
  d.pad_h = padding[0], d.pad_w = padding[1];
  d.dilation_h = dilation[0], d.dilation_w = dilation[1];
  if (d.in.c < 1 || d.in.pixels() < 1 || w.c < 1 || d.taps() < 1) fail("x or weight has an empty dimension.");
  if (d.in.c % w.c != 0 || w.n % (d.in.c / w.c) != 0) fail("weight does not divide x's channels into groups.");
  d.groups = d.in.c / w.c;
  d.out = {d.in.n, w.n, (d.in.h + 2 * d.pad_h - d.dilation_h * (d.kernel_h - 1) - 1) / d.stride_h + 1,
           (d.in.w + 2 * d.pad_w - d.dilation_w * (d.kernel_w - 1) - 1) / d.stride_w + 1};
  if (d.in.h + 2 * d.pad_h < d.dilation_h * (d.kernel_h - 1) + 1 ||
      d.in.w + 2 * d.pad_w < d.dilation_w * (d.kernel_w - 1) + 1)
    fail("x is smaller than the kernel's extent.");
  d.deformable = o.c / (2 * d.taps());
  if (d.deformable < 1 || d.in.c % d.deformable != 0) fail("offset must have 2·G·taps channels, G dividing x's.");
  require_shape("offset", offset, {{d.in.n, 2 * d.deformable * d.taps(), d.out.h, d.out.w}});
  if (mask) require_shape("mask", *mask, {{d.in.n, d.deformable * d.taps(), d.out.h, d.out.w}});
  if (bias) require_shape("bias", *bias, {{d.out.c}});
  require_device_of("x", x,
                    {{"offset", &offset}, {"weight", &weight}, {"bias", bias}, {"mask", mask ? &*mask : nullptr}});
  dtype_of("weight", weight);
  d.wide = is_wide({&x, &offset, &weight, bias, mask ? &*mask : nullptr});
  if (d.in.n > 0) {
    d.x = image_of("x", x, d.in);
    d.offset = image_of("offset", offset, d.out);
    if (mask) d.mask = image_of("mask", *mask, d.out);
    if (bias) {
      d.bias.data = const_cast<void*>(bias->const_data_ptr());
      d.bias.dtype = dtype_of("bias", *bias);
      d.bias.c = bias->stride(0);
    }
  }
  return d;
}

inline ScalarType computing(const Deform& d) {
  return d.wide ? ScalarType::Double : ScalarType::Float;
}

// The gradients of deform_conv2d that are wanted, the others empty. `weight_shape`: of the weights' gradient.
struct DeformGradients {
  Tensor dx, doffset, dweight, dmask;

  DeformGradients(const Deform& d, const Tensor& x, const Tensor& offset, const std::optional<Tensor>& mask,
                  const Shape& weight_shape, int64_t wanted)
      : dx(wants(wanted, 0) ? torch::stable::empty_like(x) : absent(x)),
        doffset(wants(wanted, 1) ? torch::stable::empty_like(offset) : absent(x)),
        dweight(wants(wanted, 2) ? new_empty(x, weight_shape, computing(d)) : absent(x)),
        dmask(wants(wanted, 3) && mask ? torch::stable::empty_like(*mask) : absent(x)) {}

  void zero() {
    for (Tensor* t : {&dx, &doffset, &dweight, &dmask}) torch::stable::zero_(*t);
  }
  // Tell the kernels where they go.
  void describe(Deform& d) {
    if (dx.dim() == 4) d.dx = image_of("dx", dx, d.in, true);
    if (doffset.dim() == 4) d.doffset = image_of("doffset", doffset, d.out, true);
    if (dweight.dim() > 1) d.dweight = dweight.mutable_data_ptr();
    if (dmask.dim() == 4) d.dmask = image_of("dmask", dmask, d.out, true);
  }
};

}  // namespace hida
