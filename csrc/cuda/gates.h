// Numbers from one block of a cluster to another, which a barrier of the receiver (mbarrier) counts. Unlike the
// cluster's own barrier it waits for no other store, and makes no fence of the whole memory.
//   What is sent to a block must have come before it ends, and before it is sent something else in the same place.
#pragma once

#include "device.h"

namespace hida {
namespace cuda {

// The barrier of a cluster, which says nothing about memory: all its blocks have begun.
#if defined(HIDA_EMULATE_CUDA)
HIDA_DEVICE void cluster_arrive() {}
HIDA_DEVICE void cluster_wait(int line = __builtin_LINE()) {
  emulation::cluster_barrier(line);
}
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
HIDA_DEVICE void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
HIDA_DEVICE void cluster_wait() {
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
}
#else  // a block on its own; never called
HIDA_DEVICE void cluster_arrive() {}
HIDA_DEVICE void cluster_wait() {}
#endif

// A barrier that counts bytes; a store to the shared memory of a block of the cluster, which its barrier counts; to
// expect so many in this round, by one thread; to wait for them, by all.
#if defined(HIDA_EMULATE_CUDA)
HIDA_DEVICE void gate_open(int64_t* gate) {
  *gate = 0;
}
HIDA_DEVICE void gates_ready() {}
HIDA_DEVICE void gate_send(float* own, int64_t* gate, unsigned rank, float value) {
  *reinterpret_cast<float*>(emulation::in_cluster(own, rank)) = value;
  *reinterpret_cast<int64_t*>(emulation::in_cluster(gate, rank)) += 4;
}
HIDA_DEVICE void gate_expect(int64_t* gate, unsigned bytes) {
  *gate -= bytes;
}
HIDA_DEVICE void gate_wait(int64_t* gate, unsigned, int line = __builtin_LINE()) {
  emulation::cluster_barrier(line);
  if (*gate != 0) emulation::fail("line %d: %d bytes too many have come", line, int(*gate));
}
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
HIDA_DEVICE uint32_t shared_address(const void* own) {
  return uint32_t(__cvta_generic_to_shared(own));
}
HIDA_DEVICE uint32_t address_in(uint32_t own, unsigned rank) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(own), "r"(rank));
  return there;
}
HIDA_DEVICE void gate_open(int64_t* gate) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(gate)) : "memory");
}
HIDA_DEVICE void gates_ready() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
HIDA_DEVICE void gate_send(float* own, int64_t* gate, unsigned rank, float value) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(
                   address_in(shared_address(own), rank)),
               "f"(value), "r"(address_in(shared_address(gate), rank))
               : "memory");
}
HIDA_DEVICE void gate_expect(int64_t* gate, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(gate)), "r"(bytes)
               : "memory");
}
HIDA_DEVICE void gate_wait(int64_t* gate, unsigned parity) {
  asm volatile(
      "{.reg .pred done;\n"
      "again:\n"
      " mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      " @!done bra again;}" ::"r"(shared_address(gate)),
      "r"(parity)
      : "memory");
}
#else  // a block on its own; never called
HIDA_DEVICE void gate_open(int64_t*) {}
HIDA_DEVICE void gates_ready() {}
HIDA_DEVICE void gate_send(float*, int64_t*, unsigned, float) {}
HIDA_DEVICE void gate_expect(int64_t*, unsigned) {}
HIDA_DEVICE void gate_wait(int64_t*, unsigned) {}
#endif

}  // namespace cuda
}  // namespace hida
