#include "fibers.h"

#include <sys/mman.h>

#include <memory>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulation {

constexpr size_t kStack = 256 << 10, kGuard = 4096;

// ---- changing the stack -----------------------------------------------------------------------------------------

#if defined(__x86_64__)
extern "C" void hida_emulation_switch(void** save, void* load);
asm(R"(
.text
.type hida_emulation_switch, @function
.globl hida_emulation_switch
.hidden hida_emulation_switch
hida_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size hida_emulation_switch, .-hida_emulation_switch
)");
using Context = void*;
void change(Context& save, Context& load) {
  hida_emulation_switch(&save, load);
}
void prepare(Context& context, char* stack, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + kStack);
  *--top = nullptr;  // where entry would return to; also aligns the stack as a call would
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context = top;
}
#else
using Context = ucontext_t;
void change(Context& save, Context& load) {
  swapcontext(&save, &load);
}
void prepare(Context& context, char* stack, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = kStack;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}
#endif

// ---- fibers -----------------------------------------------------------------------------------------------------

struct Fiber {
  Context context{};
  char* stack = nullptr;
  void* fake = nullptr;
};

namespace {

std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Fiber*> idle;
Context scheduler;
[[maybe_unused]] void* scheduler_fake = nullptr;
[[maybe_unused]] const void* scheduler_stack = nullptr;
[[maybe_unused]] size_t scheduler_size = 0;

void fiber_main() {
  HIDA_ASAN(__sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size));
  for (;;) {
    run_current();
    pause();
  }
}

Fiber* new_fiber() {
  auto fiber = std::make_unique<Fiber>();
  void* memory =
      mmap(nullptr, kStack + kGuard, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) fail("no memory for a thread's stack");
  mprotect(memory, kGuard, PROT_NONE);
  fiber->stack = static_cast<char*>(memory) + kGuard;
  prepare(fiber->context, fiber->stack, &fiber_main);
  fibers.push_back(std::move(fiber));
  return fibers.back().get();
}

}  // namespace

void pause() {
  Fiber& fiber = *current->fiber;
  HIDA_ASAN(__sanitizer_start_switch_fiber(&fiber.fake, scheduler_stack, scheduler_size));
  change(fiber.context, scheduler);
  HIDA_ASAN(__sanitizer_finish_switch_fiber(fiber.fake, nullptr, nullptr));
}

void resume(Thread& thread) {
  if (thread.fiber == nullptr) {
    if (idle.empty()) idle.push_back(new_fiber());
    thread.fiber = idle.back();
    idle.pop_back();
  }
  current = &thread;
  HIDA_ASAN(__sanitizer_start_switch_fiber(&scheduler_fake, thread.fiber->stack, kStack));
  change(scheduler, thread.fiber->context);
  HIDA_ASAN(__sanitizer_finish_switch_fiber(scheduler_fake, nullptr, nullptr));
  if (thread.state == Thread::gone) {
    idle.push_back(thread.fiber);
    thread.fiber = nullptr;
  }
}

}  // namespace emulation
