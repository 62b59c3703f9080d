// The classes of a row in pieces, dealt to the threads of its group in turn, with several loads under way at a time.
//
// A piece calls body(values, classes) for each of its parts: some values as they are computed with, and which classes
// they are of.
#pragma once

#include "kernels/cuda/math.cuh"
#include "kernels/cuda/storage.cuh"

namespace charlm::cuda {
namespace {

inline constexpr int kVectorsAhead = 4;  // 64 bytes a thread: what it takes to keep a GPU's memory busy

template <int kValues>
struct AdjacentClasses {
  static constexpr int kCount = kValues;
  static constexpr bool kIsVector = true;
  int first;

  __device__ int operator[](int i) const { return first + i; }
  __device__ bool contains(int) const { return true; }
  __device__ bool has(int c) const { return static_cast<unsigned>(c - first) < static_cast<unsigned>(kCount); }
};

template <int kValues>
struct ClassesApart {
  static constexpr int kCount = kValues;
  static constexpr bool kIsVector = false;
  int first, step, end;

  __device__ int operator[](int i) const { return first + i * step; }
  __device__ bool contains(int i) const { return (*this)[i] < end; }
  __device__ bool has(int) const { return true; }  // maybe
};

// Vectors of adjacent classes, `step` classes from one to the next.
template <typename S, int kVectors>
struct VectorPiece {
  uint4 raw[kVectors];
  int first, step;

  __device__ int first_class() const { return first; }
  __device__ Compute<S> largest() const { return largest_of<S, kVectors>(raw); }
  template <typename Body>
  __device__ void for_each_part(const Body& body) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      Compute<S> values[kVectorWidth<S>];
      unpack<S>(raw[v], values);
      body(values, AdjacentClasses<kVectorWidth<S>>{first + v * step});
    }
  }
};

// One class after the other; -infinity, whose exponential is 0, where there are none.
template <typename S, int kValues>
struct ScalarPiece {
  S raw[kValues];
  ClassesApart<kValues> classes;

  __device__ int first_class() const { return classes.first; }
  __device__ Compute<S> largest() const {
    Compute<S> result = kLowest<Compute<S>>;
    for_each_part([&](const Compute<S>* values, const auto&) {
#pragma unroll
      for (int i = 0; i < kValues; ++i) result = larger(result, values[i]);
    });
    return result;
  }
  template <typename Body>
  __device__ void for_each_part(const Body& body) const {
    Compute<S> values[kValues];
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      values[i] = classes.contains(i) ? to_compute(raw[i]) : -static_cast<Compute<S>>(INFINITY);
    }
    body(values, classes);
  }
};

// Writes the values of some classes of a row.
template <typename S, typename Classes>
__device__ inline void store_classes(S* row, int64_t class_stride, const Compute<S>* values, const Classes& classes) {
  if constexpr (Classes::kIsVector) {
    *reinterpret_cast<uint4*>(row + classes.first) = pack<S>(values);
  } else {
#pragma unroll
    for (int i = 0; i < classes.kCount; ++i) {
      if (classes.contains(i)) row[classes[i] * class_stride] = to_storage<S>(values[i]);
    }
  }
}

// The classes [begin, end) of a row, and which of them a thread of its group walks over.
template <typename S>
struct RowPieces {
  const S* row;
  int64_t class_stride;
  int begin, end, thread, threads;

  // Calls body(piece) for each piece of the thread, of at most so many vectors. Classes are adjacent.
  template <int kVectors, typename Body>
  __device__ void for_each_vector(const Body& body) const {
    constexpr int kWidth = kVectorWidth<S>;
    const int misaligned = misaligned_head(row + begin);
    const int head = misaligned < end - begin ? misaligned : end - begin;
    const int first = begin + head, vectors = (end - first) / kWidth, last = first + vectors * kWidth;
    const uint4* from = reinterpret_cast<const uint4*>(row + first);
    int v = thread;
#pragma unroll 1
    for (; v + (kVectorsAhead - 1) * threads < vectors; v += kVectorsAhead * threads) {
      uint4 raw[kVectorsAhead];
#pragma unroll
      for (int k = 0; k < kVectorsAhead; ++k) raw[k] = from[v + k * threads];
#pragma unroll
      for (int k = 0; k < kVectorsAhead; k += kVectors) {
        VectorPiece<S, kVectors> piece{{}, first + (v + k * threads) * kWidth, threads * kWidth};
#pragma unroll
        for (int i = 0; i < kVectors; ++i) piece.raw[i] = raw[k + i];
        body(piece);
      }
    }
    if (v < vectors) {  // fewer than that, but at the same time, too
      uint4 raw[kVectorsAhead - 1];
#pragma unroll
      for (int k = 0; k < kVectorsAhead - 1; ++k) raw[k] = from[v + k * threads < vectors ? v + k * threads : v];
#pragma unroll 1
      for (; v < vectors; v += threads) {
        body(VectorPiece<S, 1>{{raw[0]}, first + v * kWidth, 0});
#pragma unroll
        for (int k = 1; k < kVectorsAhead - 1; ++k) raw[k - 1] = raw[k];
      }
    }
#pragma unroll 1
    for (int e = thread; e < head + end - last; e += threads) {  // what no vector has
      const int c = e < head ? begin + e : last + e - head;
      body(ScalarPiece<S, 1>{{row[c]}, {c, 1, end}});
    }
  }

  // The same for classes anywhere.
  template <typename Body>
  __device__ void for_each_scalar(const Body& body) const {
    constexpr int kCount = kVectorWidth<S>;
#pragma unroll 1
    for (int c = begin + thread; c < end; c += kCount * threads) {
      ScalarPiece<S, kCount> piece{{}, {c, threads, end}};
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        piece.raw[i] = row[(piece.classes.contains(i) ? piece.classes[i] : c) * class_stride];
      body(piece);
    }
  }
};

}  // namespace
}  // namespace charlm::cuda
