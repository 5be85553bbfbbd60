// The operators info_acon, ida and instance_norm_modulate: checks and memory, for a back end that runs the kernels.
// Backend::info_acon(a, x), info_acon_backward, adapt and adapt_backward run what `a` describes, where the tensor x is.
#pragma once

#include <optional>
#include <tuple>

#include "tensors.h"

namespace hida {

using torch::stable::empty_like;
using torch::stable::new_empty;
using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using Three = std::tuple<Tensor, Tensor, Tensor>;

inline void check_activation(const Extent& e, const Tensor& logits, const Tensor& p1, const Tensor& p2) {
  require_shape("logits", logits, {{e.n, e.c, e.h, e.w}, {e.n, 1, e.h, e.w}, {e.n, e.c, 1, 1}, {1, e.c, 1, 1}});
  require_shape("p1", p1, {{1, e.c, 1, 1}});
  require_shape("p2", p2, {{1, e.c, 1, 1}});
}

// Where the gradient of the logits goes: a whole tensor, of their dtype if they are whole themselves, or (N, C) sums.
// The first of equal shapes wins, so that (N, C, H, W) logits of a 1×1 image are whole.
struct LogitsGradient {
  Tensor tensor;
  Image image;
  void* sums = nullptr;

  LogitsGradient(const Tensor& x, const Tensor& logits, const Extent& e, bool wide, bool wanted)
      : tensor(wanted ? allocate(x, logits, e, wide) : absent(x)) {
    if (!wanted) return;
    if (tensor.dim() == 4)
      image = image_of("logits gradient", tensor, e, true);
    else
      sums = tensor.mutable_data_ptr();
  }

 private:
  static Tensor allocate(const Tensor& x, const Tensor& logits, const Extent& e, bool wide) {
    const Shape shape = shape_of(logits), whole{e.n, e.c, e.h, e.w};
    if (shape == whole) return gradient_like(logits, x);
    if (shape == Shape{e.n, 1, e.h, e.w})
      return new_empty(x, {e.n, e.c, e.h, e.w}, wide ? ScalarType::Double : ScalarType::Float);
    return hida::sums(x, e, wide);
  }
};

template <class Backend>
Tensor info_acon(const Tensor& x, const Tensor& logits, const Tensor& p1, const Tensor& p2) {
  const Extent e = extent_of("x", x);
  check_activation(e, logits, p1, p2);
  require_device_of("x", x, {{"logits", &logits}, {"p1", &p1}, {"p2", &p2}});
  Tensor y = in_large_pages(empty_like(x));
  if (x.numel() == 0) return y;
  InfoAcon a;
  a.planes = {e, is_wide({&x, &logits, &p1, &p2}), is_channels_last(x, e)};
  a.x = image_of("x", x, e);
  a.logits = image_of("logits", logits, e);
  a.p1 = image_of("p1", p1, e);
  a.p2 = image_of("p2", p2, e);
  a.y = image_of("y", y, e, true);
  Backend::info_acon(a, x);
  return y;
}

template <class Backend>
Four info_acon_backward(const Tensor& grad, const Tensor& x, const Tensor& logits, const Tensor& p1, const Tensor& p2,
                        int64_t wanted) {
  const Extent e = extent_of("x", x);
  check_activation(e, logits, p1, p2);
  require_shape("grad", grad, {{e.n, e.c, e.h, e.w}});
  require_device_of("x", x, {{"grad", &grad}, {"logits", &logits}, {"p1", &p1}, {"p2", &p2}});
  InfoAcon a;
  a.planes = {e, is_wide({&x, &logits, &p1, &p2}), is_channels_last(x, e)};
  Tensor dx = wants(wanted, 0) ? in_large_pages(empty_like(x)) : absent(x);
  LogitsGradient dlogits(x, logits, e, a.planes.wide, wants(wanted, 1));
  Tensor dp1 = wants(wanted, 2) ? sums(x, e, a.planes.wide) : absent(x);
  Tensor dp2 = wants(wanted, 3) ? sums(x, e, a.planes.wide) : absent(x);
  if (x.numel() > 0) {
    a.x = image_of("x", x, e);
    a.logits = image_of("logits", logits, e);
    a.p1 = image_of("p1", p1, e);
    a.p2 = image_of("p2", p2, e);
    a.grad = image_of("grad", grad, e);
    if (wants(wanted, 0)) a.dx = image_of("dx", dx, e, true);
    a.dlogits = dlogits.image;
    a.dlogits_sum = dlogits.sums;
    if (wants(wanted, 2)) a.dp1 = dp1.mutable_data_ptr();
    if (wants(wanted, 3)) a.dp2 = dp2.mutable_data_ptr();
    Backend::info_acon_backward(a, x);
  } else {
    for (Tensor* t : {&dlogits.tensor, &dp1, &dp2}) torch::stable::zero_(*t);
  }
  return {dx, dlogits.tensor, dp1, dp2};
}

template <class Backend>
Three run_adapt(Adapt& a, const Tensor& x, const Tensor& gamma, const Tensor& beta) {
  const Extent& e = a.planes.extent;
  a.planes.channels_last = is_channels_last(x, e);
  Tensor y = in_large_pages(empty_like(x)), mean = sums(x, e, a.planes.wide), rstd = sums(x, e, a.planes.wide);
  if (x.numel() == 0) return {y, torch::stable::zero_(mean), torch::stable::zero_(rstd)};
  a.x = image_of("x", x, e);
  a.gamma = image_of("gamma", gamma, e);
  a.beta = image_of("beta", beta, e);
  a.y = image_of("y", y, e, true);
  a.mean = mean.mutable_data_ptr();
  a.rstd = rstd.mutable_data_ptr();
  Backend::adapt(a, x);
  return {y, mean, rstd};
}

inline Residual residual_of(int64_t number) {
  if (number < 0 || number > 2) fail("residual must be 0 (none), 1 (activated) or 2 (input).");
  return Residual(int32_t(number));
}

template <class Backend>
Three ida(const Tensor& h, const Tensor& logits, const Tensor& gamma, const Tensor& beta, const Tensor& p1,
          const Tensor& p2, int64_t residual, double eps) {
  const Extent e = extent_of("h", h);
  check_activation(e, logits, p1, p2);
  require_shape("gamma", gamma, {{e.n, e.c, e.h, e.w}});
  require_shape("beta", beta, {{e.n, e.c, e.h, e.w}});
  require_device_of("h", h, {{"logits", &logits}, {"gamma", &gamma}, {"beta", &beta}, {"p1", &p1}, {"p2", &p2}});
  Adapt a;
  a.planes = {e, is_wide({&h, &logits, &gamma, &beta, &p1, &p2})};
  a.activate = true;
  a.residual = residual_of(residual);
  a.eps = eps;
  if (h.numel() > 0) {
    a.logits = image_of("logits", logits, e);
    a.p1 = image_of("p1", p1, e);
    a.p2 = image_of("p2", p2, e);
    if (a.residual == Residual::tensor) a.added = image_of("h", h, e);
  }
  return run_adapt<Backend>(a, h, gamma, beta);
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> ida_backward(const Tensor& grad, const Tensor& h,
                                                                const Tensor& logits, const Tensor& gamma,
                                                                const Tensor& p1, const Tensor& p2, const Tensor& mean,
                                                                const Tensor& rstd, int64_t residual, int64_t wanted) {
  const Extent e = extent_of("h", h);
  check_activation(e, logits, p1, p2);
  require_shape("gamma", gamma, {{e.n, e.c, e.h, e.w}});
  require_shape("grad", grad, {{e.n, e.c, e.h, e.w}});
  require_device_of("h", h,
                    {{"grad", &grad},
                     {"logits", &logits},
                     {"gamma", &gamma},
                     {"p1", &p1},
                     {"p2", &p2},
                     {"mean", &mean},
                     {"rstd", &rstd}});
  // beta, which is not here, may have been the one float64 operand: the statistics' dtype says so.
  const bool wide = mean.scalar_type() == ScalarType::Double;
  check_statistics(mean, rstd, e, wide);
  Tensor dh = wants(wanted, 0) ? in_large_pages(empty_like(h)) : absent(h);
  LogitsGradient dlogits(h, logits, e, wide, wants(wanted, 1));
  Tensor dgamma = wants(wanted, 2) ? gradient_like(gamma, h) : absent(h);
  Tensor dp1 = wants(wanted, 3) ? sums(h, e, wide) : absent(h);
  Tensor dp2 = wants(wanted, 4) ? sums(h, e, wide) : absent(h);
  if (h.numel() > 0) {
    Adapt a;
    a.planes = {e, wide, is_channels_last(h, e)};
    a.activate = true;
    a.residual = residual_of(residual);
    a.grad_to_x = a.residual == Residual::tensor;
    a.x = image_of("h", h, e);
    a.logits = image_of("logits", logits, e);
    a.p1 = image_of("p1", p1, e);
    a.p2 = image_of("p2", p2, e);
    a.gamma = image_of("gamma", gamma, e);
    a.grad = image_of("grad", grad, e);
    a.mean = const_cast<void*>(mean.const_data_ptr());
    a.rstd = const_cast<void*>(rstd.const_data_ptr());
    if (wants(wanted, 0)) a.dx = image_of("dh", dh, e, true);
    a.dlogits = dlogits.image;
    a.dlogits_sum = dlogits.sums;
    if (wants(wanted, 2)) a.dgamma = image_of("dgamma", dgamma, e, true);
    if (wants(wanted, 3)) a.dp1 = dp1.mutable_data_ptr();
    if (wants(wanted, 4)) a.dp2 = dp2.mutable_data_ptr();
    Backend::adapt_backward(a, h);
  } else {
    for (Tensor* t : {&dlogits.tensor, &dp1, &dp2}) torch::stable::zero_(*t);
  }
  return {dh, dlogits.tensor, dgamma, dp1, dp2};
}

template <class Backend>
Three instance_norm_modulate(const Tensor& x, const Tensor& gamma, const Tensor& beta,
                             const std::optional<Tensor>& residual, double eps) {
  const Extent e = extent_of("x", x);
  require_shape("gamma", gamma, {{e.n, e.c, e.h, e.w}});
  require_shape("beta", beta, {{e.n, e.c, e.h, e.w}});
  if (residual) require_shape("residual", *residual, {{e.n, e.c, e.h, e.w}});
  require_device_of("x", x, {{"gamma", &gamma}, {"beta", &beta}, {"residual", residual ? &*residual : nullptr}});
  Adapt a;
  a.planes = {e, is_wide({&x, &gamma, &beta, residual ? &*residual : nullptr})};
  a.residual = residual ? Residual::tensor : Residual::none;
  a.eps = eps;
  if (residual && x.numel() > 0) a.added = image_of("residual", *residual, e);
  return run_adapt<Backend>(a, x, gamma, beta);
}

template <class Backend>
std::tuple<Tensor, Tensor> instance_norm_modulate_backward(const Tensor& grad, const Tensor& x, const Tensor& gamma,
                                                           const Tensor& mean, const Tensor& rstd, int64_t wanted) {
  const Extent e = extent_of("x", x);
  require_shape("gamma", gamma, {{e.n, e.c, e.h, e.w}});
  require_shape("grad", grad, {{e.n, e.c, e.h, e.w}});
  require_device_of("x", x, {{"grad", &grad}, {"gamma", &gamma}, {"mean", &mean}, {"rstd", &rstd}});
  const bool wide = mean.scalar_type() == ScalarType::Double;
  check_statistics(mean, rstd, e, wide);
  Tensor dx = wants(wanted, 0) ? in_large_pages(empty_like(x)) : absent(x);
  Tensor dgamma = wants(wanted, 1) ? gradient_like(gamma, x) : absent(x);
  if (x.numel() > 0) {
    Adapt a;
    a.planes = {e, wide, is_channels_last(x, e)};
    a.x = image_of("x", x, e);
    a.gamma = image_of("gamma", gamma, e);
    a.grad = image_of("grad", grad, e);
    a.mean = const_cast<void*>(mean.const_data_ptr());
    a.rstd = const_cast<void*>(rstd.const_data_ptr());
    if (wants(wanted, 0)) a.dx = image_of("dx", dx, e, true);
    if (wants(wanted, 1)) a.dgamma = image_of("dgamma", dgamma, e, true);
    Backend::adapt_backward(a, x);
  }
  return {dx, dgamma};
}

// Inside STABLE_TORCH_LIBRARY_IMPL(hida, ..., m).
template <class Backend, class Library>
void implement_adaptation(Library& m) {
  m.impl("info_acon", TORCH_BOX(&info_acon<Backend>));
  m.impl("info_acon_backward", TORCH_BOX(&info_acon_backward<Backend>));
  m.impl("ida", TORCH_BOX(&ida<Backend>));
  m.impl("ida_backward", TORCH_BOX(&ida_backward<Backend>));
  m.impl("instance_norm_modulate", TORCH_BOX(&instance_norm_modulate<Backend>));
  m.impl("instance_norm_modulate_backward", TORCH_BOX(&instance_norm_modulate_backward<Backend>));
}

}  // namespace hida
