// info_acon, ida and instance_norm_modulate on CPU tensors: the kernels' work items, spread over threads.
#include "../cpu/kernels.h"
#include "adaptation.h"

namespace hida {
namespace {

struct Cpu {
  template <class Arguments>
  using Kernel = void (*)(const Arguments&, int64_t, int64_t);

  // By planes, or, of a channels_last tensor, by blocks of channels.
  template <class Arguments>
  static void spread(Kernel<Arguments> planes, Kernel<Arguments> channels, const Arguments& a) {
    const Extent& e = a.planes.extent;
    if (!a.planes.channels_last)
      return for_items(e.n * e.c, e.pixels(), [&](int64_t begin, int64_t end) { planes(a, begin, end); });
    for_items(e.n * channel_blocks(e.c), e.pixels() * (e.c < kChannels ? e.c : kChannels),
              [&](int64_t begin, int64_t end) { channels(a, begin, end); });
  }
  static void info_acon(const InfoAcon& a, const Tensor&) { spread(kernels().info_acon, kernels().info_acon_nhwc, a); }
  static void info_acon_backward(const InfoAcon& a, const Tensor&) {
    spread(kernels().info_acon_backward, kernels().info_acon_nhwc_backward, a);
  }
  static void adapt(const Adapt& a, const Tensor&) { spread(kernels().adapt, kernels().adapt_nhwc, a); }
  static void adapt_backward(const Adapt& a, const Tensor&) {
    spread(kernels().adapt_backward, kernels().adapt_nhwc_backward, a);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hida, CPU, m) {
  implement_adaptation<Cpu>(m);
}

}  // namespace hida
