// Products of matrices in shared memory by the threads of a block: each computes 4 x 4 numbers of the result at a time
// in registers, from vectors of 4.
//
// A matrix is stored strip by strip: all rows of the first 4 columns, then all rows of the next 4; each row of a strip
// is a vector. So the vectors that a thread reads one after the other are a number of bytes apart that the compiler
// knows, whatever the sizes, and with an odd number of rows from strip to strip, the pitch, neighbouring strips lie in
// different banks.
#pragma once

#include "kernels/cuda/math.cuh"
#include "kernels/cuda/storage.cuh"

namespace charlm::cuda {
namespace {

inline constexpr int kTile = 4;

// Strips of so many columns, or tiles of so many rows.
__host__ __device__ constexpr int strips_of(int columns) { return (columns + kTile - 1) / kTile; }
// From one strip of so many rows to the next, of which whole tiles are read.
__host__ __device__ constexpr int pitch_of(int rows) { return strips_of(rows) * kTile | 1; }

template <typename T>
struct Four {
  T values[kTile];
};

template <typename T>
__device__ inline Four<T> load_four(const T* from) {
  constexpr int kVectors = kTile / kVectorWidth<T>;
  uint4 raw[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) raw[i] = reinterpret_cast<const uint4*>(from)[i];
  Four<T> four;
  memcpy(&four, raw, sizeof(four));
  return four;
}
template <typename T>
__device__ inline void store_four(T* to, const Four<T>& four) {
  constexpr int kVectors = kTile / kVectorWidth<T>;
  uint4 raw[kVectors];
  memcpy(raw, &four, sizeof(four));
#pragma unroll
  for (int i = 0; i < kVectors; ++i) reinterpret_cast<uint4*>(to)[i] = raw[i];
}

template <typename T>
struct Sums {
  T values[kTile][kTile] = {};

  __device__ void add(int i, T factor, const Four<T>& right) {
#pragma unroll
    for (int j = 0; j < kTile; ++j) values[i][j] += factor * right.values[j];
  }
  __device__ Four<T> row(int i) const {
    Four<T> four;
#pragma unroll
    for (int j = 0; j < kTile; ++j) four.values[j] = values[i][j];
    return four;
  }
};

// The vector of a row in strip 0, or in the strip that `matrix` begins with.
template <typename T>
__device__ inline T* vector_at(T* matrix, int row) {
  return matrix + row * kTile;
}
template <typename T>
__device__ inline T* vector_at(T* matrix, int pitch, int strip, int row) {
  return matrix + (strip * pitch + row) * kTile;
}

// a b: the rows 0, kStep, 2 kStep, 3 kStep of a, in `strips` strips, by as many tiles of rows of one strip of b.
template <int kPitch, int kStep, typename T>
__device__ inline Sums<T> multiply(const T* a, const T* b, int strips) {
  Sums<T> sums;
#pragma unroll 2
  for (int strip = 0; strip < strips; ++strip) {
    Four<T> left[kTile], right[kTile];
#pragma unroll
    for (int i = 0; i < kTile; ++i) left[i] = load_four(vector_at(a, i * kStep));
#pragma unroll
    for (int i = 0; i < kTile; ++i) right[i] = load_four(vector_at(b, i));
    a = vector_at(a, kPitch);
    b = vector_at(b, kTile);
#pragma unroll
    for (int i = 0; i < kTile; ++i) {
#pragma unroll
      for (int m = 0; m < kTile; ++m) sums.add(i, left[i].values[m], right[m]);
    }
  }
  return sums;
}

// a^T b of one strip each, with kTiles tiles of rows.
template <int kTiles, typename T>
__device__ inline Sums<T> multiply_transposed(const T* a, const T* b) {
  Sums<T> sums;
#pragma unroll
  for (int row = 0; row < kTiles * kTile; ++row) {
    const Four<T> left = load_four(vector_at(a, row)), right = load_four(vector_at(b, row));
#pragma unroll
    for (int i = 0; i < kTile; ++i) sums.add(i, left.values[i], right);
  }
  return sums;
}

// a b^T: the rows 0, kStep, 2 kStep, 3 kStep of a by the rows 0 to 3 of b, over the strips from `first` to before
// `last`.
template <int kPitch, int kStep, typename T>
__device__ inline Sums<T> multiply_by_transposed(const T* a, const T* b, int b_pitch, int first, int last) {
  Sums<T> sums;
  a = vector_at(a, kPitch, first, 0);
  b = vector_at(b, b_pitch, first, 0);
#pragma unroll 1
  for (int strip = first; strip < last; ++strip) {
    Four<T> left[kTile], right[kTile];
#pragma unroll
    for (int i = 0; i < kTile; ++i) left[i] = load_four(vector_at(a, i * kStep));
#pragma unroll
    for (int j = 0; j < kTile; ++j) right[j] = load_four(vector_at(b, j));
    a = vector_at(a, kPitch);
    b = vector_at(b, b_pitch);
#pragma unroll
    for (int i = 0; i < kTile; ++i) {
#pragma unroll
      for (int j = 0; j < kTile; ++j) {
#pragma unroll
        for (int m = 0; m < kTile; ++m) sums.values[i][j] += left[i].values[m] * right[j].values[m];
      }
    }
  }
  return sums;
}

// Divides small numbers by a smaller one: the product of both is below 2^20.
struct SmallDivisor {
  int divisor;
  float inverse;

  __host__ __device__ explicit SmallDivisor(int divisor)
      : divisor(divisor), inverse(1.0f / static_cast<float>(divisor)) {}
  __device__ int quotient(int number) const {
    // Half way to the next number, so that rounding leads to no other.
    return static_cast<int>((static_cast<float>(number) + 0.5f) * inverse);
  }
};

}  // namespace
}  // namespace charlm::cuda
