// leaky_norm on CPU tensors: checks, memory, threads.
#include <tuple>

#include "../tensors.h"

namespace hida {
namespace {

LeakyNorm plan(const Tensor& x, double before, double after) {
  LeakyNorm a;
  a.extent = extent_of("x", x);
  a.wide = is_wide({&x});
  a.before = before;
  a.after = after;
  return a;
}

void run(void (*kernel)(const LeakyNorm&, int64_t, int64_t), const LeakyNorm& a) {
  const int64_t width = a.extent.c < kChannels ? a.extent.c : kChannels;
  for_units(a.units(), a.extent.pixels() * width, [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
}

std::tuple<Tensor, Tensor, Tensor> leaky_norm(const Tensor& x, double before, double after, double eps) {
  LeakyNorm a = plan(x, before, after);
  a.eps = eps;
  Tensor y = torch::stable::empty_like(x), mean = sums(x, a.extent, a.wide), rstd = sums(x, a.extent, a.wide);
  if (x.numel() == 0) return {y, torch::stable::zero_(mean), torch::stable::zero_(rstd)};
  a.x = image_of("x", x, a.extent);
  a.y = image_of("y", y, a.extent, true);
  a.mean = mean.mutable_data_ptr();
  a.rstd = rstd.mutable_data_ptr();
  run(kernels().leaky_norm, a);
  return {y, mean, rstd};
}

Tensor leaky_norm_backward(const Tensor& grad, const Tensor& x, const Tensor& mean, const Tensor& rstd, double before,
                           double after) {
  LeakyNorm a = plan(x, before, after);
  const Extent& e = a.extent;
  require_shape("grad", grad, {{e.n, e.c, e.h, e.w}});
  for (const Tensor* t : {&mean, &rstd}) {
    require_here("mean and rstd", *t);
    require_shape("mean and rstd", *t, {{e.n, e.c}});
    if (!t->is_contiguous() || t->scalar_type() != (a.wide ? ScalarType::Double : ScalarType::Float))
      fail("mean and rstd must be those that the forward operator returned.");
  }
  Tensor dx = torch::stable::empty_like(x);
  if (x.numel() == 0) return dx;
  a.x = image_of("x", x, e);
  a.grad = image_of("grad", grad, e);
  a.dx = image_of("dx", dx, e, true);
  a.mean = const_cast<void*>(mean.const_data_ptr());
  a.rstd = const_cast<void*>(rstd.const_data_ptr());
  run(kernels().leaky_norm_backward, a);
  return dx;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hida, CPU, m) {
  m.impl("leaky_norm", TORCH_BOX(&leaky_norm));
  m.impl("leaky_norm_backward", TORCH_BOX(&leaky_norm_backward));
}

}  // namespace hida
