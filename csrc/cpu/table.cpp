// The table of one instruction set; compiled, like the kernels, once for each.
#include "kernels.h"
#include "simd.h"

#define HIDA_TEXT_(x) #x
#define HIDA_TEXT(x) HIDA_TEXT_(x)

namespace hida {
namespace HIDA_ISA {

#define HIDA_KERNEL_DECLARATION(name, Arguments) void name(const Arguments&, int64_t begin, int64_t end);
HIDA_CPU_KERNELS(HIDA_KERNEL_DECLARATION)

#define HIDA_KERNEL_NAME(name, Arguments) name,
extern const Kernels table;
const Kernels table = {HIDA_TEXT(HIDA_ISA), HIDA_CPU_KERNELS(HIDA_KERNEL_NAME)};

}  // namespace HIDA_ISA
}  // namespace hida
