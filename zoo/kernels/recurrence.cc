// Recurrent layers over whole sequences: the steps, forwards and backwards.
//
// The rows of a batch do not depend on each other: a thread takes some of them through the whole
// sequence and waits for no other. Its states and the recurrent kernel stay in the core's cache.
// The equations are applied to sums while these are in registers, so the kernel's columns are
// arranged by unit: the gates of one vector of units stand side by side.
// Sources of the equations: zoo/layers/recurrence.py.

#include <cmath>
#include <string_view>

#include "kernels.h"

namespace zoo {
namespace {

namespace ffi = xla::ffi;

// Vectors of sums that registers hold, beside the operands.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kSums = 24;
#else
constexpr int kSums = 12;
#endif
// Of a row of sums.
constexpr int kWide = 4;
// Rows of a batch that a thread takes at once: with fewer the kernel is read for little work, with
// more their states leave the cache.
constexpr int64_t kLeastRows = 8, kMostRows = 32;
// Rows of a panel that all groups of rows are multiplied by before the next ones.
constexpr int64_t kDepth = 256;
// Rows of a panel that are asked for ahead: the kernel is read from the second-level cache, or the
// one beyond it.
constexpr int64_t kAhead = 16;

template <class T>
int64_t vectors(int64_t units) {
  return ceil_div(units, kLanes<T>);
}

// Of one row of scratch. Not a power of two: rows shall not share the cache's sets.
template <class T>
int64_t stride_of(int64_t count) {
  return vectors<T>(count) * kLanes<T> + 64 / sizeof(T);
}

// The first ``count`` numbers of a vector; the others are zero.
template <class T>
inline Vector<T> load_some(const T* from, int64_t count) {
  if (count >= kLanes<T>) return load<Vector<T>>(from);
  Vector<T> value = {};
  std::memcpy(&value, from, count * sizeof(T));
  return value;
}
template <class T>
inline void store_some(T* to, Vector<T> value, int64_t count) {
  if (count >= kLanes<T>) return store(to, value);
  std::memcpy(to, &value, count * sizeof(T));
}

template <class V, class S>
inline V clamp(V x, S limit) {
  x = x > limit ? V{} + limit : x;
  return x < -limit ? V{} - limit : x;
}

// Minimax, of relative error 2e-8 before rounding, as far as the result is not yet 1.
inline Vector<float> tanh(Vector<float> x) {
  constexpr float kLimit = 9.01f;
  auto y = x * x;
  auto p = (((1.3335391e-8f * y + 2.0595238e-5f) * y + 3.4947497e-3f) * y + 0.13380321f) * y + 1.0f;
  auto q = (((7.7686898e-7f * y + 3.2842616e-4f) * y + 2.5873796e-2f) * y + 0.46713636f) * y + 1.0f;
  auto result = clamp(x * p / q, 1.0f);
  result = x > kLimit ? Vector<float>{} + 1.0f : result;
  return x < -kLimit ? Vector<float>{} - 1.0f : result;
}

// 1 / (1 + 2^z), where 2^z is a power of two times a minimax polynomial, of relative error 2e-9.
inline Vector<float> logistic(Vector<float> x) {
  typedef int32_t Integers __attribute__((vector_size(kVectorBytes)));
  // Added, it leaves the nearest integer in the mantissa, with the exponent's bias.
  constexpr float kRounding = 12582912.0f + 127.0f;
  auto z = clamp(x * -1.44269504f, 126.0f);
  auto rounded = z + kRounding;
  auto f = z - (rounded - kRounding);
  auto scale = reinterpret_cast<Vector<float>>(reinterpret_cast<Integers>(rounded) << 23);
  auto p = 1.5345811e-4f * f + 1.3399931e-3f;
  p = ((p * f + 9.6184890e-3f) * f + 5.5503288e-2f) * f + 0.24022647f;
  p = (p * f + 0.69314721f) * f + 1.0f;
  return 1.0f / (1.0f + p * scale);
}

inline Vector<double> tanh(Vector<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::tanh(x[i]);
  return x;
}
inline Vector<double> logistic(Vector<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = 1 / (1 + std::exp(-x[i]));
  return x;
}

// What the equations of one vector of units see and give. Each gate is the sum of the shares of
// input and state; of the GRU's candidate it is the input's share alone, and ``apart`` the other.
template <class V>
struct Values {
  V gates[4], apart, state[2];
};

// A cell has its number of gates and of arrays of the state, whether a gate's shares are apart, the
// new state from the values, and the values' gradient from the new state's.
struct Lstm {
  static constexpr int kGates = 4, kArrays = 2;
  static constexpr bool kApart = false;

  template <class V>
  static void step(const Values<V>& from, V to[2]) {
    auto [i, f, g, o] = from.gates;
    to[1] = logistic(f) * from.state[1] + logistic(i) * tanh(g);
    to[0] = logistic(o) * tanh(to[1]);
  }
  template <class V>
  static void gradient(const Values<V>& from, const V d[2], Values<V>& to) {
    V i = logistic(from.gates[0]), f = logistic(from.gates[1]);
    V g = tanh(from.gates[2]), o = logistic(from.gates[3]);
    V old = from.state[1], seen = tanh(f * old + i * g);
    V d_cell = d[1] + d[0] * o * (1 - seen * seen);
    to.gates[0] = d_cell * g * i * (1 - i);
    to.gates[1] = d_cell * old * f * (1 - f);
    to.gates[2] = d_cell * i * (1 - g * g);
    to.gates[3] = d[0] * seen * o * (1 - o);
    to.state[1] = d_cell * f;
  }
};

struct Gru {
  static constexpr int kGates = 3, kArrays = 1;
  static constexpr bool kApart = true;

  template <class V>
  static void step(const Values<V>& from, V to[1]) {
    V r = logistic(from.gates[0]), z = logistic(from.gates[1]);
    V n = tanh(from.gates[2] + r * from.apart);
    to[0] = n + z * (from.state[0] - n);
  }
  template <class V>
  static void gradient(const Values<V>& from, const V d[1], Values<V>& to) {
    V r = logistic(from.gates[0]), z = logistic(from.gates[1]);
    V n = tanh(from.gates[2] + r * from.apart);
    V d_n = d[0] * (1 - z) * (1 - n * n);
    to.gates[0] = d_n * from.apart * r * (1 - r);
    to.gates[1] = d[0] * (from.state[0] - n) * z * (1 - z);
    to.gates[2] = d_n;
    to.apart = d_n * r;
    to.state[0] = d[0] * z;
  }
};

struct Rnn {
  static constexpr int kGates = 1, kArrays = 1;
  static constexpr bool kApart = false;

  template <class V>
  static void step(const Values<V>& from, V to[1]) {
    to[0] = tanh(from.gates[0]);
  }
  template <class V>
  static void gradient(const Values<V>& from, const V d[1], Values<V>& to) {
    V h = tanh(from.gates[0]);
    to.gates[0] = d[0] * (1 - h * h);
  }
};

struct RnnRelu {
  static constexpr int kGates = 1, kArrays = 1;
  static constexpr bool kApart = false;

  template <class V>
  static void step(const Values<V>& from, V to[1]) {
    V x = from.gates[0];
    to[0] = x < 0 ? V{} : x;
  }
  template <class V>
  static void gradient(const Values<V>& from, const V d[1], Values<V>& to) {
    to.gates[0] = from.gates[0] > 0 ? d[0] : V{};
  }
};

// ``to`` becomes rows of ``a`` times a panel, whose rows are kVectors wide, or grows by it.
template <int kCount, int kVectors, class T>
__attribute__((noinline)) void multiply_rows(int64_t depth, const T* a, int64_t a_stride,
                                             const T* panel, T* to, int64_t to_stride, bool add) {
  Vector<T> sums[kCount][kVectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
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
void multiply(int64_t rows, int64_t depth, const T* a, int64_t a_stride, const T* panel, T* to,
              int64_t to_stride, bool add) {
  constexpr int kMost = kSums / kVectors;
  int64_t groups = ceil_div(rows, kMost);
  for (int64_t group = 0; group < groups; ++group) {
    int64_t first = rows * group / groups, end = rows * (group + 1) / groups;
    with_count<kMost>(end - first, [&](auto count) {
      multiply_rows<decltype(count)::value, kVectors>(depth, a + first * a_stride, a_stride, panel,
                                                      to + first * to_stride, to_stride, add);
    });
  }
}

// Calls body(first, rows) for blocks of the batch's rows.
template <class Body>
void for_blocks(ffi::ThreadPool& pool, int64_t batch, const Body& body) {
  int64_t threads = pool.num_threads(), blocks = std::max<int64_t>(1, batch / kLeastRows);
  if (blocks > threads) {
    int64_t rounds = ceil_div(batch, threads * kMostRows);
    blocks = threads * rounds;
  }
  parallel(pool, blocks, [&](int64_t block) {
    int64_t first = batch * block / blocks;
    body(first, batch * (block + 1) / blocks - first);
  });
}

struct Sizes {
  int64_t time, batch, units;
};

// The place of a step's number-th part of the kernel: every other step goes from the end to the
// beginning, and finds in the cache what the one before it read last.
int64_t there_and_back(int64_t step, int64_t number, int64_t count) {
  return step % 2 == 0 ? number : count - 1 - number;
}

template <class T>
struct Forward {
  Sizes sizes;
  const T *x, *kernel, *input_bias, *bias, *counts, *state[2];
  T *outputs, *last[2];
  // What the gradient needs, if it is asked for: the state is the one before each step.
  T *gates, *apart, *states[2];
};

template <class T>
struct Backward {
  Sizes sizes;
  const T *kernel, *counts, *gates, *apart, *states[2], *d_outputs, *d_last[2];
  T *d_gates, *d_h, *d_state[2];
};

template <class Cell, class T>
void run_forward(ffi::ThreadPool& pool, const Forward<T>& call) {
  using V = Vector<T>;
  constexpr int kGates = Cell::kGates, kUnits = kWide / kGates, kVectors = kUnits * kGates;
  auto [time, batch, units] = call.sizes;
  int64_t width = kGates * units, whole = vectors<T>(units), stride = stride_of<T>(units);
  int64_t panels = ceil_div(whole, kUnits), panel_size = units * kVectors * kLanes<T>;

  // [panel, row, vector of units, gate, unit]
  Memory<T> kernel = allocate<T>(panels * panel_size);
  parallel(pool, panels, [&](int64_t panel) {
    T* to = &kernel[panel * panel_size];
    for (int64_t k = 0; k < units; ++k) {
      for (int j = 0; j < kUnits; ++j) {
        // The last panel may have places for more vectors than there are.
        int64_t unit = std::min((panel * kUnits + j) * kLanes<T>, units);
        for (int gate = 0; gate < kGates; ++gate, to += kLanes<T>)
          store(to, load_some(call.kernel + k * width + gate * units + unit, units - unit));
      }
    }
  });

  for_blocks(pool, batch, [&](int64_t first_row, int64_t rows) {
    Memory<T> scratch = allocate<T>(rows * (3 * stride + kVectors * kLanes<T>));
    T* old = scratch.get();
    T* hidden = old + rows * stride;
    T* cell = hidden + rows * stride;
    T* sums = cell + rows * stride;
    for (int64_t row = 0; row < rows; ++row) {
      for (int array = 0; array < Cell::kArrays; ++array)
        std::copy_n(call.state[array] + (first_row + row) * units, units,
                    (array == 0 ? hidden : cell) + row * stride);
    }
    for (int64_t t = 0; t < time; ++t) {
      std::swap(old, hidden);
      for (int64_t number = 0; number < panels; ++number) {
        int64_t panel = there_and_back(t, number, panels);
        for (int64_t k = 0; k < units; k += kDepth)
          multiply<kVectors>(rows, std::min(kDepth, units - k), old + k, stride,
                             &kernel[panel * panel_size + k * kVectors * kLanes<T>], sums,
                             kVectors * kLanes<T>, k > 0);
        for (int64_t row = 0; row < rows; ++row) {
          int64_t place = t * batch + first_row + row;
          T counted = call.counts ? call.counts[place] : 1;
          for (int j = 0; j < kUnits; ++j) {
            int64_t unit = (panel * kUnits + j) * kLanes<T>, some = units - unit;
            if (some <= 0) break;
            T* own_cell = cell + row * stride + unit;
            Values<V> values;
            for (int gate = 0; gate < kGates; ++gate) {
              int64_t column = gate * units + unit;
              V x = load_some(call.x + place * width + column, some);
              V input_bias = load_some(call.input_bias + column, some);
              V bias = load_some(call.bias + column, some);
              V h = load<V>(sums + ((row * kUnits + j) * kGates + gate) * kLanes<T>);
              if (Cell::kApart && gate == kGates - 1) {
                values.gates[gate] = x + input_bias;
                values.apart = h + bias;
              } else {
                values.gates[gate] = x + h + (input_bias + bias);
              }
              if (call.gates)
                store_some(call.gates + place * width + column, values.gates[gate], some);
            }
            if (Cell::kApart && call.apart)
              store_some(call.apart + place * units + unit, values.apart, some);
            values.state[0] = load<V>(old + row * stride + unit);
            if constexpr (Cell::kArrays == 2) values.state[1] = load<V>(own_cell);
            for (int array = 0; array < Cell::kArrays && call.gates; ++array)
              store_some(call.states[array] + place * units + unit, values.state[array], some);
            V now[2];
            Cell::step(values, now);
            for (int array = 0; array < Cell::kArrays && counted <= 0; ++array)
              now[array] = values.state[array];
            store(hidden + row * stride + unit, now[0]);
            if constexpr (Cell::kArrays == 2) store(own_cell, now[1]);
            store_some(call.outputs + place * units + unit, now[0] * counted, some);
          }
        }
      }
    }
    for (int64_t row = 0; row < rows; ++row) {
      for (int array = 0; array < Cell::kArrays; ++array)
        std::copy_n((array == 0 ? hidden : cell) + row * stride, units,
                    call.last[array] + (first_row + row) * units);
    }
  });
}

template <class Cell, class T>
void run_backward(ffi::ThreadPool& pool, const Backward<T>& call) {
  using V = Vector<T>;
  constexpr int kGates = Cell::kGates;
  auto [time, batch, units] = call.sizes;
  int64_t width = kGates * units, whole = vectors<T>(units), stride = stride_of<T>(units);
  int64_t panels = ceil_div(whole, kWide), padded = whole * kLanes<T>;
  int64_t depth = kGates * padded, deep_stride = stride_of<T>(depth);
  constexpr int64_t kColumns = kWide * kLanes<T>;

  // [panel, gate and unit, column], transposed.
  Memory<T> kernel = allocate<T>(panels * depth * kColumns);
  parallel(pool, panels, [&](int64_t panel) {
    T* to = &kernel[panel * depth * kColumns];
    std::fill_n(to, depth * kColumns, T(0));
    for (int64_t j = 0; j < kColumns && panel * kColumns + j < units; ++j) {
      const T* from = call.kernel + (panel * kColumns + j) * width;
      for (int gate = 0; gate < kGates; ++gate)
        for (int64_t unit = 0; unit < units; ++unit)
          to[(gate * padded + unit) * kColumns + j] = from[gate * units + unit];
    }
  });

  for_blocks(pool, batch, [&](int64_t first_row, int64_t rows) {
    // Panels are whole where the units are not.
    int64_t wide = panels * kColumns + stride - padded;
    Memory<T> scratch = allocate<T>(rows * (wide + stride + deep_stride));
    T* d_hidden = scratch.get();
    T* d_cell = d_hidden + rows * wide;
    T* d_h = d_cell + rows * stride;
    std::fill_n(scratch.get(), rows * (wide + stride + deep_stride), T(0));
    for (int64_t row = 0; row < rows; ++row) {
      std::copy_n(call.d_last[0] + (first_row + row) * units, units, d_hidden + row * wide);
      if constexpr (Cell::kArrays == 2)
        std::copy_n(call.d_last[1] + (first_row + row) * units, units, d_cell + row * stride);
    }
    for (int64_t t = time - 1; t >= 0; --t) {
      for (int64_t row = 0; row < rows; ++row) {
        int64_t place = t * batch + first_row + row;
        T counted = call.counts ? call.counts[place] : 1;
        for (int64_t unit = 0; unit < units; unit += kLanes<T>) {
          int64_t some = units - unit;
          Values<V> values;
          for (int gate = 0; gate < kGates; ++gate)
            values.gates[gate] = load_some(call.gates + place * width + gate * units + unit, some);
          if constexpr (Cell::kApart)
            values.apart = load_some(call.apart + place * units + unit, some);
          for (int array = 0; array < Cell::kArrays; ++array)
            values.state[array] = load_some(call.states[array] + place * units + unit, some);
          T* own_hidden = d_hidden + row * wide + unit;
          T* own_cell = d_cell + row * stride + unit;
          V d[2] = {load<V>(own_hidden), load<V>(own_cell)};
          d[0] += counted * load_some(call.d_outputs + place * units + unit, some);
          Values<V> to = {};
          if (counted > 0) {
            Cell::gradient(values, d, to);
          } else {
            to.state[0] = d[0], to.state[1] = d[1];
          }
          store(own_hidden, to.state[0]);
          if constexpr (Cell::kArrays == 2) store(own_cell, to.state[1]);
          for (int gate = 0; gate < kGates; ++gate) {
            V of_h = Cell::kApart && gate == kGates - 1 ? to.apart : to.gates[gate];
            store(d_h + row * deep_stride + gate * padded + unit, of_h);
            int64_t column = place * width + gate * units + unit;
            store_some(call.d_gates + column, to.gates[gate], some);
            if constexpr (Cell::kApart) store_some(call.d_h + column, of_h, some);
          }
        }
      }
      int64_t parts = ceil_div(depth, kDepth) * panels;
      for (int64_t number = 0; number < parts; ++number) {
        int64_t part = there_and_back(t, number, parts);
        int64_t k = part / panels * kDepth, panel = part % panels;
        multiply<kWide>(rows, std::min(kDepth, depth - k), d_h + k, deep_stride,
                        &kernel[(panel * depth + k) * kColumns], d_hidden + panel * kColumns, wide,
                        true);
      }
    }
    for (int64_t row = 0; row < rows; ++row) {
      std::copy_n(d_hidden + row * wide, units, call.d_state[0] + (first_row + row) * units);
      if constexpr (Cell::kArrays == 2)
        std::copy_n(d_cell + row * stride, units, call.d_state[1] + (first_row + row) * units);
    }
  });
}

template <class Body>
ffi::Error with_cell(std::string_view name, const Body& body) {
  if (name == "lstm") return body(Lstm());
  if (name == "gru") return body(Gru());
  if (name == "rnn") return body(Rnn());
  if (name == "rnn_relu") return body(RnnRelu());
  return ffi::Error::InvalidArgument("no such cell");
}

// Hands out a call's arrays one after the other.
struct Operands {
  ffi::RemainingArgs& arguments;
  ffi::RemainingRets& results;
  size_t argument = 0, result = 0;

  const Number* next(bool given = true) {
    return given ? arguments.get<Numbers>(argument++)->typed_data() : nullptr;
  }
  Number* next_result(bool given = true) {
    return given ? (*results.get<Numbers>(result++))->typed_data() : nullptr;
  }
};

// (kernel, biases of input and state, x, state..., [counts]) ->
// (outputs, last state..., [gates, [apart], states...])
ffi::Error RecurForward(ffi::ThreadPool pool, ffi::RemainingArgs arguments,
                        ffi::RemainingRets results, std::string_view cell, bool masked) {
  auto x = *arguments.get<Numbers>(3);
  return with_cell(cell, [&](auto equations) {
    using Cell = decltype(equations);
    constexpr int kArrays = Cell::kArrays;
    Operands operands{arguments, results};
    auto sizes = x.dimensions();
    Forward<Number> call = {{sizes[0], sizes[1], sizes[2] / Cell::kGates}};
    call.kernel = operands.next(), call.input_bias = operands.next();
    call.bias = operands.next(), call.x = operands.next();
    for (int i = 0; i < kArrays; ++i) call.state[i] = operands.next();
    call.counts = operands.next(masked);
    call.outputs = operands.next_result();
    for (int i = 0; i < kArrays; ++i) call.last[i] = operands.next_result();
    bool kept = results.size() > operands.result;
    call.gates = operands.next_result(kept);
    call.apart = operands.next_result(kept && Cell::kApart);
    for (int i = 0; i < kArrays; ++i) call.states[i] = operands.next_result(kept);
    run_forward<Cell>(pool, call);
    return ffi::Error::Success();
  });
}

// (kernel, gates, [apart], states..., gradients of outputs and last state..., [counts]) ->
// (gradients of x, [product with the kernel], and first state...)
ffi::Error RecurBackward(ffi::ThreadPool pool, ffi::RemainingArgs arguments,
                         ffi::RemainingRets results, std::string_view cell, bool masked) {
  auto gates = *arguments.get<Numbers>(1);
  return with_cell(cell, [&](auto equations) {
    using Cell = decltype(equations);
    constexpr int kArrays = Cell::kArrays;
    Operands operands{arguments, results};
    auto sizes = gates.dimensions();
    Backward<Number> call = {{sizes[0], sizes[1], sizes[2] / Cell::kGates}};
    call.kernel = operands.next();
    call.gates = operands.next(), call.apart = operands.next(Cell::kApart);
    for (int i = 0; i < kArrays; ++i) call.states[i] = operands.next();
    call.d_outputs = operands.next();
    for (int i = 0; i < kArrays; ++i) call.d_last[i] = operands.next();
    call.counts = operands.next(masked);
    call.d_gates = operands.next_result(), call.d_h = operands.next_result(Cell::kApart);
    for (int i = 0; i < kArrays; ++i) call.d_state[i] = operands.next_result();
    run_backward<Cell>(pool, call);
    return ffi::Error::Success();
  });
}

}  // namespace
}  // namespace zoo

XLA_FFI_DEFINE_HANDLER_SYMBOL(recur_forward, zoo::RecurForward,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<std::string_view>("cell")
                                  .Attr<bool>("masked"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(recur_backward, zoo::RecurBackward,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<std::string_view>("cell")
                                  .Attr<bool>("masked"));
