// leaky_norm on a CPU; plane_sums and to_one, which only channels_last tensors on a CPU have. Checks, memory, threads.
#include <optional>
#include <tuple>

#include "../cpu/kernels.h"
#include "leaky_norm.h"

namespace hida {
namespace {

struct Cpu {
  static void leaky_norm(const LeakyNorm& a, const Tensor&) { run(kernels().leaky_norm_nhwc, a); }
  static void leaky_norm_backward(const LeakyNorm& a, const Tensor&) { run(kernels().leaky_norm_nhwc_backward, a); }

 private:
  static void run(void (*kernel)(const LeakyNorm&, int64_t, int64_t), const LeakyNorm& a) {
    const int64_t width = a.extent.c < kChannels ? a.extent.c : kChannels;
    for_items(a.extent.n * channel_blocks(a.extent.c), a.extent.pixels() * width,
              [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
  }
};

Tensor plane_sums(const Tensor& x) {
  PlaneSums a;
  const Extent e = a.extent = extent_of("x", x);
  a.wide = is_wide({&x});
  Tensor total = sums(x, e, a.wide);
  if (x.numel() == 0) return torch::stable::zero_(total);
  a.x = image_of("x", x, e);
  a.sums = total.mutable_data_ptr();
  for_items(e.n * channel_blocks(e.c), e.pixels() * (e.c < kChannels ? e.c : kChannels),
            [&](int64_t begin, int64_t end) { kernels().plane_sums_nhwc(a, begin, end); });
  return total;
}

const float* floats(const char* name, const Tensor& t, const Shape& shape) {
  require_here(name, t);
  if (shape_of(t) != shape || t.scalar_type() != ScalarType::Float || !t.is_contiguous())
    fail(std::string(name) + " must be contiguous float32 of shape " + text(shape) + ".");
  return static_cast<const float*>(t.const_data_ptr());
}

ConvToOne describe_to_one(const Tensor& x, const Tensor& weight, bool transposed) {
  ConvToOne a;
  const Extent e = a.in = extent_of("x", x);
  if (x.scalar_type() == ScalarType::Double) fail("x must be float32, bfloat16 or float16.");
  if (e.c == 0 || e.pixels() == 0 || x.stride(1) != 1) fail("x must be channels_last, and not empty.");
  a.transposed = transposed;
  a.out = transposed ? Extent{e.n, 1, 2 * e.h, 2 * e.w} : Extent{e.n, 1, e.h + 1, e.w + 1};
  a.weight = floats("weight", weight, {e.c, 16});
  if (e.n > 0) a.x = image_of("x", x, e);
  return a;
}

Tensor to_one(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, bool transposed) {
  ConvToOne a = describe_to_one(x, weight, transposed);
  if (bias) a.bias = *floats("bias", *bias, {1});
  Tensor y = torch::stable::new_empty(x, {a.out.n, 1, a.out.h, a.out.w});
  if (a.in.n == 0) return y;
  a.y = image_of("y", y, a.out, true);
  for_items(a.in.n * a.blocks(a.out.h), kToOneRows * a.in.w * a.in.c,
            [&](int64_t begin, int64_t end) { kernels().conv_to_one_nhwc(a, begin, end); });
  return y;
}

std::tuple<Tensor, Tensor> to_one_backward(const Tensor& grad, const Tensor& x, const Tensor& weight, bool transposed,
                                           int64_t wanted) {
  ConvToOne a = describe_to_one(x, weight, transposed);
  require_shape("grad", grad, {{a.out.n, 1, a.out.h, a.out.w}});
  const bool wants_x = wants(wanted, 0), wants_weight = wants(wanted, 1);
  const int64_t items = a.in.n * a.blocks(a.in.h);
  Tensor dx = wants_x ? torch::stable::empty_like(x) : absent(x);
  Tensor dweight = wants_weight ? torch::stable::new_empty(x, {items, a.in.c, 16}, ScalarType::Float) : absent(x);
  if (items == 0) return {dx, dweight};
  a.grad = image_of("grad", grad, a.out);
  if (wants_x) {
    if (dx.stride(1) != 1) fail("x must be channels_last and dense.");
    a.dx = image_of("dx", dx, a.in, true);
  }
  if (wants_weight) a.dweight = static_cast<float*>(dweight.mutable_data_ptr());
  for_items(items, kToOneRows * a.in.w * a.in.c,
            [&](int64_t begin, int64_t end) { kernels().conv_to_one_nhwc_backward(a, begin, end); });
  return {dx, dweight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hida, CPU, m) {
  m.impl("leaky_norm", TORCH_BOX(&leaky_norm<Cpu>));
  m.impl("leaky_norm_backward", TORCH_BOX(&leaky_norm_backward<Cpu>));
  m.impl("plane_sums", TORCH_BOX(&plane_sums));
  m.impl("to_one", TORCH_BOX(&to_one));
  m.impl("to_one_backward", TORCH_BOX(&to_one_backward));
}

}  // namespace hida
