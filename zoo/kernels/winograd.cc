// Convolution with 3x3 kernels in fewer multiplications: Winograd's algorithm F(2x2, 3x3).
//
// A tile of 4x4 pixels gives 2x2 outputs with 16 instead of 36 multiplications:
// Y = A' [(G g G') * (B' d B)] A, where the product * over all tiles and channels is 16 matrix
// products. A group of tiles is transformed, multiplied and transformed back while it is in a
// core's cache. Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015),
// section 4.1.

#include "kernels.h"

namespace zoo {
namespace {

namespace ffi = xla::ffi;

constexpr int kPlaces = 16;
// Of a group, at most: so many that the product's inner loop has whole blocks of rows, and that
// what is made of them stays in the second-level cache with up to a few hundred channels.
constexpr int64_t kTiles = 48;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Images [batch, height, width, channels], seen with zeros around them.
template <class T>
struct Images {
  const T* data;
  int64_t height, width, channels;
  int64_t top, left;  // zeros before the first row and column
  const T* zeros;     // a pixel of them

  const T* at(int64_t image, int64_t row, int64_t column) const {
    row -= top, column -= left;
    bool inside = row >= 0 && row < height && column >= 0 && column < width;
    return inside ? data + ((image * height + row) * width + column) * channels : zeros;
  }
};

// The tiles of all images, whose outputs cover [batch, height, width].
struct Tiles {
  int64_t batch, height, width;
  int64_t rows = (height + 1) / 2, columns = (width + 1) / 2;
  int64_t count = batch * rows * columns;

  // Image, and row and column of the first output.
  struct Corner {
    int64_t image, row, column;
  };
  Corner corner(int64_t tile) const {
    return {tile / (rows * columns), 2 * (tile / columns % rows), 2 * (tile % columns)};
  }
  // Tiles of a group, so that each thread has as many groups.
  int64_t in_group(int64_t threads) const {
    int64_t turns = ceil_div(ceil_div(count, kTiles), threads);
    return ceil_div(count, turns * threads);
  }
};

// Number of sums in a row of blocks that holds this many features.
template <class T>
int64_t padded(int64_t features) {
  return ceil_div(features, kColumns<T>) * kColumns<T>;
}

// Distance of places that are this long: what is a power of two apart shares few lines of a cache.
template <class T>
int64_t spaced(int64_t length) {
  return ceil_div(length, kLanes<T>) * kLanes<T> + kLanes<T>;
}

// B' along one axis.
template <class V>
inline void input_transform(V& a, V& b, V& c, V& d) {
  V first = a - c, second = b + c, third = c - b, fourth = b - d;
  a = first, b = second, c = third, d = fourth;
}

// to[place][channel] = (B' d B) of the tile whose first pixel is at row and column.
template <class T>
void transform_input(const Images<T>& x, Tiles::Corner corner, T* to, int64_t stride) {
  const T* pixels[kPlaces];
  for (int i = 0; i < kPlaces; ++i)
    pixels[i] = x.at(corner.image, corner.row + i / 4, corner.column + i % 4);
  for_vectors<T>(x.channels, [&](auto kind, int64_t channel) {
    using V = decltype(kind);
    V d[kPlaces];
    for (int i = 0; i < kPlaces; ++i) d[i] = load<V>(pixels[i] + channel);
    for (int i = 0; i < 4; ++i) input_transform(d[4 * i], d[4 * i + 1], d[4 * i + 2], d[4 * i + 3]);
    for (int j = 0; j < 4; ++j) input_transform(d[j], d[4 + j], d[8 + j], d[12 + j]);
    for (int i = 0; i < kPlaces; ++i) store<V>(to + i * stride + channel, d[i]);
  });
}

// y = A' m A, of so many features, where the outputs are inside the image.
template <class T>
void transform_products(const T* m, int64_t stride, int64_t features, T* const y[4]) {
  for_vectors<T>(features, [&](auto kind, int64_t feature) {
    using V = decltype(kind);
    V upper[4], lower[4];
    for (int j = 0; j < 4; ++j) {
      V column[4];
      for (int i = 0; i < 4; ++i) column[i] = load<V>(m + (4 * i + j) * stride + feature);
      upper[j] = column[0] + column[1] + column[2];
      lower[j] = column[1] - column[2] - column[3];
    }
    auto put = [&](T* to, V value) {
      if (to != nullptr) store<V>(to + feature, value);
    };
    put(y[0], upper[0] + upper[1] + upper[2]);
    put(y[1], upper[1] - upper[2] - upper[3]);
    put(y[2], lower[0] + lower[1] + lower[2]);
    put(y[3], lower[1] - lower[2] - lower[3]);
  });
}

// to[place][feature] = A dy A' of four outputs: the transpose of what is above.
template <class T>
void transform_outputs(const T* const y[4], int64_t features, T* to, int64_t stride) {
  for_vectors<T>(features, [&](auto kind, int64_t feature) {
    using V = decltype(kind);
    V rows[4][2];
    for (int j = 0; j < 2; ++j) {
      V upper = load<V>(y[j] + feature), lower = load<V>(y[2 + j] + feature);
      rows[0][j] = upper, rows[1][j] = upper + lower, rows[2][j] = upper - lower;
      rows[3][j] = -lower;
    }
    for (int i = 0; i < 4; ++i) {
      V left = rows[i][0], right = rows[i][1];
      T* row = to + 4 * i * stride + feature;
      store<V>(row, left);
      store<V>(row + stride, left + right);
      store<V>(row + 2 * stride, left - right);
      store<V>(row + 3 * stride, -right);
    }
  });
}

// G g G'.
template <class V>
inline void transform_kernel(const V g[9], V to[kPlaces]) {
  V rows[12];
  for (int j = 0; j < 3; ++j) {
    V outer = (g[j] + g[6 + j]) / 2, inner = g[3 + j] / 2;
    rows[j] = g[j], rows[3 + j] = outer + inner, rows[6 + j] = outer - inner;
    rows[9 + j] = g[6 + j];
  }
  for (int i = 0; i < 4; ++i) {
    const V* row = rows + 3 * i;
    V outer = (row[0] + row[2]) / 2, inner = row[1] / 2;
    to[4 * i] = row[0], to[4 * i + 1] = outer + inner, to[4 * i + 2] = outer - inner;
    to[4 * i + 3] = row[2];
  }
}

// dg = G' m G: the transpose of what is above.
template <class V>
inline void transform_sums(const V m[kPlaces], V dg[9]) {
  V rows[12];
  for (int j = 0; j < 4; ++j) {
    V inner = (m[4 + j] + m[8 + j]) / 2;
    rows[j] = m[j] + inner, rows[4 + j] = (m[4 + j] - m[8 + j]) / 2;
    rows[8 + j] = inner + m[12 + j];
  }
  for (int i = 0; i < 3; ++i) {
    const V* row = rows + 4 * i;
    V inner = (row[1] + row[2]) / 2;
    dg[3 * i] = row[0] + inner, dg[3 * i + 1] = (row[1] - row[2]) / 2;
    dg[3 * i + 2] = inner + row[3];
  }
}

// Kernels as the product wants them: [place, block of features, channel, feature of the block].
template <class T>
struct Kernels {
  int64_t channels, features;
  int64_t block = channels * kColumns<T>, place = spaced<T>(padded<T>(features) * channels);
  Memory<T> data = allocate<T>(kPlaces * place);

  T* at(int64_t channel, int64_t feature) {
    return &data[feature / kColumns<T> * block + channel * kColumns<T> + feature % kColumns<T>];
  }

  // From [3, 3, channels, features].
  void transform(ffi::ThreadPool& pool, const T* taps) {
    clear_padding();
    parallel(pool, channels, [&](int64_t channel) {
      for_vectors<T>(features, [&](auto kind, int64_t feature) {
        using V = decltype(kind);
        V g[9], made[kPlaces];
        for (int tap = 0; tap < 9; ++tap)
          g[tap] = load<V>(taps + (tap * channels + channel) * features + feature);
        transform_kernel(g, made);
        for (int i = 0; i < kPlaces; ++i) store<V>(at(channel, feature) + i * place, made[i]);
      });
    });
  }

  // From [3, 3, features, channels], turned by 180 degrees.
  void transform_turned(ffi::ThreadPool& pool, const T* taps) {
    clear_padding();
    parallel(pool, ceil_div(features, kColumns<T>), [&](int64_t block_number) {
      int64_t first = block_number * kColumns<T>, end = std::min(first + kColumns<T>, features);
      for_vectors<T>(channels, [&](auto kind, int64_t channel) {
        using V = decltype(kind);
        constexpr int kCount = sizeof(V) / sizeof(T);
        for (int64_t feature = first; feature < end; ++feature) {
          V g[9], made[kPlaces];
          for (int tap = 0; tap < 9; ++tap)
            g[tap] = load<V>(taps + ((8 - tap) * features + feature) * channels + channel);
          transform_kernel(g, made);
          for (int i = 0; i < kPlaces; ++i) {
            T values[kCount];
            store<V>(values, made[i]);
            T* to = at(channel, feature) + i * place;
            for (int lane = 0; lane < kCount; ++lane) to[lane * kColumns<T>] = values[lane];
          }
        }
      });
    });
  }

  // What no feature is computed from must be numbers all the same.
  void clear_padding() {
    if (features % kColumns<T> != 0) std::fill_n(data.get(), kPlaces * place, T(0));
  }
};

// Convolves; ``turned``: with the kernel turned by 180 degrees and its channels and features
// exchanged, which gives the gradient of the input from that of the output.
template <class T>
void convolve(ffi::ThreadPool& pool, const Numbers& x, const Numbers& kernel,
              Numbers& y, int64_t top, int64_t left, bool turned) {
  auto sizes = x.dimensions(), new_sizes = y.dimensions();
  int64_t channels = sizes[3], features = new_sizes[3];
  Memory<T> zeros = allocate<T>(channels);
  std::fill_n(zeros.get(), channels, T(0));
  Images<T> images{x.typed_data(), sizes[1], sizes[2], channels, top, left, zeros.get()};
  Tiles tiles{new_sizes[0], new_sizes[1], new_sizes[2]};

  Kernels<T> kernels{channels, features};
  if (turned) {
    kernels.transform_turned(pool, kernel.typed_data());
  } else {
    kernels.transform(pool, kernel.typed_data());
  }

  T* outputs = y.typed_data();
  int64_t size = tiles.in_group(pool.num_threads());
  parallel(pool, ceil_div(tiles.count, size), [&](int64_t group) {
    int64_t first_tile = group * size, count = std::min(size, tiles.count - first_tile);
    int64_t input_place = spaced<T>(count * channels);
    int64_t product_place = spaced<T>(count * kColumns<T>);
    Memory<T> inputs = allocate<T>(kPlaces * input_place);
    Memory<T> products = allocate<T>(kPlaces * product_place);
    for (int64_t tile = 0; tile < count; ++tile)
      transform_input(images, tiles.corner(first_tile + tile), &inputs[tile * channels],
                      input_place);
    for (int64_t first = 0; first < features; first += kColumns<T>) {
      for (int i = 0; i < kPlaces; ++i)
        product<false>(count, channels, Matrix<T>{&inputs[i * input_place], channels, 1},
                       kernels.at(0, first) + i * kernels.place, kColumns<T>,
                       &products[i * product_place], kColumns<T>);
      for (int64_t tile = 0; tile < count; ++tile) {
        auto corner = tiles.corner(first_tile + tile);
        T* to[4];
        for (int i = 0; i < 4; ++i) {
          int64_t row = corner.row + i / 2, column = corner.column + i % 2;
          bool inside = row < tiles.height && column < tiles.width;
          int64_t pixel = (corner.image * tiles.height + row) * tiles.width + column;
          to[i] = inside ? outputs + pixel * features + first : nullptr;
        }
        transform_products(&products[tile * kColumns<T>], product_place,
                           std::min<int64_t>(kColumns<T>, features - first), to);
      }
    }
  });
}

template <class T>
void kernel_gradient(ffi::ThreadPool& pool, const Numbers& x, const Numbers& dy,
                     Numbers& dkernel, int64_t top, int64_t left) {
  auto sizes = x.dimensions(), new_sizes = dy.dimensions();
  int64_t channels = sizes[3], features = new_sizes[3], width = padded<T>(features);
  int64_t widest = std::max(channels, features);
  Memory<T> zeros = allocate<T>(widest);
  std::fill_n(zeros.get(), widest, T(0));
  Images<T> images{x.typed_data(), sizes[1], sizes[2], channels, top, left, zeros.get()};
  Images<T> outputs{dy.typed_data(), new_sizes[1], new_sizes[2], features, 0, 0, zeros.get()};
  Tiles tiles{new_sizes[0], new_sizes[1], new_sizes[2]};

  // Each part has sums of its own, [place, channel, feature]: the result does not depend on which
  // thread comes first.
  int64_t size = tiles.in_group(pool.num_threads()), groups = ceil_div(tiles.count, size);
  int64_t parts = std::min<int64_t>(pool.num_threads(), groups);
  int64_t place = channels * width;
  Memory<T> sums = allocate<T>(parts * kPlaces * place);
  parallel(pool, parts, [&](int64_t part) {
    T* sum = &sums[part * kPlaces * place];
    std::fill_n(sum, kPlaces * place, T(0));
    int64_t input_place = spaced<T>(size * channels);
    int64_t gradient_place = spaced<T>(size * width);
    Memory<T> inputs = allocate<T>(kPlaces * input_place);
    Memory<T> gradients = allocate<T>(kPlaces * gradient_place);
    std::fill_n(gradients.get(), kPlaces * gradient_place, T(0));
    int64_t end = groups * (part + 1) / parts;
    for (int64_t group = groups * part / parts; group < end; ++group) {
      int64_t first_tile = group * size, count = std::min(size, tiles.count - first_tile);
      for (int64_t tile = 0; tile < count; ++tile) {
        auto corner = tiles.corner(first_tile + tile);
        transform_input(images, corner, &inputs[tile * channels], input_place);
        const T* from[4];
        for (int i = 0; i < 4; ++i)
          from[i] = outputs.at(corner.image, corner.row + i / 2, corner.column + i % 2);
        transform_outputs(from, features, &gradients[tile * width], gradient_place);
      }
      for (int i = 0; i < kPlaces; ++i)
        for (int64_t first = 0; first < width; first += kColumns<T>)
          product<true>(channels, count, Matrix<T>{&inputs[i * input_place], 1, channels},
                        &gradients[i * gradient_place + first], width, sum + i * place + first,
                        width);
    }
  });

  T* to = dkernel.typed_data();
  parallel(pool, channels, [&](int64_t channel) {
    for_vectors<T>(features, [&](auto kind, int64_t feature) {
      using V = decltype(kind);
      V m[kPlaces] = {}, dg[9];
      for (int64_t part = 0; part < parts; ++part)
        for (int i = 0; i < kPlaces; ++i)
          m[i] += load<V>(&sums[(part * kPlaces + i) * place + channel * width + feature]);
      transform_sums(m, dg);
      for (int tap = 0; tap < 9; ++tap)
        store<V>(to + (tap * channels + channel) * features + feature, dg[tap]);
    });
  });
}

ffi::Error Convolve(ffi::ThreadPool pool, Numbers x, Numbers kernel, ffi::Result<Numbers> y,
                    int64_t top, int64_t left, bool turned) {
  convolve<Number>(pool, x, kernel, *y, top, left, turned);
  return ffi::Error::Success();
}

ffi::Error KernelGradient(ffi::ThreadPool pool, Numbers x, Numbers dy, ffi::Result<Numbers> dkernel,
                          int64_t top, int64_t left) {
  kernel_gradient<Number>(pool, x, dy, *dkernel, top, left);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace zoo

XLA_FFI_DEFINE_HANDLER_SYMBOL(convolve, zoo::Convolve,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<zoo::Numbers>()
                                  .Arg<zoo::Numbers>()
                                  .Ret<zoo::Numbers>()
                                  .Attr<int64_t>("top")
                                  .Attr<int64_t>("left")
                                  .Attr<bool>("turned"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(kernel_gradient, zoo::KernelGradient,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<zoo::Numbers>()
                                  .Arg<zoo::Numbers>()
                                  .Ret<zoo::Numbers>()
                                  .Attr<int64_t>("top")
                                  .Attr<int64_t>("left"));
