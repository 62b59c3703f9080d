// The watch over every access, by the functions that g++ calls at each.
#include "watch.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <new>

#include "simulator.h"

// The linker's names for this library's first byte and for the ends of its zero-initialised memory, where __shared__
// variables are. What lies before that memory is constants and the index of the running thread.
extern "C" __attribute__((visibility("hidden"))) const unsigned char __ehdr_start[], __bss_start[], _end[];

namespace simulator {

bool watching = false;

namespace {

using Kind = Range::Kind;

// In place of a thread: several, which only read, all of one warp, or of one block, or of different ones.
constexpr int16_t kSeveral = -1, kSeveralOfBlock = -10000;
constexpr int16_t several_of(int warp) { return static_cast<int16_t>(-2 - warp); }
constexpr int16_t several_of_block(int block) { return static_cast<int16_t>(kSeveralOfBlock - block); }
// -1: of different ones.
int warp_of(int16_t thread) { return thread >= 0 ? thread / kWarp : thread > kSeveralOfBlock ? -2 - thread : -1; }
int block_of(int16_t thread) {
  if (thread <= kSeveralOfBlock) return kSeveralOfBlock - thread;
  return thread == kSeveral ? -1 : (thread >= 0 ? thread : warp_of(thread) * kWarp) / running.block_threads;
}

uintptr_t address_of(const void* data) { return reinterpret_cast<uintptr_t>(data); }

// What is known of so many bytes, of which threads have touched none; it takes memory as they do, so that rows may be
// far apart. Null where there is none.
Byte* untouched(size_t bytes) {
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* memory = mmap(nullptr, bytes * sizeof(Byte), PROT_READ | PROT_WRITE, kFlags, -1, 0);
  return memory == MAP_FAILED ? nullptr : static_cast<Byte*>(memory);
}
void forget(const Range& range) {
  if (range.bytes != nullptr) munmap(range.bytes, range.size * sizeof(Byte));
}

bool is_watched = false;         // the launch at hand
bool is_atomic = false;          // the access at hand
std::vector<Range*> known;       // for the launch at hand, in order of their addresses
std::array<Range*, 256> lately;  // by address, those of `known` where a thread was last

Range constants{address_of(__ehdr_start), address_of(__bss_start) - address_of(__ehdr_start), Kind::kConstant, true};
Range arguments{0, 0, Kind::kConstant, true};
Range static_range{address_of(__bss_start), address_of(_end) - address_of(__bss_start), Kind::kShared, false,
                   untouched(address_of(_end) - address_of(__bss_start))};
std::array<Range, kMaxCluster> dynamic_ranges = [] {
  std::array<Range, kMaxCluster> ranges;
  ranges.fill({0, 0, Kind::kShared, false});
  for (Range& range : ranges) range.bytes = untouched(kMaxShared);
  return ranges;
}();

const char* name(bool is_write) { return is_write ? "write" : "read"; }
const char* name(Kind kind) { return kind == Kind::kShared ? "shared" : "global"; }

Range& range_of(uintptr_t address, size_t size, bool is_write) {
  Range*& slot = lately[address >> 8 & 0xff];
  if (slot == nullptr || !slot->has(address, size)) {
    const auto after = std::upper_bound(known.begin(), known.end(), address,
                                        [](uintptr_t at, const Range* range) { return at < range->begin; });
    Range* range = after == known.begin() ? nullptr : *(after - 1);
    if (range == nullptr || !range->has(address, size)) fail("a %s of %zu bytes out of bounds", name(is_write), size);
    if (range->bytes == nullptr && range->kind == Kind::kGlobal) {
      range->bytes = untouched(range->size);
      if (range->bytes == nullptr) fail("no memory to watch %zu bytes", range->size);
    }
    slot = range;
  }
  if (is_write && slot->kind == Kind::kConstant) fail("a write of %zu bytes out of bounds, to constants", size);
  return *slot;
}

// Whether nothing orders an earlier access before one by the current thread.
bool unordered(const Access& earlier, Kind kind) {
  if (earlier.time < running.launch_began) return false;
  if (earlier.time < running.block_began) return kind == Kind::kGlobal;  // another block's; shared memory is its own
  if (earlier.thread == running.thread) return false;
  if (block_of(earlier.thread) != running.thread / running.block_threads) {
    return earlier.time >= running.cluster_barrier;
  }
  if (earlier.time < running.now) return false;
  const bool same_warp = warp_of(earlier.thread) == running.thread / kWarp;
  return !same_warp || earlier.warp_barriers == static_cast<uint16_t>(running.warp_barriers);
}

void write(Byte* byte, const Access& access, const Range& range) {
  if (unordered(byte->write, range.kind)) {
    fail("a race: a write of %s memory that another thread has written since the last barrier", name(range.kind));
  }
  if (unordered(byte->read, range.kind)) {
    fail("a race: a write of %s memory that another thread has read since the last barrier", name(range.kind));
  }
  byte->write = access;
}

void read(Byte* byte, const Access& access, const Range& range) {
  if (unordered(byte->write, range.kind)) {
    fail("a race: a read of %s memory that another thread has written since the last barrier", name(range.kind));
  }
  const bool is_written =
      range.kind == Kind::kShared ? byte->write.time >= running.block_began : range.written || byte->write.time != 0;
  if (!is_written) fail("a read of %s memory that nothing has written", name(range.kind));
  const Access earlier = byte->read;
  byte->read = access;
  if (earlier.thread == running.thread) return;
  const int warp = running.thread / kWarp, block = running.thread / running.block_threads;
  if (block_of(earlier.thread) != block) {
    if (earlier.time >= running.cluster_barrier) byte->read.thread = kSeveral;
    return;
  }
  if (earlier.time != running.now) return;
  if (warp_of(earlier.thread) != warp) {
    byte->read.thread = several_of_block(block);
  } else if (earlier.warp_barriers == access.warp_barriers) {
    byte->read.thread = several_of(warp);
  }
}

void check_access(uintptr_t address, size_t size, bool is_write) {
  const size_t word = size & (~size + 1);  // 12 bytes are three words of 4
  if (size <= 16 && address % word != 0) fail("a misaligned %s of %zu bytes", name(is_write), size);
  Range& range = range_of(address, size, is_write);
  if (range.kind == Kind::kConstant || is_atomic) return;
  const Access access{running.now, static_cast<uint16_t>(running.warp_barriers), static_cast<int16_t>(running.thread)};
  Byte* bytes = range.bytes + (address - range.begin);
  const auto touch = is_write ? write : read;
  const Byte before = bytes[0];
  touch(&bytes[0], access, range);
  for (size_t i = 1; i < size; ++i) {  // mostly they have one past, and have one future
    if (bytes[i] == before) {
      bytes[i] = bytes[0];
    } else {
      touch(&bytes[i], access, range);
    }
  }
}

// Launchers, which are compiled as their kernels are, run on stacks of their own, and maybe while another one's launch
// is watched.
inline void on_access(uintptr_t address, size_t size, bool is_write) {
  if (!is_watched || !running.fiber->has_on_stack(address_of(__builtin_frame_address(0)))) return;
  if (!running.fiber->has_on_stack(address)) check_access(address, size, is_write);
}

}  // namespace

void DeviceMemory::remove_what_overlaps(uintptr_t begin, uintptr_t end) {
  std::erase_if(ranges, [&](const Range& range) {
    const bool overlaps = range.begin < end && begin < range.end();
    if (overlaps) forget(range);
    return overlaps;
  });
}

// What was at its place has been freed.
void DeviceMemory::add_fresh(const void* data, size_t bytes) {
  if (bytes == 0) return;
  remove_what_overlaps(address_of(data), address_of(data) + bytes);
  ranges.push_back({address_of(data), bytes, Kind::kGlobal, false});
}

void DeviceMemory::add(const void* data, size_t bytes) {
  if (bytes == 0 || has(data, bytes)) return;
  uintptr_t begin = address_of(data), end = begin + bytes;
  for (const Range& range : ranges) {  // views of one memory
    if (range.begin >= end || begin >= range.end()) continue;
    begin = std::min(begin, range.begin);
    end = std::max(end, range.end());
  }
  remove_what_overlaps(begin, end);
  ranges.push_back({begin, end - begin, Kind::kGlobal, true});
}

void DeviceMemory::mark_written(const void* data, size_t bytes) {
  add(data, bytes);
  Range* range = range_of(data, bytes);
  if (range == nullptr || range->written) return;
  range->written = range->size == bytes;
  if (range->written) return;
  if (range->bytes == nullptr) range->bytes = untouched(range->size);
  if (range->bytes == nullptr) throw std::bad_alloc();
  Byte* first = range->bytes + (address_of(data) - range->begin);
  std::for_each(first, first + bytes, [](Byte& byte) { byte.write = {running.now, 0, 0}; });
}

void DeviceMemory::clear() {
  for (const Range& range : ranges) forget(range);
  ranges.clear();
}

Range* DeviceMemory::range_of(const void* data, size_t bytes) {
  const auto found = std::find_if(ranges.begin(), ranges.end(),
                                  [&](const Range& range) { return range.has(address_of(data), bytes); });
  return found == ranges.end() ? nullptr : &*found;
}

DeviceMemory& device_memory() {
  static thread_local DeviceMemory memory;
  return memory;
}

void begin_watch(unsigned char* dynamic_shared, size_t bytes, unsigned blocks, size_t apart, const void* call,
                 size_t call_bytes) {
  if (!watching) return;
  arguments.begin = address_of(call);
  arguments.size = call_bytes;
  known = {&constants, &arguments, &static_range};
  for (unsigned block = 0; block < blocks; ++block) {
    dynamic_ranges[block].begin = address_of(dynamic_shared) + block * apart;
    dynamic_ranges[block].size = bytes;
    known.push_back(&dynamic_ranges[block]);
  }
  for (Range& range : device_memory().ranges) known.push_back(&range);
  std::sort(known.begin(), known.end(), [](const Range* a, const Range* b) { return a->begin < b->begin; });
  lately.fill(nullptr);
  is_atomic = false;
  is_watched = true;
}

void end_watch() { is_watched = false; }

Atomic::Atomic() { is_atomic = true; }
Atomic::~Atomic() { is_atomic = false; }

}  // namespace simulator

// The functions that -fsanitize=thread calls at every access, in the place of the compiler's own.
#define CHARLM_ACCESS(size)                                                                           \
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
}
