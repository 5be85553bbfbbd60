// Schemas of the native operators. `wanted` is a sum of 1 (first gradient), 2 (second), 4 ... in the order in which a
// backward operator returns them; a gradient that is not wanted comes back empty, of shape (0).
// Gradients of smaller operands come back as partial sums, (N, C) in the computing type, for the caller to add up.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(hida, m) {
  m.def("info_acon(Tensor x, Tensor logits, Tensor p1, Tensor p2) -> Tensor");
  m.def(
      "info_acon_backward(Tensor grad, Tensor x, Tensor logits, Tensor p1, Tensor p2, int wanted)"
      " -> (Tensor, Tensor, Tensor, Tensor)");
  // residual: 0 none, 1 activated, 2 input. Also returns mean and 1/√(var + eps), (N, C).
  m.def(
      "ida(Tensor h, Tensor logits, Tensor gamma, Tensor beta, Tensor p1, Tensor p2, int residual, float eps)"
      " -> (Tensor, Tensor, Tensor)");
  m.def(
      "ida_backward(Tensor grad, Tensor h, Tensor logits, Tensor gamma, Tensor p1, Tensor p2, Tensor mean,"
      " Tensor rstd, int residual, int wanted) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "instance_norm_modulate(Tensor x, Tensor gamma, Tensor beta, Tensor? residual, float eps)"
      " -> (Tensor, Tensor, Tensor)");
  m.def(
      "instance_norm_modulate_backward(Tensor grad, Tensor x, Tensor gamma, Tensor mean, Tensor rstd, int wanted)"
      " -> (Tensor, Tensor)");
  // Instance norm between two leaky ReLUs of slopes `before` and `after`, 1 for none; channels_last. Also returns mean
  // and 1/√(var + eps), (N, C).
  m.def("leaky_norm(Tensor x, float before, float after, float eps) -> (Tensor, Tensor, Tensor)");
  m.def("leaky_norm_backward(Tensor grad, Tensor x, Tensor mean, Tensor rstd, float before, float after) -> Tensor");
  // Sums of the planes of a channels_last tensor, (N, C) in the computing type; CPU.
  m.def("plane_sums(Tensor x) -> Tensor");
  // Convolution 4×4 to one channel, of stride 1 and padding 2 or transposed, of stride 2 and padding 1; weight (C, 16)
  // and bias float32, x channels_last; CPU. The weight's gradient comes in parts, (·, C, 16), to be added up.
  m.def("to_one(Tensor x, Tensor weight, Tensor? bias, bool transposed) -> Tensor");
  m.def("to_one_backward(Tensor grad, Tensor x, Tensor weight, bool transposed, int wanted) -> (Tensor, Tensor)");
  // Convolutions bound by reading their weights: few pixels, or one output channel. CPU, float32, no gradient.
  m.def("conv2d(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] padding) -> Tensor");
  m.def("conv_transpose2d(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  m.def(
      "deform_conv2d(Tensor x, Tensor offset, Tensor weight, Tensor? bias, int[] stride, int[] padding,"
      " int[] dilation, Tensor? mask) -> Tensor");
  m.def(
      "deform_conv2d_backward(Tensor grad, Tensor x, Tensor offset, Tensor weight, int[] stride, int[] padding,"
      " int[] dilation, Tensor? mask, int wanted) -> (Tensor, Tensor, Tensor, Tensor)");
}
