#include "kernels/isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#if defined(__linux__) && defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

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
// The tile registers of AMX are 8 KiB that Linux saves for the processes that have asked for them.
[[maybe_unused]] bool has_tiles() {
#if defined(__linux__)
  unsigned eax, ebx, ecx, edx;
  constexpr unsigned kBFloat16 = 1u << 22, kTiles = 1u << 24;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (~edx & (kBFloat16 | kTiles)) != 0) return false;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA: Linux 5.16
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

// What is emulated (cpu/pairs.h, cpu/tiles.h) is for tests, which ask for it.
#if defined(CHARLM_EMULATE_PAIRS)
constexpr bool kEmulatesPairs = true;
#else
constexpr bool kEmulatesPairs = false;
#endif
#if defined(CHARLM_EMULATE_TILES)
constexpr bool kEmulatesTiles = true;
#else
constexpr bool kEmulatesTiles = false;
#endif
[[maybe_unused]] bool supports_x86_64_v4_bf16() {
  return supports_x86_64_v4() && (kEmulatesPairs || __builtin_cpu_supports("avx512bf16"));
}
[[maybe_unused]] bool supports_x86_64_v4_amx() { return supports_x86_64_v4_bf16() && (kEmulatesTiles || has_tiles()); }
constexpr int kFastSets = kInstructionSets - kEmulatesPairs - kEmulatesTiles;
#else
bool supports_generic() { return true; }
constexpr int kFastSets = kInstructionSets;
#endif

InstructionSet best_instruction_set() {
  int best = 0;
  for (int set = 1; set < kFastSets; ++set) {
    if (machine_supports(static_cast<InstructionSet>(set))) best = set;
  }
  return static_cast<InstructionSet>(best);
}

// What the environment asks for; kNone where that is nothing, or nothing that the machine supports.
constexpr int kNone = -1;
int set_of_environment() {
  const char* name = std::getenv("CHARLM_INSTRUCTION_SET");
  for (int set = 0; name != nullptr && set < kInstructionSets; ++set) {
    const auto candidate = static_cast<InstructionSet>(set);
    if (std::strcmp(name, instruction_set_name(candidate)) == 0 && machine_supports(candidate)) return set;
  }
  return kNone;
}

std::atomic<int>& chosen() {
  static std::atomic<int> set{set_of_environment()};
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

InstructionSet instruction_set() {
  static const InstructionSet best = best_instruction_set();
  const int set = chosen().load(std::memory_order_relaxed);
  return set == kNone ? best : static_cast<InstructionSet>(set);
}

bool instruction_set_is_chosen() { return chosen().load(std::memory_order_relaxed) != kNone; }

bool set_instruction_set(InstructionSet set) {
  if (!machine_supports(set)) return false;
  chosen().store(static_cast<int>(set), std::memory_order_relaxed);
  return true;
}

void unset_instruction_set() { chosen().store(set_of_environment(), std::memory_order_relaxed); }

}  // namespace charlm::cpu
