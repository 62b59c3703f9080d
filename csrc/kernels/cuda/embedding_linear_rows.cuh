// What embedding_linear does to the rows of a batch and to its parameters, beside the table and the products.
#pragma once

#include "kernels/cuda/embedding_linear_table.cuh"

namespace charlm::cuda {
namespace {

inline constexpr int kRowsPerThread = 2;

// input[n, t] = E[x_nt], or `invalid` for all of a row that has a bad id. With is_picked `embedding` has the rows that
// were picked from E before, in the order of the ids.
template <typename S, int kWidth>
__global__ void __launch_bounds__(kRowGridThreads)
    gather_embeddings(const int32_t* keys, int64_t count, int64_t embedding_dim, const S* embedding, bool is_picked,
                      Compute<S> invalid, S* input) {
  for (int r = 0; r < kRowsPerThread; ++r) {
    const int64_t i = (static_cast<int64_t>(blockIdx.x) * kRowsPerThread + r) * blockDim.y + threadIdx.y;
    if (i >= count) return;
    const int64_t key = keys[i];
    for (int64_t d = static_cast<int64_t>(threadIdx.x) * kWidth; d < embedding_dim; d += blockDim.x * kWidth) {
      Compute<S> values[kWidth];
      if (key >= 0) {
        load_values<kWidth>(embedding + (is_picked ? i : key) * embedding_dim + d, values);
      } else {
#pragma unroll
        for (int k = 0; k < kWidth; ++k) values[k] = invalid;
      }
      store_values<kWidth>(input + i * embedding_dim + d, values);
    }
  }
}

// output = activation(output + bias); NaN for a row that has a bad id, also where its embeddings have no numbers.
template <typename S, int kWidth>
__global__ void __launch_bounds__(kRowGridThreads) activate_rows(const LayerRows<S> p) {
#pragma unroll 1
  for (int r = 0; r < kRowsPerThread; ++r) {
    const int64_t row = (static_cast<int64_t>(blockIdx.x) * kRowsPerThread + r) * blockDim.y + threadIdx.y;
    if (row >= p.rows) return;
    const bool valid = p.is_valid(row);
#pragma unroll 1  // more at a time would not fit into registers
    for (int64_t h = static_cast<int64_t>(threadIdx.x) * kWidth; h < p.hidden_dim; h += blockDim.x * kWidth) {
      Compute<S> values[kWidth], bias[kWidth] = {};
      load_values<kWidth>(p.output + row * p.hidden_dim + h, values);
      if (p.bias != nullptr) load_values<kWidth>(p.bias + h, bias);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) values[k] += bias[k];
      activate<kWidth>(p.activation, values);
      if (!valid) {
#pragma unroll
        for (int k = 0; k < kWidth; ++k) values[k] = not_a_number<Compute<S>>();
      }
      store_values<kWidth>(p.output + row * p.hidden_dim + h, values);
    }
  }
}

// dpre = grad_output * slope, 0 for a row that has a bad id.
template <typename S, typename Out>
__global__ void __launch_bounds__(kRowGridThreads) activation_gradient(const LayerRows<S> p, Out* gradient) {
  for (int r = 0; r < kRowsPerThread; ++r) {
    const int64_t row = (static_cast<int64_t>(blockIdx.x) * kRowsPerThread + r) * blockDim.y + threadIdx.y;
    if (row >= p.rows) return;
    const bool valid = p.is_valid(row);
    for (int64_t h = threadIdx.x; h < p.hidden_dim; h += blockDim.x) {
      const int64_t i = row * p.hidden_dim + h;
      gradient[i] = to_storage<Out>(valid ? to_compute(p.grad_output[i]) * p.slope(row, h) : Compute<S>(0));
    }
  }
}

}  // namespace
}  // namespace charlm::cuda
