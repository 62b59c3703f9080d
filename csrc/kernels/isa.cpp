#include "kernels/isa.h"

#include <atomic>

namespace charlm::cpu {
namespace {

// A build may lack some of the sets.
#if defined(__x86_64__) || defined(_M_X64)
[[maybe_unused]] bool supports_x86_64() { return true; }
// Feature by feature: "x86-64-v4" is not a name every compiler's __builtin_cpu_supports knows.
[[maybe_unused]] bool supports_x86_64_v3() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
}
[[maybe_unused]] bool supports_x86_64_v4() {
  return supports_x86_64_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#else
bool supports_generic() { return true; }
#endif

InstructionSet best_instruction_set() {
  int best = 0;
  for (int set = 1; set < kInstructionSets; ++set) {
    if (machine_supports(static_cast<InstructionSet>(set))) best = set;
  }
  return static_cast<InstructionSet>(best);
}

std::atomic<InstructionSet>& current() {
  static std::atomic<InstructionSet> set{best_instruction_set()};
  return set;
}

}  // namespace

const char* instruction_set_name(InstructionSet set) {
#define CHARLM_NAME(name) #name,
  static constexpr const char* names[] = {CHARLM_INSTRUCTION_SETS(CHARLM_NAME)};
#undef CHARLM_NAME
  return names[static_cast<int>(set)];
}

bool machine_supports(InstructionSet set) {
#define CHARLM_SUPPORTS(name) supports_##name,
  static constexpr bool (*supports[])() = {CHARLM_INSTRUCTION_SETS(CHARLM_SUPPORTS)};
#undef CHARLM_SUPPORTS
  return supports[static_cast<int>(set)]();
}

bool machine_supports_any() { return machine_supports(best_instruction_set()); }

InstructionSet instruction_set() { return current().load(std::memory_order_relaxed); }

bool set_instruction_set(InstructionSet set) {
  if (!machine_supports(set)) return false;
  current().store(set, std::memory_order_relaxed);
  return true;
}

}  // namespace charlm::cpu
