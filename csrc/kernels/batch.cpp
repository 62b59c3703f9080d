#include "kernels/batch.h"

#include <cstring>

namespace charlm {

int64_t number_contexts_table_size(int64_t rows) {
  int64_t size = 16;
  while (size < 2 * rows) size *= 2;
  return size;
}

int64_t number_contexts(const int32_t* contexts, int64_t rows, int64_t context_length, int32_t* table, int32_t* index,
                        int32_t* distinct) {
  const int64_t table_size = number_contexts_table_size(rows);
  const size_t bytes = context_length * sizeof(int32_t);
  for (int64_t i = 0; i < table_size; ++i) table[i] = -1;
  const uint64_t mask = static_cast<uint64_t>(table_size) - 1;
  int32_t count = 0;
  for (int64_t row = 0; row < rows; ++row) {
    const int32_t* context = contexts + row * context_length;
    uint64_t hash = 0;
    for (int64_t t = 0; t < context_length; ++t) {
      hash = (hash ^ static_cast<uint32_t>(context[t])) * 0x9e3779b97f4a7c15u;
      hash ^= hash >> 32;
    }
    uint64_t bucket = hash & mask;
    while (table[bucket] >= 0 && std::memcmp(distinct + table[bucket] * context_length, context, bytes) != 0) {
      bucket = (bucket + 1) & mask;
    }
    if (table[bucket] < 0) {
      std::memcpy(distinct + count * context_length, context, bytes);
      table[bucket] = count++;
    }
    index[row] = table[bucket];
  }
  return count;
}

int64_t batch_memory(const ContextTable& contexts, int64_t max_size) {
  const int64_t length = contexts.context_length;
  return contexts.rows + contexts.vocab_size + 5 * max_size + 1 + 2 * max_size * length + length + 1;
}

BatchBuilder::BatchBuilder(const ContextTable& contexts, int64_t max_size, int32_t* memory) : contexts_(contexts) {
  const auto take = [&](int64_t count) {
    int32_t* piece = memory;
    memory += count;
    return piece;
  };
  row_of_context_ = take(contexts.rows);
  table_row_of_token_ = take(contexts.vocab_size);
  context_of_row_ = take(max_size);
  entry_of_example_ = take(max_size);
  entry_begin_ = take(max_size + 1);
  entry_rows_ = take(max_size);
  targets_ = take(max_size);
  context_rows_ = take(max_size * contexts.context_length);
  position_begin_ = take(contexts.context_length + 1);
  tokens_ = take(max_size * contexts.context_length);
  // Sparse sets: an element is in the set if its row points back at it. Nothing is cleared between batches.
  std::memset(row_of_context_, 0, contexts.rows * sizeof(int32_t));
  std::memset(table_row_of_token_, 0, contexts.vocab_size * sizeof(int32_t));
}

void BatchBuilder::number_tokens(int64_t rows, const int32_t* context_of_row) {
  const int64_t length = contexts_.context_length;
  int32_t table_row = 0;
  for (int64_t t = 0; t < length; ++t) {
    const int32_t begin = table_row;
    position_begin_[t] = begin;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t context = context_of_row != nullptr ? context_of_row[row] : row;
      const int32_t token = contexts_.tokens[context * length + t];
      int32_t known = table_row_of_token_[token];
      if (known < begin || known >= table_row || tokens_[known] != token) {
        known = table_row++;
        table_row_of_token_[token] = known;
        tokens_[known] = token;
      }
      context_rows_[row * length + t] = known;
    }
  }
  position_begin_[length] = table_row;
}

template <typename T>
ContextBatch<T> BatchBuilder::build(const Example* examples, int64_t size) {
  int32_t rows = 0;
  int32_t* count = entry_begin_ + 1;
  for (int64_t b = 0; b < size; ++b) {
    const int32_t context = examples[b].context;
    const int32_t known = row_of_context_[context];
    // Without a branch: whether a context is new is what no predictor can know.
    const bool is_new = known >= rows || context_of_row_[known] != context;
    const int32_t row = is_new ? rows : known;
    row_of_context_[context] = row;
    context_of_row_[row] = context;
    count[row] = (is_new ? 0 : count[row]) + 1;
    entry_of_example_[b] = row;  // for now
    rows += is_new;
  }
  // entry_begin_[row + 1] runs from the first entry of the row to one past its last while the targets are filled in.
  int32_t total = 0;
  for (int32_t row = 0; row < rows; ++row) {
    const int32_t here = count[row];
    count[row] = total;
    total += here;
  }
  entry_begin_[0] = 0;
  for (int64_t b = 0; b < size; ++b) {
    const int32_t row = entry_of_example_[b], entry = count[row]++;
    entry_rows_[entry] = row;
    targets_[entry] = examples[b].target;
    entry_of_example_[b] = entry;
  }
  number_tokens(rows, context_of_row_);
  return {rows,     context_rows_, position_begin_,
          tokens_,  entry_begin_,  entry_rows_,
          targets_, nullptr,       T(1) / static_cast<T>(size)};
}

template <typename T>
ContextBatch<T> BatchBuilder::build_all(const int32_t* entry_begin, const int32_t* targets, const T* weights,
                                        int32_t* entry_rows) {
  const int64_t rows = contexts_.rows;
  number_tokens(rows, nullptr);
  for (int64_t row = 0; row < rows; ++row) {
    for (int32_t entry = entry_begin[row]; entry < entry_begin[row + 1]; ++entry) {
      entry_rows[entry] = static_cast<int32_t>(row);
    }
  }
  return {rows, context_rows_, position_begin_, tokens_, entry_begin, entry_rows, targets, weights, T(1)};
}

template ContextBatch<float> BatchBuilder::build(const Example*, int64_t);
template ContextBatch<double> BatchBuilder::build(const Example*, int64_t);
template ContextBatch<float> BatchBuilder::build_all(const int32_t*, const int32_t*, const float*, int32_t*);
template ContextBatch<double> BatchBuilder::build_all(const int32_t*, const int32_t*, const double*, int32_t*);

}  // namespace charlm
