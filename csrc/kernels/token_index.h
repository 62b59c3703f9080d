// Token ids as they come, as one int32 array, and as the distinct tokens of each position.
#pragma once

#include <stdint.h>

namespace charlm {

enum class IntegerType { kInt8, kInt16, kInt32, kInt64, kUInt8, kUInt16, kUInt32, kUInt64 };

// (N, T) ids anywhere in memory; overlapping windows of one token array are not copied. Strides in elements.
struct TokenIds {
  const void* data = nullptr;
  IntegerType type = IntegerType::kInt64;
  int64_t rows = 0;            // N
  int64_t context_length = 0;  // T
  int64_t row_stride = 0;
  int64_t position_stride = 1;
};

// Writes tokens (N, T). Returns whether all of them are in [0, vocab_size).
bool read_tokens(const TokenIds& ids, int64_t vocab_size, int32_t* tokens);

// The first id, in row-major order, that is not in [0, vocab_size), as row * T + position; -1 if there is none.
int64_t first_bad_id(const TokenIds& ids, int64_t vocab_size);
// One id; of type uint64, its bits.
int64_t id_at(const TokenIds& ids, int64_t row, int64_t position);

// Numbers the distinct tokens of one position of tokens (N, T) in the order they are first seen: distinct[i] is token
// number i, numbers[n * T + position] the number of row n's. Returns how many there are. `seen` is (V,) scratch.
int64_t index_position(const int32_t* tokens, int64_t rows, int64_t context_length, int64_t position,
                       int64_t vocab_size, int32_t* seen, int32_t* numbers, int32_t* distinct);

}  // namespace charlm
