// One optimizer step on a model in shared memory, by all threads of its block. The formulas are in kernels/update.h.
#pragma once

#include "kernels/cuda/block_products.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/train_steps.h"

namespace charlm::cuda {
namespace {

// Arrays of `size` values each, whole tiles, which all have the same layout. Padding is 0 and stays so.
template <typename T>
struct Trained {
  T* parameters;
  T* gradient;
  T* states[2];
  int size;
};

// What a thread has of the sum of squares of so many values, whole tiles.
template <int kThreads, typename T>
__device__ inline T squares(const T* values, int count) {
  T sum = 0;
#pragma unroll 1
  for (int i = kTile * thread_in_block(); i < count; i += kTile * kThreads) {
    const Four<T> four = load_four(values + i);
#pragma unroll
    for (int j = 0; j < kTile; ++j) sum += four.values[j] * four.values[j];
  }
  return sum;
}

// What clipping multiplies a gradient by.
template <typename T>
__device__ inline T clip_scale(const Update<T>& options, T sum_of_squares) {
  const T ratio = options.max_grad_norm / (sqrt(sum_of_squares) + T(1e-6));
  return ratio < 1 ? ratio : T(1);
}

template <int kThreads, typename T>
__device__ inline void plain_sgd(T learning_rate, const Trained<T>& model) {
#pragma unroll 2
  for (int i = kTile * thread_in_block(); i < model.size; i += kTile * kThreads) {
    Four<T> p = load_four(model.parameters + i);
    const Four<T> g = load_four(model.gradient + i);
#pragma unroll
    for (int j = 0; j < kTile; ++j) p.values[j] -= learning_rate * g.values[j];
    store_four(model.parameters + i, p);
  }
}

template <int kThreads, typename T>
__device__ inline void sgd(const Update<T>& options, T learning_rate, T scale, bool has_momentum,
                           const Trained<T>& model) {
#pragma unroll 2
  for (int i = kTile * thread_in_block(); i < model.size; i += kTile * kThreads) {
    Four<T> p = load_four(model.parameters + i), g = load_four(model.gradient + i);
#pragma unroll
    for (int j = 0; j < kTile; ++j) g.values[j] = g.values[j] * scale + options.weight_decay * p.values[j];
    if (has_momentum) {
      const Four<T> m = load_four(model.states[0] + i);
#pragma unroll
      for (int j = 0; j < kTile; ++j) g.values[j] += options.momentum * m.values[j];
      store_four(model.states[0] + i, g);
    }
#pragma unroll
    for (int j = 0; j < kTile; ++j) p.values[j] -= learning_rate * g.values[j];
    store_four(model.parameters + i, p);
  }
}

template <int kThreads, typename T>
__device__ inline void adamw(const Update<T>& options, const Rates<T>& rates, T scale, const Trained<T>& model) {
  const T keep = 1 - rates.learning_rate * options.weight_decay;
#pragma unroll 1
  for (int i = kTile * thread_in_block(); i < model.size; i += kTile * kThreads) {
    Four<T> p = load_four(model.parameters + i), m = load_four(model.states[0] + i), v = load_four(model.states[1] + i);
    const Four<T> gradient = load_four(model.gradient + i);
#pragma unroll
    for (int j = 0; j < kTile; ++j) {
      const T g = gradient.values[j] * scale;
      m.values[j] = m.values[j] * options.beta1 + g * (1 - options.beta1);
      v.values[j] = v.values[j] * options.beta2 + g * g * (1 - options.beta2);
      const T denominator = sqrt(v.values[j]) * rates.inverse_second_moment + options.eps;
      const T quotient = m.values[j] == 0 ? m.values[j] : m.values[j] / denominator;
      p.values[j] = p.values[j] * keep - rates.step_size * quotient;
    }
    store_four(model.states[0] + i, m);
    store_four(model.states[1] + i, v);
    store_four(model.parameters + i, p);
  }
}

// The gradient, times `scale`, is complete, and not to be written again before a barrier.
template <int kThreads, typename T>
__device__ inline void update(int states, const Update<T>& options, const Rates<T>& rates, T scale,
                              const Trained<T>& model) {
  if (options.kind == OptimizerKind::kAdamw) return adamw<kThreads>(options, rates, scale, model);
  const bool is_plain = states == 0 && options.weight_decay == 0 && scale == 1;
  if (is_plain) return plain_sgd<kThreads>(rates.learning_rate, model);
  sgd<kThreads>(options, rates.learning_rate, scale, states > 0, model);
}

}  // namespace
}  // namespace charlm::cuda
