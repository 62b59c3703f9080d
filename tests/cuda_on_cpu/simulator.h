// Runs the threads of a block as fibers, and watches every access they make.
//
// A launch ends with an error, whose message says where, at
//   an access outside of the memory that the binding has handed to its kernels, of shared memory and of a thread's own
//   variables;
//   a read of memory that nothing has written;
//   two accesses to the same byte, one of them a write, that no synchronisation orders: by threads of a block without a
//   __syncthreads between them (within a warp, a __syncwarp will do), by blocks of a cluster without a barrier of all of
//   it between them, or by different blocks of a launch;
//   a misaligned access, such as a vector at any element of an array;
//   a barrier, a shuffle or a vote that some of its threads never reach, or reach at another place;
//   a stream that is not torch's current one of the GPU that the tensors are on.
//
// g++ compiles every access into a call of a function (watch.cpp defines them), so kernels are watched as they are.
// What it cannot show: arrays of a thread, or static arrays of shared memory, that run into one another (`make
// sanitize` does); whether memory of other blocks would be visible after a fence (it reports any such use but atomics);
// rounding of __expf and its like; and speed.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct dim3;

namespace simulator {

inline constexpr int kWarp = 32;

// Which of the faults that a test has planted in the kernels is at work; none is fault 0.
bool fault(int number);

// The dynamic shared memory that a block can have on any GPU, and what it has without asking.
inline constexpr size_t kMaxShared = 227 << 10, kUnaskedShared = 48 << 10;
bool ask_shared(const void* kernel, size_t bytes);
// What a multiprocessor has: each block takes kBlockShared of shared memory beside its own.
inline constexpr size_t kMultiprocessorShared = 228 << 10, kBlockShared = 1 << 10;
inline constexpr int kMultiprocessorThreads = 2048, kMultiprocessorBlocks = 32;
// Blocks of a kernel that fit into one; 0 where a launch would be refused.
int blocks_at_once(const void* kernel, int threads, size_t shared_bytes);

// Runs run(call) for every thread of a grid; `call`, of so many bytes, holds the kernel's arguments. A launch that CUDA
// would refuse, and one in which a thread does what it must not, return an error.
enum class Outcome { kDone, kRefused, kFaulty };
Outcome launch(const void* kernel, const dim3& grid, const dim3& block, unsigned cluster, size_t shared_bytes,
               const void* stream, void (*run)(const void*), const void* call, size_t call_bytes);
// Of the last launch that was faulty.
const char* fault_message();
unsigned char* dynamic_shared();

// The blocks of a cluster run at the same time, each with dynamic shared memory of its own that the others may use;
// what is `__shared__` they would have in common, so that kernels for clusters have none of it.
inline constexpr unsigned kMaxCluster = 8;
int cluster_rank();
// The same place in the dynamic shared memory of another block.
void* in_block(void* shared, int rank);
void cluster_barrier(int line = __builtin_LINE());

int lane();
void block_barrier(int line);
void warp_barrier(unsigned mask, int line);
// The value of another lane, by way of a slot of 8 bytes each.
uint64_t exchange_bits(unsigned mask, uint64_t bits, int source, int line);
unsigned vote(unsigned mask, bool predicate, int line);

template <typename T>
T exchange(unsigned mask, T value, int source, int line) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = exchange_bits(mask, bits, source, line);
  memcpy(&value, &bits, sizeof(T));
  return value;
}

// The asynchronous copies that the running thread has begun, each to be taken once and made; those of a thread that
// never waits for them are lost.
void defer_copy(void* to, const void* from);
bool take_copy(void** to, const void** from);

// While one lives, accesses are checked for bounds only.
struct Atomic {
  Atomic();
  ~Atomic();
};

}  // namespace simulator
