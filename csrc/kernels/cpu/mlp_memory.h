// Where everything lies that a training step works on: pieces of its workspace, and blocks (kernels/blocks.h) of them.
#pragma once

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#include "kernels/cpu/block_gemm.h"
#include "kernels/cpu/softmax_rows.h"
#include "kernels/mlp_step.h"

namespace charlm::cpu::CHARLM_ISA_NAMESPACE {

// Hands out pieces of the workspace, each aligned to a cache line; or only counts what they take. AddressSanitizer is
// told where each ends, as it sees but one piece of memory.
template <typename T>
struct Arena {
  T* memory;  // null: only count
  int64_t used = 0;

  T* take(int64_t count) {
    T* piece = memory != nullptr ? memory + used : nullptr;
    used += (count + 15) / 16 * 16;
#if defined(__SANITIZE_ADDRESS__)
    constexpr int64_t kGap = 32;
    used += kGap;
    if (piece != nullptr) {
      __asan_unpoison_memory_region(piece, count * sizeof(T));
      __asan_poison_memory_region(piece + count, (memory + used - piece - count) * sizeof(T));
    }
#endif
    return piece;
  }
};

// What one group of tiles works with. Matrices are stored block by block.
template <typename T>
struct Slot {
  T* gradient;                            // of the parameters
  T* tables_gradient;                     // (P, H)
  T* direct_gradient;                     // (P, V)
  T* hidden;                              // (tile, H)
  T* z;                                   // (tile, V), logits and then their gradient
  T* hidden_gradient;                     // (class slots, tile, H); with one class slot only the block at hand
  T* transposed;                          // (class slots, H, width of a class block), weight2 transposed
  T* shift;                               // (tile,)
  T* scale;                               // (tile,)
  T* sum;                                 // (class slots, tile)
  bool small[MlpTiling::kMaxClassSlots];  // whether no logit of the tile, in the classes of a slot, needs a shift
  double loss;
};

// Also how the step goes, which decides what has to be kept and what one place in cache serves for.
template <typename T>
struct MlpMemory {
  const MlpStep<T>& step;
  const MlpLayout& layout;
  const MlpTiling tiling;
  const UpdateTime update_time;
  const int64_t table_rows;
  const T step_scale;  // of every gradient

  T* embedded;            // (P, 1 + D): 1 and the embedding of each table row
  T* embedded_gradient;   // (P, D) in blocks
  T* tables;              // (P, H) in blocks
  T* direct_tables;       // (P, V) in blocks
  T* weight1_transposed;  // (T, width of a block, D in blocks)
  T* target_logits;       // (entries,)
  Slot<T> slots[MlpTiling::kMaxSlots];
  int64_t size;  // of all these

  MlpMemory(const MlpStep<T>& problem, int64_t rows, int64_t table_rows, int64_t entries)
      : step(problem),
        layout(problem.layout),
        tiling(problem.layout, rows),
        update_time(tiling.update_time(problem.update)),
        table_rows(table_rows),
        step_scale(in_place() ? -problem.update->rates.learning_rate : 1) {
    Arena<T> arena{problem.workspace};
    embedded = arena.take(table_rows * (1 + layout.embedding_dim));
    embedded_gradient = arena.take(table_rows * layout.dims.padded());
    tables = arena.take(table_rows * layout.hidden.padded());
    direct_tables = arena.take(layout.direct ? table_rows * layout.classes.padded() : 0);
    weight1_transposed = arena.take(layout.context_length * kMaxVectors * kWidth<T> * layout.dims.padded());
    target_logits = problem.entry_losses != nullptr ? problem.entry_losses : arena.take(entries);
    for (int64_t s = 0; s < tiling.slots; ++s) slots[s] = make_slot(&arena, s);
    size = arena.used;
  }

  bool fused() const { return tiling.is_fused(); }
  bool in_place() const { return update_time == UpdateTime::kInPlace; }
  bool at_once() const { return update_time == UpdateTime::kAtOnce; }

  // Where the tables of a block are: where each block is done with before the next, all share one place in cache.
  T* tables_at(int64_t block) const { return tables + (fused() ? 0 : table_rows * layout.hidden.begin(block)); }
  T* tables_gradient_at(const Slot<T>& slot, int64_t block) const {
    return slot.tables_gradient + (fused() ? 0 : table_rows * layout.hidden.begin(block));
  }
  T* direct_tables_at(int64_t c) const { return direct_tables + table_rows * layout.classes.begin(c); }
  T* direct_gradient_at(const Slot<T>& slot, int64_t c) const {
    return slot.direct_gradient + table_rows * layout.classes.begin(c);
  }
  T* weight1_transposed_at(int64_t t) const {
    return weight1_transposed + t * kMaxVectors * kWidth<T> * layout.dims.padded();
  }
  // The gradient of a block's weights, bias1 first. One that is used at once is not kept.
  T* gradient_at(const Slot<T>& slot, int64_t block) const {
    return slot.gradient + (fused() && at_once() ? 0 : layout.weight1(block));
  }
  T* weight2_gradient_at(const Slot<T>& slot, int64_t block) const {
    return gradient_at(slot, block) + layout.weight2(block) - layout.weight1(block);
  }
  T* hidden_at(const Slot<T>& slot, int64_t block) const {
    return slot.hidden + tiling.tile_rows * layout.hidden.begin(block);
  }
  T* hidden_gradient_at(const Slot<T>& slot, int64_t class_slot, int64_t block) const {
    if (tiling.class_slots == 1) return slot.hidden_gradient;
    return slot.hidden_gradient + tiling.tile_rows * (class_slot * layout.hidden.padded() + layout.hidden.begin(block));
  }
  T* transposed_at(const Slot<T>& slot, int64_t class_slot) const {
    return slot.transposed + class_slot * layout.hidden.padded() * kMaxVectors * kWidth<T>;
  }
  // First class block of a class slot.
  int64_t class_block(int64_t class_slot) const { return layout.classes.count * class_slot / tiling.class_slots; }

  SoftmaxTile<T> softmax_tile(const Slot<T>& slot, int64_t tile) const {
    const int64_t first = tile * tiling.tile_rows, left = step.batch.rows - first;
    return {step.batch,       layout.classes, step.softcap, first, left < tiling.tile_rows ? left : tiling.tile_rows,
            tiling.tile_rows, slot.z};
  }

 private:
  Slot<T> make_slot(Arena<T>* arena, int64_t s) const {
    const int64_t tile = tiling.tile_rows, hidden = layout.hidden.padded(), classes = layout.classes.padded();
    Slot<T> slot;
    slot.gradient = s > 0 ? arena->take(layout.size()) : in_place() ? step.parameters : step.gradient;
    slot.tables_gradient = arena->take(table_rows * hidden);
    slot.direct_gradient = arena->take(layout.direct ? table_rows * classes : 0);
    slot.hidden = arena->take(tile * hidden);
    slot.z = arena->take(tile * classes);
    slot.hidden_gradient = arena->take(tiling.class_slots * tile * hidden);
    slot.transposed = arena->take(tiling.class_slots * hidden * kMaxVectors * kWidth<T>);
    slot.shift = arena->take(tile);
    slot.scale = arena->take(tile);
    slot.sum = arena->take(tiling.class_slots * tile);
    return slot;
  }
};

template <typename T>
CHARLM_INLINE void fill_zero(T* values, int64_t count) {
  __builtin_memset(values, 0, count * sizeof(T));
}

}  // namespace charlm::cpu::CHARLM_ISA_NAMESPACE
