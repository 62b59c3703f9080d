// The watch over every access, by the functions that g++ calls at each.
#include "watch.h"

#include <sanitizer/asan_interface.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

#include "simulator.h"

// The linker's names for the ends of zero-initialised memory, where __shared__ variables are.
extern "C" unsigned char __bss_start[], _end[];

namespace simulator {
namespace {

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

std::vector<Range> ranges;       // of buffers; the first two are static and dynamic shared memory
std::vector<void*> allocations;  // to free
int atomics = 0;

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
  if (earlier.time < running.launch_began) return false;
  if (earlier.time < running.block_began) return !shared;  // by another block: shared memory is each block's own
  if (earlier.time < running.now || earlier.thread == running.thread) return false;
  const bool same_warp = warp_of(earlier.thread) == running.thread / kWarp;
  return !same_warp || earlier.warp_barriers == running.warp_barriers;
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
  if (running.thread < 0 || atomics > 0 || running.fiber->has_on_stack(address)) return;
  Range* range = range_of(address);
  if (range == nullptr) return;
  const char* kind = range->shared ? "shared" : "global";
  if (size <= 16 && address % size != 0) {
    fail("a misaligned %s of %zu bytes of %s memory", is_write ? "write" : "read", size, kind);
  }
  const Access access{running.now, running.warp_barriers, static_cast<int16_t>(running.thread)};
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
    if (range->shared ? byte.write.time < running.block_began : !range->initialised && byte.write.time == 0) {
      fail("a read of %s memory that nothing has written", kind);
    }
    const Access earlier = byte.read;
    byte.read = access;
    if (earlier.time != running.now || earlier.thread == running.thread) continue;
    const int warp = running.thread / kWarp;
    if (warp_of(earlier.thread) != warp) {
      byte.read.thread = kSeveral;
    } else if (earlier.warp_barriers == access.warp_barriers) {
      byte.read.thread = several_of(warp);
    }
  }
}

}  // namespace

void watch_stack(void* stack, size_t bytes) { __asan_unpoison_memory_region(stack, bytes); }

void watch_dynamic_shared(unsigned char* memory, size_t bytes) {
  if (ranges.empty()) free_all();
  if (memory != nullptr) __asan_poison_memory_region(memory + bytes, 16);
  ranges[1] = {reinterpret_cast<uintptr_t>(memory), bytes, true, false, std::vector<Byte>(bytes)};
}

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
  for (size_t i = 0; i < bytes; ++i) range->bytes[address - range->begin + i].write.time = running.now;
}

void refuse(const char* message) { fail("%s", message); }

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
