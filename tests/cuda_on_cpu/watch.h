// What the watch over the accesses of threads knows of them, and of the memory that is theirs.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <vector>

#include "fiber.h"

namespace simulator {

inline constexpr unsigned kMaxThreads = 1024;

// The thread that runs, and the time: counted in barriers, through all blocks of all launches. A block's time is that
// of its last barrier.
struct Running {
  int thread = -1;  // of its cluster; negative where none runs
  int block_threads = 1;
  const Fiber* fiber = nullptr;
  uint32_t warp_barriers = 0;                           // __syncwarps of all lanes of its warp since the block began
  uint32_t now = 1, launch_began = 0, block_began = 0;  // 0 stands for never
  uint32_t cluster_barrier = 0;                         // when its cluster had the last one of all blocks
};
extern Running running;

// Whether launches are watched, and their threads run in random order; otherwise at the speed of the machine, one block
// and mostly one warp after the other.
extern bool watching;

// Ends the launch with a message and the place of the running thread.
[[noreturn]] void fail(const char* format, ...);

// Who touched a byte last, and when.
struct Access {
  uint32_t time = 0;  // 0: never
  uint16_t warp_barriers = 0;
  int16_t thread = 0;

  bool operator==(const Access&) const = default;
};
struct Byte {
  Access write, read;

  bool operator==(const Byte&) const = default;
};

// Memory that threads may use, to the byte.
struct Range {
  enum class Kind { kGlobal, kShared, kConstant };

  uintptr_t begin;
  size_t size;
  Kind kind;
  bool written;           // all of it; otherwise what no thread has written must not be read
  Byte* bytes = nullptr;  // once a thread has touched it

  uintptr_t end() const { return begin + size; }
  bool has(uintptr_t address, size_t count) const {
    return address - begin < size && count <= size - (address - begin);
  }
};

// The memory of the device that a call of a binding uses, until it ends.
class DeviceMemory {
 public:
  ~DeviceMemory() { clear(); }
  // Fresh memory, which nothing has written.
  void add_fresh(const void* data, size_t bytes);
  // What a tensor covers, with its values; unless it is known already.
  void add(const void* data, size_t bytes);
  // What else than a kernel has written.
  void mark_written(const void* data, size_t bytes);
  bool has(const void* data, size_t bytes) { return range_of(data, bytes) != nullptr; }
  void clear();

  std::vector<Range> ranges;  // disjoint

 private:
  Range* range_of(const void* data, size_t bytes);
  void remove_what_overlaps(uintptr_t begin, uintptr_t end);
};
// That of the call that this thread makes.
DeviceMemory& device_memory();

// A launch begins: the dynamic shared memory of each block of a cluster, `apart` bytes from one to the next, and the
// arguments of its kernel, which threads only read.
void begin_watch(unsigned char* dynamic_shared, size_t bytes, unsigned blocks, size_t apart, const void* call,
                 size_t call_bytes);
void end_watch();

}  // namespace simulator
