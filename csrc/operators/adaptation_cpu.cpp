// info_acon, ida and instance_norm_modulate on CPU tensors: the kernels' units, spread over threads.
#include "../adaptation.h"

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
      return for_units(e.n * e.c, e.pixels(), [&](int64_t begin, int64_t end) { planes(a, begin, end); });
    for_units(e.n * channel_blocks(e.c), e.pixels() * (e.c < kChannels ? e.c : kChannels),
              [&](int64_t begin, int64_t end) { channels(a, begin, end); });
  }
  static void acon(const Acon& a, const Tensor&) { spread(kernels().acon, kernels().acon_channels, a); }
  static void acon_backward(const Acon& a, const Tensor&) {
    spread(kernels().acon_backward, kernels().acon_channels_backward, a);
  }
  static void adapt(const Adapt& a, const Tensor&) { spread(kernels().adapt, kernels().adapt_channels, a); }
  static void adapt_backward(const Adapt& a, const Tensor&) {
    spread(kernels().adapt_backward, kernels().adapt_channels_backward, a);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hida, CPU, m) {
  implement_adaptation<Cpu>(m);
}

}  // namespace hida
