#include "bindings/branches.h"

#include <atomic>

namespace charlm {
namespace {

std::atomic<const char*> branch{""};

}  // namespace

void took_branch(const char* name) { branch.store(name, std::memory_order_relaxed); }
const char* last_branch() { return branch.load(std::memory_order_relaxed); }

}  // namespace charlm
