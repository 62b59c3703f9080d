// The instruction set the CPU kernels run on.
//
// Every file of kernels/cpu is compiled once per instruction set into its own namespace charlm::cpu::isa_<name>, and
// hands its functions out as a table (a plain struct of function pointers). select<Table>() returns the table of the
// set in use, so a binding writes `select<CrossEntropyKernels<float>>().tiles(...)` and an op adds no dispatch code.
#pragma once

// CHARLM_ONLY_ISA: a build for the machine at hand has one set alone, of that name.
#define CHARLM_CALL(X, name) X(name)  // with the name that a macro stands for
#if defined(CHARLM_ONLY_ISA)
#define CHARLM_INSTRUCTION_SETS(X) CHARLM_CALL(X, CHARLM_ONLY_ISA)
#elif defined(__x86_64__) || defined(_M_X64)
#define CHARLM_INSTRUCTION_SETS(X) X(x86_64) X(x86_64_v3) X(x86_64_v4) X(x86_64_v4_bf16) X(x86_64_v4_amx)
#else
#define CHARLM_INSTRUCTION_SETS(X) X(generic)
#endif

// The set with the narrowest vectors, of which every build has the kernels that tiny calls need.
#if defined(__x86_64__) || defined(_M_X64)
#define CHARLM_NARROW_SET x86_64
#else
#define CHARLM_NARROW_SET generic
#endif

// For functions in headers that kernels share with the rest: a copy of their own, compiled for AVX-512, would be one
// the linker may keep for everybody.
#define CHARLM_SHARED_INLINE inline __attribute__((always_inline))

namespace charlm::cpu {

#define CHARLM_ENUMERATOR(name) name,
enum class InstructionSet : int { CHARLM_INSTRUCTION_SETS(CHARLM_ENUMERATOR) };
#undef CHARLM_ENUMERATOR

#define CHARLM_COUNT(name) +1
inline constexpr int kInstructionSets = 0 CHARLM_INSTRUCTION_SETS(CHARLM_COUNT);
#undef CHARLM_COUNT

const char* instruction_set_name(InstructionSet set);
bool machine_supports(InstructionSet set);
// Whether it supports any set of this build, which may be made for another machine.
bool machine_supports_any();

// The set in use: the best the machine supports, unless another was chosen, by set_instruction_set or, before the first
// call, by the environment variable CHARLM_INSTRUCTION_SET (tests, bug reports).
InstructionSet instruction_set();
bool instruction_set_is_chosen();
// Returns false, and changes nothing, when the machine does not support the set.
bool set_instruction_set(InstructionSet set);
// As at first.
void unset_instruction_set();

#define CHARLM_DECLARE_NAMESPACE(name) \
  namespace isa_##name {               \
    template <typename Table>          \
    Table kernels();                   \
  }
CHARLM_INSTRUCTION_SETS(CHARLM_DECLARE_NAMESPACE)
CHARLM_CALL(CHARLM_DECLARE_NAMESPACE, CHARLM_NARROW_SET)
#undef CHARLM_DECLARE_NAMESPACE

// Declares the specialisations that kernels/cpu/<op>.cpp defines, one per instruction set.
#define CHARLM_DECLARE_KERNELS_IN(name, ...) \
  namespace isa_##name {                     \
    template <>                              \
    __VA_ARGS__ kernels<__VA_ARGS__>();      \
  }
#if defined(CHARLM_ONLY_ISA)
#define CHARLM_DECLARE_KERNELS_IN_ONE(name, ...) CHARLM_DECLARE_KERNELS_IN(name, __VA_ARGS__)
#define CHARLM_DECLARE_KERNELS(...) CHARLM_DECLARE_KERNELS_IN_ONE(CHARLM_ONLY_ISA, __VA_ARGS__)
#elif defined(__x86_64__) || defined(_M_X64)
#define CHARLM_DECLARE_KERNELS(...)                      \
  CHARLM_DECLARE_KERNELS_IN(x86_64, __VA_ARGS__)         \
  CHARLM_DECLARE_KERNELS_IN(x86_64_v3, __VA_ARGS__)      \
  CHARLM_DECLARE_KERNELS_IN(x86_64_v4, __VA_ARGS__)      \
  CHARLM_DECLARE_KERNELS_IN(x86_64_v4_bf16, __VA_ARGS__) \
  CHARLM_DECLARE_KERNELS_IN(x86_64_v4_amx, __VA_ARGS__)
#else
#define CHARLM_DECLARE_KERNELS(...) CHARLM_DECLARE_KERNELS_IN(generic, __VA_ARGS__)
#endif

// Those that select_narrow() is asked for, beside CHARLM_DECLARE_KERNELS.
#define CHARLM_DECLARE_NARROW_IN(name, ...) CHARLM_DECLARE_KERNELS_IN(name, __VA_ARGS__)
#define CHARLM_DECLARE_NARROW_KERNELS(...) CHARLM_DECLARE_NARROW_IN(CHARLM_NARROW_SET, __VA_ARGS__)
#define CHARLM_NAMESPACE_(name) isa_##name
#define CHARLM_NAMESPACE(name) CHARLM_NAMESPACE_(name)

template <typename Table>
const Table& select() {
#define CHARLM_TABLE(name) isa_##name::kernels<Table>(),
  static const Table tables[kInstructionSets] = {CHARLM_INSTRUCTION_SETS(CHARLM_TABLE)};
#undef CHARLM_TABLE
  return tables[static_cast<int>(instruction_set())];
}

// For calls with so little work that waking the wide units of the processor would take longer: on Intel's server
// processors a first 256- or 512-bit operation after a pause, as there is between two calls from Python, costs 10 to
// 20 us, here and in what runs next. A set that was chosen is used nevertheless.
template <typename Table>
const Table& select_narrow() {
  static const Table table = CHARLM_NAMESPACE(CHARLM_NARROW_SET)::kernels<Table>();
  return instruction_set_is_chosen() ? select<Table>() : table;
}

}  // namespace charlm::cpu
