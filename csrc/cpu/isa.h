// The kernels of one instruction set, as its files define them.
#pragma once

#include "kernels.h"
#include "vectors.h"

namespace hida {
namespace HIDA_ISA {

void info_acon(const Acon&, int64_t begin, int64_t end);
void info_acon_backward(const Acon&, int64_t begin, int64_t end);
void adapt(const Adapt&, int64_t begin, int64_t end);
void adapt_backward(const Adapt&, int64_t begin, int64_t end);
void deform_rearrange(const Deform&, int64_t begin, int64_t end);
void deform_tiles(const Deform&, int64_t begin, int64_t end);
void deform_columns(const Deform&, int64_t begin, int64_t end);
void deform_product(const Deform&, int64_t begin, int64_t end);
void deform_backward(const Deform&, int64_t begin, int64_t end);
void deform_gather(const Deform&, int64_t begin, int64_t end);
void plain_columns(const Deform&, int64_t begin, int64_t end);
void doubling(const Doubling&, int64_t begin, int64_t end);
void winograd_input(const Winograd&, int64_t begin, int64_t end);
void winograd_output(const Winograd&, int64_t begin, int64_t end);

}  // namespace HIDA_ISA
}  // namespace hida
