// deform_conv2d on a CUDA device: what the operator asks for, and how it is done there.
#pragma once

#include "launch.h"

namespace hida {
namespace cuda {

// Deform, with contiguous weights of any dtype. Columns are rounded to `math` before they are
// multiplied; sums and coordinates are float, or double where `math` is f64.
struct Convolution : Deform {
  Dtype weight_dtype = Dtype::f32;
  Dtype math = Dtype::f32;  // f64 where `wide`, else the dtype of x
  bool tf32 = false;        // float products may use TF32
};

// How a convolution is done, and the memory it takes. Large maps: images are done `images` at a time, so that what is
// rearranged stays near the chip; columns are in shared memory only. Few and small planes: columns are written out
// once, and the weights, all the traffic that matters, are read once, in place.
struct DeformPlan {
  bool tiny = false;
  int64_t images = 1;
  int64_t images_of_dx = 1;              // backward, dx has lots of its own
  int64_t splits = 1;                    // of the sums over columns, forward; over pixels, for the weights' gradient
  int rows = 64;                         // output channels of a block's tile
  int64_t bytes = 0;                     // of workspace
  int piece = 1, padded = 1;             // channels that share a group and a deformable group; padded to whole vectors
  int grad_padded = 1;                   // output channels of a group, padded
  bool pack_x = true, pack_grad = true;  // false where they are channels last and aligned already
};

constexpr int64_t kWorkspaceAlign = 256;

struct Choice {
  enum Path : int { automatic, tiny, large } path = automatic;
  int64_t budget = int64_t(32) << 20;  // bytes of workspace to aim at, at most; see aim_of
};

DeformPlan plan_forward(const Convolution&, const Launch&, const Choice&);
DeformPlan plan_backward(const Convolution&, const Launch&, const Choice&);
// `workspace`: DeformPlan::bytes, aligned to kWorkspaceAlign. The gradients whose pointers are null are left out;
// dweight is (C_out, C_in/groups, kh, kw) of float, or double where `wide`.
void deform_forward(const Convolution&, const DeformPlan&, void* workspace, const Launch&);
void deform_backward(const Convolution&, const DeformPlan&, void* workspace, const Launch&);

}  // namespace cuda
}  // namespace hida
