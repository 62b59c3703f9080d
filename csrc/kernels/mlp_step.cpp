#include "kernels/mlp_step.h"

namespace charlm {
namespace {

int64_t clamp(int64_t value, int64_t low, int64_t high) { return value < low ? low : value > high ? high : value; }

}  // namespace

MlpTiling::MlpTiling(const MlpLayout& layout, int64_t rows) {
  // A tile of a small vocabulary fits into the second-level cache with all that is done to it. With many classes the
  // weights are what has to be read again for every tile, so tiles are large, and classes are shared out instead.
  const bool many_classes = layout.vocab_size > 256;
  tile_rows = many_classes ? 256 : 128;
  tiles = (rows + tile_rows - 1) / tile_rows;
  slots = 1;  // a power of two, which two or four threads can share evenly, of at least 4 tiles each
  while (!many_classes && slots < kMaxSlots && 8 * slots <= tiles) slots *= 2;
  class_slots = many_classes ? clamp(layout.classes.count / 16, 1, kMaxClassSlots) : 1;
}

}  // namespace charlm
