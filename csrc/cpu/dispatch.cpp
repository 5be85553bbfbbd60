// Which table of kernels runs: decided once, when the first op is called.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace hida {

namespace generic {
extern const Kernels table;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
#endif

namespace {

const Kernels& choose() {
  const char* named = std::getenv("HIDA_CPU");
  const std::string wanted = named ? named : "";
  if (!wanted.empty() && wanted != "avx512" && wanted != "avx2" && wanted != "generic")
    throw std::runtime_error("HIDA_CPU is '" + wanted + "'; choose avx512, avx2 or generic, or unset it.");
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (has_avx512 && (wanted.empty() || wanted == "avx512")) return avx512::table;
  if (has_avx2 && (wanted.empty() || wanted == "avx2")) return avx2::table;
#endif
  if (wanted.empty() || wanted == "generic") return generic::table;
  throw std::runtime_error("HIDA_CPU asks for " + wanted +
                           ", which this processor or this build does not have; choose another, or unset it.");
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace hida

// The name of the table, or a sentence that says why there is none: no exception may leave a C function.
extern "C" __attribute__((visibility("default"))) const char* hida_cpu_kernels() {
  try {
    return hida::kernels().isa;
  } catch (const std::exception& error) {
    static const std::string why = error.what();
    return why.c_str();
  }
}
