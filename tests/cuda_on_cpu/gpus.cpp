#include "gpus.h"

#include <atomic>
#include <deque>
#include <sstream>
#include <string>

#include "cuda_runtime.h"

namespace simulator {
namespace {

constexpr int kStreams = 4;
struct Simulated {
  Gpu gpu;
  char streams[kStreams];
};

std::deque<Simulated> gpus(1);
std::atomic<int> of_tensors = 0, stream = 0;

}  // namespace

const Gpu* gpu(int index) {
  return index < 0 || index >= static_cast<int>(gpus.size()) ? nullptr : &gpus[static_cast<size_t>(index)].gpu;
}

int gpu_of_tensors() { return of_tensors; }

int& current_gpu() {
  thread_local int current = 0;
  return current;
}

int code_error(const Gpu& gpu) {
  if (gpu.driver / 1000 < kRuntime / 1000) return cudaErrorInsufficientDriver;
  int error = cudaErrorNoKernelImageForDevice;
  std::istringstream words(CHARLM_CUDA_ARCHITECTURES);
  for (std::string word; words >> word;) {
    const int number = std::stoi(word.substr(word.find('_') + 1));
    if (number > gpu.capability) continue;
    if (word.starts_with("sm_") && number / 10 == gpu.capability / 10) return cudaSuccess;
    if (word.starts_with("compute_")) error = gpu.driver < kRuntime ? cudaErrorUnsupportedPtxVersion : cudaSuccess;
  }
  return error;
}

void* current_stream(int gpu) { return &gpus[static_cast<size_t>(gpu)].streams[stream]; }

const char* misplaced(const void* given) {
  if (current_gpu() != of_tensors) return "a launch is on another GPU than its tensors";
  return given == current_stream(of_tensors) ? nullptr : "a launch is on another stream than torch's current one";
}

}  // namespace simulator

// For Python.
#define CHARLM_EXPORT extern "C" __attribute__((visibility("default")))

// Its index.
CHARLM_EXPORT int simulator_add_gpu(int capability, int driver, int shared_bytes, int multiprocessors) {
  simulator::gpus.push_back({{capability, driver, shared_bytes, multiprocessors}, {}});
  return static_cast<int>(simulator::gpus.size()) - 1;
}
// From now on the tensors are there.
CHARLM_EXPORT void simulator_place_tensors(int gpu) { simulator::of_tensors = gpu; }
CHARLM_EXPORT void simulator_choose_stream(int number) { simulator::stream = number; }
CHARLM_EXPORT void simulator_set_device(int gpu) { simulator::current_gpu() = gpu; }
CHARLM_EXPORT int simulator_current_device() { return simulator::current_gpu(); }
