// What the operators hand to the kernels of either device: plain structs, no torch.
#pragma once

#include <cstdint>

namespace hida {

enum class Dtype : int32_t { f32, f64, bf16, f16 };

// An N,C,H,W tensor in memory. Strides in elements, 0 where it is broadcast. data may be null: absent, not wanted.
struct Image {
  void* data = nullptr;
  Dtype dtype = Dtype::f32;
  int64_t n = 0, c = 0, row = 0, step = 0;
};

struct Extent {
  int64_t n = 0, c = 0, h = 0, w = 0;
  int64_t pixels() const { return h * w; }
};

// What the adaptation works on. `wide`: compute in double.
struct Planes {
  Extent extent;
  bool wide = false, channels_last = false;
};

// info_acon. Sums over planes go to (N, C) arrays of the computing type: float, or double where `wide`.
struct InfoAcon {
  Planes planes;
  Image x, logits, p1, p2;
  Image y;                  // forward
  Image grad, dx, dlogits;  // backward
  void *dlogits_sum = nullptr, *dp1 = nullptr, *dp2 = nullptr;
};

// What is added to the modulated value: nothing, the activation's value, or a tensor.
enum class Residual : int32_t { none, activated, tensor };

// ida, and with `activate` off instance_norm_modulate.
struct Adapt {
  Planes planes;
  bool activate = false;
  Residual residual = Residual::none;
  double eps = 0;
  Image x, logits, p1, p2, gamma, beta, added;  // added: Residual::tensor
  Image y;
  void *mean = nullptr, *rstd = nullptr;  // (N, C), written forward, read backward
  Image grad, dx, dlogits, dgamma;
  bool grad_to_x = false;  // the residual is x itself: its gradient joins dx
  void *dlogits_sum = nullptr, *dp1 = nullptr, *dp2 = nullptr;
};

// Instance norm between two leaky ReLUs, channels_last.
struct LeakyNorm {
  Extent extent;
  bool wide = false;
  double before = 1, after = 1, eps = 0;
  Image x, y, grad, dx;
  void *mean = nullptr, *rstd = nullptr;  // (N, C), written forward, read backward
};

// deform_conv2d. Fields marked CPU are for the kernels there alone.
struct Deform {
  Extent in, out;  // out.c = C_out
  bool wide = false;
  int64_t kernel_h = 1, kernel_w = 1, stride_h = 1, stride_w = 1, pad_h = 0, pad_w = 0, dilation_h = 1, dilation_w = 1;
  int64_t groups = 1, deformable = 1;
  int64_t blocks = 0;              // CPU: of at most kBlock channels, see cpu/deform_sampling.h
  int64_t parts = 1;               // CPU: of the batch, for the backward
  Image x, offset, mask, bias, y;  // mask and bias may be absent; bias has a stride c only
  const void* weight = nullptr;    // contiguous, of the computing type
  void* blocked = nullptr;         // CPU: (N, blocks, H·W + 1, kBlock), x rearranged
  void* columns = nullptr;         // CPU: (C_in·taps, pixels padded to kBlock), for few pixels
  Image grad, dx, doffset, dmask;
  void* dweight = nullptr;    // of the computing type; CPU: for each part
  void* dsampling = nullptr;  // CPU: (blocks, 3, taps, N·H_out·W_out): row, column, mask
  int64_t taps() const { return kernel_h * kernel_w; }
};

}  // namespace hida
