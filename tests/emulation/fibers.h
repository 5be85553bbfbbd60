// The threads of the blocks at work, each on a stack of its own.
#pragma once

#include "cuda.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define HIDA_ASAN(call) call
#else
#define HIDA_ASAN(call)
#endif

namespace emulation {

// Makes `thread` current and lets it run until it waits or has gone.
void resume(Thread& thread);
// Of a thread: back to where it was resumed.
void pause();
// What a thread does: the kernel; at the end it has gone. (cuda.cpp)
void run_current();

}  // namespace emulation
