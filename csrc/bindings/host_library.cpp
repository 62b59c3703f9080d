// Torch's threads, and memory whose errors are those of the bindings, for the algorithms for the CPU.
#include "kernels/host_library.h"

#include <atomic>
#include <cstdlib>
#include <exception>
#include <utility>

#include "bindings/errors.h"

namespace charlm::host {
namespace {

// Small blocks that a thread has released. The next call asks for the same sizes, mostly, and finding them here takes a
// tenth of the time of malloc and free. AddressSanitizer is to see blocks that are used after their release.
class RecentBlocks {
 public:
  ~RecentBlocks() {
    for (const Block& block : blocks_) std::free(block.memory);
  }
  void* take(size_t bytes) {
    for (Block& block : blocks_) {
      if (block.bytes == bytes && block.memory != nullptr) return std::exchange(block.memory, nullptr);
    }
    return nullptr;
  }
  void keep(void* memory, size_t bytes) {
    Block& oldest = blocks_[next_++ % kBlocks];
    std::free(std::exchange(oldest, {memory, bytes}).memory);
  }
#if defined(__SANITIZE_ADDRESS__)
  static bool keeps(size_t) { return false; }
#else
  static bool keeps(size_t bytes) { return bytes <= kMostBytes; }
#endif

 private:
  static constexpr size_t kBlocks = 16, kMostBytes = size_t{1} << 18;
  struct Block {
    void* memory = nullptr;
    size_t bytes = 0;
  };
  Block blocks_[kBlocks];
  size_t next_ = 0;
};

thread_local RecentBlocks recent;

}  // namespace

void* allocate(unsigned __int128 bytes) {
  constexpr size_t kAlignment = 64;
  if (bytes > PTRDIFF_MAX) out_of_memory(bytes);
  const auto size = static_cast<size_t>(bytes);
  if (RecentBlocks::keeps(size)) {
    if (void* memory = recent.take(size)) return memory;
  }
  void* memory = nullptr;  // of exactly so many bytes, or AddressSanitizer would not see one more
  if (posix_memalign(&memory, kAlignment, size > 0 ? size : 1) != 0) out_of_memory(bytes);
  advise_huge_pages(memory, size);
  return memory;
}

void release(void* memory, size_t bytes) {
  RecentBlocks::keeps(bytes) ? recent.keep(memory, bytes) : std::free(memory);
}

// Torch's own error would say no more than that there was one.
void parallel_for(int64_t count, int64_t grain, Range function, const void* context) {
  std::exception_ptr error;
  std::atomic_flag failed = ATOMIC_FLAG_INIT;
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    try {
      function(context, begin, end);
    } catch (...) {
      if (!failed.test_and_set()) error = std::current_exception();
    }
  });
  if (error) std::rethrow_exception(error);
}

int64_t threads() { return torch::stable::get_num_threads(); }

}  // namespace charlm::host
