// info_acon, ida and instance_norm_modulate on CPU tensors: the kernels' units, spread over threads.
#include "../adaptation.h"

namespace hida {
namespace {

struct Cpu {
  template <class Arguments>
  static void spread(void (*kernel)(const Arguments&, int64_t, int64_t), const Arguments& a) {
    for_units(a.planes.units(), a.planes.extent.pixels() * a.planes.abreast,
              [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
  }
  static void acon(const Acon& a, const Tensor&) { spread(kernels().acon, a); }
  static void acon_backward(const Acon& a, const Tensor&) { spread(kernels().acon_backward, a); }
  static void adapt(const Adapt& a, const Tensor&) { spread(kernels().adapt, a); }
  static void adapt_backward(const Adapt& a, const Tensor&) { spread(kernels().adapt_backward, a); }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hida, CPU, m) {
  implement_adaptation<Cpu>(m);
}

}  // namespace hida
