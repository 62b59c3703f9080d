#include "simulator.h"

#include <sanitizer/asan_interface.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <random>
#include <vector>

#include "cuda_runtime.h"
#include "fiber.h"

dim3 gridDim, blockDim, blockIdx, threadIdx;

// The linker's names for the ends of zero-initialised memory, where __shared__ variables are. The indices above are
// not.
extern "C" unsigned char __bss_start[], _end[];

namespace simulator {
namespace {

constexpr size_t kStackBytes = 64 << 10;
constexpr unsigned kMaxThreads = 1024;

enum class State { kRunnable, kAtBlockBarrier, kAtWarpBarrier, kDone };

struct Thread {
  Fiber fiber;
  State state = State::kDone;
  int line = 0;
  unsigned mask = 0;
};

// Lanes write into the slots of one parity while slow ones still read those of the other.
struct Warp {
  uint32_t barriers = 0;  // __syncwarps of all its lanes since the block began: what orders its accesses to memory
  uint64_t slots[2][kWarp];
  uint8_t parity[kWarp];
};

// Who touched a byte last, and when. Time is counted in block barriers, through all blocks of all launches.
struct Access {
  uint32_t time = 0;  // 0: never
  uint32_t warp_barriers = 0;
  int16_t thread = 0;
};
// In place of a thread: several, which only read, of different warps or all of one.
constexpr int16_t kSeveral = -1;
constexpr int16_t several_of(int warp) { return static_cast<int16_t>(-2 - warp); }
int warp_of(int16_t thread) { return thread >= 0 ? thread / kWarp : -2 - thread; }
struct Byte {
  Access write, read;
};

struct Range {
  uintptr_t begin;
  size_t size;
  bool shared;
  bool initialised;
  std::vector<Byte> bytes;
};

std::mt19937_64 generator;
int planted = 0;
std::vector<Range> ranges;       // of buffers; the first two are static and dynamic shared memory
std::vector<void*> allocations;  // to free
Thread threads[kMaxThreads];
Warp warps[kMaxThreads / kWarp];
std::vector<int> runnable;
Fiber main_fiber;
int thread_count = 0, current = -1, waiting = 0, done = 0;
uint32_t now = 0, launch_began = 0, block_began = 0;
int atomics = 0;
void (*thread_function)(const void*);
const void* thread_closure;
unsigned char* dynamic_memory = nullptr;
std::map<const void*, size_t> asked_shared;  // by kernel

[[noreturn]] void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fprintf(stderr, "; block %u of %u, thread (%u, %u) of (%u, %u)\n", blockIdx.x, gridDim.x, threadIdx.x, threadIdx.y,
          blockDim.x, blockDim.y);
  fflush(stderr);
  _Exit(97);
}

void set_indices(int thread) {
  threadIdx = dim3(thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / (blockDim.x * blockDim.y));
}

void make_runnable(int thread) {
  threads[thread].state = State::kRunnable;
  runnable.push_back(thread);
}

// Leaves the current thread for a random one that can go on; the main fiber takes over where none can.
void run_another() {
  Fiber& from = current < 0 ? main_fiber : threads[current].fiber;
  if (runnable.empty()) {
    current = -1;
    switch_fiber(&from, main_fiber);
    return;
  }
  const size_t chosen = generator() % runnable.size();
  const int next = runnable[chosen];
  runnable[chosen] = runnable.back();
  runnable.pop_back();
  current = next;
  set_indices(next);
  if (&from != &threads[next].fiber) switch_fiber(&from, threads[next].fiber);
}

void run_thread() {
  thread_function(thread_closure);
  threads[current].state = State::kDone;
  ++done;
  run_another();
}

void check_all_done() {
  for (int thread = 0; thread < thread_count; ++thread) {
    const Thread& stuck = threads[thread];
    if (stuck.state == State::kDone) continue;
    set_indices(thread);
    fail("a %s at line %d waits for threads that have ended or wait at another place",
         stuck.state == State::kAtBlockBarrier ? "__syncthreads" : "synchronisation of a warp", stuck.line);
  }
}

void run_block() {
  block_began = ++now;
  waiting = done = 0;
  for (Warp& warp : warps) {
    warp.barriers = 0;
    memset(warp.parity, 0, sizeof(warp.parity));
  }
  for (int thread = 0; thread < thread_count; ++thread) {
    threads[thread].fiber.start(kStackBytes, run_thread);
    make_runnable(thread);
  }
  run_another();
  check_all_done();
}

struct ShadowMapping {
  size_t scale, offset;
  ShadowMapping() { __asan_get_shadow_mapping(&scale, &offset); }
};

Range* range_of(uintptr_t address) {
  for (Range& range : ranges) {
    if (address - range.begin < range.size) return &range;
  }
  return nullptr;
}

// Whether nothing orders an earlier access before one by the current thread.
bool unordered(const Access& earlier, bool shared) {
  if (earlier.time < launch_began) return false;
  if (earlier.time < block_began) return !shared;  // by another block: shared memory is each block's own
  if (earlier.time < now || earlier.thread == current) return false;
  const bool same_warp = warp_of(earlier.thread) == current / kWarp;
  return !same_warp || earlier.warp_barriers == warps[current / kWarp].barriers;
}

// AddressSanitizer has a byte of shadow for 8 of memory, 0 where all of them may be accessed.
bool is_poisoned(uintptr_t address, size_t size) {
  static const ShadowMapping shadow;
  const int8_t* first = reinterpret_cast<const int8_t*>((address >> shadow.scale) + shadow.offset);
  const int8_t* last = reinterpret_cast<const int8_t*>(((address + size - 1) >> shadow.scale) + shadow.offset);
  if (size <= 16 && *first == 0 && *last == 0) return false;
  return __asan_region_is_poisoned(reinterpret_cast<void*>(address), size) != nullptr;
}

void on_access(uintptr_t address, size_t size, bool is_write) {
  if (is_poisoned(address, size)) {
    __asan_describe_address(reinterpret_cast<void*>(address));
    fail("a %s of %zu bytes out of bounds", is_write ? "write" : "read", size);
  }
  if (current < 0 || atomics > 0 || threads[current].fiber.has_on_stack(address)) return;
  Range* range = range_of(address);
  if (range == nullptr) return;
  const char* kind = range->shared ? "shared" : "global";
  if (size <= 16 && address % size != 0) {
    fail("a misaligned %s of %zu bytes of %s memory", is_write ? "write" : "read", size, kind);
  }
  const Access access{now, warps[current / kWarp].barriers, static_cast<int16_t>(current)};
  for (size_t i = address - range->begin; i < address - range->begin + size; ++i) {
    Byte& byte = range->bytes[i];
    if (unordered(byte.write, range->shared)) {
      fail("a race: a %s of %s memory that another thread has written since the last barrier",
           is_write ? "write" : "read", kind);
    }
    if (is_write) {
      if (unordered(byte.read, range->shared)) {
        fail("a race: a write of %s memory that another thread has read since the last barrier", kind);
      }
      byte.write = access;
      continue;
    }
    if (range->shared ? byte.write.time < block_began : !range->initialised && byte.write.time == 0) {
      fail("a read of %s memory that nothing has written", kind);
    }
    const Access earlier = byte.read;
    byte.read = access;
    if (earlier.time != now || earlier.thread == current) continue;
    const int warp = current / kWarp;
    if (warp_of(earlier.thread) != warp) {
      byte.read.thread = kSeveral;
    } else if (earlier.warp_barriers == access.warp_barriers) {
      byte.read.thread = several_of(warp);
    }
  }
}

void wait_for_warp(unsigned mask, int line, bool orders_memory) {
  Thread* lanes = threads + current / kWarp * kWarp;
  const int self = lane();
  if ((mask >> self & 1) == 0) fail("a thread synchronises with a mask %08x that lacks it", mask);
  lanes[self].state = State::kAtWarpBarrier;
  lanes[self].line = line;
  lanes[self].mask = mask;
  for (int other = 0; other < kWarp; ++other) {
    if ((mask >> other & 1) == 0) continue;
    const Thread& thread = lanes[other];
    const bool here = thread.state == State::kAtWarpBarrier && thread.mask == mask && thread.line == line;
    if (!here) {
      run_another();
      return;
    }
  }
  if (orders_memory && mask == 0xffffffffu) ++warps[current / kWarp].barriers;
  for (int other = 0; other < kWarp; ++other) {
    if ((mask >> other & 1) != 0 && other != self) make_runnable(current / kWarp * kWarp + other);
  }
  make_runnable(current);
  run_another();
}

}  // namespace

void seed(uint64_t value) { generator.seed(value); }

void plant(int number) { planted = number; }
bool fault(int number) { return planted == number; }

void* allocate(size_t bytes, size_t offset, bool initialised) {
  if (ranges.empty()) free_all();
  auto* base = static_cast<unsigned char*>(aligned_alloc(256, (bytes + offset + 256) / 256 * 256));
  allocations.push_back(base);
  // Only what was asked for is not poisoned; the rest is redzone, as is all of an empty buffer.
  __asan_poison_memory_region(base, (bytes + offset + 256) / 256 * 256);
  __asan_unpoison_memory_region(base + offset, bytes);
  memset(base + offset, 0xff, bytes);  // NaN in every dtype, should it come out again
  ranges.push_back({reinterpret_cast<uintptr_t>(base + offset), bytes, false, initialised, std::vector<Byte>(bytes)});
  return base + offset;
}

void free_all() {
  for (void* allocation : allocations) free(allocation);
  allocations.clear();
  ranges.clear();
  const auto begin = reinterpret_cast<uintptr_t>(__bss_start);
  const size_t size = reinterpret_cast<uintptr_t>(_end) - begin;
  ranges.push_back({begin, size, true, false, std::vector<Byte>(size)});
  ranges.push_back({0, 0, true, false, {}});
}

void initialise(void* data, size_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(data);
  Range* range = range_of(address);
  if (range == nullptr || address + bytes > range->begin + range->size) refuse("a product beyond the end of a buffer");
  for (size_t i = 0; i < bytes; ++i) range->bytes[address - range->begin + i].write.time = now;
}

void refuse(const char* message) { fail("%s", message); }

bool ask_shared(const void* kernel, size_t bytes) {
  if (bytes > kMaxShared) return false;
  asked_shared[kernel] = bytes;
  return true;
}

bool launch(const void* kernel, size_t shared_bytes, void (*thread)(const void*), const void* closure) {
  thread_count = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
  const uint64_t blocks = gridDim.x;
  if (blocks == 0 || thread_count == 0 || thread_count > static_cast<int>(kMaxThreads)) return false;
  const auto asked = asked_shared.find(kernel);
  if (shared_bytes > (asked == asked_shared.end() ? kUnaskedShared : asked->second)) return false;
  if (gridDim.y != 1 || gridDim.z != 1) return false;
  if (ranges.empty()) free_all();
  thread_function = thread;
  thread_closure = closure;
  const size_t padded = (shared_bytes + 15) / 16 * 16;
  dynamic_memory = static_cast<unsigned char*>(aligned_alloc(16, padded + 16));
  __asan_poison_memory_region(dynamic_memory + shared_bytes, padded + 16 - shared_bytes);
  ranges[1] = {reinterpret_cast<uintptr_t>(dynamic_memory), shared_bytes, true, false, std::vector<Byte>(shared_bytes)};
  launch_began = now + 1;
  std::vector<unsigned> order(blocks);
  for (unsigned block = 0; block < blocks; ++block) order[block] = block;
  std::shuffle(order.begin(), order.end(), generator);
  for (const unsigned block : order) {
    blockIdx = dim3(block, 0, 0);
    run_block();
  }
  free(dynamic_memory);
  ranges[1].size = 0;
  return true;
}

unsigned char* dynamic_shared() { return dynamic_memory; }

int lane() { return current % kWarp; }

void block_barrier(int line) {
  threads[current].state = State::kAtBlockBarrier;
  threads[current].line = line;
  if (++waiting < thread_count) {
    run_another();
    return;
  }
  for (int thread = 0; thread < thread_count; ++thread) {
    if (threads[thread].line != line)
      fail("threads wait at __syncthreads of lines %d and %d", threads[thread].line, line);
    make_runnable(thread);
  }
  waiting = 0;
  ++now;
  run_another();
}

void warp_barrier(unsigned mask, int line) { wait_for_warp(mask, line, true); }

uint64_t exchange_bits(unsigned mask, uint64_t bits, int source, int line) {
  Warp& warp = warps[current / kWarp];
  const int parity = warp.parity[lane()] ^= 1;
  warp.slots[parity][lane()] = bits;
  wait_for_warp(mask, line, false);
  if ((mask >> source & 1) == 0) fail("a shuffle reads lane %d, which its mask %08x lacks", source, mask);
  return warp.slots[parity][source];
}

unsigned vote(unsigned mask, bool predicate, int line) {
  Warp& warp = warps[current / kWarp];
  const int parity = warp.parity[lane()] ^= 1;
  warp.slots[parity][lane()] = predicate;
  wait_for_warp(mask, line, false);
  unsigned result = 0;
  for (int other = 0; other < kWarp; ++other) {
    if ((mask >> other & 1) != 0 && warp.slots[parity][other] != 0) result |= 1u << other;
  }
  return result;
}

Atomic::Atomic() { ++atomics; }
Atomic::~Atomic() { --atomics; }

}  // namespace simulator

// The functions that -fsanitize=address and -fsanitize=thread call at every access, in the place of the compiler's own.
#define CHARLM_ACCESS(size)                                                                           \
  void __asan_load##size(uintptr_t address) { simulator::on_access(address, size, false); }           \
  void __asan_store##size(uintptr_t address) { simulator::on_access(address, size, true); }           \
  void __tsan_read##size(uintptr_t address) { simulator::on_access(address, size, false); }           \
  void __tsan_write##size(uintptr_t address) { simulator::on_access(address, size, true); }           \
  void __tsan_unaligned_read##size(uintptr_t address) { simulator::on_access(address, size, false); } \
  void __tsan_unaligned_write##size(uintptr_t address) { simulator::on_access(address, size, true); }
extern "C" {
CHARLM_ACCESS(1)
CHARLM_ACCESS(2)
CHARLM_ACCESS(4)
CHARLM_ACCESS(8)
CHARLM_ACCESS(16)
void __tsan_read_range(uintptr_t address, size_t size) { simulator::on_access(address, size, false); }
void __tsan_write_range(uintptr_t address, size_t size) { simulator::on_access(address, size, true); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit(void*) {}
void __asan_loadN(uintptr_t address, size_t size) { simulator::on_access(address, size, false); }
void __asan_storeN(uintptr_t address, size_t size) { simulator::on_access(address, size, true); }
}
