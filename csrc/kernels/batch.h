// From examples to a batch of distinct contexts: each context once, with all the targets that follow it.
#pragma once

#include <stdint.h>

#include "kernels/isa.h"

namespace charlm {

struct Example {
  int32_t context, target;  // context: a row of ContextTable::tokens
};
inline constexpr int32_t kIgnored = -1;  // as a target: the example is to be left out

// Distinct contexts, which examples refer to.
struct ContextTable {
  int64_t context_length = 0, vocab_size = 0;
  int64_t rows = 0;                 // U
  const int32_t* tokens = nullptr;  // (U, T)
};

// Distinct contexts and their targets. A table row is a token at a position: position t has the rows from
// position_begin[t] on of the projected tables.
template <typename T>
struct ContextBatch {
  int64_t rows = 0;                         // U, distinct contexts
  const int32_t* context_rows = nullptr;    // (U, T) the table row of each token of each context
  const int32_t* position_begin = nullptr;  // (T + 1,) first table row of each position
  const int32_t* tokens = nullptr;          // (P,) the token of each table row
  const int32_t* entry_begin = nullptr;     // (U + 1,) first entry of each context
  const int32_t* entry_rows = nullptr;      // (entries,) the context of each entry, ascending
  const int32_t* targets = nullptr;         // (entries,)
  const T* weights = nullptr;               // (entries,), null: all `weight`
  T weight = 1;

  CHARLM_SHARED_INLINE int64_t table_rows(int64_t context_length) const { return position_begin[context_length]; }
};

// Numbers equal rows of `contexts` (N, T) alike, by first appearance: index[i] is the number of row i, and the first U
// rows of `distinct` (N, T) are the rows so numbered. Returns U. `table` has number_contexts_table_size(N) elements.
int64_t number_contexts(const int32_t* contexts, int64_t rows, int64_t context_length, int32_t* table, int32_t* index,
                        int32_t* distinct);
int64_t number_contexts_table_size(int64_t rows);

// Builds batches in memory that the caller provides: batch_memory(contexts, size) int32 values.
class BatchBuilder {
 public:
  BatchBuilder(const ContextTable& contexts, int64_t max_size, int32_t* memory);

  // The batch of these examples, each of weight 1 / size. Valid until the next one is built.
  template <typename T>
  ContextBatch<T> build(const Example* examples, int64_t size);

  // The entry of the last batch that example b of it became: (size,).
  const int32_t* entry_of_example() const { return entry_of_example_; }

  // Every context of the table once, as it is; its targets come with the caller. `entry_rows` (entries,) is filled in.
  template <typename T>
  ContextBatch<T> build_all(const int32_t* entry_begin, const int32_t* targets, const T* weights, int32_t* entry_rows);

 private:
  void number_tokens(int64_t rows, const int32_t* context_of_row);

  ContextTable contexts_;
  int32_t *row_of_context_, *table_row_of_token_;
  int32_t *context_of_row_, *entry_of_example_, *entry_begin_, *entry_rows_, *targets_;
  int32_t *context_rows_, *position_begin_, *tokens_;
};
int64_t batch_memory(const ContextTable& contexts, int64_t max_size);

}  // namespace charlm
