// The product of rows that stay as they are with a matrix in panels: columns of it side by side, a
// few vectors wide, which is how they are read.

#ifndef ZOO_KERNELS_PANELS_H_
#define ZOO_KERNELS_PANELS_H_

#include "kernels.h"

namespace zoo {

// Vectors of sums that registers hold, beside the operands.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kSums = 24;
#else
constexpr int kSums = 12;
#endif
// Of a row of sums.
constexpr int kWide = 4;
// Rows of a panel that all groups of rows are multiplied by before the next ones.
constexpr int64_t kDepth = 256;
// Rows of a panel that are asked for ahead, from the second-level cache.
constexpr int64_t kAhead = 16;

// What is read after a panel: bit by bit, while the panel is multiplied, it is brought into the
// second-level cache. It may be beyond the end, where asking does nothing.
template <class T>
struct Later {
  const T* from;
  int64_t count;

  Later between(int64_t begin, int64_t end, int64_t of) const {
    return {from + count * begin / of, ceil_div(count * (end - begin), of)};
  }
  Later part(int64_t number, int64_t parts) const { return between(number, number + 1, parts); }
};

// ``to`` becomes rows of ``a`` times a panel, whose rows are kVectors wide, or grows by it.
template <int kCount, int kVectors, class T>
__attribute__((noinline)) void multiply_rows(int64_t depth, const T* a, int64_t a_stride,
                                             const T* panel, Later<T> later, T* to,
                                             int64_t to_stride, bool add) {
  constexpr int64_t kLine = 64 / sizeof(T);
  int64_t pairs = ceil_div(later.count, 2 * kLine);
  Vector<T> sums[kCount][kVectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    if (k < pairs) {
      __builtin_prefetch(later.from + 2 * k * kLine, 0, 2);
      __builtin_prefetch(later.from + (2 * k + 1) * kLine, 0, 2);
    }
    Vector<T> right[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      const T* from = panel + (k * kVectors + j) * kLanes<T>;
      __builtin_prefetch(from + kAhead * kVectors * kLanes<T>);
      right[j] = load<Vector<T>>(from);
    }
#pragma GCC unroll 32
    for (int i = 0; i < kCount; ++i) {
      T left = a[i * a_stride + k];
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) sums[i][j] += left * right[j];
    }
  }
#pragma GCC unroll 32
  for (int i = 0; i < kCount; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      T* place = to + i * to_stride + j * kLanes<T>;
      store(place, add ? load<Vector<T>>(place) + sums[i][j] : sums[i][j]);
    }
  }
}

// Calls body with a count, from 1 to kMost, as a constant.
template <int kMost, class Body>
inline void with_count(int64_t count, const Body& body) {
  if constexpr (kMost > 1) {
    if (count < kMost) return with_count<kMost - 1>(count, body);
  }
  body(std::integral_constant<int, kMost>());
}

// The same for any number of rows, in groups of about as many each.
template <int kVectors, class T>
void multiply(int64_t rows, int64_t depth, const T* a, int64_t a_stride, const T* panel,
              Later<T> later, T* to, int64_t to_stride, bool add) {
  constexpr int kMost = kSums / kVectors;
  int64_t groups = ceil_div(rows, kMost);
  for (int64_t group = 0; group < groups; ++group) {
    int64_t first = rows * group / groups, end = rows * (group + 1) / groups;
    with_count<kMost>(end - first, [&](auto count) {
      multiply_rows<decltype(count)::value, kVectors>(depth, a + first * a_stride, a_stride, panel,
                                                      later.part(group, groups),
                                                      to + first * to_stride, to_stride, add);
    });
  }
}

}  // namespace zoo

#endif  // ZOO_KERNELS_PANELS_H_
