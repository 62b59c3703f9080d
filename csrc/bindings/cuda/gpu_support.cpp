#include "bindings/gpu_support.h"

#include <array>
#include <atomic>
#include <mutex>
#include <thread>
#include <unordered_map>

#include "bindings/errors.h"
#include "kernels/device.h"

namespace charlm {
namespace {

constexpr const char* kInstead = "; backend 'eager', which is plain PyTorch, works there";

// "13.0" of 13000, as CUDA writes its versions.
std::string cuda_version(int number) { return concatenate(number / 1000, '.', number % 1000 / 10); }

// The oldest drivers for a build with a major version of CUDA, and its other name. Those for CUDA 12.0 to 12.3 do not
// know the compression of building/cuda.py.
std::string oldest_driver(int major) {
  if (major == 12) return "CUDA 12.4 (550 or newer on Linux)";
  if (major == 13) return "CUDA 13.0 (580 or newer on Linux)";
  return concatenate("CUDA ", major, ".0");
}

std::string old_driver(const std::string& device, const cuda::DeviceProbe& probe) {
  const int needed = probe.runtime / 1000, has = probe.driver / 1000;
  const std::string driver =
      probe.driver == 0 ? "there is no driver" : concatenate("its driver is for CUDA ", cuda_version(probe.driver));
  // Older compilers than CUDA 12's do not compile charlm.
  const std::string or_rebuild =
      has >= 12 && has < needed ? concatenate(", or build charlm with nvcc of CUDA ", has) : "";
  return concatenate("charlm's kernels cannot run on ", device, ": ", driver, ", and this build needs one for ",
                     oldest_driver(needed), ": install one", or_rebuild, kInstead);
}

std::string sentence(int index, const cuda::DeviceProbe& probe) {
  const std::string device = concatenate("cuda:", index);
  const std::string with_capability =
      concatenate(device, ", whose compute capability is ", probe.capability / 10, '.', probe.capability % 10);
  switch (probe.obstacle) {
    case cuda::Obstacle::kNoCode:
      return concatenate("charlm has no kernels for ", with_capability, ": this build has them for ",
                         cuda_architectures(), kInstead);
    case cuda::Obstacle::kOldDriver:
      return old_driver(device, probe);
    case cuda::Obstacle::kOldCompiler:
      return concatenate("charlm has only intermediate code for ", with_capability, ", and its driver, for CUDA ",
                         cuda_version(probe.driver), ", does not compile that of CUDA ", cuda_version(probe.runtime),
                         ": install a driver for that, or build charlm with nvcc of CUDA ", cuda_version(probe.driver),
                         kInstead);
    default:
      return concatenate("CUDA cannot load charlm's kernels on ", device, ": ", cuda::error_message(probe.error));
  }
}

// What has been found out, which stays so as long as the process runs.
class Devices {
 public:
  bool has_kernels(int index) const {
    return index >= 0 && index < kMost && has_kernels_[index].load(std::memory_order_acquire);
  }

  std::optional<std::string> why_no_kernels(int index) {
    const std::lock_guard lock(mutex_);
    if (has_kernels(index)) return std::nullopt;
    if (const auto known = sentences_.find(index); known != sentences_.end()) return known->second;
    cuda::DeviceProbe probe;
    std::thread([&] { probe = cuda::probe_device(index); }).join();
    if (probe.obstacle == cuda::Obstacle::kNone) {
      if (index < kMost) has_kernels_[index].store(true, std::memory_order_release);
      return std::nullopt;
    }
    const std::string why = sentence(index, probe);
    // Other errors, such as of memory that others have taken, may pass.
    if (probe.obstacle != cuda::Obstacle::kOther) sentences_.emplace(index, why);
    return why;
  }

 private:
  static constexpr int kMost = 128;  // torch knows 120
  std::array<std::atomic<bool>, kMost> has_kernels_{};
  std::mutex mutex_;
  std::unordered_map<int, std::string> sentences_;
};

Devices devices;

}  // namespace

const char* cuda_architectures() { return CHARLM_CUDA_ARCHITECTURES; }

std::optional<std::string> why_no_kernels(int device) {
  return devices.has_kernels(device) ? std::nullopt : devices.why_no_kernels(device);
}

}  // namespace charlm
