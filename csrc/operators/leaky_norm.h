// The operators leaky_norm and leaky_norm_backward: checks and memory, for a back end that runs the kernels.
// Backend::leaky_norm(a, x) and leaky_norm_backward run what `a` describes, where the tensor x is.
#pragma once

#include <tuple>

#include "tensors.h"

namespace hida {

inline LeakyNorm describe_norm(const Tensor& x, double before, double after) {
  LeakyNorm a;
  a.extent = extent_of("x", x);
  a.wide = is_wide({&x});
  a.before = before;
  a.after = after;
  return a;
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> leaky_norm(const Tensor& x, double before, double after, double eps) {
  LeakyNorm a = describe_norm(x, before, after);
  const Extent& e = a.extent;
  a.eps = eps;
  Tensor y = gradient_like(x, x), mean = sums(x, e, a.wide), rstd = sums(x, e, a.wide);
  if (x.numel() == 0) return {y, torch::stable::zero_(mean), torch::stable::zero_(rstd)};
  a.x = image_of("x", x, e);
  a.y = image_of("y", y, e, true);
  a.mean = mean.mutable_data_ptr();
  a.rstd = rstd.mutable_data_ptr();
  Backend::leaky_norm(a, x);
  return {y, mean, rstd};
}

template <class Backend>
Tensor leaky_norm_backward(const Tensor& grad, const Tensor& x, const Tensor& mean, const Tensor& rstd, double before,
                           double after) {
  LeakyNorm a = describe_norm(x, before, after);
  const Extent& e = a.extent;
  require_shape("grad", grad, {{e.n, e.c, e.h, e.w}});
  require_device_of("x", x, {{"grad", &grad}, {"mean", &mean}, {"rstd", &rstd}});
  check_statistics(mean, rstd, e, a.wide);
  Tensor dx = gradient_like(x, x);
  if (x.numel() == 0) return dx;
  a.x = image_of("x", x, e);
  a.grad = image_of("grad", grad, e);
  a.dx = image_of("dx", dx, e, true);
  a.mean = const_cast<void*>(mean.const_data_ptr());
  a.rstd = const_cast<void*>(rstd.const_data_ptr());
  Backend::leaky_norm_backward(a, x);
  return dx;
}

}  // namespace hida
