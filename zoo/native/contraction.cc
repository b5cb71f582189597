// Products of two matrices' columns, summed over many rows: the gradient of a linear layer's kernel.

#include "sizes.h"

namespace zoo {
namespace {

namespace ffi = xla::ffi;

// Rows that are added up in registers; a panel of them stays in the first-level cache.
constexpr int64_t kDepth = 192;
// Sums, and columns on the right, that stay in the second-level cache.
constexpr int64_t kMostSums = 1 << 18;
constexpr int64_t kMostColumns = 512;
constexpr int64_t kLeastColumns = 128;
// Numbers between panels, which would share the cache's sets.
constexpr int64_t kApart = 32;
// Sums for which another thread is woken.
constexpr int64_t kWorthwhile = 1 << 17;

// Some columns of up to kDepth rows, in the order in which they are read: [panel, row, column].
template <class T>
struct Panels {
  int64_t wide, columns;
  int64_t count = ceil_div(columns, wide), stride = kDepth * wide + kApart;
  Memory<T> data = allocate<T>(count * stride);

  T* panel(int64_t number) const { return &data[number * stride]; }
  int64_t columns_of(int64_t number) const { return std::min(wide, columns - number * wide); }

  // kWide is ``wide``, once more. Columns beyond the last are zeros.
  template <int64_t kWide>
  void set_row(int64_t row, const T* from) const {
    T* to = &data[row * kWide];
    int64_t left = columns;
    for (; left >= kWide; left -= kWide, from += kWide, to += stride)
      std::memcpy(to, from, kWide * sizeof(T));
    if (left > 0) std::fill_n(std::copy_n(from, left, to), kWide - left, T(0));
  }
};

// Columns of x times ``columns`` of dy, summed over the rows, as [panel of dy, column of x, column].
template <class T>
void add_up(int64_t rows, int64_t inputs, const T* x, int64_t features, const T* dy,
            int64_t columns, T* sums) {
  constexpr int64_t kWide = kColumns<T>;
  Panels<T> left{kRows, inputs}, right{kWide, columns};
  for (int64_t first = 0; first < rows; first += kDepth) {
    int64_t deep = std::min(kDepth, rows - first);
    for (int64_t row = 0; row < deep; ++row) {
      left.template set_row<kRows>(row, x + (first + row) * inputs);
      right.template set_row<kWide>(row, dy + (first + row) * features);
    }
    for (int64_t j = 0; j < right.count; ++j) {
      for (int64_t i = 0; i < left.count; ++i) {
        Matrix<T> of{left.panel(i), 1, kRows};
        Rows<T> times{right.panel(j), kWide};
        T* to = sums + (j * inputs + i * kRows) * kWide;
        if (first == 0) {
          product<false>(left.columns_of(i), deep, of, times, to, kWide);
        } else {
          product<true>(left.columns_of(i), deep, of, times, to, kWide);
        }
      }
    }
  }
}

template <class T>
void contract(ffi::ThreadPool& pool, const Numbers& x, const Numbers& dy, Numbers& y) {
  constexpr int64_t kWide = kColumns<T>;
  int64_t rows = x.dimensions()[0], inputs = x.dimensions()[1], features = dy.dimensions()[1];
  int64_t threads = pool.num_threads();
  int64_t most = std::clamp(kMostSums / inputs / kWide * kWide, kWide, kMostColumns);
  int64_t chunks = ceil_div(features, most);
  // As many for each thread, or as many threads for each, if they stay wide: each copies all of x.
  int64_t even = chunks;
  while (even % threads != 0 && threads % even != 0) ++even;
  if (features / even >= kLeastColumns) chunks = even;
  int64_t wide = ceil_div(ceil_div(features, kWide), chunks) * kWide;
  chunks = ceil_div(features, wide);
  // Rows are divided where there are more threads than chunks of columns.
  int64_t parts = std::clamp<int64_t>(ceil_div(threads, chunks), 1, ceil_div(rows, 2 * kDepth));
  int64_t size = ceil_div(std::min(wide, features), kWide) * inputs * kWide;
  Memory<T> sums = allocate<T>(chunks * parts * size);

  parallel(pool, chunks * parts, [&](int64_t item) {
    int64_t column = item / parts * wide, part = item % parts;
    int64_t begin = rows * part / parts, end = rows * (part + 1) / parts;
    add_up(end - begin, inputs, x.typed_data() + begin * inputs, features,
           dy.typed_data() + begin * features + column, std::min(wide, features - column),
           &sums[item * size]);
  });

  int64_t pieces = std::min({inputs, threads, 1 + inputs * features * parts / kWorthwhile});
  parallel(pool, pieces, [&](int64_t piece) {
    for (int64_t i = inputs * piece / pieces; i < inputs * (piece + 1) / pieces; ++i) {
      for (int64_t column = 0; column < features; column += kWide) {
        int64_t chunk = column / wide, panel = column % wide / kWide;
        const T* from = &sums[chunk * parts * size + (panel * inputs + i) * kWide];
        T* to = y.typed_data() + i * features + column;
        int64_t some = std::min(kWide, features - column);
        std::copy_n(from, some, to);
        for (int64_t part = 1; part < parts; ++part)
          for (int64_t j = 0; j < some; ++j) to[j] += from[part * size + j];
      }
    }
  });
}

ffi::Error Contract(ffi::ThreadPool pool, Numbers x, Numbers dy, ffi::Result<Numbers> y) {
  return Sizes().with("x", x, "ri").with("dy", dy, "rf").with("y", *y, "if").then([&] {
    contract<Number>(pool, x, dy, *y);
  });
}

}  // namespace
}  // namespace zoo

XLA_FFI_DEFINE_HANDLER_SYMBOL(contract_rows, zoo::Contract, zoo::binary());
