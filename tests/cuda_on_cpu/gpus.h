// The GPUs that are simulated, and the streams of each. Every tensor is on one and the same of them, which a test
// chooses, as it chooses torch's current stream there. The first is an H100.
#pragma once

namespace simulator {

struct Gpu {
  int capability = 90;  // 7.5 is 75
  int driver = 13010;   // the newest CUDA that its driver knows, 13.1
  int shared_bytes = 227 << 10;
  int multiprocessors = 3;  // few, so that small problems keep each of them busy several times
};
// Of the kernels, 13.1: a driver for 13.0 runs what is compiled, but does not compile what is not.
inline constexpr int kRuntime = 13010;

// null: there is no such GPU.
const Gpu* gpu(int index);
// The one that the tensors are on.
int gpu_of_tensors();
// The current one of this thread.
int& current_gpu();

// What CUDA answers to a launch on a GPU, a cudaError_t: whether there is code for it, or what its driver can compile.
int code_error(const Gpu& gpu);

// Torch's current stream of a GPU, which is never null: that would be the stream of those who ask for none.
void* current_stream(int gpu);
// What is wrong with a launch on a stream: it must be on the GPU of the tensors, and on torch's current stream; null:
// nothing.
const char* misplaced(const void* stream);

}  // namespace simulator
