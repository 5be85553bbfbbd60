// deform_conv2d on CPU tensors: checks, memory, threads.
#include <tuple>

#include "../cpu/kernels.h"
#include "deformation.h"

namespace hida {
namespace {

int64_t count_blocks(const Deform& d) {
  const int64_t per_group = d.in.c / d.groups, per_deformable = d.in.c / d.deformable;
  int64_t blocks = 0;
  for (int64_t c = 0; c < d.in.c;) {
    const int64_t a = (c / per_group + 1) * per_group, b = (c / per_deformable + 1) * per_deformable;
    const int64_t end = a < b ? a : b;
    blocks += (end - c + kBlock - 1) / kBlock;
    c = end;
  }
  return blocks;
}

// The weights contiguous and in the computing type; `keep` owns them.
const void* plain_weight(const Tensor& weight, bool wide, Tensor& keep) {
  keep = weight;
  const ScalarType type = wide ? ScalarType::Double : ScalarType::Float;
  if (keep.scalar_type() != type) keep = torch::stable::to(keep, type);
  if (!keep.is_contiguous()) keep = torch::stable::contiguous(keep);
  return keep.const_data_ptr();
}

Deform describe(const Tensor& x, const Tensor& offset, const Tensor& weight, const Tensor* bias, const Pair& stride,
                const Pair& padding, const Pair& dilation, const std::optional<Tensor>& mask) {
  Deform d = describe_convolution(x, offset, weight, bias, stride, padding, dilation, mask);
  d.blocks = count_blocks(d);
  d.parts = d.blocks >= 16 ? 1 : 16 / d.blocks;
  if (d.parts > d.in.n) d.parts = d.in.n > 0 ? d.in.n : 1;
  return d;
}

// The weights' gradient of each part of the batch, (parts, ...), to one.
Tensor add_parts(Tensor& parts, int64_t count) {
  if (count == 1) return torch::stable::select(parts, 0, 0);
  const int64_t axis = 0;
  return torch::stable::sum(parts, std::vector<int64_t>{axis});
}

Tensor deform_conv2d(const Tensor& x, const Tensor& offset, const Tensor& weight, const std::optional<Tensor>& bias,
                     const Pair& stride, const Pair& padding, const Pair& dilation, const std::optional<Tensor>& mask) {
  Deform d = describe(x, offset, weight, bias ? &*bias : nullptr, stride, padding, dilation, mask);
  Tensor y = in_large_pages(new_empty(x, {d.out.n, d.out.c, d.out.h, d.out.w}));
  if (y.numel() == 0) return y;
  Tensor keep;
  d.weight = plain_weight(weight, d.wide, keep);
  d.y = image_of("y", y, d.out, true);
  Tensor blocked = new_empty(x, {d.in.n * d.blocks * (d.in.pixels() + 1) * kBlock}, computing(d));
  d.blocked = blocked.mutable_data_ptr();
  const int64_t pixels = d.out.n * d.out.pixels(), work = d.in.c / d.groups * d.taps() * d.out.c;
  for_items(d.in.n * d.blocks, d.in.pixels() * kBlock,
            [&](int64_t begin, int64_t end) { kernels().deform_rearrange(d, begin, end); });
  if (pixels <= kPixelsAtATime) {
    Tensor columns = new_empty(x, {d.in.c * d.taps() * kPixelsAtATime}, computing(d));
    d.columns = columns.mutable_data_ptr();
    for_items(d.blocks, kBlock * d.taps() * kPixelsAtATime,
              [&](int64_t begin, int64_t end) { kernels().deform_columns(d, begin, end); });
    for_items((d.out.c + kRowsAtATime - 1) / kRowsAtATime, work / d.out.c * kRowsAtATime,
              [&](int64_t begin, int64_t end) { kernels().deform_product(d, begin, end); });
  } else {
    for_items((pixels + kPixelsAtATime - 1) / kPixelsAtATime, work,
              [&](int64_t begin, int64_t end) { kernels().deform_tiles(d, begin, end); });
  }
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> deform_conv2d_backward(const Tensor& grad, const Tensor& x,
                                                                  const Tensor& offset, const Tensor& weight,
                                                                  const Pair& stride, const Pair& padding,
                                                                  const Pair& dilation,
                                                                  const std::optional<Tensor>& mask, int64_t wanted) {
  Deform d = describe(x, offset, weight, nullptr, stride, padding, dilation, mask);
  require_shape("grad", grad, {{d.out.n, d.out.c, d.out.h, d.out.w}});
  DeformGradients to(d, x, offset, mask, {d.parts, d.out.c, d.in.c / d.groups, d.kernel_h, d.kernel_w}, wanted);
  const auto results = [&]() -> std::tuple<Tensor, Tensor, Tensor, Tensor> {
    return {to.dx, to.doffset, wants(wanted, 2) ? add_parts(to.dweight, d.parts) : to.dweight, to.dmask};
  };
  if (grad.numel() == 0) {
    to.zero();
    return results();
  }
  Tensor keep, partial = absent(x);
  d.weight = plain_weight(weight, d.wide, keep);
  d.grad = image_of("grad", grad, d.out);
  to.describe(d);
  if (d.doffset.data != nullptr || d.dmask.data != nullptr) {
    partial = new_empty(x, {d.blocks * 3 * d.taps() * d.out.n * d.out.pixels()}, computing(d));
    d.dsampling = partial.mutable_data_ptr();
  }
  for_items(d.parts * d.blocks, kBlock * d.taps() * d.out.pixels() * d.out.c,
            [&](int64_t begin, int64_t end) { kernels().deform_backward(d, begin, end); });
  if (d.dsampling != nullptr)
    for_items(d.out.n * d.deformable * d.taps(), d.out.pixels() * d.blocks * 3,
              [&](int64_t begin, int64_t end) { kernels().deform_sum_samples(d, begin, end); });
  return results();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hida, CPU, m) {
  m.impl("deform_conv2d", TORCH_BOX(&deform_conv2d));
  m.impl("deform_conv2d_backward", TORCH_BOX(&deform_conv2d_backward));
}

}  // namespace hida
