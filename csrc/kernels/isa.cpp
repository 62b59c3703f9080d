#include "kernels/isa.h"

#include <atomic>

namespace charlm::cpu {
namespace {

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

bool machine_supports([[maybe_unused]] InstructionSet set) {
#if (defined(__x86_64__) || defined(_M_X64)) && !defined(CHARLM_GENERIC)
  __builtin_cpu_init();
  // Feature by feature: "x86-64-v4" is not a name every compiler's __builtin_cpu_supports knows.
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  switch (set) {
    case InstructionSet::x86_64:
      return true;
    case InstructionSet::x86_64_v3:
      return v3;
    case InstructionSet::x86_64_v4:
      return v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl");
  }
  return false;
#else
  return true;
#endif
}

InstructionSet instruction_set() { return current().load(std::memory_order_relaxed); }

bool set_instruction_set(InstructionSet set) {
  if (!machine_supports(set)) return false;
  current().store(set, std::memory_order_relaxed);
  return true;
}

}  // namespace charlm::cpu
