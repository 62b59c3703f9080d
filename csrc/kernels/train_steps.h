// Whole training steps on a GPU: one launch makes many steps of many models of one shape, a block of threads for each
// or a cluster of blocks, whose parameters stay in shared memory. A model has the same bits with any number of blocks.
// Formula and order of a step are those of mlp_step.h and bigram.h.
//
// Everything a kernel reads is in device memory, and nothing of it can be checked before. A token or target that is out
// of range is never used as an index: it makes the loss NaN, and with it the parameters.
#pragma once

#include "kernels/device.h"
#include "kernels/device_library.h"
#include "kernels/model_shape.h"
#include "kernels/token_index.h"
#include "kernels/update.h"

namespace charlm::cuda {

// What a model is trained with; its rates and its state are in Training.
template <typename T>
struct ModelOptions {
  Update<T> update;
  T softcap = 0;  // 0: none
};

template <typename T>
struct Training {
  ModelShape shape;
  int64_t states = 0;  // tensors of state for each parameter
  int64_t models = 0, steps = 0;
  T* const* tensors = nullptr;               // (models, 1 + states, parameters): those of a model, then its state
  const ModelOptions<T>* options = nullptr;  // (models,)
  const Rates<T>* rates = nullptr;           // (models, steps)
  T* losses = nullptr;                       // (models, steps), written
};

// Step s of model m takes the examples batch_indices[m][s][:].
struct Batches {
  TokenIds contexts;                       // (N, T); or (U, T), where there is an index
  const int64_t* targets = nullptr;        // (N,)
  const int64_t* context_index = nullptr;  // (N,) the context of each example; null: its own
  const int64_t* batch_indices = nullptr;  // (models, steps, size)
  int64_t examples = 0, size = 0;          // N, B
};
// Every step of every model takes all of these: targets and counts of each context as compressed rows.
struct FullBatch {
  TokenIds contexts;                 // (U, T)
  const int64_t* row_ptr = nullptr;  // (U + 1,)
  const int64_t* targets = nullptr;  // (entries,)
  const double* counts = nullptr;    // (entries,)
  int64_t entries = 0;
};

// How many blocks of the current device are to have a model, of so many that are trained together; 0: those that could
// have no room for it.
template <typename T>
int blocks_of_model(const ModelShape& shape, int64_t models);
template <typename T>
Error train_batches(const Training<T>& training, const Batches& batches, DeviceLibrary& library, Stream stream);
template <typename T>
Error train_full_batch(const Training<T>& training, const FullBatch& batch, DeviceLibrary& library, Stream stream);

}  // namespace charlm::cuda
