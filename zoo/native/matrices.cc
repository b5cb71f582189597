// Products of matrices, and convolution, by the processor's matrix unit, Intel's AMX, as accurate as
// in float32.
//
// The unit multiplies bfloat16, which has 8 of float32's 24 bits, and adds up in float32. A number is
// the sum of three of bfloat16, each rounded to nearest: a = a1 + a2 + a3. Of the nine products that
// make up a product of two numbers the six largest are added up; the others are less than 2^-25 of
// it, half of what rounding it to float32 may change. (JAX knows this as BF16_BF16_F32_X6.) Infinite
// numbers, and those above 3.39e38, give nan; bits below 1e-38 are lost.

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "outputs.h"
#include "window.h"

namespace zoo {
namespace {

namespace ffi = xla::ffi;

static_assert(std::is_same_v<Number, float>, "the unit adds up in float32");

struct Bfloat16 {
  uint16_t bits;
};

// A tile has 16 lines of 16 sums, or of 16 pairs of numbers: of two neighbours along the depth.
constexpr int64_t kLines = 16, kLine = 32, kTile = kLines * kLine;
// Of sums that are computed at once, both ways: 2 x 2 tiles. They take half of the unit's registers.
constexpr int64_t kBlock = 2 * kLines;
constexpr int kPieces = 3;
// Of an operand, kBlock wide and kLine deep: [piece, half, line].
constexpr int64_t kPanel = kPieces * 2 * kTile;
// So much depth of a block of the left operand stays in the first-level cache.
constexpr int64_t kNear = 4 * kLine;
// Depth and bytes of the right operand that stay in the second-level cache.
constexpr int64_t kMostDepth = 256, kMostBytes = 1 << 20;
// Products and sums for which another thread is woken.
constexpr int64_t kWorthwhile = 1 << 20;

// Images [batch, rows, columns, channels], and what of them each pixel of a convolution's outputs is
// a product of: a line [place of the window, channel]. There are whole kLines of channels.
struct Windows {
  Window window;
  int64_t rows, columns, channels;
  int64_t output_rows, output_columns;

  // Where the lines of some pixels, from one on, have what they have from ``place`` on.
  void find(const float* images, int64_t pixel, int64_t place, const float** lines) const {
    int64_t tap = place / channels, channel = place % channels;
    int64_t down = tap / window.width - window.top, right = tap % window.width - window.left;
    int64_t column = pixel % output_columns, of_all = pixel / output_columns;
    int64_t row = of_all % output_rows, image = of_all / output_rows;
    for (int64_t i = 0; i < kLine; ++i) {
      int64_t y = row * window.row_stride + down, x = column * window.column_stride + right;
      bool inside = y >= 0 && y < rows && x >= 0 && x < columns;
      lines[i] = inside ? images + ((image * rows + y) * columns + x) * channels + channel : nullptr;
      if (++column < output_columns) continue;
      column = 0;
      if (++row < output_rows) continue;
      row = 0, ++image;
    }
  }
};

// Lines of numbers in memory, one each ``stride``: an operand's rows along the depth or, turned, at
// each depth all of its rows. Or the lines of windows, of which ``stride`` is what is between most.
struct Operand {
  const float* data;
  int64_t stride;
  bool turned;
  const Windows* windows = nullptr;

  // Where kLine lines, from one on, have what they have from ``place`` on; null: zeros.
  void find(int64_t line, int64_t place, const float** lines) const {
    if (windows != nullptr) return windows->find(data, line, place, lines);
    for (int64_t i = 0; i < kLine; ++i) lines[i] = data + (line + i) * stride + place;
  }
};

// The unit's registers for as long as this lives: eight whole tiles.
struct Registers {
  Registers() {
    struct alignas(64) {
      uint8_t palette = 1, rest[15] = {};
      uint16_t bytes[16] = {};
      uint8_t lines[16] = {};
    } shape;
    std::fill_n(shape.bytes, 8, kLine * sizeof(Bfloat16));
    std::fill_n(shape.lines, 8, kLines);
    _tile_loadconfig(&shape);
  }
  ~Registers() { _tile_release(); }
};

// Up to 16 numbers; none from ``count`` on.
inline __m512 load_some(const float* from, int64_t count) {
  if (count >= 16) return _mm512_loadu_ps(from);
  return _mm512_maskz_loadu_ps(count > 0 ? (1u << count) - 1 : 0, from);
}

// The 16 first, or last, of 32 numbers.
inline __m512 widened(__m512i numbers, int half) {
  __m256i some = half == 0 ? _mm512_castsi512_si256(numbers) : _mm512_extracti64x4_epi64(numbers, 1);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(some), 16));
}

// Swaps lines and pairs of a tile.
inline void transpose(Bfloat16* tile) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm512_load_si512(tile + i * kLine);
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 2; ++j) {
      a[i + 2 * j] = _mm512_unpacklo_epi64(b[i + j], b[i + j + 2]);
      a[i + 2 * j + 1] = _mm512_unpackhi_epi64(b[i + j], b[i + j + 2]);
    }
  }
  // Quarters of lines: of each four lines, then of each four of these.
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 16; j += 8) {
      b[i + j] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0x88);
      b[i + j + 4] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0xdd);
    }
  }
  for (int i = 0; i < 8; ++i) {
    a[i] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88);
    a[i + 8] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd);
  }
  for (int i = 0; i < 16; ++i) _mm512_store_si512(tile + i * kLine, a[i]);
}

// Divides a block of an operand, up to kBlock wide, into panels along the depth; the rest is zeros.
// A line of the left operand's tiles has pairs of the same row; one of the right operand's has one
// pair of each of 16 columns.
template <bool kTurned, bool kLeft>
[[gnu::noinline]] void divide(const Operand& from, int64_t first, int64_t wide, int64_t begin,
                              int64_t deep, Bfloat16* to) {
  alignas(64) static constexpr uint16_t kInTurns[kLine] = {
      0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i in_turns = _mm512_load_si512(kInTurns);
  static_assert(kBlock == kLine, "as many lines make a panel, turned or not");
  const int64_t next = kBlock * (kTurned ? 1 : from.stride);
  for (int64_t k = 0; k < deep; k += kLine, to += kPanel) {
    const float* lines[kLine];
    kTurned ? from.find(begin + k, first, lines) : from.find(first, begin + k, lines);
    for (int64_t half = 0; half < 2; ++half) {
      Bfloat16* tile = to + half * kTile;
      for (int64_t line = 0; line < kLines; ++line) {
        // What the other operand's lines have, turned: two depths of 16 places, or 32 depths of one.
        int64_t i = half * kLines + (kTurned ? 0 : line), depth = k + (kTurned ? 2 * line : 0);
        int64_t width = wide - i, left = deep - depth;
        __m512 a = {}, b = {};
        // Also the next block's, for the second-level cache.
        auto take = [&](const float* place, int64_t count) {
          __builtin_prefetch(place + next, 0, 2);
          return load_some(place, count);
        };
        if constexpr (kTurned) {
          const float *above = lines[2 * line], *below = lines[2 * line + 1];
          if (above != nullptr && left > 0) a = take(above + i, width);
          if (below != nullptr && left > 1) b = take(below + i, width);
        } else if (lines[i] != nullptr && width > 0) {
          a = take(lines[i], left), b = take(lines[i] + kLines, left - kLines);
        }
        for (int piece = 0; piece < kPieces; ++piece) {
          auto both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a));
          a -= widened(both, 0), b -= widened(both, 1);
          if (kTurned) both = _mm512_permutexvar_epi16(in_turns, both);
          _mm512_store_si512(tile + piece * 2 * kTile + line * kLine, both);
        }
      }
      for (int piece = 0; piece < kPieces && kTurned == kLeft; ++piece)
        transpose(tile + piece * 2 * kTile);
    }
  }
}

// ``sums``, of kBlock x kBlock, become products of two blocks, or grow by them. The smallest products
// come first, and each operand's next piece is taken for which the other's is there.
inline void multiply_panels(int64_t panels, const Bfloat16* left, const Bfloat16* right, float* sums,
                            bool add) {
  constexpr int64_t kBytes = kLine * sizeof(Bfloat16), kSumBytes = kBlock * sizeof(float);
  float* below = sums + kLines * kBlock;
  if (add) {
    _tile_loadd(0, sums, kSumBytes);
    _tile_loadd(1, sums + kLines, kSumBytes);
    _tile_loadd(2, below, kSumBytes);
    _tile_loadd(3, below + kLines, kSumBytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (; panels > 0; --panels, left += kPanel, right += kPanel) {
    auto take_left = [&](int piece) {
      _tile_loadd(4, left + piece * 2 * kTile, kBytes);
      _tile_loadd(5, left + (piece * 2 + 1) * kTile, kBytes);
    };
    auto take_right = [&](int piece) {
      _tile_loadd(6, right + piece * 2 * kTile, kBytes);
      _tile_loadd(7, right + (piece * 2 + 1) * kTile, kBytes);
    };
    auto add_products = [] {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    };
    take_left(2), take_right(0), add_products();
    take_left(1), add_products();
    take_right(1), add_products();
    take_left(0), add_products();
    take_right(2), add_products();
    take_right(0), add_products();
  }
  _tile_stored(0, sums, kSumBytes);
  _tile_stored(1, sums + kLines, kSumBytes);
  _tile_stored(2, below, kSumBytes);
  _tile_stored(3, below + kLines, kSumBytes);
}

// Some rows and columns of a product.
struct Part {
  int64_t row, rows, column, columns;
};

template <bool kTurnedLeft, bool kTurnedRight>
void multiply(const Part& part, int64_t depth, const Operand& left, const Operand& right,
              const Finish<float>& finish, bool past, float* y, int64_t features) {
  // Of the depth and the columns, about as many each time.
  auto even = [](int64_t count, int64_t most, int64_t unit) {
    return ceil_div(ceil_div(count, ceil_div(count, most)), unit) * unit;
  };
  int64_t deep = even(depth, kMostDepth, kLine);
  int64_t block_bytes = deep / kLine * kPanel * static_cast<int64_t>(sizeof(Bfloat16));
  int64_t wide = even(part.columns, kMostBytes / block_bytes * kBlock, kBlock);
  // The right operand as [block, panel], one block of the left one, and sums as [block, row, column].
  auto rights = allocate<Bfloat16>(wide / kBlock * deep / kLine * kPanel);
  auto lefts = allocate<Bfloat16>(deep / kLine * kPanel);
  Memory<float> sums = allocate<float>(wide * kBlock);
  Registers registers;

  int64_t last = part.column + part.columns, end = part.row + part.rows;
  for (int64_t column = part.column; column < last; column += wide) {
    int64_t blocks = ceil_div(std::min(wide, last - column), kBlock);
    for (int64_t k = 0; k < depth; k += deep) {
      int64_t some = std::min(deep, depth - k), panels = ceil_div(some, kLine);
      bool is_last = k + deep >= depth;
      for (int64_t block = 0; block < blocks; ++block) {
        int64_t first = column + block * kBlock;
        divide<kTurnedRight, false>(right, first, std::min(kBlock, last - first), k, some,
                                    &rights[block * panels * kPanel]);
      }
      for (int64_t row = part.row; row < end; row += kBlock) {
        int64_t rows = std::min(kBlock, end - row);
        divide<kTurnedLeft, true>(left, row, rows, k, some, lefts.get());
        for (int64_t panel = 0; panel < panels; panel += kNear / kLine) {
          int64_t near = std::min(kNear / kLine, panels - panel);
          for (int64_t block = 0; block < blocks; ++block)
            multiply_panels(near, &lefts[panel * kPanel],
                            &rights[(block * panels + panel) * kPanel],
                            &sums[block * kBlock * kBlock], panel > 0);
        }
        for (int64_t i = 0; i < rows; ++i) {
          for (int64_t block = 0; block < blocks; ++block) {
            int64_t first = column + block * kBlock, place = (row + i) * features + first;
            int64_t width = std::min(kBlock, last - first);
            const float* from = &sums[(block * kBlock + i) * kBlock];
            for_vectors<float>(width, [&](auto kind, int64_t j) {
              using V = decltype(kind);
              V sum = load<V>(from + j);
              if (k > 0) sum += load<V>(y + place + j);
              if (is_last) sum = finish(sum, first + j, place + j);
              if constexpr (!std::is_same_v<V, float>) {
                if (is_last && past) return store_past<float>(y + place + j, sum);
              }
              store<V>(y + place + j, sum);
            });
          }
        }
      }
    }
  }
}

// y = left * right, finished.
void multiply_all(ffi::ThreadPool& pool, const Operand& left, const Operand& right, int64_t rows,
                  int64_t depth, int64_t columns, const Finish<float>& finish, float* y) {
  // The longer way is divided first: each thread divides all of the other operand into pieces.
  int64_t down = ceil_div(rows, kBlock), across = ceil_div(columns, kBlock);
  int64_t parts = std::min<int64_t>(pool.num_threads(), 1 + rows * columns * depth / kWorthwhile);
  bool is_high = down >= across;
  int64_t first = std::min(parts, is_high ? down : across);
  int64_t second = std::min(parts / first, is_high ? across : down);
  int64_t of_rows = is_high ? first : second, of_columns = is_high ? second : first;
  bool past = finish.scale != nullptr && goes_past(y, rows, columns);
  parallel(pool, of_rows * of_columns, [&](int64_t item) {
    auto range = [](int64_t blocks, int64_t part, int64_t parts, int64_t count) {
      int64_t begin = blocks * part / parts * kBlock;
      return std::pair(begin, std::min(blocks * (part + 1) / parts * kBlock, count) - begin);
    };
    auto [row, height] = range(down, item % of_rows, of_rows, rows);
    auto [column, width] = range(across, item / of_rows, of_columns, columns);
    auto* of_part = left.turned ? (right.turned ? multiply<true, true> : multiply<true, false>)
                                : (right.turned ? multiply<false, true> : multiply<false, false>);
    of_part({row, height, column, width}, depth, left, right, finish, past, y, columns);
    if (past) written_past();
  });
}

// A matrix as the right operand: its columns are what rows are of the left one.
Operand on_the_right(const Numbers& matrix, bool turned = false) {
  return {matrix.typed_data(), matrix.dimensions().back(), !turned};
}

ffi::Error Multiply(ffi::ThreadPool pool, Numbers left, Numbers right, ffi::Result<Numbers> y,
                    ffi::RemainingArgs finish, bool rectify, bool turned_left, bool turned_right) {
  Sizes sizes = Sizes()
                    .with("left", left, turned_left ? "dr" : "rd")
                    .with("right", right, turned_right ? "cd" : "dc")
                    .with("y", *y, "rc");
  Finish<float> finishes(finish, rectify, sizes, "rc");
  return sizes.then([&] {
    Operand of_rows{left.typed_data(), left.dimensions()[1], turned_left};
    multiply_all(pool, of_rows, on_the_right(right, turned_right), sizes['r'], sizes['d'],
                 sizes['c'], finishes, y->typed_data());
  });
}

Windows windows_of(const Numbers& x, const Numbers& y, Window window) {
  auto sizes = x.dimensions(), new_sizes = y.dimensions();
  return {window, sizes[1], sizes[2], sizes[3], new_sizes[1], new_sizes[2]};
}

ffi::Error Convolve(ffi::ThreadPool pool, Numbers x, Numbers kernel, ffi::Result<Numbers> y,
                    ffi::RemainingArgs finish, bool rectify, int64_t row_stride,
                    int64_t column_stride, int64_t top, int64_t left) {
  Sizes s = sizes_of(x, kernel, *y, row_stride, column_stride);
  Finish<float> finishes(finish, rectify, s, "bpqf");
  return s.then([&] {
    Windows windows = windows_of(x, *y, {s['i'], s['j'], row_stride, column_stride, top, left});
    Operand of_pixels{x.typed_data(), windows.channels * column_stride, false, &windows};
    multiply_all(pool, of_pixels, on_the_right(kernel), s['b'] * s['p'] * s['q'],
                 s['i'] * s['j'] * s['c'], s['f'], finishes, y->typed_data());
  });
}

ffi::Error KernelGradient(ffi::ThreadPool pool, Numbers x, Numbers dy, ffi::Result<Numbers> dkernel,
                          int64_t row_stride, int64_t column_stride, int64_t top, int64_t left) {
  Sizes s = sizes_of(x, *dkernel, dy, row_stride, column_stride);
  return s.then([&] {
    Windows windows = windows_of(x, dy, {s['i'], s['j'], row_stride, column_stride, top, left});
    Operand of_taps{x.typed_data(), windows.channels * column_stride, true, &windows};
    multiply_all(pool, of_taps, on_the_right(dy), s['i'] * s['j'] * s['c'],
                 s['b'] * s['p'] * s['q'], s['f'], {}, dkernel->typed_data());
  });
}

}  // namespace
}  // namespace zoo

// Asks the system for the unit's registers, which it gives once for the process; not 0: there are none.
extern "C" int prepare() {
  constexpr int kAsk = 0x1023, kTiles = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return static_cast<int>(syscall(SYS_arch_prctl, kAsk, kTiles));
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(multiply_matrices, zoo::Multiply,
                              zoo::finished().Attr<bool>("turned_left").Attr<bool>("turned_right"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(convolve_by_unit, zoo::Convolve, zoo::with_window(zoo::finished()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(kernel_gradient_by_unit, zoo::KernelGradient,
                              zoo::with_window(zoo::binary()));
