// What ida's kernels of both directions know of a plane: its activation, x and γ.
#pragma once

#include <initializer_list>

#include "activation.h"

namespace hida {
namespace cuda {

template <class Real, bool Vector>
struct Adapted {
  const Adapt& a;
  const bool activate;
  const Activation<Real, Vector> plane;
  const Plane x, gamma;

  HIDA_DEVICE Adapted(const Adapt& a_, const ThreadWork& s)
      : a(a_),
        activate(a_.activate),
        plane(a_.logits, a_.p1, a_.p2, a_.planes.extent, s, a_.activate),
        x(a_.x, a_.planes.extent, s.n, s.c),
        gamma(a_.gamma, a_.planes.extent, s.n, s.c) {}
  HIDA_DEVICE Pack<Real, Vector> load_logits(const Pixels<Real, Vector>& pixels) const {
    return activate ? plane.load(pixels) : Pack<Real, Vector>();
  }
};

// ---- on the host ------------------------------------------------------------------------------------------------

constexpr int kStagedThreads = 256;
// Shared memory that a block takes besides: the sums of add_up, and a kilobyte of the chip's own.
constexpr int64_t kOwnShared = 1 << 10;
constexpr int64_t reserved_for(bool vector) {
  return kOwnShared + (vector ? 1 << 10 : 11 << 10);
}
static_assert((2 + 3) * kPlaneThreads * int(sizeof(float)) + 256 <= 11 << 10,
              "two calls of add_up, of two and three sums");

// How many blocks share a plane of which each thread has a pack at a time in `steps`: `least` or more, more where
// planes are too few for the chip.
inline int cluster_for(const Extent& e, int64_t steps, int64_t least, const Launch& l) {
  int cluster = 1;
  while (cluster < l.cluster && steps > cluster && (cluster < least || e.n * e.c * cluster < l.multiprocessors))
    cluster *= 2;
  return cluster;
}

// A map of planes that the blocks of a cluster share: every one of them runs, if only for the barriers.
inline Map cluster_map(const Planes& p, int64_t steps, int cluster) {
  Map m = map_of(p, false, kStagedThreads, (steps + cluster - 1) / cluster, cluster);
  m.blocks = m.blocks / m.chunks * cluster;
  m.chunks = cluster;
  return m;
}

// The blocks of a cluster that keep `bytes` of each step of a plane in shared memory: so that `blocks` of them share a
// multiprocessor, if that is possible; 0: that is not possible at all.
inline int staging_cluster(const Extent& e, int64_t steps, int64_t bytes, int blocks, bool vector, const Launch& l) {
  const auto least = [&](int sharing) {
    const int64_t most = ((l.shared + kOwnShared) / sharing - reserved_for(vector)) / bytes;  // steps of a block
    return most > 0 ? (steps + most - 1) / most : INT64_MAX;
  };
  const int cluster = cluster_for(e, steps, least(blocks), l);
  return cluster >= least(1) ? cluster : 0;
}

}  // namespace cuda
}  // namespace hida
