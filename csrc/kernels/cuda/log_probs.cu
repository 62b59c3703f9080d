// A group of threads for a row, from one thread (few classes) to a block (128K in bfloat16). No row is shared by
// blocks: one row of a million classes keeps one multiprocessor busy, for some 50 microseconds, and no other. Few
// classes in rows that begin between two vectors are read from where they are: cross_entropy_narrow.cuh has what is
// faster.
//
// Forward reads a row once, under a running maximum, and once more the piece that has the largest input.
#include <type_traits>

#include "kernels/cuda/log_probs_row.cuh"
#include "kernels/cuda/row_group.cuh"
#include "kernels/cuda/row_pieces.cuh"
#include "kernels/log_probs.h"

namespace charlm::cuda {
namespace {

// The row of a thread's group. Threads without one stay for the barriers, with no classes and no ids.
template <typename S>
struct Row {
  int64_t index, ids_per_row;
  bool exists;
  const int64_t* ids;
  RowPieces<S> pieces;

  __device__ explicit Row(const LogProbs<Compute<S>>& p)
      : index(blockIdx.x * static_cast<int64_t>(blockDim.y) + threadIdx.y), exists(index < p.rows) {
    const int64_t row = exists ? index : 0;
    ids_per_row = exists ? p.ids_per_row : 0;
    ids = p.ids + row * p.ids_per_row;
    pieces = {static_cast<const S*>(p.input.data) + (exists ? p.input.row_offset(row) : 0),
              p.input.class_stride,
              0,
              exists ? static_cast<int>(p.classes) : 0,
              static_cast<int>(threadIdx.x),
              static_cast<int>(blockDim.x)};
  }

  __device__ bool is_led() const { return exists && threadIdx.x == 0; }
  __device__ Compute<S> input(int c) const { return to_compute(pieces.row[c * pieces.class_stride]); }

  // body(k) for the ids of the thread.
  template <typename Body>
  __device__ void for_each_id(const Body& body) const {
#pragma unroll 1
    for (int64_t k = threadIdx.x; k < ids_per_row; k += blockDim.x) body(k);
  }
};

// The first class of a value that a piece has which begins at `place`.
template <bool kAdjacent, typename S>
__device__ inline int find_class(const Row<S>& row, int place, Compute<S> value) {
  constexpr int kWidth = kAdjacent ? kVectorWidth<S> : 1;
#pragma unroll 1
  for (int first = place; first < row.pieces.end; first += row.pieces.threads * kWidth) {
    for (int c = first; c < first + kWidth && c < row.pieces.end; ++c) {
      if (row.input(c) == value) return c;
    }
  }
  return row.pieces.end;
}

template <typename S, bool kPlain, bool kAdjacent>
__global__ void __launch_bounds__(kMaxThreads, kPlain ? 2 : 1)  // 64 registers keep half of all warps resident
    log_probs_of_rows(const LogProbs<Compute<S>> p) {
  using T = Compute<S>;
  constexpr int kPieceVectors = kPlain ? kVectorsAhead : 1;  // all at once, unless that takes too many registers
  __shared__ LogProbsPart<T> parts[kWarp];
  __shared__ int classes[kWarp];
  const Row<S> row(p);
  const T units = units_of(p);
  const int first_class = row.ids_per_row > 0 ? class_of(p, row.ids[0]) : kIgnored;
  const T first_input = first_class >= 0 ? row.input(first_class) : T(0);

  LogProbsPart<T> part = LogProbsPart<T>::of_nothing();
  int place = -1;
  const auto add = [&](const auto& piece) { add_piece<S, kPlain>(p, piece, first_input, units, &part, &place); };
  if constexpr (kAdjacent) {
    row.pieces.template for_each_vector<kPieceVectors>(add);
  } else {
    row.pieces.for_each_scalar(add);
  }
  row.for_each_id([&](int64_t k) { part.counts |= row.ids[k] != p.ignore_index; });

  const T own_largest = part.largest;
  part = merge_over_group(part, parts, [&](const auto& a, const auto& b) { return merge(a, b, units); });
  const int own_class = place >= 0 && own_largest == part.largest ? find_class<kAdjacent>(row, place, own_largest)
                                                                  : static_cast<int>(p.classes);
  const int argmax = merge_over_group(own_class, classes, [](int a, int b) { return a < b ? a : b; });

  // An infinite logit makes the sum infinite, and so logsumexp, and what depends on differences from it NaN.
  const bool is_infinite = part.sum == static_cast<T>(INFINITY);
  const T log_sum = is_infinite ? not_a_number<T>() : log(part.sum);
  row.for_each_id([&](int64_t k) {
    const int c = class_of(p, row.ids[k]);
    T value = c == kIgnored ? T(0) : not_a_number<T>();
    if (c >= 0) value = (logit<T, kPlain>(p, row.input(c)) - part.shift) / p.temperature - log_sum;
    p.log_probs[row.index * p.ids_per_row + k] = value;
  });
  if (!row.is_led()) return;
  const int64_t n = row.index;
  const bool counts = part.counts || p.ids_per_row == 0;
  const T entropy = counts && p.classes > 0 ? log_sum - part.product / part.sum * kUnit<T> : T(0);
  p.shift[n] = part.shift;
  p.log_sum[n] = log_sum;
  p.kept_entropy[n] = p.entropy[n] = entropy;
  const T logsumexp = is_infinite ? part.sum : part.shift / p.temperature + log_sum;
  p.logsumexp[n] = counts ? logsumexp : T(0);
  // Where no input is more than -infinity, the first class.
  p.argmax[n] = !counts || p.classes == 0 ? -1 : argmax < p.classes ? argmax : 0;
  // Nothing is at most a NaN. Beyond the last class a scalar piece counts -infinity, which is not at most it either.
  p.rank[n] = first_class < 0 ? -1 : first_input == first_input ? part.above : p.classes;
}

// What is written for a class that ids name is computed before the walk, which may overwrite its input, and written
// after it: see id_gradients, (N, K). K^2 comparisons a row tell which ids are the same.
template <typename S, bool kPlain, bool kAdjacent>
__global__ void __launch_bounds__(kMaxThreads, kPlain ? 2 : 1)
    log_probs_gradient_of_rows(const LogProbs<Compute<S>> p, Compute<S>* id_gradients) {
  using T = Compute<S>;
  constexpr int kPieceVectors = kPlain ? kVectorsAhead : 1;
  __shared__ IdsPart<T> parts[kWarp];
  const Row<S> row(p);
  const int64_t first_id = row.index * p.ids_per_row;
  const auto upstream = [&](int64_t k) {
    return p.log_probs_gradient != nullptr && row.ids[k] != p.ignore_index ? p.log_probs_gradient[first_id + k] : T(0);
  };
  IdsPart<T> part{0, false, false};
  row.for_each_id([&](int64_t k) {
    part.upstream += upstream(k);
    part.counts |= row.ids[k] != p.ignore_index;
    part.is_outside |= class_of(p, row.ids[k]) == kOutside;
  });
  part = merge_over_group(part, parts, [](const auto& a, const auto& b) {
    return IdsPart<T>{a.upstream + b.upstream, a.counts || b.counts, a.is_outside || b.is_outside};
  });
  const bool counts = row.exists && (part.counts || p.ids_per_row == 0);
  const LogProbsGradient<T> gradient(p, row.exists ? row.index : 0,
                                     part.is_outside ? not_a_number<T>() : part.upstream);

  // body(k, class) for those ids of the thread that are the first of their class.
  const bool has_id_gradients = p.log_probs_gradient != nullptr;
  const auto for_each_named_class = [&](const auto& body) {
    if (!has_id_gradients || !counts) return;
    row.for_each_id([&](int64_t k) {
      const int c = class_of(p, row.ids[k]);
      bool is_first = c >= 0;
      for (int64_t j = 0; j < k && is_first; ++j) is_first = row.ids[j] != row.ids[k];
      if (is_first) body(k, c);
    });
  };
  for_each_named_class([&](int64_t k, int c) {
    T sum = 0;
    for (int64_t j = k; j < row.ids_per_row; ++j) sum += row.ids[j] == row.ids[k] ? upstream(j) : T(0);
    id_gradients[first_id + k] = gradient.template of_input<kPlain>(p, row.input(c), sum);
  });
  if (has_id_gradients) group_barrier();

  S* to = static_cast<S*>(p.input_gradient.data) + (row.exists ? p.input_gradient.row_offset(row.index) : 0);
  const int64_t class_stride = p.input_gradient.class_stride;
  const auto write = [&](const auto& piece) {
    piece.for_each_part([&](T* values, const auto& classes) {
#pragma unroll
      for (int i = 0; i < classes.kCount; ++i) {
        values[i] = counts ? gradient.template of_input<kPlain>(p, values[i], T(0)) : T(0);
      }
      store_classes(to, class_stride, values, classes);
    });
  };
  const uintptr_t apart = reinterpret_cast<uintptr_t>(to) - reinterpret_cast<uintptr_t>(row.pieces.row);
  if (kAdjacent && class_stride == 1 && apart % kVectorBytes == 0) {
    row.pieces.template for_each_vector<kPieceVectors>(write);
  } else {
    row.pieces.for_each_scalar(write);
  }
  if (has_id_gradients) group_barrier();
  for_each_named_class([&](int64_t k, int c) { to[c * class_stride] = to_storage<S>(id_gradients[first_id + k]); });
}

// Launches kernel<S, kPlain, kAdjacent>(p, arguments...), with S of the logits.
template <typename T, typename Kernels, typename... Arguments>
Error launch_rows(const LogProbs<T>& p, const Kernels& kernels, Stream stream, const Arguments&... arguments) {
  const bool is_adjacent = p.input.class_stride == 1 || p.classes == 1;
  const int64_t width = kVectorBytes / storage_size(p.input.storage);
  const int threads = is_adjacent ? threads_for_vectors(p.rows, (p.classes + width - 1) / width)
                                  : threads_for_scalars(p.rows, p.classes);
  const int rows = threads < kWideThreads ? kWideThreads / threads : 1;
  const dim3 block(static_cast<unsigned>(threads), static_cast<unsigned>(rows));
  return with_storage<T>(p.input.storage, [&](auto storage) {
    // Arithmetic in double is for checking gradients; it is not worth kernels of its own for the plain case.
    constexpr bool kHasPlain = sizeof(T) == sizeof(float);
    const auto launch_as = [&](auto plain, auto adjacent) {
      return launch(kernels(storage, plain, adjacent), (p.rows + rows - 1) / rows, block, 0, stream, p, arguments...);
    };
    using Yes = std::true_type;
    using No = std::false_type;
    if (kHasPlain && p.softcap == 0) {
      using Plain = std::bool_constant<kHasPlain>;
      return is_adjacent ? launch_as(Plain{}, Yes{}) : launch_as(Plain{}, No{});
    }
    return is_adjacent ? launch_as(No{}, Yes{}) : launch_as(No{}, No{});
  });
}

}  // namespace

template <typename T>
Error log_probs(const LogProbs<T>& problem, Stream stream) {
  const auto kernels = [](auto storage, auto plain, auto adjacent) {
    return log_probs_of_rows<decltype(storage), plain.value, adjacent.value>;
  };
  return launch_rows(problem, kernels, stream);
}

template <typename T>
Error log_probs_gradient(const LogProbs<T>& problem, DeviceLibrary& library, Stream stream) {
  T* id_gradients = nullptr;
  if (problem.log_probs_gradient != nullptr) {
    id_gradients = library.allocate_values<T>(problem.rows * problem.ids_per_row);
  }
  const auto kernels = [](auto storage, auto plain, auto adjacent) {
    return log_probs_gradient_of_rows<decltype(storage), plain.value, adjacent.value>;
  };
  return launch_rows(problem, kernels, stream, id_gradients);
}

template Error log_probs(const LogProbs<float>&, Stream);
template Error log_probs(const LogProbs<double>&, Stream);
template Error log_probs_gradient(const LogProbs<float>&, DeviceLibrary&, Stream);
template Error log_probs_gradient(const LogProbs<double>&, DeviceLibrary&, Stream);

}  // namespace charlm::cuda
