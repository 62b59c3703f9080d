#include "kernels/cuda/cross_entropy_run.cuh"
#include "kernels/cuda/output_layer.cuh"
#include "kernels/linear_cross_entropy.h"

namespace charlm::cuda {
namespace {

// The loss of a chunk of rows at a time, in the storage type of the layer.
template <typename S>
class LossOfLayer {
 public:
  using T = Compute<S>;

  LossOfLayer(const LinearCrossEntropy<T>& problem, DeviceLibrary& library, Stream stream)
      : p_(problem), library_(library), stream_(stream), layer_(problem.layer, library, stream) {}

  Error run() {
    if (const Error error = prepare()) return error;
    const Error error = layer_.run([&](int64_t first, int64_t rows) {
      const CrossEntropy<T> loss = problem_of(first, rows);
      if (p_.row_loss != nullptr) run_.row_loss = p_.row_loss + first;
      if (const Error error = run_cross_entropy(loss, run_, stream_)) return error;
      if (run_.loss_parts != nullptr) {
        run_.loss_parts += cross_entropy_parts(loss);
        run_.weight_parts += cross_entropy_parts(loss);
      }
      return Error{cudaSuccess};
    });
    if (error != cudaSuccess || p_.total_loss == nullptr) return error;
    return reduce_cross_entropy<T>(loss_parts_, p_.mean ? weight_parts_ : nullptr, parts_, p_.total_loss,
                                   run_.denominator == nullptr ? loss_.denominator : nullptr, stream_);
  }

 private:
  Error prepare() {
    loss_ = p_.loss;
    run_.upstream = p_.upstream;
    const bool has_gradient = p_.layer.wants_gradient() || p_.loss.probabilities_gradient.data != nullptr;
    if (p_.mean && has_gradient) {
      if (const Error error = divide_by_denominator(&loss_, &run_, library_, stream_)) return error;
    }
    const int64_t rows = loss_.rows, chunk = layer_.rows_of_chunk();
    const int64_t last = chunk > 0 ? rows % chunk : 0, whole = chunk > 0 ? rows / chunk : 0;
    const CrossEntropy<T> of_chunk = problem_of(0, chunk), of_last = problem_of(0, last);
    const int64_t values = cross_entropy_split_values(of_chunk), last_values = cross_entropy_split_values(of_last);
    run_.split_rows = library_.allocate_values<T>(values > last_values ? values : last_values);
    if (p_.total_loss == nullptr) return cudaSuccess;
    parts_ = whole * cross_entropy_parts(of_chunk) + (last > 0 ? cross_entropy_parts(of_last) : 0);
    loss_parts_ = run_.loss_parts = library_.allocate_values<T>(parts_);
    weight_parts_ = run_.weight_parts = library_.allocate_values<T>(parts_);
    return cudaSuccess;
  }

  CrossEntropy<T> problem_of(int64_t first, int64_t rows) const {
    CrossEntropy<T> part = rows_from(loss_, first, rows);
    part.input = part.input_gradient = layer_.logits();
    if (!p_.layer.wants_gradient()) part.input_gradient.data = nullptr;
    return part;
  }

  const LinearCrossEntropy<T>& p_;
  DeviceLibrary& library_;
  Stream stream_;
  OutputLayerCall<S> layer_;
  int64_t parts_ = 0;
  T *loss_parts_ = nullptr, *weight_parts_ = nullptr;
  CrossEntropy<T> loss_;
  CrossEntropyRun<T> run_;
};

}  // namespace

template <typename T>
Error linear_cross_entropy(const LinearCrossEntropy<T>& problem, DeviceLibrary& library, Stream stream) {
  return with_storage<T>(problem.layer.input.storage,
                         [&](auto type) { return LossOfLayer<decltype(type)>(problem, library, stream).run(); });
}

template Error linear_cross_entropy(const LinearCrossEntropy<float>&, DeviceLibrary&, Stream);
template Error linear_cross_entropy(const LinearCrossEntropy<double>&, DeviceLibrary&, Stream);

}  // namespace charlm::cuda
