// A stack of its own for each thread of a block. Switching saves the registers that a called function must keep, and
// nothing else: swapcontext makes two system calls each time, and AddressSanitizer clears a whole stack at it.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

#if defined(__x86_64__)
#define CHARLM_SAVED_REGISTERS 6
#define CHARLM_STACK_PADDING 1  // a function finds the stack 8 bytes off a multiple of 16, where its caller returns to
asm(R"(
.text
.type charlm_switch_stack, @function
charlm_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
#elif defined(__aarch64__)
#define CHARLM_SAVED_REGISTERS 19
#define CHARLM_STACK_PADDING 2
asm(R"(
.text
.type charlm_switch_stack, @function
charlm_switch_stack:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp d8, d9, [sp, #80]
  stp d10, d11, [sp, #96]
  stp d12, d13, [sp, #112]
  stp d14, d15, [sp, #128]
  stp x29, x30, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp d8, d9, [sp, #80]
  ldp d10, d11, [sp, #96]
  ldp d12, d13, [sp, #112]
  ldp d14, d15, [sp, #128]
  ldp x29, x30, [sp, #144]
  add sp, sp, #160
  ret
)");
#else
#error "the simulator switches stacks on x86-64 and arm64"
#endif

extern "C" void charlm_switch_stack(void** save, void* load);

namespace simulator {

class Fiber {
 public:
  // The next switch to it calls function(), which must never return, `offset` bytes below the top of the stack: tops
  // that are a power of two apart would push each other out of the caches.
  void start(size_t bytes, size_t offset, void (*function)()) {
    bytes_ = bytes;
    if (stack_ == nullptr) {
      stack_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    }
    // What the switch pops, last of all the address to return to.
    auto* top = reinterpret_cast<void**>(static_cast<char*>(stack_) + bytes - offset) - CHARLM_STACK_PADDING;
    *--top = reinterpret_cast<void*>(function);
    for (int i = 0; i < CHARLM_SAVED_REGISTERS; ++i) *--top = nullptr;
    pointer_ = top;
  }

  void* stack() const { return stack_; }
  bool has_on_stack(uintptr_t address) const { return address - reinterpret_cast<uintptr_t>(stack_) < bytes_; }

  friend void switch_fiber(Fiber* from, const Fiber& to) { charlm_switch_stack(&from->pointer_, to.pointer_); }

 private:
  void* stack_ = nullptr;
  size_t bytes_ = 0;
  void* pointer_ = nullptr;
};

}  // namespace simulator
