// What a launcher takes and returns, in terms that a build without CUDA's headers understands.
#pragma once

struct CUstream_st;

namespace charlm::cuda {

using Stream = CUstream_st*;  // cudaStream_t
using Error = int;            // cudaError_t; 0 is success

// Makes a device current for the launches that follow. Every thread has its own current device.
Error use_device(int index);
// What an error means, in CUDA's words.
const char* error_message(Error error);

}  // namespace charlm::cuda
