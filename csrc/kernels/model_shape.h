// The sizes of a model that the engine trains.
#pragma once

#include <stdint.h>

namespace charlm {

// A bigram has one parameter and no hidden layer.
struct ModelShape {
  int64_t vocab_size = 0, context_length = 0, embedding_dim = 0, hidden_dim = 0;
  bool direct = false;

  bool is_bigram() const { return hidden_dim == 0; }
  // The most tokens, each at a position, that so many contexts have between them.
  int64_t table_rows(int64_t contexts) const {
    return (contexts < vocab_size ? contexts : vocab_size) * context_length;
  }
};

}  // namespace charlm
