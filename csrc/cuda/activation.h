// InfoACON of a pack, shared by info_acon and ida.
#pragma once

#include "plane_map.h"

namespace hida {
namespace cuda {

// The slopes of one plane, and its θ = σ(logits): one number, or packs of logits.
template <class Real, bool Vector>
struct Activation {
  Real slope, base, one;
  bool uniform;
  Plane logits;

  HIDA_DEVICE Activation(const Image& logits_, const Image& p1, const Image& p2, const Extent& e, const ThreadWork& s,
                         bool present = true)
      : slope(0), base(0), one(0), uniform(logits_.row == 0 && logits_.step == 0), logits(logits_, e, s.n, s.c) {
    if (!present) return;
    base = read_one<Real>(p2, s.n, s.c);
    slope = read_one<Real>(p1, s.n, s.c) - base;
    if (uniform) one = sigmoid<Elementary>(read_one<Real>(logits_, s.n, s.c));
  }

  HIDA_DEVICE Pack<Real, Vector> load(const Pixels<Real, Vector>& pixels) const {
    return uniform ? Pack<Real, Vector>() : Pack<Real, Vector>(logits, pixels);
  }
  HIDA_DEVICE void theta(const Pack<Real, Vector>& pack, Real (&v)[kPack<Real>]) const {
    pack.unpack(logits.dtype, v);
#pragma unroll
    for (int k = 0; k < kPack<Real>; ++k) v[k] = uniform ? one : sigmoid<Elementary>(v[k]);
  }
};

}  // namespace cuda
}  // namespace hida
