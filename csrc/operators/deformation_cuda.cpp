// deform_conv2d on CUDA tensors: device, stream, memory.
//   HIDA_TF32=1            float products may use the tensor cores' TF32 (ten bits of fraction); torch's own switch
//                          cannot be read through the stable ABI
//   HIDA_DEFORM_PATH       tiny or large: that path, where it can take the shape (for tests)
//   HIDA_DEFORM_WORKSPACE  bytes of workspace to aim at, at most
#include <cstdlib>
#include <tuple>

#include "../cuda/deform_conv.h"
#include "deformation.h"
#include "stream_cuda.h"

namespace hida {
namespace {

using cuda::Choice;
using cuda::Convolution;

bool is_set(const char* name, const char* value) {
  const char* set = std::getenv(name);
  return set != nullptr && std::string(set) == value;
}

Choice choice() {
  Choice c;
  if (is_set("HIDA_DEFORM_PATH", "tiny")) c.path = Choice::tiny;
  if (is_set("HIDA_DEFORM_PATH", "large")) c.path = Choice::large;
  if (const char* bytes = std::getenv("HIDA_DEFORM_WORKSPACE")) c.budget = std::atoll(bytes);
  return c;
}

// `keep`: the weights contiguous.
Convolution convolution_of(const Deform& d, const Tensor& x, const Tensor& weight, Tensor& keep) {
  Convolution c;
  static_cast<Deform&>(c) = d;
  keep = weight.is_contiguous() ? weight : torch::stable::contiguous(weight);
  c.weight = keep.const_data_ptr();
  c.weight_dtype = dtype_of("weight", weight);
  c.math = d.wide ? Dtype::f64 : dtype_of("x", x);
  c.tf32 = is_set("HIDA_TF32", "1");
  return c;
}

Tensor workspace_of(const Tensor& x, int64_t bytes) {
  return new_empty(x, {bytes + cuda::kWorkspaceAlign}, ScalarType::Byte);
}
void* aligned(Tensor& workspace) {
  const auto at = reinterpret_cast<uintptr_t>(workspace.mutable_data_ptr());
  const uintptr_t align = cuda::kWorkspaceAlign;
  return reinterpret_cast<void*>((at + align - 1) / align * align);
}

Tensor deform_conv2d(const Tensor& x, const Tensor& offset, const Tensor& weight, const std::optional<Tensor>& bias,
                     const Pair& stride, const Pair& padding, const Pair& dilation, const std::optional<Tensor>& mask) {
  const Deform d = describe_convolution(x, offset, weight, bias ? &*bias : nullptr, stride, padding, dilation, mask);
  Tensor y = new_empty(x, {d.out.n, d.out.c, d.out.h, d.out.w});
  if (y.numel() == 0) return y;
  Tensor keep;
  Convolution c = convolution_of(d, x, weight, keep);
  c.y = image_of("y", y, d.out, true);
  const cuda::Here here(x.get_device_index());
  const cuda::DeformPlan plan = cuda::plan_forward(c, here, choice());
  Tensor workspace = workspace_of(x, plan.bytes);
  cuda::deform_forward(c, plan, aligned(workspace), here);
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> deform_conv2d_backward(const Tensor& grad, const Tensor& x,
                                                                  const Tensor& offset, const Tensor& weight,
                                                                  const Pair& stride, const Pair& padding,
                                                                  const Pair& dilation,
                                                                  const std::optional<Tensor>& mask, int64_t wanted) {
  const Deform d = describe_convolution(x, offset, weight, nullptr, stride, padding, dilation, mask);
  require_shape("grad", grad, {{d.out.n, d.out.c, d.out.h, d.out.w}});
  require_device_of("x", x, {{"grad", &grad}});
  DeformGradients to(d, x, offset, mask, {d.out.c, d.in.c / d.groups, d.kernel_h, d.kernel_w}, wanted);
  if (grad.numel() == 0) {
    to.zero();
    return {to.dx, to.doffset, to.dweight, to.dmask};
  }
  Tensor keep;
  Convolution c = convolution_of(d, x, weight, keep);
  c.grad = image_of("grad", grad, d.out);
  to.describe(c);
  const cuda::Here here(x.get_device_index());
  const cuda::DeformPlan plan = cuda::plan_backward(c, here, choice());
  Tensor workspace = workspace_of(x, plan.bytes);
  cuda::deform_backward(c, plan, aligned(workspace), here);
  return {to.dx, to.doffset, to.dweight, to.dmask};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hida, HIDA_KEY, m) {
  m.impl("deform_conv2d", TORCH_BOX(&deform_conv2d));
  m.impl("deform_conv2d_backward", TORCH_BOX(&deform_conv2d_backward));
}

}  // namespace hida
