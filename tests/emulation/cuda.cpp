// The barriers and the shared memory behind cuda.h.
#include "cuda.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "fibers.h"

namespace emulation {

constexpr size_t kFixed = 128 << 10, kCluster = 16, kGap = 32;

// ---- state ------------------------------------------------------------------------------------------------------

struct Warp {
  unsigned exists = 0, arrived = 0, gone = 0;
  unsigned mask[kWarp] = {};
  size_t bytes[kWarp] = {};
  Thread* lanes[kWarp] = {};
  alignas(16) char pending[kWarp][kSlot];
  alignas(16) char shown[kWarp][kSlot];
};

struct Meeting {  // at a barrier
  unsigned waiting = 0;
  int line = 0;
};

struct Block {
  uint3 index;
  unsigned rank;
  Meeting meeting;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  char* dynamic;
};

Thread* current = nullptr;
Chip chip;
int usual;
Rough rough;

namespace {

struct Running {
  dim3 grid, block;
  unsigned cluster = 1;
  size_t shared = 0;
  void (*body)(void*) = nullptr;
  void* argument = nullptr;
  std::vector<Block> blocks;  // of this cluster
  Meeting meeting;
} running;

struct Launches {
  int count, cluster, shared;
} launches;
std::mutex one_at_a_time;
std::mt19937 generator{1};

// Fixed shared memory: the same offsets in the block of every rank, gaps between the arrays.
struct Fixed {
  char* memory;
  size_t used = 0;
  Fixed() : memory(static_cast<char*>(std::aligned_alloc(128, kFixed * kCluster))) {
    HIDA_ASAN(__asan_poison_memory_region(memory, kFixed * kCluster));
  }
};
Fixed& arena() {
  static Fixed fixed;
  return fixed;
}

void wait(Thread::State state, int line) {
  current->state = state;
  current->line = line;
  pause();
}

std::vector<unsigned> order_of(unsigned count) {
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0u);
  if (chip.order == 1) std::reverse(order.begin(), order.end());
  if (chip.order == 2) std::shuffle(order.begin(), order.end(), generator);
  return order;
}

// Let threads run until each waits for something that this warp cannot give; say whether any ran.
bool run_warp(Warp& warp, const std::vector<unsigned>& lanes) {
  bool any = false;
  for (bool moved = true; moved;) {
    moved = false;
    for (unsigned lane : lanes) {
      Thread* thread = warp.lanes[lane];
      if (thread == nullptr || thread->state != Thread::ready) continue;
      resume(*thread);
      moved = any = true;
    }
  }
  return any;
}

[[noreturn]] void stuck() {
  for (const Block& block : running.blocks)
    for (const Thread& t : block.threads)
      if (t.state != Thread::gone)
        fail("block (%u, %u, %u): thread (%u, %u, %u) waits on line %d for threads that never come there",
             block.index.x, block.index.y, block.index.z, t.index.x, t.index.y, t.index.z, t.line);
  std::abort();
}

}  // namespace

void run_current() {
  running.body(running.argument);
  current->warp->gone |= 1u << current->lane;
  current->state = Thread::gone;
}

// ---- what kernels call ------------------------------------------------------------------------------------------

void fail(const char* format, ...) {
  std::va_list arguments;
  va_start(arguments, format);
  std::fputs("CUDA emulation: ", stderr);
  std::vfprintf(stderr, format, arguments);
  std::fputs("\n", stderr);
  std::fflush(stderr);
  std::abort();
}

uint3 block_index() {
  return current->block->index;
}
dim3 block_size() {
  return running.block;
}
dim3 grid_size() {
  return running.grid;
}
unsigned cluster_rank() {
  return current->block->rank;
}
unsigned cluster_size() {
  return running.cluster;
}

namespace {

// The last one to come frees all.
void meet(Meeting& meeting, Thread::State state, unsigned threads, Block* first, Block* last, int line) {
  if (meeting.waiting == 0) meeting.line = line;
  if (meeting.line != line) fail("threads wait at barriers of lines %d and %d", meeting.line, line);
  if (++meeting.waiting < threads) return wait(state, line);
  meeting.waiting = 0;
  for (Block* block = first; block != last; ++block)
    for (Thread& thread : block->threads) thread.state = Thread::ready;
}

}  // namespace

void barrier(int line) {
  Block& block = *current->block;
  meet(block.meeting, Thread::at_block, unsigned(block.threads.size()), &block, &block + 1, line);
}

void cluster_barrier(int line) {
  std::vector<Block>& blocks = running.blocks;
  meet(running.meeting, Thread::at_cluster, unsigned(blocks.size() * blocks[0].threads.size()), blocks.data(),
       blocks.data() + blocks.size(), line);
}

const char* gather(unsigned mask, const void* value, size_t bytes, int line) {
  Warp& warp = *current->warp;
  const unsigned lane = current->lane;
  if (!(mask >> lane & 1)) fail("line %d: lane %u is not in the mask %08x that it gives", line, lane, mask);
  if (mask & ~warp.exists) fail("line %d: mask %08x names lanes that the block does not have", line, mask);
  if (mask & warp.gone) fail("line %d: mask %08x names lanes that have left", line, mask);
  if (bytes > 0) std::memcpy(warp.pending[lane], value, bytes);
  warp.mask[lane] = mask;
  warp.bytes[lane] = bytes;
  current->line = line;
  warp.arrived |= 1u << lane;
  if ((warp.arrived & mask) != mask) {
    wait(Thread::at_warp, line);
    return warp.shown[0];
  }
  for (unsigned other = 0; other < kWarp; ++other) {
    if (!(mask >> other & 1)) continue;
    Thread& thread = *warp.lanes[other];
    if (warp.mask[other] != mask || thread.line != line || warp.bytes[other] != bytes)
      fail("lanes %u and %u of a warp wait on lines %d and %d, with masks %08x and %08x", lane, other, line,
           thread.line, mask, warp.mask[other]);
    std::memcpy(warp.shown[other], warp.pending[other], bytes);
    thread.state = Thread::ready;
  }
  warp.arrived &= ~mask;
  return warp.shown[0];
}

size_t reserve(size_t bytes, size_t align) {
  Fixed& fixed = arena();
  const size_t offset = (fixed.used + align - 1) / align * align;
  fixed.used = offset + bytes + kGap;
  if (fixed.used > kFixed) fail("too many shared arrays; enlarge kFixed");
  for (size_t rank = 0; rank < kCluster; ++rank) {
    char* at = fixed.memory + rank * kFixed + offset;
    HIDA_ASAN(__asan_unpoison_memory_region(at, bytes));
    std::memset(at, 0xff, bytes);
  }
  return offset;
}
char* fixed(size_t offset) {
  return arena().memory + current->block->rank * kFixed + offset;
}
char* dynamic() {
  return current->block->dynamic;
}
char* in_cluster(void* own, unsigned rank) {
  if (rank >= running.cluster) fail("there is no block %u in a cluster of %u", rank, running.cluster);
  char* at = static_cast<char*>(own);
  Block& block = *current->block;
  char* base = arena().memory + block.rank * kFixed;
  if (at >= base && at < base + kFixed) return arena().memory + rank * kFixed + (at - base);
  if (at >= block.dynamic && at < block.dynamic + running.shared)
    return running.blocks[rank].dynamic + (at - block.dynamic);
  fail("not an address in shared memory");
}

namespace {

__attribute__((no_sanitize("address"))) void poison_fixed(unsigned cluster) {
  // Not memset, which the sanitizer would stop at the gaps.
  for (unsigned rank = 0; rank < cluster; ++rank) {
    volatile uint64_t* at = reinterpret_cast<volatile uint64_t*>(arena().memory + rank * kFixed);
    for (size_t i = 0; i < (arena().used + 7) / 8; ++i) at[i] = ~uint64_t(0);
  }
}

void run_cluster(unsigned first) {
  const dim3 size = running.block;
  const unsigned threads = size.x * size.y * size.z, warps = (threads + kWarp - 1) / kWarp;
  poison_fixed(running.cluster);
  running.meeting = {};
  for (Block& block : running.blocks) {
    const unsigned flat = first + block.rank;
    block.index = {flat % running.grid.x, flat / running.grid.x % running.grid.y,
                   flat / running.grid.x / running.grid.y};
    if (running.shared > 0) std::memset(block.dynamic, 0xff, running.shared);
    block.meeting = {};
    for (Warp& warp : block.warps) warp.exists = warp.arrived = warp.gone = 0;
    for (unsigned t = 0; t < threads; ++t) {
      Thread& thread = block.threads[t];
      Warp& warp = block.warps[t / kWarp];
      thread = {
          {t % size.x, t / size.x % size.y, t / size.x / size.y}, t % kWarp, &warp, &block, nullptr, Thread::ready, 0};
      warp.lanes[t % kWarp] = &thread;
      warp.exists |= 1u << (t % kWarp);
    }
  }
  const std::vector<unsigned> lanes = order_of(kWarp), order = order_of(warps), ranks = order_of(running.cluster);
  for (bool moved = true; moved;) {
    moved = false;
    for (unsigned rank : ranks)
      for (unsigned warp : order) moved |= run_warp(running.blocks[rank].warps[warp], lanes);
  }
  for (const Block& block : running.blocks)
    for (const Thread& thread : block.threads)
      if (thread.state != Thread::gone) stuck();
}

}  // namespace

void run(const void* kernel, dim3 grid, dim3 block, size_t shared, unsigned cluster, void (*body)(void*),
         void* argument) {
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  const unsigned threads = block.x * block.y * block.z;
  if (threads == 0 || threads > 1024 || block.z > 64) fail("a block of %u threads", threads);
  if (grid.x == 0 || grid.x > 0x7fffffffu || grid.y == 0 || grid.y > 65535 || grid.z == 0 || grid.z > 65535)
    fail("a grid of %u x %u x %u blocks", grid.x, grid.y, grid.z);
  if (shared > size_t(chip.shared)) fail("%zu bytes of shared memory; the chip has %d", shared, chip.shared);
  const Asked asked = asked_of(kernel);
  if (asked.times == 0) fail("a kernel that was not loaded before its launch");
  if (shared > size_t(asked.most)) fail("%zu bytes of shared memory; the kernel may have %d", shared, asked.most);
  if (cluster == 0 || cluster > kCluster || grid.x % cluster != 0) fail("a cluster of %u blocks", cluster);
  if (cluster > 1 && chip.capability < 90) fail("clusters need compute capability 9.0");
  ++launches.count;
  launches.cluster = std::max(launches.cluster, int(cluster));
  launches.shared = std::max(launches.shared, int(shared));
  running.grid = grid;
  running.block = block;
  running.shared = shared;
  running.cluster = cluster;
  running.body = body;
  running.argument = argument;
  running.blocks.resize(cluster);
  std::vector<std::unique_ptr<char[]>> memory;  // of the exact size, so that the sanitizer sees the end
  for (unsigned rank = 0; rank < cluster; ++rank) {
    memory.emplace_back(new char[shared > 0 ? shared : 1]);
    Block& one = running.blocks[rank];
    one.rank = rank;
    one.dynamic = memory.back().get();
    one.threads.resize(threads);
    one.warps.resize((threads + kWarp - 1) / kWarp);
  }
  for (unsigned first : order_of(grid.x * grid.y * grid.z / cluster)) run_cluster(first * cluster);
}

}  // namespace emulation

#define HIDA_EXPORT extern "C" __attribute__((visibility("default")))

HIDA_EXPORT void hida_emulation_chip(int capability, int multiprocessors, int shared, int order) {
  emulation::chip = {capability, multiprocessors, shared, order};
}

HIDA_EXPORT void hida_emulation_rough(int how) {
  emulation::rough = emulation::Rough(how);
}

// Of them, those of kernels for usual cases.
HIDA_EXPORT int hida_emulation_usual() {
  return std::exchange(emulation::usual, 0);
}

// Launches since the last call: how many, the largest cluster, the most dynamic shared memory.
HIDA_EXPORT void hida_emulation_launches(int* result) {
  result[0] = emulation::launches.count;
  result[1] = emulation::launches.cluster;
  result[2] = emulation::launches.shared;
  emulation::launches = {};
}
