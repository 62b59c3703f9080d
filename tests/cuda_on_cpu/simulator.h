// Runs the threads of a block as fibers, in random order, and watches every access they make.
//
// It ends the process with a message at
//   an access outside of a buffer, of shared memory or of a variable (AddressSanitizer's redzones);
//   a read of memory that nothing has written;
//   two accesses to the same byte, one of them a write, that no synchronisation orders: by threads of a block without a
//   __syncthreads between them (within a warp, a __syncwarp will do), or by different blocks of a launch;
//   a misaligned access, such as a vector at any element of an array;
//   a barrier, a shuffle or a vote that some of its threads never reach, or reach at another place.
//
// g++ compiles every access into a call of a function of AddressSanitizer's (watch.cpp defines them), so kernels
// are watched as they are. What it cannot show: whether memory of other blocks would be visible after a fence (it
// reports any such use but atomics), rounding of __expf and its like, and speed.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct dim3;

namespace simulator {

inline constexpr int kWarp = 32;

// From now on threads and blocks run in a random order, that of this seed; before, one block and mostly one warp after
// the other.
void seed(uint64_t value);

// Which of the faults that a test has planted in the kernels is at work; none is fault 0.
void plant(int number);
bool fault(int number);

// Memory that kernels may use, exactly `bytes` long, aligned as CUDA's is and then moved by `offset` bytes. What is not
// written must not be read, unless it is `initialised`.
void* allocate(size_t bytes, size_t offset, bool initialised);
void free_all();
// What else than a kernel has written counts as written.
void initialise(void* data, size_t bytes);
// Ends the process with a message.
[[noreturn]] void refuse(const char* message);

// The dynamic shared memory that a block can have, a Hopper GPU's, and what it has without asking.
inline constexpr size_t kMaxShared = 227 << 10, kUnaskedShared = 48 << 10;
bool ask_shared(const void* kernel, size_t bytes);

// Runs thread(closure) for every thread of a grid; false where CUDA would refuse the launch.
bool launch(const void* kernel, const dim3& grid, const dim3& block, size_t shared_bytes, void (*thread)(const void*),
            const void* closure);
unsigned char* dynamic_shared();

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

// While one lives, accesses are checked for bounds only.
struct Atomic {
  Atomic();
  ~Atomic();
};

}  // namespace simulator
