#include "kernels/output_layer.h"

#include <algorithm>

#include "kernels/host_library.h"

namespace charlm::cpu {
namespace {

// Values of a matrix that are worth waking a thread for.
constexpr int64_t kValueGrain = 1 << 16;
constexpr int64_t kChosenRows = 16;

}  // namespace

template <typename T>
OutputLayer<T> OutputLayer<T>::rows_from(int64_t first, int64_t rows) const {
  OutputLayer part = *this;
  part.input = input.rows_from(first, rows);
  if (input_gradient != nullptr) part.input_gradient += first * input.columns;
  return part;
}

template <typename T>
void OutputLayer<T>::clear_sums() const {
  if (bias_gradient != nullptr) fill_zero(bias_gradient, weight.rows * sizeof(T));
  if (input_gradient != nullptr && weight.rows == 0) fill_zero(input_gradient, input.rows * input.columns * sizeof(T));
}

template <typename T>
void OutputLayer<T>::write_logits(int64_t first_class, const Matrix& logits) const {
  const Matrix classes = weight.rows_from(first_class, logits.columns);
  multiply<T>(Write::kSet, logits, input, classes.transposed(), input.rows * weight.rows);
  if (bias == nullptr) return;
  const T* const values = bias + first_class;
  T* const out = static_cast<T*>(logits.data);
  parallel_for(logits.rows, 1 + kValueGrain / logits.columns, [&](int64_t first, int64_t last) {
    for (int64_t n = first; n < last; ++n) {
      for (int64_t c = 0; c < logits.columns; ++c) out[n * logits.row_stride + c] += values[c];
    }
  });
}

template <typename T>
void OutputLayer<T>::add_to_input_gradient(int64_t first_class, const Matrix& gradient) const {
  if (input_gradient == nullptr) return;
  multiply<T>(first_class == 0 ? Write::kSet : Write::kAdd,
              computed_matrix(input_gradient, gradient.rows, input.columns), gradient,
              weight.rows_from(first_class, gradient.columns));
}

// Their rows of the weight, side by side, make the logit of each row with each of these classes; one is wanted. So few
// rows at a time that the others are little work.
template <typename T>
void OutputLayer<T>::write_chosen_logits(const int64_t* classes, int64_t stride, T* logits) const {
  const int64_t features = weight.columns, value_bytes = storage_size(weight.storage),
                row_bytes = features * value_bytes;
  parallel_for_columns(input.rows, kChosenRows, kChosenRows, [&](int64_t begin, int64_t end) {
    const Workspace<char> chosen(kChosenRows * row_bytes);
    const Workspace<T> products(kChosenRows * kChosenRows);
    for (int64_t first = begin; first < end; first += kChosenRows) {
      const int64_t rows = std::min(kChosenRows, end - first);
      const auto class_of = [&](int64_t r) {
        const int64_t c = classes[(first + r) * stride];
        return c >= 0 && c < weight.rows ? c : 0;
      };
      for (int64_t r = 0; r < rows; ++r) {
        char* const to = chosen.data() + r * row_bytes;
        const char* const from = static_cast<const char*>(weight.at(class_of(r) * weight.row_stride));
        for (int64_t d = 0; d < features; ++d) {
          std::memcpy(to + d * value_bytes, from + d * weight.column_stride * value_bytes, value_bytes);
        }
      }
      const Matrix of_rows(chosen.data(), weight.storage, rows, features);
      multiply<T>(Write::kSet, computed_matrix(products.data(), rows, rows), input.rows_from(first, rows),
                  of_rows.transposed(), input.rows * weight.rows);
      for (int64_t r = 0; r < rows; ++r) {
        logits[first + r] = products.data()[r * rows + r] + (bias != nullptr ? bias[class_of(r)] : 0);
      }
    }
  });
}

// Sums over rows, in order whatever the number of threads.
template <typename T>
void OutputLayer<T>::add_to_bias_gradient(int64_t first_class, const Matrix& gradient) const {
  if (bias_gradient == nullptr) return;
  const T* const values = static_cast<const T*>(gradient.data);
  T* const sums = bias_gradient + first_class;
  const int64_t grain = kValueGrain / std::max<int64_t>(gradient.rows, 1);
  parallel_for_columns(gradient.columns, kVectorColumns, grain, [&](int64_t first, int64_t last) {
    for (int64_t n = 0; n < gradient.rows; ++n) {
      for (int64_t c = first; c < last; ++c) sums[c] += values[n * gradient.row_stride + c];
    }
  });
}

template <typename T>
void OutputLayer<T>::write_weight_gradient(Write write, const Matrix& gradient, T* out) const {
  multiply<T>(write, computed_matrix(out, gradient.columns, input.columns), gradient.transposed(), input);
}

template struct OutputLayer<float>;
template struct OutputLayer<double>;

}  // namespace charlm::cpu
