// Convolution with 3x3 kernels in fewer multiplications: Winograd's algorithm F(4x4, 3x3).
//
// A tile of 6x6 pixels gives 4x4 outputs with 36 instead of 144 multiplications:
// Y = A' [(G g G') * (B' d B)] A, where the product * over all tiles and channels is 36 matrix
// products. A group of tiles is transformed, multiplied and transformed back while it is in a
// core's cache. Sources: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015),
// section 4; for the choice of points Barabasz et al., "Error Analysis and Improving the Accuracy of
// Winograd Convolution for Deep Neural Networks" (2020).

#include "outputs.h"

namespace zoo {
namespace {

namespace ffi = xla::ffi;

// Sides of a tile of inputs, of its outputs and of a kernel.
constexpr int kTile = 6, kOutputs = 4, kTaps = 3;
constexpr int kPlaces = kTile * kTile;
// Of a group, at most: so many that the product's inner loop has whole blocks of rows, and that
// what is made of them stays in the second-level cache with up to a few hundred channels.
constexpr int64_t kTiles = 48;
// Channels that are summed up before what they give is added to the others: what is rounded in these
// sums is much larger than the outputs.
constexpr int64_t kSummed = 16;
// Numbers of a kernel's tap whose transform is worth another thread.
constexpr int64_t kWorthwhile = 1 << 12;

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
  int64_t rows = ceil_div(height, kOutputs), columns = ceil_div(width, kOutputs);
  int64_t count = batch * rows * columns;

  // Image, and row and column of the first output.
  struct Corner {
    int64_t image, row, column;
  };
  Corner corner(int64_t tile) const {
    return {tile / (rows * columns), kOutputs * (tile / columns % rows),
            kOutputs * (tile % columns)};
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

// The algorithm along one axis. A tile and a kernel are polynomials, which are multiplied where they
// have values: at 0, kA, -kA, kB, -kB and infinity. These two, and all that is made of them below,
// are exact in binary; of such pairs between 1/2 and 2 they have the smallest error: half a
// millionth of the outputs' norm, where a plain sum has a sixth of that, and 1 and 2, which
// are often taken, have three times as much.
constexpr double kA = 11. / 16, kB = 3. / 2;
constexpr double kA2 = kA * kA, kB2 = kB * kB;

// B': values of a tile's polynomial.
template <class T>
struct InputTransform {
  static constexpr int kFrom = kTile, kTo = kTile;
  template <class V>
  static void apply(const V d[kTile], V to[kTile]) {
    V even = d[4] - T(kB2) * d[2], odd = T(kA) * (d[3] - T(kB2) * d[1]);
    to[0] = d[4] - T(kA2 + kB2) * d[2] + T(kA2 * kB2) * d[0];
    to[1] = even + odd, to[2] = even - odd;
    even = d[4] - T(kA2) * d[2], odd = T(kB) * (d[3] - T(kA2) * d[1]);
    to[3] = even + odd, to[4] = even - odd;
    to[5] = d[5] - T(kA2 + kB2) * d[3] + T(kA2 * kB2) * d[1];
  }
};

// What the interpolation divides by at 0, kA and kB; exact as well. Their inverses would not be, and
// would make all outputs too large or too small by the same share.
constexpr double kBy0 = kA2 * kB2, kByA = 2 * kA2 * (kA2 - kB2), kByB = 2 * kB2 * (kB2 - kA2);

// G: values of a kernel's polynomial, divided.
template <class T>
struct KernelTransform {
  static constexpr int kFrom = kTaps, kTo = kTile;
  template <class V>
  static void apply(const V g[kTaps], V to[kTile]) {
    V even = g[0] + T(kA2) * g[2], odd = T(kA) * g[1];
    to[0] = g[0] / T(kBy0);
    to[1] = (even + odd) / T(kByA), to[2] = (even - odd) / T(kByA);
    even = g[0] + T(kB2) * g[2], odd = T(kB) * g[1];
    to[3] = (even + odd) / T(kByB), to[4] = (even - odd) / T(kByB);
    to[5] = g[2];
  }
};

// G': the transpose, from sums to a kernel's gradient.
template <class T>
struct SumsTransform {
  static constexpr int kFrom = kTile, kTo = kTaps;
  template <class V>
  static void apply(const V m[kTile], V dg[kTaps]) {
    V even_a = (m[1] + m[2]) / T(kByA), odd_a = (m[1] - m[2]) / T(kByA);
    V even_b = (m[3] + m[4]) / T(kByB), odd_b = (m[3] - m[4]) / T(kByB);
    dg[0] = m[0] / T(kBy0) + even_a + even_b;
    dg[1] = T(kA) * odd_a + T(kB) * odd_b;
    dg[2] = m[5] + T(kA2) * even_a + T(kB2) * even_b;
  }
};

// A': outputs from products.
template <class T>
struct ProductsTransform {
  static constexpr int kFrom = kTile, kTo = kOutputs;
  template <class V>
  static void apply(const V m[kTile], V y[kOutputs]) {
    V even_a = m[1] + m[2], odd_a = T(kA) * (m[1] - m[2]);
    V even_b = m[3] + m[4], odd_b = T(kB) * (m[3] - m[4]);
    y[0] = m[0] + even_a + even_b;
    y[1] = odd_a + odd_b;
    y[2] = T(kA2) * even_a + T(kB2) * even_b;
    y[3] = m[5] + T(kA2) * odd_a + T(kB2) * odd_b;
  }
};

// A: the transpose, of the gradients of outputs.
template <class T>
struct OutputsTransform {
  static constexpr int kFrom = kOutputs, kTo = kTile;
  template <class V>
  static void apply(const V y[kOutputs], V to[kTile]) {
    V even = y[0] + T(kA2) * y[2], odd = T(kA) * (y[1] + T(kA2) * y[3]);
    to[0] = y[0];
    to[1] = even + odd, to[2] = even - odd;
    even = y[0] + T(kB2) * y[2], odd = T(kB) * (y[1] + T(kB2) * y[3]);
    to[3] = even + odd, to[4] = even - odd;
    to[5] = y[3];
  }
};

// Applies a transform to the columns and then to the rows of a square: load(i, j) gives its values,
// store(i, j, value) takes those of the square that is made.
template <class Transform, class V, class Load, class Store>
inline void along_both(const Load& load, const Store& store) {
  constexpr int kFrom = Transform::kFrom, kTo = Transform::kTo;
  V half[kTo][kFrom];
#pragma GCC unroll 6
  for (int j = 0; j < kFrom; ++j) {
    V column[kFrom], made[kTo];
#pragma GCC unroll 6
    for (int i = 0; i < kFrom; ++i) column[i] = load(i, j);
    Transform::apply(column, made);
#pragma GCC unroll 6
    for (int i = 0; i < kTo; ++i) half[i][j] = made[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < kTo; ++i) {
    V made[kTo];
    Transform::apply(half[i], made);
#pragma GCC unroll 6
    for (int j = 0; j < kTo; ++j) store(i, j, made[j]);
  }
}

// to[place][channel]: of the pixels of a tile, whose side the transform has.
template <class Transform, class T>
void transform_pixels(const Images<T>& x, Tiles::Corner corner, T* to, int64_t stride) {
  constexpr int kFrom = Transform::kFrom;
  const T* pixels[kFrom][kFrom];
  for (int i = 0; i < kFrom; ++i)
    for (int j = 0; j < kFrom; ++j)
      pixels[i][j] = x.at(corner.image, corner.row + i, corner.column + j);
  for_vectors<T>(x.channels, [&](auto kind, int64_t channel) {
    using V = decltype(kind);
    along_both<Transform, V>(
        [&](int i, int j) { return load<V>(pixels[i][j] + channel); },
        [&](int i, int j, V value) { store<V>(to + (kTile * i + j) * stride + channel, value); });
  });
}

// The outputs of a tile, of so many features from one on. Each has a place in ``y``; one that is
// outside of the image has none, -1.
template <class T>
void transform_products(const T* m, int64_t stride, int64_t first, int64_t count,
                        const int64_t places[kOutputs][kOutputs], const Finish<T>& finish, T* y) {
  for_vectors<T>(count, [&](auto kind, int64_t number) {
    using V = decltype(kind);
    along_both<ProductsTransform<T>, V>(
        [&](int i, int j) { return load<V>(m + (kTile * i + j) * stride + number); },
        [&](int i, int j, V value) {
          int64_t place = places[i][j] + number;
          if (places[i][j] >= 0) store<V>(y + place, finish(value, first + number, place));
        });
  });
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
    int64_t parts = std::min(channels, 1 + channels * features / kWorthwhile);
    parallel(pool, parts, [&](int64_t part) {
      int64_t end = channels * (part + 1) / parts;
      for (int64_t channel = channels * part / parts; channel < end; ++channel) {
        for_vectors<T>(features, [&](auto kind, int64_t feature) {
          using V = decltype(kind);
          T* to = at(channel, feature);
          along_both<KernelTransform<T>, V>(
              [&](int i, int j) {
                return load<V>(taps + ((kTaps * i + j) * channels + channel) * features + feature);
              },
              [&](int i, int j, V value) { store<V>(to + (kTile * i + j) * place, value); });
        });
      }
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
          along_both<KernelTransform<T>, V>(
              [&](int i, int j) {
                int tap = kTaps * kTaps - 1 - (kTaps * i + j);
                return load<V>(taps + (tap * features + feature) * channels + channel);
              },
              [&](int i, int j, V value) {
                T values[kCount];
                store<V>(values, value);
                T* to = at(channel, feature) + (kTile * i + j) * place;
                for (int lane = 0; lane < kCount; ++lane) to[lane * kColumns<T>] = values[lane];
              });
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
              Numbers& y, int64_t top, int64_t left, bool turned, const Finish<T>& finish) {
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
      transform_pixels<InputTransform<T>>(images, tiles.corner(first_tile + tile),
                                          &inputs[tile * channels], input_place);
    for (int64_t first = 0; first < features; first += kColumns<T>) {
      for (int i = 0; i < kPlaces; ++i) {
        T* sums = &products[i * product_place];
        for (int64_t c = 0; c < channels; c += kSummed) {
          Matrix<T> left{&inputs[i * input_place + c], channels, 1};
          const T* right = kernels.at(c, first) + i * kernels.place;
          int64_t some = std::min(kSummed, channels - c);
          if (c == 0) {
            product<false>(count, some, left, Rows<T>{right, kColumns<T>}, sums, kColumns<T>);
          } else {
            product<true>(count, some, left, Rows<T>{right, kColumns<T>}, sums, kColumns<T>);
          }
        }
      }
      for (int64_t tile = 0; tile < count; ++tile) {
        auto corner = tiles.corner(first_tile + tile);
        int64_t places[kOutputs][kOutputs];
        for (int i = 0; i < kOutputs; ++i) {
          for (int j = 0; j < kOutputs; ++j) {
            int64_t row = corner.row + i, column = corner.column + j;
            bool inside = row < tiles.height && column < tiles.width;
            int64_t pixel = (corner.image * tiles.height + row) * tiles.width + column;
            places[i][j] = inside ? pixel * features + first : -1;
          }
        }
        transform_products(&products[tile * kColumns<T>], product_place, first,
                           std::min<int64_t>(kColumns<T>, features - first), places, finish,
                           outputs);
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
        transform_pixels<InputTransform<T>>(images, corner, &inputs[tile * channels], input_place);
        transform_pixels<OutputsTransform<T>>(outputs, corner, &gradients[tile * width],
                                              gradient_place);
      }
      for (int i = 0; i < kPlaces; ++i)
        for (int64_t first = 0; first < width; first += kColumns<T>)
          product<true>(channels, count, Matrix<T>{&inputs[i * input_place], 1, channels},
                        Rows<T>{&gradients[i * gradient_place + first], width},
                        sum + i * place + first, width);
    }
  });

  T* to = dkernel.typed_data();
  parallel(pool, channels, [&](int64_t channel) {
    for_vectors<T>(features, [&](auto kind, int64_t feature) {
      using V = decltype(kind);
      V m[kPlaces] = {};
      for (int64_t part = 0; part < parts; ++part)
        for (int i = 0; i < kPlaces; ++i)
          m[i] += load<V>(&sums[(part * kPlaces + i) * place + channel * width + feature]);
      along_both<SumsTransform<T>, V>(
          [&](int i, int j) { return m[kTile * i + j]; },
          [&](int i, int j, V value) {
            store<V>(to + ((kTaps * i + j) * channels + channel) * features + feature, value);
          });
    });
  });
}

Sizes sizes_of(const Numbers& x, const Numbers& kernel, const Numbers& y) {
  return Sizes().with("x", x, "bhwc").with("kernel", kernel, "33cf").with("y", y, "bpqf");
}

ffi::Error Convolve(ffi::ThreadPool pool, Numbers x, Numbers kernel, ffi::Result<Numbers> y,
                    ffi::RemainingArgs finish, bool rectify, int64_t top, int64_t left) {
  Sizes sizes = sizes_of(x, kernel, *y);
  Finish<Number> finishes(finish, rectify, sizes, "bpqf");
  return sizes.then(
      [&] { convolve<Number>(pool, x, kernel, *y, top, left, false, finishes); });
}

ffi::Error InputGradient(ffi::ThreadPool pool, Numbers dy, Numbers kernel, ffi::Result<Numbers> dx,
                         int64_t top, int64_t left) {
  return sizes_of(*dx, kernel, dy).then([&] {
    convolve<Number>(pool, dy, kernel, *dx, kTaps - 1 - top, kTaps - 1 - left, true,
                     Finish<Number>());
  });
}

ffi::Error KernelGradient(ffi::ThreadPool pool, Numbers x, Numbers dy, ffi::Result<Numbers> dkernel,
                          int64_t top, int64_t left) {
  return sizes_of(x, *dkernel, dy).then(
      [&] { kernel_gradient<Number>(pool, x, dy, *dkernel, top, left); });
}

template <class Binding>
auto with_padding(Binding binding) {
  return std::move(binding).template Attr<int64_t>("top").template Attr<int64_t>("left");
}

}  // namespace
}  // namespace zoo

XLA_FFI_DEFINE_HANDLER_SYMBOL(convolve_tiles, zoo::Convolve, zoo::with_padding(zoo::finished()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(input_gradient_tiles, zoo::InputGradient,
                              zoo::with_padding(zoo::binary()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(kernel_gradient_tiles, zoo::KernelGradient,
                              zoo::with_padding(zoo::binary()));
