// leaky_norm on CUDA tensors: what its kernels take, device, stream and workspace.
#include "leaky_norm.h"
#include "stream_cuda.h"

namespace hida {
namespace {

struct Cuda {
  static void leaky_norm(const LeakyNorm& a, const Tensor& x) {
    check(a);
    const cuda::Here here(x.get_device_index());
    cuda::leaky_norm(a, Workspace(x, cuda::leaky_norm_workspace(a, here), false).get(), here);
  }
  static void leaky_norm_backward(const LeakyNorm& a, const Tensor& x) {
    check(a);
    const cuda::Here here(x.get_device_index());
    cuda::leaky_norm_backward(a, Workspace(x, cuda::leaky_norm_backward_workspace(a, here), false).get(), here);
  }

 private:
  static void check(const LeakyNorm& a) {
    for (const Image* image : {&a.x, &a.y, &a.grad, &a.dx})
      if (!cuda::leaky_norm_takes(*image, a.extent))
        fail(
            "on a CUDA device leaky_norm takes channels_last float32, bfloat16 and float16 with a multiple of 8"
            " channels and images of less than 2 GiB.");
    for (const void* sums : {a.mean, a.rstd})
      if (reinterpret_cast<uintptr_t>(sums) % 16 != 0) fail("mean and rstd must begin at a multiple of 16 bytes.");
  }
};

// A tensor as the kernels take it: a copy where its memory is arranged in another way.
Tensor packed(const char* name, const Tensor& t, const Tensor& x) {
  if (t.numel() == 0) return t;
  const Extent e = extent_of(name, t);
  const ScalarType dtype = x.scalar_type();
  const bool arranged = e.pixels() == 1 || is_channels_last(t, e);
  if (arranged && t.scalar_type() == dtype && cuda::leaky_norm_takes(image_of(name, t, e), e)) return t;
  Tensor copy = torch::stable::empty(t.sizes(), dtype, torch::headeronly::Layout::Strided, x.device(), std::nullopt,
                                     torch::headeronly::MemoryFormat::ChannelsLast);
  return torch::stable::copy_(copy, t);
}

std::tuple<Tensor, Tensor, Tensor> leaky_norm_cuda(const Tensor& x, double before, double after, double eps) {
  require_here("x", x);
  return leaky_norm<Cuda>(packed("x", x, x), before, after, eps);
}

Tensor leaky_norm_backward_cuda(const Tensor& grad, const Tensor& x, const Tensor& mean, const Tensor& rstd,
                                double before, double after) {
  require_device_of("x", x, {{"grad", &grad}});
  return leaky_norm_backward<Cuda>(packed("grad", grad, x), packed("x", x, x), mean, rstd, before, after);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hida, HIDA_KEY, m) {
  m.impl("leaky_norm", TORCH_BOX(&leaky_norm_cuda));
  m.impl("leaky_norm_backward", TORCH_BOX(&leaky_norm_backward_cuda));
}

}  // namespace hida
