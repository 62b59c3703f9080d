// Pairs of bfloat16 as AMX multiplies them: the processor has eight registers of 16 rows of 64 bytes, tiles, and adds
// the product of two tiles of 16 x 16 pairs to a tile of 16 x 16 sums in float32 in one instruction.
//
// Built with CHARLM_EMULATE_TILES the instructions are written out for processors without them, so that tests can run
// what uses them anywhere.
//
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18, and TDPBF16PS.
#pragma once

#include "kernels/cpu/gemm.h"

#if defined(__AMX_BF16__) || defined(CHARLM_EMULATE_TILES)
#define CHARLM_HAS_TILES 1
#else
#define CHARLM_HAS_TILES 0
#endif

#if CHARLM_HAS_TILES

namespace charlm::cpu::CHARLM_ISA_NAMESPACE {

// Rows of a tile register, and numbers of 32 bits in each of them.
constexpr int kTileLanes = 16;

#if defined(CHARLM_EMULATE_TILES)

struct TileRegister {
  Vec<float> rows[kTileLanes];
};
inline thread_local TileRegister tile_registers[8];

struct TilesInUse {};

inline void zero_tile(int tile) { tile_registers[tile] = {}; }
inline void load_tile(int tile, const void* from, int64_t stride_bytes) {
  for (int i = 0; i < kTileLanes; ++i) {
    __builtin_memcpy(&tile_registers[tile].rows[i], static_cast<const char*>(from) + i * stride_bytes, 64);
  }
}
inline void store_tile(int tile, void* to, int64_t stride_bytes) {
  for (int i = 0; i < kTileLanes; ++i) {
    __builtin_memcpy(static_cast<char*>(to) + i * stride_bytes, &tile_registers[tile].rows[i], 64);
  }
}
inline void multiply_add_tiles(int sums, int left, int right) {
  const auto first = [](IntVec<float> pairs) { return (Vec<float>)(pairs << 16); };
  const auto second = [](IntVec<float> pairs) { return (Vec<float>)(pairs & (int)0xffff0000); };
  for (int i = 0; i < kTileLanes; ++i) {
    const IntVec<float> a = (IntVec<float>)tile_registers[left].rows[i];
    Vec<float> even = {}, odd = {};
    for (int k = 0; k < kTileLanes; ++k) {
      const IntVec<float> b = (IntVec<float>)tile_registers[right].rows[k], broadcast = IntVec<float>{} + a[k];
      even += first(broadcast) * first(b);
      odd += second(broadcast) * second(b);
    }
    tile_registers[sums].rows[i] += even + odd;
  }
}
#define CHARLM_ZERO_TILE(tile) zero_tile(tile)
#define CHARLM_LOAD_TILE(tile, from, stride_bytes) load_tile(tile, from, stride_bytes)
#define CHARLM_STORE_TILE(tile, to, stride_bytes) store_tile(tile, to, stride_bytes)
#define CHARLM_MULTIPLY_ADD_TILES(sums, left, right) multiply_add_tiles(sums, left, right)

#else

struct TileShapes {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileShapes) == 64);
alignas(64) inline constexpr TileShapes kShapes = {
    1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

// While there is one, the calling thread's tile registers have all their rows and lanes. Afterwards they are empty, and
// nobody has to save them.
struct TilesInUse {
  TilesInUse() { _tile_loadconfig(&kShapes); }
  ~TilesInUse() { _tile_release(); }
  TilesInUse(const TilesInUse&) = delete;
  TilesInUse& operator=(const TilesInUse&) = delete;
};

// The number of a register is part of the instruction. GCC does not know that loading one reads memory.
#define CHARLM_ZERO_TILE(tile) _tile_zero(tile)
#define CHARLM_LOAD_TILE(tile, from, stride_bytes) \
  do {                                             \
    __asm__ volatile("" ::: "memory");             \
    _tile_loadd(tile, from, stride_bytes);         \
  } while (0)
#define CHARLM_STORE_TILE(tile, to, stride_bytes) _tile_stored(tile, to, stride_bytes)
#define CHARLM_MULTIPLY_ADD_TILES(sums, left, right) _tile_dpbf16ps(sums, left, right)

#endif

// A strip is two tiles below each other, a panel two side by side: each tile that is loaded is multiplied twice.
template <>
inline constexpr int kStripRows<Pair> = 2 * kTileLanes;
template <>
inline constexpr int64_t kStepsAtOnce<Pair> = kTileLanes;

// kRowTiles x kColumnTiles tiles of C from a strip of A and one panel of B. C is in registers 0 to 3.
template <int kRowTiles, int kColumnTiles>
__attribute__((noinline)) void multiply_tiles(int64_t steps, const Pair* a, const Pair* b, int64_t b_stride, float* c,
                                              int64_t c_stride, bool accumulate) {
  constexpr int64_t kRowBytes = kTileLanes * sizeof(Pair);
  const int64_t b_bytes = b_stride * (int64_t)sizeof(Pair), c_bytes = c_stride * (int64_t)sizeof(float);
  float* below = c + kTileLanes * c_stride;
  if (accumulate) {
    CHARLM_LOAD_TILE(0, c, c_bytes);
    if constexpr (kColumnTiles > 1) CHARLM_LOAD_TILE(1, c + kTileLanes, c_bytes);
    if constexpr (kRowTiles > 1) CHARLM_LOAD_TILE(2, below, c_bytes);
    if constexpr (kRowTiles > 1 && kColumnTiles > 1) CHARLM_LOAD_TILE(3, below + kTileLanes, c_bytes);
  } else {
    CHARLM_ZERO_TILE(0);
    CHARLM_ZERO_TILE(1);
    CHARLM_ZERO_TILE(2);
    CHARLM_ZERO_TILE(3);
  }
  for (int64_t k = 0; k < steps; k += kTileLanes) {
    CHARLM_LOAD_TILE(4, a, kRowBytes);
    CHARLM_LOAD_TILE(6, b, b_bytes);
    CHARLM_MULTIPLY_ADD_TILES(0, 4, 6);
    if constexpr (kColumnTiles > 1) {
      CHARLM_LOAD_TILE(7, b + kTileLanes, b_bytes);
      CHARLM_MULTIPLY_ADD_TILES(1, 4, 7);
    }
    if constexpr (kRowTiles > 1) {
      CHARLM_LOAD_TILE(5, a + kTileLanes * kTileLanes, kRowBytes);
      CHARLM_MULTIPLY_ADD_TILES(2, 5, 6);
    }
    if constexpr (kRowTiles > 1 && kColumnTiles > 1) CHARLM_MULTIPLY_ADD_TILES(3, 5, 7);
    a += kStripRows<Pair> * kTileLanes;
    b += kTileLanes * b_stride;
  }
  CHARLM_STORE_TILE(0, c, c_bytes);
  if constexpr (kColumnTiles > 1) CHARLM_STORE_TILE(1, c + kTileLanes, c_bytes);
  if constexpr (kRowTiles > 1) CHARLM_STORE_TILE(2, below, c_bytes);
  if constexpr (kRowTiles > 1 && kColumnTiles > 1) CHARLM_STORE_TILE(3, below + kTileLanes, c_bytes);
}

// As gemm.h's, which this is in place of. Tiles that reach past the edge of C are summed beside it.
inline void multiply_strip(int64_t rows, int64_t columns, int64_t first_step, int64_t steps, const Pair* a,
                           const Panels<Pair>& b, float* c, int64_t c_stride, bool accumulate) {
  constexpr int64_t kRows = kStripRows<Pair>, kColumns = kTileColumns<float>;
  static_assert(kColumns == 2 * kTileLanes && kWidth<float> == kTileLanes);
  const Pair* panel = b.data;
  for (int64_t first = 0; first < columns; first += kColumns) {
    const int64_t width = panel_width<float>(columns, first), left = columns - first < width ? columns - first : width;
    const bool is_low = rows <= kTileLanes, is_narrow = width == kTileLanes;
    const auto tiles = is_low      ? is_narrow ? multiply_tiles<1, 1> : multiply_tiles<1, 2>
                       : is_narrow ? multiply_tiles<2, 1>
                                   : multiply_tiles<2, 2>;
    const Pair* from = panel + first_step * width;
    float* out = c + first;
    if (left == width && rows % kTileLanes == 0) {
      tiles(steps, a, from, width, out, c_stride, accumulate);
    } else {
      alignas(64) float edge[kRows * kColumns];
      const auto lanes = [&](int64_t j) { return (int)(left - j < kTileLanes ? left - j : kTileLanes); };
      for (int64_t i = 0; i < (is_low ? kTileLanes : kRows) && accumulate; ++i) {
        for (int64_t j = 0; j < width; j += kTileLanes) {
          store(edge + i * kColumns + j,
                i < rows ? load_lanes<float>(out + i * c_stride + j, lanes(j), 0) : Vec<float>{});
        }
      }
      tiles(steps, a, from, width, edge, kColumns, accumulate);
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < width; j += kTileLanes) {
          store_lanes<float>(out + i * c_stride + j, load(edge + i * kColumns + j), lanes(j));
        }
      }
    }
    panel += b.steps * width;
  }
}

// As gemm.h's: kTileLanes steps of each row, one row after the other, and then the next steps.
template <typename S>
void pack_strip(const S* a, int64_t depth_stride, int64_t row_stride, int64_t depth, int64_t rows, Pair* out) {
  constexpr int64_t kValues = kSteps<Pair> * kTileLanes;
  for (int64_t k = 0; k < depth; k += kValues, out += kStripRows<Pair> * kTileLanes) {
    const int64_t values = depth - k < kValues ? depth - k : kValues;
    for (int64_t row = 0; row < rows; row += kTileLanes) {
      const int64_t count = rows - row < kTileLanes ? rows - row : kTileLanes;
      const S* from = a + row * row_stride + k * depth_stride;
      Vec<float> tile[kTileLanes];
      if (depth_stride == 1) {
        for (int i = 0; i < kTileLanes; ++i) {
          tile[i] = i < count ? along(Pair{}, from + i * row_stride, (int)values) : Vec<float>{};
        }
      } else {
        alignas(64) Pair steps[kTileLanes * kTileLanes] = {};
        pack_panel(from, depth_stride, row_stride, values, count, kTileLanes, steps);
        for (int i = 0; i < kTileLanes; ++i) tile[i] = load(lanes_of(steps + i * kTileLanes));
        transpose_spans<1, float>(tile);
      }
      for (int i = 0; i < kTileLanes; ++i) store(lanes_of(out + (row + i) * kTileLanes), tile[i]);
    }
  }
}

}  // namespace charlm::cpu::CHARLM_ISA_NAMESPACE

#endif
