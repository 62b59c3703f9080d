// What the watch over the accesses of threads knows of them, and what it is told. watch.cpp is the one that this
// simulator is for; without_watch.cpp watches nothing.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "fiber.h"

namespace simulator {

inline constexpr unsigned kMaxThreads = 1024;

// The thread that runs, and the time: counted in block barriers, through all blocks of all launches.
struct Running {
  int thread = -1;  // of its block; negative where none runs
  const Fiber* fiber = nullptr;
  uint32_t warp_barriers = 0;                           // __syncwarps of all lanes of its warp since the block began
  uint32_t now = 1, launch_began = 0, block_began = 0;  // 0 stands for never
};
extern Running running;

// Ends the process with a message and the place of the running thread.
[[noreturn]] void fail(const char* format, ...);

// A stack is about to be used anew; what ran on it before never returned.
void watch_stack(void* stack, size_t bytes);
// The dynamic shared memory of the launch at hand, with at least 16 bytes of nobody's behind it; null after it.
void watch_dynamic_shared(unsigned char* memory, size_t bytes);

}  // namespace simulator
