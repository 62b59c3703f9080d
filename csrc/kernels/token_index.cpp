#include "kernels/token_index.h"

#include <algorithm>
#include <atomic>

#include "kernels/host_library.h"

namespace charlm {
namespace {

template <typename Function>
auto with_type(const TokenIds& ids, const Function& function) {
  switch (ids.type) {
    case IntegerType::kInt8:
      return function(static_cast<const int8_t*>(ids.data));
    case IntegerType::kInt16:
      return function(static_cast<const int16_t*>(ids.data));
    case IntegerType::kInt32:
      return function(static_cast<const int32_t*>(ids.data));
    case IntegerType::kUInt8:
      return function(static_cast<const uint8_t*>(ids.data));
    case IntegerType::kUInt16:
      return function(static_cast<const uint16_t*>(ids.data));
    case IntegerType::kUInt32:
      return function(static_cast<const uint32_t*>(ids.data));
    case IntegerType::kUInt64:
      return function(static_cast<const uint64_t*>(ids.data));
    case IntegerType::kInt64:
      break;
  }
  return function(static_cast<const int64_t*>(ids.data));
}

// Negative just where an id is not in [0, limit]: an instruction or two on vectors of any instruction set. An uint64
// from 2^63 on counts as negative.
template <typename Id>
int64_t out_of_range(Id id, int64_t limit) {
  return static_cast<int64_t>(id) | (limit - static_cast<int64_t>(static_cast<uint64_t>(id) & INT64_MAX));
}

// Rows [first, last).
bool read_rows(const TokenIds& ids, int64_t vocab_size, int64_t first, int64_t last, int32_t* tokens) {
  const int64_t length = ids.context_length, limit = vocab_size - 1;
  return with_type(ids, [&](const auto* data) {
    int64_t bad = 0;  // gathered without a branch, so that the loops vectorise
    if (ids.position_stride == 1 && ids.row_stride == length) {
      for (int64_t i = first * length; i < last * length; ++i) {
        bad |= out_of_range(data[i], limit);
        tokens[i] = static_cast<int32_t>(data[i]);
      }
      return bad >= 0;
    }
    for (int64_t n = first; n < last; ++n) {
      const auto* row = data + n * ids.row_stride;
      for (int64_t t = 0; t < length; ++t) {
        const auto id = row[t * ids.position_stride];
        bad |= out_of_range(id, limit);
        tokens[n * length + t] = static_cast<int32_t>(id);
      }
    }
    return bad >= 0;
  });
}

}  // namespace

bool read_tokens(const TokenIds& ids, int64_t vocab_size, int32_t* tokens) {
  constexpr int64_t kGrain = 1 << 15;  // tokens that are worth waking a thread for
  std::atomic<bool> good{true};
  parallel_for(ids.rows, 1 + kGrain / ids.context_length, [&](int64_t first, int64_t last) {
    if (!read_rows(ids, vocab_size, first, last, tokens)) good = false;
  });
  return good;
}

int64_t first_bad_id(const TokenIds& ids, int64_t vocab_size) {
  return with_type(ids, [&](const auto* data) -> int64_t {
    for (int64_t n = 0; n < ids.rows; ++n) {
      for (int64_t t = 0; t < ids.context_length; ++t) {
        if (out_of_range(data[n * ids.row_stride + t * ids.position_stride], vocab_size - 1) < 0) {
          return n * ids.context_length + t;
        }
      }
    }
    return -1;
  });
}

int64_t id_at(const TokenIds& ids, int64_t row, int64_t position) {
  return with_type(ids, [&](const auto* data) {
    return static_cast<int64_t>(data[row * ids.row_stride + position * ids.position_stride]);
  });
}

int64_t index_position(const int32_t* tokens, int64_t rows, int64_t context_length, int64_t position,
                       int64_t vocab_size, int32_t* seen, int32_t* numbers, int32_t* distinct) {
  std::fill(seen, seen + vocab_size, -1);
  int32_t count = 0;
  for (int64_t i = position; i < rows * context_length; i += context_length) {
    int32_t& number = seen[tokens[i]];
    if (number < 0) {
      number = count;
      distinct[count++] = tokens[i];
    }
    numbers[i] = number;
  }
  return count;
}

}  // namespace charlm
