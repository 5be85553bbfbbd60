// The table of one instruction set; compiled, like the kernels, once for each.
#include "isa.h"

#define HIDA_TEXT_(x) #x
#define HIDA_TEXT(x) HIDA_TEXT_(x)

namespace hida {
namespace HIDA_ISA {

extern const Kernels table;
const Kernels table = {HIDA_TEXT(HIDA_ISA),
                       info_acon,
                       info_acon_backward,
                       adapt,
                       adapt_backward,
                       deform_rearrange,
                       deform_tiles,
                       deform_columns,
                       deform_product,
                       deform_backward,
                       deform_gather,
                       plain_columns,
                       doubling,
                       winograd_input,
                       winograd_output};

}  // namespace HIDA_ISA
}  // namespace hida
