#include "kernels/cuda/column_sums.cuh"
#include "kernels/cuda/embedding_linear_projection.cuh"
#include "kernels/cuda/mlp_tiles.cuh"
#include "kernels/cuda/token_keys.cuh"
#include "kernels/mlp_cross_entropy.h"

namespace charlm::cuda {
namespace {

// How a batch is cut for the current device: tiles of as many rows as fit and leave no multiprocessor without one, in
// equal parts for as many blocks as run at the same time.
template <typename T>
struct TileLaunch {
  void (*kernel)(MlpTiles<T>) = nullptr;
  int64_t blocks = 0, shared_bytes = 0;
  int threads = 0;

  // Sets the above and what `tiles` lacks; false where the model is too large.
  bool cut(MlpTiles<T>* tiles) {
    DeviceLimits limits;
    if (DeviceLimits::read(&limits) != cudaSuccess) return false;
    if (tiles->classes() <= 28) return cut_for_classes<28>(tiles, limits);
    if constexpr (sizeof(T) == sizeof(float)) {
      if (tiles->classes() <= 68) return cut_for_classes<68>(tiles, limits);
    }
    return false;
  }

 private:
  template <int kClasses>
  bool cut_for_classes(MlpTiles<T>* tiles, const DeviceLimits& limits) {
    return cut_for<kClasses, true>(tiles, limits) || cut_for<kClasses, false>(tiles, limits);
  }

  template <int kClasses, bool kTableInShared>
  bool cut_for(MlpTiles<T>* tiles, const DeviceLimits& limits) {
    const int widest = tiles->hidden_dim > tiles->classes() ? tiles->hidden_dim : tiles->classes();
    threads = (widest + kWarp - 1) / kWarp * kWarp;
    if (threads > kMlpThreads<T, kClasses>) return false;
    const int64_t rows = tiles->loss.rows;
    tiles->tile_rows = kMaxTileRows;
    const auto count = [&] { return (rows + tiles->tile_rows - 1) / tiles->tile_rows; };
    const auto bytes = [&] { return MlpMemory<T, kClasses, kTableInShared>::bytes(*tiles); };
    while (tiles->tile_rows > kMinTileRows &&
           (bytes() > limits.block_shared_bytes || count() < limits.multiprocessors)) {
      tiles->tile_rows /= 2;
    }
    shared_bytes = bytes();
    if (shared_bytes > limits.block_shared_bytes) return false;
    // As in cross_entropy.cu, double has the general kernel alone.
    constexpr bool kHasPlain = sizeof(T) == sizeof(float);
    kernel = kHasPlain && is_plain(tiles->loss) ? mlp_tiles<T, kHasPlain, kClasses, kTableInShared>
                                                : mlp_tiles<T, false, kClasses, kTableInShared>;
    int multiprocessor_blocks = 0;
    if (blocks_at_once(kernel, threads, shared_bytes, &multiprocessor_blocks) != cudaSuccess) return false;
    if (multiprocessor_blocks == 0) return false;
    const int64_t at_once = static_cast<int64_t>(limits.multiprocessors) * multiprocessor_blocks;
    tiles->tiles_per_block = (count() + at_once - 1) / at_once;
    blocks = (count() + tiles->tiles_per_block - 1) / tiles->tiles_per_block;
    return true;
  }
};

template <typename T>
class TiledModel {
 public:
  TiledModel(const MlpCrossEntropy<T>& problem, Stream stream) : p_(problem), stream_(stream) {
    const EmbeddingLinearCall& hidden = problem.hidden;
    tiles_.context_length = static_cast<int>(hidden.ids.context_length);
    tiles_.hidden_dim = static_cast<int>(hidden.hidden_dim);
    tiles_.table_rows = static_cast<int>(hidden.vocab_size * hidden.ids.context_length);
    tiles_.bias1 = static_cast<const T*>(hidden.bias);
    tiles_.weight2 = static_cast<const T*>(problem.output.layer.weight.data);
    tiles_.bias2 = static_cast<const T*>(problem.output.layer.bias);
    tiles_.loss = problem.output.loss;
    tiles_.run.row_loss = problem.output.row_loss;
    tiles_.run.upstream = problem.output.upstream;
    tiles_.has_gradient = problem.has_gradient;
  }

  // Whether the model fits into the registers and the shared memory of the current device.
  bool cut() {
    const EmbeddingLinearCall& hidden = p_.hidden;
    const bool is_stored_as_computed = storage_size(hidden.storage) == sizeof(T);
    const bool has_everything = hidden.ids.rows > 0 && hidden.ids.context_length > 0 && hidden.hidden_dim > 0;
    constexpr int64_t kSmall = 512;  // keeps products of two or three sizes within int
    const bool is_small =
        p_.output.loss.classes <= kSmall && hidden.ids.context_length <= kSmall && hidden.hidden_dim <= kSmall;
    return is_stored_as_computed && has_everything && is_small && launch_.cut(&tiles_);
  }

  Error run(DeviceLibrary& library) {
    Projection<T> projection(p_.hidden, library, stream_);
    if (const Error error = projection.table(&tiles_.table)) return error;
    if (const Error error = token_keys(p_.hidden.ids, p_.hidden.vocab_size, true, &tiles_.keys, library, stream_)) {
      return error;
    }
    const bool sums_losses = p_.output.total_loss != nullptr;
    if (sums_losses) {
      tiles_.run.loss_parts = library.allocate_values<T>(2 * launch_.blocks);
      tiles_.run.weight_parts = tiles_.run.loss_parts + launch_.blocks;
    }
    if (p_.has_gradient && p_.output.mean) {
      const Error error = divide_by_denominator(&tiles_.loss, &tiles_.run, library, stream_);
      if (error != cudaSuccess) return error;
    }
    if (p_.has_gradient) tiles_.gradients = library.allocate_values<T>(launch_.blocks * tiles_.gradient_values());
    const dim3 threads(static_cast<unsigned>(launch_.threads));
    const Error launched = launch(launch_.kernel, launch_.blocks, threads, launch_.shared_bytes, stream_, tiles_);
    if (launched != cudaSuccess) return launched;
    if (sums_losses) {
      const T* weights = p_.output.mean ? tiles_.run.weight_parts : nullptr;
      const Error error = reduce_cross_entropy<T>(tiles_.run.loss_parts, weights, launch_.blocks, p_.output.total_loss,
                                                  nullptr, stream_);
      if (error != cudaSuccess) return error;
    }
    return p_.has_gradient ? add_gradients(projection, library) : cudaSuccess;
  }

 private:
  // The blocks' gradients added up: dP, from which the first layer's follow, dW2 and dbias2.
  Error add_gradients(Projection<T>& projection, DeviceLibrary& library) {
    T* table_gradient = library.allocate_values<T>(tiles_.table_values());
    const T* from = tiles_.gradients;
    const auto add = [&](int64_t values, void* sums) {
      const T* parts = from;
      from += values;
      if (sums == nullptr) return Error{cudaSuccess};
      return column_sums(parts, launch_.blocks, values, tiles_.gradient_values(), false, static_cast<T*>(sums), library,
                         stream_);
    };
    if (const Error error = add(tiles_.table_values(), table_gradient)) return error;
    if (const Error error = add(tiles_.weight2_values(), p_.output.layer.weight_gradient)) return error;
    if (const Error error = add(tiles_.classes(), p_.output.layer.bias_gradient)) return error;
    return projection.parameter_gradients(table_gradient, tiles_.keys);
  }

  const MlpCrossEntropy<T>& p_;
  Stream stream_;
  MlpTiles<T> tiles_{};
  TileLaunch<T> launch_;
};

// One layer after the other, what is between them in memory.
template <typename T>
Error run_layers(const MlpCrossEntropy<T>& problem, DeviceLibrary& library, Stream stream) {
  EmbeddingLinearCall hidden = problem.hidden;
  LinearCrossEntropy<T> output = problem.output;
  const int64_t rows = hidden.ids.rows, values = rows * hidden.hidden_dim;
  hidden.output = library.allocate(values * storage_size(hidden.storage));
  if (const Error error = embedding_linear_forward(hidden, library, stream)) return error;

  output.layer.input = Matrix(hidden.output, hidden.storage, rows, hidden.hidden_dim);
  output.loss.shift = library.allocate_values<T>(2 * rows);
  output.loss.log_sum = output.loss.shift + rows;
  if (problem.has_gradient) output.layer.input_gradient = library.allocate(values * storage_size(hidden.storage));
  if (const Error error = linear_cross_entropy(output, library, stream)) return error;
  if (!problem.has_gradient) return cudaSuccess;

  hidden.grad_output = output.layer.input_gradient;
  return embedding_linear_backward(hidden, library, stream);
}

}  // namespace

template <typename T>
bool mlp_cross_entropy_in_tiles(const MlpCrossEntropy<T>& problem) {
  return TiledModel<T>(problem, nullptr).cut();
}

template <typename T>
Error mlp_cross_entropy(const MlpCrossEntropy<T>& problem, DeviceLibrary& library, Stream stream) {
  TiledModel<T> tiled(problem, stream);
  return tiled.cut() ? tiled.run(library) : run_layers(problem, library, stream);
}

#define CHARLM_INSTANTIATE(T)                                          \
  template bool mlp_cross_entropy_in_tiles(const MlpCrossEntropy<T>&); \
  template Error mlp_cross_entropy(const MlpCrossEntropy<T>&, DeviceLibrary&, Stream);
CHARLM_INSTANTIATE(float)
CHARLM_INSTANTIATE(double)
#undef CHARLM_INSTANTIATE

}  // namespace charlm::cuda
