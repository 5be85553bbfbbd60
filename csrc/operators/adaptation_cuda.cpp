// info_acon, ida and instance_norm_modulate on CUDA tensors: device, stream and workspace.
#include "adaptation.h"
#include "stream_cuda.h"

namespace hida {
namespace {

struct Cuda {
  static void info_acon(const InfoAcon& a, const Tensor& x) { cuda::info_acon(a, cuda::Here(x.get_device_index())); }
  static void info_acon_backward(const InfoAcon& a, const Tensor& x) {
    const cuda::Here here(x.get_device_index());
    cuda::info_acon_backward(a, Workspace(x, cuda::info_acon_backward_workspace(a, here), a.planes.wide).get(), here);
  }
  static void adapt(const Adapt& a, const Tensor& x) {
    const cuda::Here here(x.get_device_index());
    cuda::adapt(a, Workspace(x, cuda::adapt_workspace(a, here), a.planes.wide).get(), here);
  }
  static void adapt_backward(const Adapt& a, const Tensor& x) {
    const cuda::Here here(x.get_device_index());
    cuda::adapt_backward(a, Workspace(x, cuda::adapt_backward_workspace(a, here), a.planes.wide).get(), here);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hida, HIDA_KEY, m) {
  implement_adaptation<Cuda>(m);
}

}  // namespace hida
