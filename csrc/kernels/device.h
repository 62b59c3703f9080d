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

// Why the kernels of this library cannot run on a device.
enum class Obstacle {
  kNone,
  kNoCode,       // they are compiled for other GPUs
  kOldDriver,    // the runtime in this library, or how code is compressed in it, needs a newer driver
  kOldCompiler,  // there is intermediate code only, and the driver is too old to compile it
  kOther,        // an error, which may pass
};

struct DeviceProbe {
  Obstacle obstacle = Obstacle::kNone;
  Error error = 0;     // of loading a kernel there
  int capability = 0;  // of computing, 75 for 7.5; 0 where CUDA does not say
  int driver = 0;      // the newest CUDA that the driver knows, 13000 for 13.0; 0 without a driver
  int runtime = 0;     // the CUDA that this library is built with
};

// Loads a kernel on a device, to see what CUDA says, which takes a fraction of a second and makes a context there. It
// wants a thread of its own, as it changes what every thread has: the current device, the last error, and what it may
// do while another captures a graph.
DeviceProbe probe_device(int index);

}  // namespace charlm::cuda
