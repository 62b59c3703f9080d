// A dimension cut into blocks of a few vectors each, as the register tiles of cpu/block_gemm.h want it.
//
// A matrix with `size` columns is stored block by block: all rows of the first block, then all rows of the second, each
// row of a block contiguous. One block of a few dozen rows is a few KB in one piece, so that work on it stays in the
// first-level cache. The last vector is padded, with zeros unless stated otherwise.
#pragma once

#include <stdint.h>

namespace charlm {

struct Blocks {
  int64_t size = 0;     // columns
  int64_t lanes = 1;    // columns in a vector
  int64_t vectors = 0;  // ceil(size / lanes)
  int64_t count = 0;  // blocks, as even as vectors allow: the first `larger` have narrow + 1 vectors, the others narrow
  int64_t narrow = 0, larger = 0;

  Blocks() = default;
  Blocks(int64_t size, int64_t lanes, int64_t max_vectors)
      : size(size),
        lanes(lanes),
        vectors((size + lanes - 1) / lanes),
        count((vectors + max_vectors - 1) / max_vectors),
        narrow(vectors / count),
        larger(vectors % count) {}

  int64_t padded() const { return vectors * lanes; }
  // First column of a block; padded() for block `count`. A matrix of R rows has block b at R * begin(b).
  int64_t begin(int64_t block) const { return lanes * (block * narrow + (block < larger ? block : larger)); }
  int64_t width(int64_t block) const { return lanes * (narrow + (block < larger)); }
  int64_t block_of(int64_t column) const {
    if (count == 1) return 0;
    const int64_t vector = column / lanes, in_larger = larger * (narrow + 1);
    return vector < in_larger ? vector / (narrow + 1) : larger + (vector - in_larger) / narrow;
  }
  // Columns of a block that are not padding.
  int64_t used(int64_t block) const {
    const int64_t end = begin(block + 1);
    return (end < size ? end : size) - begin(block);
  }
};

}  // namespace charlm
