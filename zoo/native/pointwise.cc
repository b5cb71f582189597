// Convolution of single pixels: many rows times a matrix.
//
// A thread takes some rows and all of the matrix's columns, so that the rows are read from memory
// once, while those before them are multiplied; sums stay in the first-level cache until they are
// outputs.

#include "outputs.h"
#include "panels.h"

namespace zoo {
namespace {

namespace ffi = xla::ffi;

// Rows that a thread takes at once: with fewer the matrix is read for little work, with more they
// leave the cache.
constexpr int64_t kMostPixels = 96;
// Of these, rows whose sums registers hold.
constexpr int kGroup = kSums / kWide;

template <class T>
void convolve(ffi::ThreadPool& pool, const Numbers& x, const Numbers& matrix, Numbers& y,
              const Finish<T>& finish) {
  constexpr int64_t kColumns = kWide * kLanes<T>;
  int64_t pixels = x.dimensions()[0], channels = x.dimensions()[1], features = y.dimensions()[1];
  int64_t panels = ceil_div(features, kColumns), size = channels * kColumns;
  auto wide = [&](int64_t panel) { return std::min(kColumns, features - panel * kColumns); };
  // The last panel may have fewer vectors.
  auto vectors = [&](int64_t panel) { return ceil_div(wide(panel), kLanes<T>); };

  // [panel, channel, feature of the panel]
  Memory<T> kernel = allocate<T>(panels * size);
  parallel(pool, panels, [&](int64_t panel) {
    T* to = &kernel[panel * size];
    int64_t width = vectors(panel) * kLanes<T>;
    if (wide(panel) < width) std::fill_n(to, channels * width, T(0));
    for (int64_t k = 0; k < channels; ++k)
      std::copy_n(matrix.typed_data() + k * features + panel * kColumns, wide(panel),
                  to + k * width);
  });

  bool past = goes_past(y.typed_data(), pixels, features);
  int64_t threads = pool.num_threads();
  int64_t blocks = threads * ceil_div(pixels, threads * kMostPixels);
  parallel(pool, blocks, [&](int64_t block) {
    int64_t first = pixels * block / blocks, rows = pixels * (block + 1) / blocks - first;
    const T* from = x.typed_data() + first * channels;
    Memory<T> sums = allocate<T>(kGroup * kColumns);
    // The block that this thread is likely to take next.
    Later<T> later{from + threads * rows * channels, rows * channels};
    // A last group that is not whole has some of the rows before it once more.
    int64_t some = rows < kGroup ? 1 : kGroup;
    int64_t groups = ceil_div(rows, some), count = groups * panels;
    for (int64_t number = 0; number < count; ++number) {
      int64_t panel = number / groups, row = std::min(number % groups * some, rows - some);
      int64_t feature = panel * kColumns, width = wide(panel);
      int64_t place = (first + row) * features + feature;
      for (int64_t i = 0; i < some; ++i) {
        for (int64_t j = 0; j < width; j += 64 / sizeof(T)) {
          int64_t at = place + i * features + j;
          if (finish.others != nullptr) __builtin_prefetch(finish.others + at);
          if (!past) __builtin_prefetch(y.typed_data() + at, 1);
        }
      }
      with_count<kWide>(vectors(panel), [&](auto wide) {
        constexpr int kVectors = decltype(wide)::value;
        auto* add_up = some == 1 ? multiply_rows<1, kVectors, T> : multiply_rows<kGroup, kVectors, T>;
        add_up(channels, from + row * channels, channels, &kernel[panel * size],
               later.part(number, count), sums.get(), kColumns, false);
      });
      for (int64_t i = 0; i < some; ++i) {
        const T* sum = &sums[i * kColumns];
        int64_t at = place + i * features;
        if (past && width == kColumns) {
          finish.template row<true>(sum, kColumns, feature, at, y.typed_data());
        } else {
          finish.row(sum, width, feature, at, y.typed_data());
        }
      }
    }
    written_past();
  });
}

ffi::Error Convolve(ffi::ThreadPool pool, Numbers x, Numbers matrix, ffi::Result<Numbers> y,
                    ffi::RemainingArgs finish, bool rectify) {
  Sizes sizes = Sizes().with("x", x, "pc").with("matrix", matrix, "cf").with("y", *y, "pf");
  Finish<Number> finishes(finish, rectify, sizes, "pf");
  return sizes.then([&] { convolve<Number>(pool, x, matrix, *y, finishes); });
}

}  // namespace
}  // namespace zoo

XLA_FFI_DEFINE_HANDLER_SYMBOL(convolve_pixels, zoo::Convolve, zoo::finished());
