// The threads of a block as fibers, and what makes them wait for each other.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <numeric>
#include <random>
#include <tuple>
#include <utility>
#include <vector>

#include "cuda_runtime.h"
#include "watch.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace simulator {

Running running;

namespace {

constexpr size_t kStackBytes = 64 << 10;
constexpr size_t kStackOffset = 17 * 64, kStackOffsets = 16 << 10;

enum class State { kRunnable, kAtBlockBarrier, kAtClusterBarrier, kAtWarpBarrier, kDone };

struct Thread {
  Fiber fiber;
  dim3 index;
  State state = State::kDone;
  int line = 0;
  unsigned mask = 0;
  std::vector<std::pair<void*, const void*>> copies;
};

// Lanes write into the slots of one parity while slow ones still read those of the other.
struct Warp {
  uint32_t barriers = 0;  // see Running
  uint64_t slots[2][kWarp];
  uint8_t parity[kWarp];
};

std::mt19937_64 generator;
int planted = 0;
bool is_faulty = false;
char message[512] = "";
std::mutex launching;
Thread threads[kMaxThreads * kMaxCluster];
Warp warps[kMaxThreads * kMaxCluster / kWarp];
struct Block {
  uint32_t now = 0;  // see Running
  int waiting = 0;   // threads at a barrier of the block
};
Block blocks[kMaxCluster];
std::vector<int> runnable;
Fiber main_fiber;
int thread_count = 0, waiting = 0;  // threads of the cluster; those at a barrier of all of it
uint32_t now = 1;
unsigned first_block = 0;
void (*thread_function)(const void*);
const void* thread_closure;
// Not where the static arrays are, which it could be mistaken for; with room that is nobody's between blocks.
constexpr size_t kSharedApart = kMaxShared + 256;
auto* const dynamic_memory = static_cast<unsigned char*>(aligned_alloc(256, kMaxCluster* kSharedApart));
std::map<const void*, size_t> asked_shared;  // by kernel

size_t granted_shared(const void* kernel) {
  const auto asked = asked_shared.find(kernel);
  return asked == asked_shared.end() ? kUnaskedShared : asked->second;
}

// Keeps the message of a fault, with the place of the thread.
void note_list(const char* format, va_list list) {
  int length = vsnprintf(message, sizeof(message), format, list);
  length = std::min(length, static_cast<int>(sizeof(message)) - 1);
  snprintf(message + length, sizeof(message) - length, "; block %u of %u, thread (%u, %u) of (%u, %u)", blockIdx.x,
           gridDim.x, threadIdx.x, threadIdx.y, blockDim.x, blockDim.y);
  is_faulty = true;
}

void note(const char* format, ...) {
  va_list list;
  va_start(list, format);
  note_list(format, list);
  va_end(list);
}

void make_runnable(int thread) {
  threads[thread].state = State::kRunnable;
  runnable.push_back(thread);
}

// Leaves the current thread for another one that can go on; the main fiber takes over where none can. The one that
// could last is of the same warp, mostly, and in the caches.
void run_another() {
  Fiber& from = running.thread < 0 ? main_fiber : threads[running.thread].fiber;
  if (runnable.empty()) {
    running.thread = -1;
    switch_fiber(&from, main_fiber);
    return;
  }
  const size_t chosen = watching ? generator() % runnable.size() : runnable.size() - 1;
  const int next = runnable[chosen];
  runnable[chosen] = runnable.back();
  runnable.pop_back();
  running.thread = next;
  running.fiber = &threads[next].fiber;
  running.warp_barriers = warps[next / kWarp].barriers;
  running.now = blocks[next / running.block_threads].now;
  blockIdx.x = first_block + static_cast<unsigned>(next / running.block_threads);
  threadIdx = threads[next].index;
  if (&from != &threads[next].fiber) switch_fiber(&from, threads[next].fiber);
}

void run_thread() {
  thread_function(thread_closure);
  threads[running.thread].state = State::kDone;
  run_another();
}

void check_all_done() {
  for (int thread = 0; thread < thread_count; ++thread) {
    const Thread& stuck = threads[thread];
    if (stuck.state == State::kDone) continue;
    threadIdx = stuck.index;
    blockIdx.x = first_block + static_cast<unsigned>(thread / running.block_threads);
    const char* barrier = stuck.state == State::kAtBlockBarrier     ? "__syncthreads"
                          : stuck.state == State::kAtClusterBarrier ? "barrier of a cluster"
                                                                    : "synchronisation of a warp";
    note("a %s at line %d waits for threads that have ended or wait at another place", barrier, stuck.line);
    return;
  }
}

// False where a thread has done what it must not.
bool run_cluster() {
  running.block_began = running.cluster_barrier = ++now;
  for (Block& block : blocks) block = {now, 0};
  waiting = 0;
  is_faulty = false;
  runnable.clear();
  for (Warp& warp : warps) {
    warp.barriers = 0;
    memset(warp.parity, 0, sizeof(warp.parity));
  }
  for (int thread = 0; thread < thread_count; ++thread) {
    threads[thread].copies.clear();
    Fiber& fiber = threads[thread].fiber;
    fiber.start(kStackBytes, thread * kStackOffset % kStackOffsets, run_thread);
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(fiber.stack(), kStackBytes);  // what ran on it before never returned
#endif
    make_runnable(thread);
  }
  run_another();
  if (!is_faulty) check_all_done();
  running.now = now;
  return !is_faulty;
}

void wait_for_warp(unsigned mask, int line, bool orders_memory) {
  Thread* lanes = threads + running.thread / kWarp * kWarp;
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
  if (orders_memory && mask == 0xffffffffu) ++warps[running.thread / kWarp].barriers;
  for (int other = 0; other < kWarp; ++other) {
    if ((mask >> other & 1) != 0 && other != self) make_runnable(running.thread / kWarp * kWarp + other);
  }
  make_runnable(running.thread);
  run_another();
}

}  // namespace

bool fault(int number) { return planted == number; }

// What the thread has on its stack is never used again.
void fail(const char* format, ...) {
  va_list list;
  va_start(list, format);
  note_list(format, list);
  va_end(list);
  Fiber& from = threads[running.thread].fiber;
  running.thread = -1;
  switch_fiber(&from, main_fiber);
  __builtin_unreachable();
}

const char* fault_message() { return message; }

bool ask_shared(const void* kernel, size_t bytes) {
  const std::lock_guard lock(launching);
  if (bytes > static_cast<size_t>(gpu(current_gpu())->shared_bytes)) return false;
  asked_shared[kernel] = bytes;
  return true;
}

int blocks_at_once(const void* kernel, int threads, size_t shared_bytes) {
  const std::lock_guard lock(launching);
  if (threads <= 0 || threads > static_cast<int>(kMaxThreads) || shared_bytes > granted_shared(kernel)) return 0;
  const int warps = (threads + kWarp - 1) / kWarp;
  const size_t by_shared = kMultiprocessorShared / (shared_bytes + kBlockShared);
  return std::min({kMultiprocessorBlocks, kMultiprocessorThreads / (warps * kWarp), static_cast<int>(by_shared)});
}

Outcome launch(const void* kernel, const dim3& grid, const dim3& block, unsigned cluster, size_t shared_bytes,
               const void* stream, void (*run)(const void*), const void* call, size_t call_bytes) {
  const std::lock_guard lock(launching);
  if (const char* what = misplaced(stream)) {
    snprintf(message, sizeof(message), "%s", what);
    return Outcome::kFaulty;
  }
  gridDim = grid;
  blockDim = block;
  running.block_threads = static_cast<int>(block.x * block.y * block.z);
  if (grid.x == 0 || running.block_threads == 0 || running.block_threads > static_cast<int>(kMaxThreads)) {
    return Outcome::kRefused;
  }
  if (cluster == 0 || cluster > kMaxCluster || grid.x % cluster != 0) return Outcome::kRefused;
  if (cluster > 1 && (gpu(current_gpu())->capability < 90 || running.block_threads % kWarp != 0)) {
    return Outcome::kRefused;
  }
  thread_count = static_cast<int>(cluster) * running.block_threads;
  if (shared_bytes > granted_shared(kernel)) return Outcome::kRefused;
  if (grid.y != 1 || grid.z != 1) return Outcome::kRefused;
  for (int thread = 0; thread < thread_count; ++thread) {
    const int i = thread % running.block_threads;
    threads[thread].index = dim3(i % block.x, i / block.x % block.y, i / (block.x * block.y));
  }
  thread_function = run;
  thread_closure = call;
  running.launch_began = now + 1;
  std::vector<unsigned> order(grid.x / cluster);
  std::iota(order.begin(), order.end(), 0u);
  if (watching) std::shuffle(order.begin(), order.end(), generator);
  begin_watch(dynamic_memory, shared_bytes, cluster, kSharedApart, call, call_bytes);
  const bool is_done = std::all_of(order.begin(), order.end(), [&](unsigned index) {
    first_block = index * cluster;
    blockIdx = dim3(first_block, 0, 0);
    return run_cluster();
  });
  end_watch();
  return is_done ? Outcome::kDone : Outcome::kFaulty;
}

unsigned char* dynamic_shared() { return dynamic_memory + cluster_rank() * kSharedApart; }

int cluster_rank() { return running.thread < 0 ? 0 : running.thread / running.block_threads; }

void* in_block(void* shared, int rank) {
  const auto place = static_cast<unsigned char*>(shared) - dynamic_shared();
  if (rank < 0 || rank >= thread_count / running.block_threads) fail("a cluster has no block %d", rank);
  return dynamic_memory + rank * kSharedApart + place;
}

int lane() { return running.thread % kWarp; }

void block_barrier(int line) {
  threads[running.thread].state = State::kAtBlockBarrier;
  threads[running.thread].line = line;
  const int rank = cluster_rank(), first = rank * running.block_threads;
  if (++blocks[rank].waiting < running.block_threads) {
    run_another();
    return;
  }
  for (int thread = first; thread < first + running.block_threads; ++thread) {
    if (threads[thread].line != line)
      fail("threads wait at __syncthreads of lines %d and %d", threads[thread].line, line);
    make_runnable(thread);
  }
  blocks[rank] = {++now, 0};
  run_another();
}

void cluster_barrier(int line) {
  threads[running.thread].state = State::kAtClusterBarrier;
  threads[running.thread].line = line;
  if (++waiting < thread_count) {
    run_another();
    return;
  }
  for (int thread = 0; thread < thread_count; ++thread) {
    if (threads[thread].line != line)
      fail("threads wait at barriers of a cluster of lines %d and %d", threads[thread].line, line);
    make_runnable(thread);
  }
  waiting = 0;
  running.cluster_barrier = ++now;
  for (Block& block : blocks) block.now = now;
  run_another();
}

void warp_barrier(unsigned mask, int line) { wait_for_warp(mask, line, true); }

uint64_t exchange_bits(unsigned mask, uint64_t bits, int source, int line) {
  Warp& warp = warps[running.thread / kWarp];
  const int parity = warp.parity[lane()] ^= 1;
  warp.slots[parity][lane()] = bits;
  wait_for_warp(mask, line, false);
  if ((mask >> source & 1) == 0) fail("a shuffle reads lane %d, which its mask %08x lacks", source, mask);
  return warp.slots[parity][source];
}

unsigned vote(unsigned mask, bool predicate, int line) {
  Warp& warp = warps[running.thread / kWarp];
  const int parity = warp.parity[lane()] ^= 1;
  warp.slots[parity][lane()] = predicate;
  wait_for_warp(mask, line, false);
  unsigned result = 0;
  for (int other = 0; other < kWarp; ++other) {
    if ((mask >> other & 1) != 0 && warp.slots[parity][other] != 0) result |= 1u << other;
  }
  return result;
}

void defer_copy(void* to, const void* from) { threads[running.thread].copies.emplace_back(to, from); }

bool take_copy(void** to, const void** from) {
  auto& copies = threads[running.thread].copies;
  if (copies.empty()) return false;
  std::tie(*to, *from) = copies.back();
  copies.pop_back();
  return true;
}

}  // namespace simulator

// For Python.
#define CHARLM_EXPORT extern "C" __attribute__((visibility("default")))

CHARLM_EXPORT void simulator_watch(bool on) { simulator::watching = on; }
// The order in which threads and blocks run from now on.
CHARLM_EXPORT void simulator_seed(uint64_t value) { simulator::generator.seed(value); }
CHARLM_EXPORT void simulator_plant(int number) { simulator::planted = number; }
