// Convolution of few channels, or with strides: each window times the kernel.
//
// The rows of pixels that the windows of a row of outputs cover are interleaved, [column, row of the
// window, channel]. So a window is one piece of memory, the windows of a row are rows of a matrix
// that overlap, and the convolution is its product with the kernel.

#include "outputs.h"
#include "window.h"

namespace zoo {
namespace {

namespace ffi = xla::ffi;

// Rows of outputs that a thread takes at once.
constexpr int64_t kOutputRows = 8;

// A place of a kernel [height, width, channels], where windows have [width, height, channels].
struct Tap {
  int64_t of_kernel, of_window;
};
template <class Body>
void for_taps(Window window, int64_t channels, const Body& body) {
  for (int64_t i = 0; i < window.height; ++i)
    for (int64_t j = 0; j < window.width; ++j)
      for (int64_t c = 0; c < channels; ++c)
        body(Tap{(i * window.width + j) * channels + c, (j * window.height + i) * channels + c});
}

// Images [batch, rows, columns, channels], and the windows of one row of outputs after the other.
template <class T>
struct Windows {
  Window window;
  const T* images;
  int64_t rows, columns, channels;
  int64_t output_rows, output_columns;
  int64_t pixel = window.height * channels;
  int64_t width = (output_columns - 1) * window.column_stride + window.width;
  Memory<T> data = allocate<T>(width * pixel);

  // row: of the outputs of all images.
  void read(int64_t row) {
    const T* image = images + row / output_rows * rows * columns * channels;
    for (int64_t i = 0; i < window.height; ++i) {
      int64_t from_row = row % output_rows * window.row_stride + i - window.top;
      bool has_row = from_row >= 0 && from_row < rows;
      for (int64_t column = 0; column < width; ++column) {
        int64_t from_column = column - window.left;
        bool inside = has_row && from_column >= 0 && from_column < columns;
        const T* from = image + (from_row * columns + from_column) * channels;
        T* to = &data[column * pixel + i * channels];
        for (int64_t c = 0; c < channels; ++c) to[c] = inside ? from[c] : T(0);
      }
    }
  }
  // A window in each row, and the transpose.
  Matrix<T> by_windows() const { return {data.get(), window.column_stride * pixel, 1}; }
  Matrix<T> by_taps() const { return {data.get(), 1, window.column_stride * pixel}; }
};

template <class T>
Windows<T> windows_of(const Numbers& x, const Numbers& y, Window window) {
  auto sizes = x.dimensions(), new_sizes = y.dimensions();
  return {window,   x.typed_data(), sizes[1],     sizes[2],
          sizes[3], new_sizes[1],   new_sizes[2]};
}

template <class T>
void convolve(ffi::ThreadPool& pool, const Numbers& x, const Numbers& kernel, Numbers& y,
              Window window, const Finish<T>& finish) {
  constexpr int64_t kWide = kColumns<T>;
  int64_t channels = x.dimensions()[3], features = y.dimensions()[3];
  int64_t panels = ceil_div(features, kWide), depth = window.height * window.width * channels;
  int64_t rows = y.dimensions()[0] * y.dimensions()[1], columns = y.dimensions()[2];

  // [panel, place of the window, feature of the panel]
  Memory<T> arranged = allocate<T>(panels * depth * kWide);
  std::fill_n(arranged.get(), panels * depth * kWide, T(0));
  for_taps(window, channels, [&](Tap tap) {
    const T* from = kernel.typed_data() + tap.of_kernel * features;
    for (int64_t f = 0; f < features; ++f)
      arranged[(f / kWide * depth + tap.of_window) * kWide + f % kWide] = from[f];
  });

  T* outputs = y.typed_data();
  parallel(pool, ceil_div(rows, kOutputRows), [&](int64_t block) {
    auto windows = windows_of<T>(x, y, window);
    Memory<T> sums = allocate<T>(columns * kWide);
    int64_t end = std::min(rows, (block + 1) * kOutputRows);
    for (int64_t row = block * kOutputRows; row < end; ++row) {
      windows.read(row);
      for (int64_t panel = 0; panel < panels; ++panel) {
        int64_t feature = panel * kWide, some = std::min(kWide, features - feature);
        product<false>(columns, depth, windows.by_windows(),
                       Rows<T>{&arranged[panel * depth * kWide], kWide}, sums.get(), kWide);
        for (int64_t i = 0; i < columns; ++i)
          finish.row(&sums[i * kWide], some, feature, (row * columns + i) * features + feature,
                     outputs);
      }
    }
  });
}

template <class T>
void kernel_gradient(ffi::ThreadPool& pool, const Numbers& x, const Numbers& dy, Numbers& dkernel,
                     Window window) {
  constexpr int64_t kWide = kColumns<T>;
  int64_t channels = x.dimensions()[3], features = dy.dimensions()[3];
  int64_t panels = ceil_div(features, kWide), depth = window.height * window.width * channels;
  int64_t rows = dy.dimensions()[0] * dy.dimensions()[1], columns = dy.dimensions()[2];

  // Each part has sums of its own, [place of the window, feature]: the result does not depend on
  // which thread comes first.
  int64_t parts = std::min<int64_t>(pool.num_threads(), rows), width = panels * kWide;
  Memory<T> sums = allocate<T>(parts * depth * width);
  parallel(pool, parts, [&](int64_t part) {
    auto windows = windows_of<T>(x, dy, window);
    T* sum = &sums[part * depth * width];
    std::fill_n(sum, depth * width, T(0));
    Memory<T> edge = allocate<T>(columns * kWide);
    std::fill_n(edge.get(), columns * kWide, T(0));
    for (int64_t row = rows * part / parts; row < rows * (part + 1) / parts; ++row) {
      windows.read(row);
      for (int64_t panel = 0; panel < panels; ++panel) {
        const T* right = dy.typed_data() + row * columns * features + panel * kWide;
        int64_t some = std::min(kWide, features - panel * kWide);
        bool whole = some == kWide;
        for (int64_t i = 0; i < columns && !whole; ++i)
          std::copy_n(right + i * features, some, &edge[i * kWide]);
        Rows<T> gradients{whole ? right : edge.get(), whole ? features : kWide};
        product<true>(depth, columns, windows.by_taps(), gradients, sum + panel * kWide, width);
      }
    }
  });

  for_taps(window, channels, [&](Tap tap) {
    T* to = dkernel.typed_data() + tap.of_kernel * features;
    std::fill_n(to, features, T(0));
    for (int64_t part = 0; part < parts; ++part)
      for (int64_t f = 0; f < features; ++f)
        to[f] += sums[(part * depth + tap.of_window) * width + f];
  });
}

ffi::Error Convolve(ffi::ThreadPool pool, Numbers x, Numbers kernel, ffi::Result<Numbers> y,
                    ffi::RemainingArgs finish, bool rectify, int64_t row_stride,
                    int64_t column_stride, int64_t top, int64_t left) {
  Sizes sizes = sizes_of(x, kernel, *y, row_stride, column_stride);
  Finish<Number> finishes(finish, rectify, sizes, "bpqf");
  return sizes.then([&] {
    Window window{sizes['i'], sizes['j'], row_stride, column_stride, top, left};
    convolve<Number>(pool, x, kernel, *y, window, finishes);
  });
}

ffi::Error KernelGradient(ffi::ThreadPool pool, Numbers x, Numbers dy, ffi::Result<Numbers> dkernel,
                          int64_t row_stride, int64_t column_stride, int64_t top, int64_t left) {
  Sizes sizes = sizes_of(x, *dkernel, dy, row_stride, column_stride);
  return sizes.then([&] {
    Window window{sizes['i'], sizes['j'], row_stride, column_stride, top, left};
    kernel_gradient<Number>(pool, x, dy, *dkernel, window);
  });
}

}  // namespace
}  // namespace zoo

XLA_FFI_DEFINE_HANDLER_SYMBOL(convolve_windows, zoo::Convolve, zoo::with_window(zoo::finished()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(kernel_gradient_windows, zoo::KernelGradient,
                              zoo::with_window(zoo::binary()));
