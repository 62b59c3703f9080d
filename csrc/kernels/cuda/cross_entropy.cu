#include "kernels/cross_entropy.h"
#include "kernels/cuda/cross_entropy_narrow.cuh"
#include "kernels/cuda/cross_entropy_wide.cuh"

namespace charlm::cuda {
namespace {

constexpr int kReduceThreads = 1024;

// The threads of a block that adds up so many values: whole warps, and no more than have a value.
unsigned reduce_threads(int64_t values) {
  const int64_t threads = (values + kWarp - 1) / kWarp * kWarp;
  return static_cast<unsigned>(threads < kWarp ? kWarp : threads > kReduceThreads ? kReduceThreads : threads);
}

// How many targets, or parts of sums, a thread has under way at the same time.
constexpr int kTargetsAhead = 4, kPartsAhead = 4;
constexpr int64_t kMaxDenominatorBlocks = 256;

// Sums over the rows of a block, and of the same block of every later grid.
template <typename T>
__global__ void __launch_bounds__(kReduceThreads) sum_mean_weights(const CrossEntropy<T> p, T* sums) {
  __shared__ T scratch[kWarp];
  T sum = 0;
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
#pragma unroll 1
  for (int64_t row = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; row < p.rows; row += kTargetsAhead * step) {
    int64_t y[kTargetsAhead];
#pragma unroll
    for (int k = 0; k < kTargetsAhead; ++k) {
      y[k] = p.target != nullptr ? p.target[row + k * step < p.rows ? row + k * step : row] : 0;
    }
#pragma unroll
    for (int k = 0; k < kTargetsAhead; ++k) {
      if (row + k * step < p.rows) sum += mean_weight(p, row + k * step, row_target(p, y[k]));
    }
  }
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// One block; in double, as there may be one part for each of many rows.
template <typename T>
__global__ void __launch_bounds__(kReduceThreads)
    reduce_parts(const T* loss_parts, const T* weight_parts, int64_t parts, T* result, T* weight_sum) {
  __shared__ double scratch[2 * kWarp];
  const T* weights = weight_parts != nullptr ? weight_parts : loss_parts;
  const int64_t step = blockDim.x;
  double loss = 0, weight = 0;
#pragma unroll 1
  for (int64_t i = threadIdx.x; i < parts; i += kPartsAhead * step) {
    T losses_ahead[kPartsAhead], weights_ahead[kPartsAhead];
#pragma unroll
    for (int k = 0; k < kPartsAhead; ++k) {
      const int64_t at = i + k * step < parts ? i + k * step : i;
      losses_ahead[k] = loss_parts[at];
      weights_ahead[k] = weights[at];
    }
#pragma unroll
    for (int k = 0; k < kPartsAhead; ++k) {
      if (i + k * step >= parts) break;
      loss += losses_ahead[k];
      weight += weights_ahead[k];
    }
  }
  double sums[] = {loss, weight};
  block_sums(sums, scratch);
  if (threadIdx.x != 0) return;
  *result = static_cast<T>(weight_parts != nullptr ? sums[0] / sums[1] : sums[0]);
  if (weight_sum != nullptr) *weight_sum = static_cast<T>(sums[1]);
}

int64_t merge_blocks(int64_t rows) { return (rows * kWarp + kMergeThreads - 1) / kMergeThreads; }

template <typename S, bool kPlain>
Error run_narrow(const CrossEntropy<Compute<S>>& p, const CrossEntropyRun<Compute<S>>& run, Stream stream) {
  const NarrowTile tile = NarrowTile::of(p.classes, sizeof(S));
  return launch(narrow_rows<S, kPlain>, (p.rows + tile.rows - 1) / tile.rows, dim3(kNarrowThreads),
                tile.shared_bytes(p.classes, sizeof(S)), stream, p, run, tile);
}

template <typename S, bool kPlain, bool kAdjacent>
Error run_wide_as(CrossEntropy<Compute<S>> p, const CrossEntropyRun<Compute<S>>& run, WideShape shape, Stream stream) {
  const dim3 threads(static_cast<unsigned>(shape.threads), static_cast<unsigned>(shape.rows));
  const auto walk = [&] {
    return launch(wide_rows<S, kPlain, kAdjacent>, shape.row_blocks * shape.splits, threads, 0, stream, p, run, shape);
  };
  if (shape.splits > 1 && !p.lse_is_known) {
    if (const Error error = walk()) return error;
    const Error merge_error =
        launch(merge_splits<S, kPlain>, merge_blocks(p.rows), dim3(kMergeThreads), 0, stream, p, run, shape.splits);
    if (merge_error != cudaSuccess || p.input_gradient.data == nullptr) return merge_error;
    p.lse_is_known = true;
  }
  // Where a gradient needs sum_c a_c, one block has to see the whole row.
  if (p.lse_is_known && total_is_unknown(p)) shape.splits = 1;
  return walk();
}

template <typename S, bool kPlain>
Error run_wide(CrossEntropy<Compute<S>> p, const CrossEntropyRun<Compute<S>>& run, Stream stream) {
  const WideShape shape = WideShape::of(p);
  return shape.is_adjacent ? run_wide_as<S, kPlain, true>(p, run, shape, stream)
                           : run_wide_as<S, kPlain, false>(p, run, shape, stream);
}

}  // namespace

template <typename T>
int64_t cross_entropy_parts(const CrossEntropy<T>& problem) {
  if (is_narrow(problem)) {
    const int64_t rows = NarrowTile::of(problem.classes, storage_size(problem.input.storage)).rows;
    return (problem.rows + rows - 1) / rows;
  }
  const WideShape shape = WideShape::of(problem);
  return shape.splits > 1 ? merge_blocks(problem.rows) : shape.row_blocks;
}

template <typename T>
int64_t cross_entropy_split_values(const CrossEntropy<T>& problem) {
  if (is_narrow(problem) || problem.lse_is_known) return 0;
  const WideShape shape = WideShape::of(problem);
  return shape.splits > 1 ? 4 * problem.rows * shape.splits : 0;
}

template <typename T>
Error run_cross_entropy(const CrossEntropy<T>& problem, const CrossEntropyRun<T>& run, Stream stream) {
  return with_storage<T>(problem.input.storage, [&](auto storage) {
    using S = decltype(storage);
    // Arithmetic in double is for checking gradients; it is not worth kernels of its own for the plain case.
    constexpr bool kHasPlain = sizeof(T) == sizeof(float);
    const bool plain = kHasPlain && is_plain(problem);
    if (is_narrow(problem)) {
      return plain ? run_narrow<S, kHasPlain>(problem, run, stream) : run_narrow<S, false>(problem, run, stream);
    }
    return plain ? run_wide<S, kHasPlain>(problem, run, stream) : run_wide<S, false>(problem, run, stream);
  });
}

template <typename T>
Error divide_by_denominator(CrossEntropy<T>* problem, CrossEntropyRun<T>* run, DeviceLibrary& library, Stream stream) {
  if (problem->target == nullptr && problem->token_weights == nullptr) {
    problem->scale /= static_cast<T>(problem->rows);
    return cudaSuccess;
  }
  T* denominator = problem->denominator != nullptr ? problem->denominator : library.allocate_values<T>(1);
  run->denominator = denominator;
  if (problem->lse_is_known) return cudaSuccess;
  // Forward that computes the gradient too has to walk over the targets before it does over the logits.
  int64_t blocks = (problem->rows + kTargetsAhead * kReduceThreads - 1) / (kTargetsAhead * kReduceThreads);
  blocks = blocks < 1 ? 1 : blocks > kMaxDenominatorBlocks ? kMaxDenominatorBlocks : blocks;
  T* sums = blocks == 1 ? denominator : library.allocate_values<T>(blocks);
  const Error error =
      launch(sum_mean_weights<T>, blocks, dim3(reduce_threads(problem->rows)), 0, stream, *problem, sums);
  if (error != cudaSuccess || blocks == 1) return error;
  return reduce_cross_entropy<T>(sums, nullptr, blocks, denominator, nullptr, stream);
}

template <typename T>
Error reduce_cross_entropy(const T* loss_parts, const T* weight_parts, int64_t parts, T* result, T* weight_sum,
                           Stream stream) {
  return launch(reduce_parts<T>, 1, dim3(reduce_threads(parts)), 0, stream, loss_parts, weight_parts, parts, result,
                weight_sum);
}

template <typename T>
Error cross_entropy(const CrossEntropyCall<T>& call, DeviceLibrary& library, Stream stream) {
  CrossEntropy<T> problem = call.problem;
  CrossEntropyRun<T> run;
  run.row_loss = call.row_loss;
  run.upstream = call.upstream;
  const bool has_gradient = problem.input_gradient.data != nullptr || problem.probabilities_gradient.data != nullptr;
  if (has_gradient && call.mean) {
    if (const Error error = divide_by_denominator(&problem, &run, library, stream)) return error;
  }
  run.split_rows = library.allocate_values<T>(cross_entropy_split_values(problem));
  if (call.total_loss == nullptr) return run_cross_entropy(problem, run, stream);

  const int64_t parts = cross_entropy_parts(problem);
  run.loss_parts = library.allocate_values<T>(2 * parts);
  run.weight_parts = run.loss_parts + parts;
  if (const Error error = run_cross_entropy(problem, run, stream)) return error;
  return reduce_cross_entropy<T>(run.loss_parts, call.mean ? run.weight_parts : nullptr, parts, call.total_loss,
                                 run.denominator == nullptr ? problem.denominator : nullptr, stream);
}

#define CHARLM_INSTANTIATE(T)                                                                          \
  template int64_t cross_entropy_parts(const CrossEntropy<T>&);                                        \
  template int64_t cross_entropy_split_values(const CrossEntropy<T>&);                                 \
  template Error divide_by_denominator(CrossEntropy<T>*, CrossEntropyRun<T>*, DeviceLibrary&, Stream); \
  template Error run_cross_entropy(const CrossEntropy<T>&, const CrossEntropyRun<T>&, Stream);         \
  template Error reduce_cross_entropy(const T*, const T*, int64_t, T*, T*, Stream);                    \
  template Error cross_entropy(const CrossEntropyCall<T>&, DeviceLibrary&, Stream);
CHARLM_INSTANTIATE(float)
CHARLM_INSTANTIATE(double)
#undef CHARLM_INSTANTIATE

}  // namespace charlm::cuda
