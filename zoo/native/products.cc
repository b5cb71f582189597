// Few rows times a matrix, such as a linear layer's: a matrix that comes from memory is read once.

#include "sizes.h"

namespace zoo {
namespace {

namespace ffi = xla::ffi;

// Rows of the matrix whose products are added up in registers.
constexpr int64_t kDepth = 256;
// How many rows ahead of its use a row of the matrix is asked for.
constexpr int64_t kAhead = 64;
// Products and sums for which another thread is woken.
constexpr int64_t kWorthwhile = 1 << 19;

// Rows of the matrix, kept as they are read: all rows on the left but the first need them again.
template <class T>
struct KeptRows {
  Rows<T> matrix;
  T* kept;
  // What is read after the last of ``depth`` rows.
  int64_t depth;
  const T* next;

  void operator()(int64_t k, Vector<T>& left, Vector<T>& right) const {
    matrix(k, left, right);
    int64_t beyond = k + kAhead - depth;
    const T* ahead = beyond < 0 ? matrix.data + (k + kAhead) * matrix.stride
                                : next + beyond * matrix.stride;
    __builtin_prefetch(ahead);
    __builtin_prefetch(ahead + kLanes<T>);
    store(kept + k * kColumns<T>, left);
    store(kept + k * kColumns<T> + kLanes<T>, right);
  }
};

// The left operand in the order in which it is read: [block of depth, group of rows, depth, row].
template <class T>
struct Left {
  const T* x;
  int64_t rows, depth;
  int64_t groups = ceil_div(rows, kRows), blocks = ceil_div(depth, kDepth);
  Memory<T> data = allocate<T>(blocks * groups * kDepth * kRows);

  int64_t deep(int64_t block) const { return std::min(kDepth, depth - block * kDepth); }

  T* place(int64_t block, int64_t group) const {
    return &data[(block * groups + group) * kDepth * kRows];
  }

  void arrange(int64_t block) {
    for (int64_t row = 0; row < rows; ++row) {
      T* to = place(block, row / kRows) + row % kRows;
      for (int64_t k = 0; k < deep(block); ++k) to[k * kRows] = x[row * depth + block * kDepth + k];
    }
  }

  // ``to`` grows by the product with kColumns of a block.
  void add_times(int64_t block, const KeptRows<T>& columns, T* to, int64_t to_stride) const {
    for (int64_t group = 0; group < groups; ++group) {
      int64_t some = std::min<int64_t>(kRows, rows - group * kRows);
      Matrix<T> left{place(block, group), 1, kRows};
      T* sums = to + group * kRows * to_stride;
      if (group == 0) {
        product<true>(some, deep(block), left, columns, sums, to_stride);
      } else {
        Rows<T> again{columns.kept, kColumns<T>};
        product<true>(some, deep(block), left, again, sums, to_stride);
      }
    }
  }
};

template <class T>
void multiply(ffi::ThreadPool& pool, const Numbers& x, const Numbers& matrix, Numbers& y) {
  constexpr int64_t kWide = kColumns<T>;
  int64_t rows = x.dimensions()[0], depth = x.dimensions()[1], columns = y.dimensions()[1];
  int64_t panels = ceil_div(columns, kWide);
  int64_t parts = std::min<int64_t>({panels, static_cast<int64_t>(pool.num_threads()),
                                     1 + rows * depth * columns / kWorthwhile});

  Left<T> left{x.typed_data(), rows, depth};
  parallel(pool, parts, [&](int64_t part) {
    for (int64_t block = part; block < left.blocks; block += parts) left.arrange(block);
  });

  parallel(pool, parts, [&](int64_t part) {
    int64_t begin = panels * part / parts, end = panels * (part + 1) / parts;
    Memory<T> kept = allocate<T>(kDepth * kWide);
    // Of a last panel that is not whole: its columns of a block, with zeros, and its sums.
    Memory<T> edge = allocate<T>(kDepth * kWide), edge_sums = allocate<T>(rows * kWide);
    std::fill_n(edge.get(), kDepth * kWide, T(0));
    std::fill_n(edge_sums.get(), rows * kWide, T(0));
    int64_t first = begin * kWide, width = std::min(columns, end * kWide) - first;
    for (int64_t row = 0; row < rows; ++row)
      std::fill_n(y.typed_data() + row * columns + first, width, T(0));

    for (int64_t block = 0; block < left.blocks; ++block) {
      const T* from = matrix.typed_data() + block * kDepth * columns;
      const T* next_block = from + (block + 1 < left.blocks ? kDepth * columns : 0);
      for (int64_t panel = begin; panel < end; ++panel) {
        int64_t some = std::min(kWide, columns - panel * kWide);
        bool whole = some == kWide;
        for (int64_t k = 0; k < left.deep(block) && !whole; ++k)
          std::copy_n(from + k * columns + panel * kWide, some, &edge[k * kWide]);
        Rows<T> right = whole ? Rows<T>{from + panel * kWide, columns} : Rows<T>{edge.get(), kWide};
        const T* next = panel + 1 < end ? from + (panel + 1) * kWide : next_block + first;
        T* to = whole ? y.typed_data() + panel * kWide : edge_sums.get();
        left.add_times(block, KeptRows<T>{right, kept.get(), left.deep(block), next}, to,
                       whole ? columns : kWide);
      }
    }
    int64_t last = (panels - 1) * kWide;
    for (int64_t row = 0; row < rows && end == panels && columns - last < kWide; ++row)
      std::copy_n(&edge_sums[row * kWide], columns - last, y.typed_data() + row * columns + last);
  });
}

ffi::Error Multiply(ffi::ThreadPool pool, Numbers x, Numbers matrix, ffi::Result<Numbers> y) {
  return Sizes().with("x", x, "rd").with("matrix", matrix, "dc").with("y", *y, "rc").then([&] {
    multiply<Number>(pool, x, matrix, *y);
  });
}

}  // namespace
}  // namespace zoo

XLA_FFI_DEFINE_HANDLER_SYMBOL(multiply_rows, zoo::Multiply, zoo::binary());
