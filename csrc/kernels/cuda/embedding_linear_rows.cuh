// What embedding_linear does to the rows of a batch and to its parameters, beside the table and the products.
#pragma once

#include "kernels/cuda/embedding_linear_table.cuh"

namespace charlm::cuda {
namespace {

inline constexpr int kRowsPerThread = 4;  // whose loads are under way at the same time

// The rows of a thread. Those that there are not read its first one.
struct ThreadRows {
  int64_t first, count;

  __device__ explicit ThreadRows(int64_t count)
      : first(static_cast<int64_t>(blockIdx.x) * blockDim.y * kRowsPerThread + threadIdx.y), count(count) {}

  __device__ bool any() const { return first < count; }
  __device__ bool exists(int r) const { return first + r * static_cast<int64_t>(blockDim.y) < count; }
  __device__ int64_t row(int r) const { return exists(r) ? first + r * static_cast<int64_t>(blockDim.y) : first; }
};

// input[n, t] = E[x_nt], or `invalid` for all of a row that has a bad id. With is_picked `embedding` has the rows that
// were picked from E before, in the order of the ids.
template <typename S, int kWidth>
__global__ void __launch_bounds__(kRowGridThreads)
    gather_embeddings(const int32_t* keys, int64_t count, int64_t embedding_dim, const S* embedding, bool is_picked,
                      Compute<S> invalid, S* input) {
  const ThreadRows rows(count);
  if (!rows.any()) return;
  int keys_at[kRowsPerThread];
  int64_t from[kRowsPerThread];
#pragma unroll
  for (int r = 0; r < kRowsPerThread; ++r) keys_at[r] = keys[rows.row(r)];
#pragma unroll
  for (int r = 0; r < kRowsPerThread; ++r) {
    from[r] = (is_picked ? rows.row(r) : keys_at[r] > 0 ? keys_at[r] : 0) * embedding_dim;
  }
#pragma unroll 1
  for (int64_t d = static_cast<int64_t>(threadIdx.x) * kWidth; d < embedding_dim; d += blockDim.x * kWidth) {
    S values[kRowsPerThread][kWidth];
#pragma unroll
    for (int r = 0; r < kRowsPerThread; ++r) load_stored<kWidth>(embedding + from[r] + d, values[r]);
#pragma unroll
    for (int r = 0; r < kRowsPerThread; ++r) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        if (keys_at[r] < 0) values[r][i] = to_storage<S>(invalid);
      }
      if (rows.exists(r)) store_stored<kWidth>(input + rows.row(r) * embedding_dim + d, values[r]);
    }
  }
}

// output = activation(output + bias); NaN for a row that has a bad id, also where its embeddings have no numbers.
template <typename S, int kWidth>
__global__ void __launch_bounds__(kRowGridThreads) activate_rows(const LayerRows<S> p) {
  using T = Compute<S>;
  const ThreadRows rows(p.rows);
  if (!rows.any()) return;
  bool valid[kRowsPerThread];
#pragma unroll
  for (int r = 0; r < kRowsPerThread; ++r) valid[r] = p.keys[rows.row(r) * p.context_length] >= 0;
#pragma unroll 1
  for (int64_t h = static_cast<int64_t>(threadIdx.x) * kWidth; h < p.hidden_dim; h += blockDim.x * kWidth) {
    T values[kRowsPerThread][kWidth], bias[kWidth] = {};
#pragma unroll
    for (int r = 0; r < kRowsPerThread; ++r) load_values<kWidth>(p.output + rows.row(r) * p.hidden_dim + h, values[r]);
    if (p.bias != nullptr) load_values<kWidth>(p.bias + h, bias);
    with_activation<S>(p.activation, [&](const auto& function) {
#pragma unroll
      for (int r = 0; r < kRowsPerThread; ++r) {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          values[r][i] = valid[r] ? function(values[r][i] + bias[i]) : not_a_number<T>();
        }
        if (rows.exists(r)) store_values<kWidth>(p.output + rows.row(r) * p.hidden_dim + h, values[r]);
      }
    });
  }
}

// dpre = grad_output * slope, 0 for a row that has a bad id.
template <typename S, typename Out>
__global__ void __launch_bounds__(kRowGridThreads, 1) activation_gradient(const LayerRows<S> p, Out* gradient) {
  const ThreadRows rows(p.rows);
  if (!rows.any()) return;
  const auto key = [&](int r, int64_t t) { return p.keys[rows.row(r) * p.context_length + t]; };
  bool valid[kRowsPerThread];
#pragma unroll
  for (int r = 0; r < kRowsPerThread; ++r) valid[r] = key(r, 0) >= 0;
#pragma unroll 1
  for (int64_t h = threadIdx.x; h < p.hidden_dim; h += blockDim.x) {
    const auto at = [&](auto* matrix, int r) { return matrix + rows.row(r) * p.hidden_dim + h; };
    Compute<S> gradients[kRowsPerThread];
    p.load_gradients(at, key, valid, h, gradients);
#pragma unroll
    for (int r = 0; r < kRowsPerThread; ++r) {
      if (rows.exists(r)) *at(gradient, r) = to_storage<Out>(gradients[r]);
    }
  }
}

}  // namespace
}  // namespace charlm::cuda
