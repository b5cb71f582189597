// Recurrent layers over whole sequences, forwards and backwards.
//
// The rows of a batch do not depend on each other: a thread takes some of them through the whole
// sequence and waits for no other. Its states and the recurrent kernel stay in the core's cache, as
// does what the inputs of some steps give, so that no product is written to memory and read again.
//
// The equations are applied to sums while these are in the first-level cache, so the kernel's
// columns are arranged by unit: the gates of one vector of units stand side by side.
// Sources of the equations: zoo/layers/recurrence.py.

#include <cmath>
#include <string_view>

#include "panels.h"
#include "sizes.h"

namespace zoo {
namespace {

namespace ffi = xla::ffi;

// Rows of a batch that a thread takes at once: with fewer the kernel is read for little work, with
// more their states leave the cache.
constexpr int64_t kLeastRows = 8, kMostRows = 32;
// Rows, of some steps together, that are multiplied by the input's kernel: with fewer it is read for
// little work, with more the shares leave the cache.
constexpr int64_t kTogether = 128;

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

// The batch's rows in blocks, one after the other.
struct Blocks {
  int64_t batch, count;
  // Some threads have none.
  bool few;

  Blocks(ffi::ThreadPool& pool, int64_t batch) : batch(batch) {
    int64_t threads = pool.num_threads();
    count = std::max<int64_t>(1, batch / kLeastRows);
    few = count < threads;
    if (count > threads) count = threads * ceil_div(batch, threads * kMostRows);
  }
  int64_t first(int64_t block) const { return batch * block / count; }
  int64_t rows(int64_t block) const { return first(block + 1) - first(block); }
};

// Asks for one of so many parts of what will be written.
template <class T>
void ask_for(T* from, int64_t count, int64_t number, int64_t parts) {
  for (int64_t place = count * number / parts; place < count * (number + 1) / parts;
       place += 64 / sizeof(T))
    __builtin_prefetch(from + place, 1, 2);
}

// Steps whose inputs are multiplied at once.
inline int64_t steps_together(const Blocks& blocks, int64_t time) {
  return std::clamp<int64_t>(kTogether / blocks.rows(0), 1, time);
}

// Calls body(block, first step, its end) for all steps of all blocks, some steps at once.
template <class Body>
void for_steps(ffi::ThreadPool& pool, const Blocks& blocks, int64_t time, int64_t steps,
               const Body& body) {
  parallel(pool, blocks.count * ceil_div(time, steps), [&](int64_t item) {
    int64_t t = item / blocks.count * steps;
    body(item % blocks.count, t, std::min(t + steps, time));
  });
}

struct Lengths {
  int64_t time, batch, inputs, units;
};

// The place of a step's number-th part of the kernel: every other step goes from the end to the
// beginning, and finds in the cache what the one before it read last.
int64_t there_and_back(int64_t step, int64_t number, int64_t count) {
  return step % 2 == 0 ? number : count - 1 - number;
}

template <class T>
struct Forward {
  Lengths sizes;
  // Without the input's kernel, ``inputs`` are the products with it. They may be where gates go.
  const T *inputs, *input_kernel, *kernel, *input_bias, *bias, *counts, *state[2];
  T *outputs, *last[2];
  // What the gradient needs, if it is asked for: the state is the one before each step.
  T *gates, *apart, *states[2];
};

template <class T>
struct Backward {
  Lengths sizes;
  const T *kernel, *input_kernel, *counts, *gates, *apart, *states[2], *d_outputs, *d_last[2];
  // The inputs' is only there if it is asked for.
  T *d_inputs, *d_gates, *d_h, *d_state[2];
};

// A kernel's gates by unit: [panel, row, vector of units, gate, unit].
template <int kGates, int kUnits, class T>
Memory<T> by_unit(ffi::ThreadPool& pool, const T* from, int64_t depth, int64_t units) {
  int64_t panels = ceil_div(vectors<T>(units), kUnits), width = kGates * units;
  int64_t size = depth * kUnits * kGates * kLanes<T>;
  Memory<T> kernel = allocate<T>(panels * size);
  parallel(pool, panels, [&](int64_t panel) {
    T* to = &kernel[panel * size];
    for (int64_t k = 0; k < depth; ++k) {
      for (int j = 0; j < kUnits; ++j) {
        // The last panel may have places for more vectors than there are.
        int64_t unit = std::min((panel * kUnits + j) * kLanes<T>, units);
        for (int gate = 0; gate < kGates; ++gate, to += kLanes<T>)
          store(to, load_some(from + k * width + gate * units + unit, units - unit));
      }
    }
  });
  return kernel;
}

// A kernel transposed, [panel, gate and unit, column]: its rows are the columns, and each gate's
// units begin a multiple of ``padded`` after the first.
template <class T>
Memory<T> transposed(ffi::ThreadPool& pool, const T* from, int64_t rows, int gates, int64_t units,
                     int64_t padded) {
  constexpr int64_t kColumns = kWide * kLanes<T>, kBlock = 64 / sizeof(T);
  int64_t panels = ceil_div(rows, kColumns), width = gates * units;
  int64_t size = gates * padded * kColumns;
  Memory<T> kernel = allocate<T>(panels * size);
  parallel(pool, panels, [&](int64_t panel) {
    T* to = &kernel[panel * size];
    int64_t columns = std::min(kColumns, rows - panel * kColumns);
    if (padded > units || columns < kColumns) std::fill_n(to, size, T(0));
    for (int64_t gate = 0; gate < gates; ++gate) {
      for (int64_t block = 0; block < units; block += kBlock) {
        int64_t end = std::min(block + kBlock, units);
        for (int64_t j = 0; j < columns; ++j) {
          const T* row = from + (panel * kColumns + j) * width + gate * units;
          for (int64_t unit = block; unit < end; ++unit)
            to[(gate * padded + unit) * kColumns + j] = row[unit];
        }
      }
    }
  });
  return kernel;
}

template <class Cell, class T>
void run_forward(ffi::ThreadPool& pool, const Forward<T>& call) {
  using V = Vector<T>;
  constexpr int kGates = Cell::kGates, kUnits = kWide / kGates, kVectors = kUnits * kGates;
  constexpr int64_t kColumns = kVectors * kLanes<T>;
  auto [time, batch, inputs, units] = call.sizes;
  int64_t width = kGates * units, stride = stride_of<T>(units);
  int64_t panels = ceil_div(vectors<T>(units), kUnits);
  bool multiplied = call.input_kernel == nullptr;
  Memory<T> input_kernel;
  if (!multiplied)
    input_kernel = by_unit<kGates, kUnits>(pool, call.input_kernel, inputs, units);
  Memory<T> kernel = by_unit<kGates, kUnits>(pool, call.kernel, units, units);

  Blocks blocks(pool, batch);
  int64_t steps = steps_together(blocks, time);
  // What the inputs of some steps give: [step, panel, row, column].
  auto multiply_inputs = [&](int64_t block, int64_t t, int64_t end, T* shares) {
    int64_t first_row = blocks.first(block), rows = blocks.rows(block);
    for (int64_t panel = 0; panel < panels; ++panel) {
      for (int64_t k = 0; k < inputs; k += kDepth) {
        const T* part = &input_kernel[(panel * inputs + k) * kColumns];
        Later<T> later = {part + kDepth * kColumns, kDepth * kColumns};
        for (int64_t step = t; step < end; ++step)
          multiply<kVectors>(rows, std::min(kDepth, inputs - k),
                             call.inputs + (step * batch + first_row) * inputs + k, inputs, part,
                             later.part(step - t, end - t),
                             shares + ((step - t) * panels + panel) * rows * kColumns, kColumns,
                             k > 0);
      }
    }
  };
  int64_t share_size = panels * kColumns;
  Memory<T> all_shares;
  bool first = blocks.few && !multiplied;
  if (first) {
    // With threads to spare the products come first, on all of them: only the steps have to wait.
    all_shares = allocate<T>(time * batch * share_size);
    for_steps(pool, blocks, time, steps, [&](int64_t block, int64_t t, int64_t end) {
      int64_t rows_before = blocks.first(block) * time + t * blocks.rows(block);
      multiply_inputs(block, t, end, &all_shares[rows_before * share_size]);
    });
  }

  parallel(pool, blocks.count, [&](int64_t block) {
    int64_t first_row = blocks.first(block), rows = blocks.rows(block);
    Memory<T> scratch = allocate<T>(rows * (3 * stride + kColumns));
    Memory<T> some_shares = allocate<T>(first || multiplied ? 0 : steps * rows * share_size);
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
      const T* shares = some_shares.get() + t % steps * rows * share_size;
      if (first) {
        shares = &all_shares[(first_row * time + t * rows) * share_size];
      } else if (!multiplied && t % steps == 0) {
        multiply_inputs(block, t, std::min(t + steps, time), some_shares.get());
      }
      std::swap(old, hidden);
      for (int64_t number = 0; number < panels; ++number) {
        int64_t panel = there_and_back(t, number, panels);
        if (t + 1 < time) {
          int64_t place = (t + 1) * batch + first_row;
          ask_for(call.outputs + place * units, rows * units, number, panels);
          if (call.gates) ask_for(call.gates + place * width, rows * width, number, panels);
          for (int array = 0; array < Cell::kArrays && call.gates; ++array)
            ask_for(call.states[array] + place * units, rows * units, number, panels);
          if (Cell::kApart && call.apart)
            ask_for(call.apart + place * units, rows * units, number, panels);
        }
        int64_t next = there_and_back(t, std::min(number + 1, panels - 1), panels);
        for (int64_t k = 0; k < units; k += kDepth) {
          const T* part = &kernel[(panel * units + k) * kColumns];
          const T* after = k + kDepth < units ? part + kDepth * kColumns
                                              : &kernel[next * units * kColumns];
          multiply<kVectors>(rows, std::min(kDepth, units - k), old + k, stride, part,
                             {after, kDepth * kColumns}, sums, kColumns, k > 0);
        }
        const T* share = shares + panel * rows * kColumns;
        for (int64_t row = 0; row < rows; ++row) {
          int64_t place = t * batch + first_row + row;
          T counted = call.counts ? call.counts[place] : 1;
          for (int j = 0; j < kUnits; ++j) {
            int64_t unit = (panel * kUnits + j) * kLanes<T>, some = units - unit;
            if (some <= 0) break;
            T* own_cell = cell + row * stride + unit;
            Values<V> values;
            // A compiler does not see that the gate that sets it is among those that follow.
            if constexpr (Cell::kApart) values.apart = V{};
            for (int gate = 0; gate < kGates; ++gate) {
              int64_t column = gate * units + unit;
              int64_t at = ((row * kUnits + j) * kGates + gate) * kLanes<T>;
              V x = multiplied ? load_some(call.inputs + place * width + column, some)
                               : load<V>(share + at);
              V h = load<V>(sums + at);
              V input_bias = load_some(call.input_bias + column, some);
              V bias = load_some(call.bias + column, some);
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
  constexpr int64_t kColumns = kWide * kLanes<T>;
  auto [time, batch, inputs, units] = call.sizes;
  int64_t width = kGates * units, whole = vectors<T>(units), stride = stride_of<T>(units);
  int64_t panels = ceil_div(whole, kWide), padded = whole * kLanes<T>;
  int64_t depth = kGates * padded, deep_stride = stride_of<T>(depth);
  Memory<T> kernel = transposed(pool, call.kernel, units, kGates, units, padded);
  Memory<T> input_kernel;
  if (call.d_inputs) input_kernel = transposed(pool, call.input_kernel, inputs, 1, width, width);

  Blocks blocks(pool, batch);
  int64_t steps = steps_together(blocks, time);
  auto give_inputs = [&](int64_t block, int64_t t, int64_t end) {
    int64_t first_row = blocks.first(block), rows = blocks.rows(block);
    // [panel, step, row, column]
    Memory<T> sums = allocate<T>(ceil_div(inputs, kColumns) * (end - t) * rows * kColumns);
    auto place = [&](int64_t column, int64_t step) {
      return &sums[(column * (end - t) + (step - t) * kColumns) * rows];
    };
    // All inputs before more of the depth: so many numbers of a row stay in the cache.
    for (int64_t k = 0; k < width; k += kDepth) {
      for (int64_t column = 0; column < inputs; column += kColumns) {
        const T* part = &input_kernel[column * width + k * kColumns];
        Later<T> later = {part + width * kColumns, kDepth * kColumns};
        for (int64_t step = t; step < end; ++step)
          multiply<kWide>(rows, std::min(kDepth, width - k),
                          call.d_gates + (step * batch + first_row) * width + k, width, part,
                          later.part(step - t, end - t), place(column, step), kColumns, k > 0);
      }
    }
    for (int64_t column = 0; column < inputs; column += kColumns) {
      for (int64_t step = t; step < end; ++step) {
        for (int64_t row = 0; row < rows; ++row)
          std::copy_n(place(column, step) + row * kColumns, std::min(kColumns, inputs - column),
                      call.d_inputs + (step * batch + first_row + row) * inputs + column);
      }
    }
  };

  parallel(pool, blocks.count, [&](int64_t block) {
    int64_t first_row = blocks.first(block), rows = blocks.rows(block);
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
      auto place = [&](int64_t part) {
        return &kernel[(part % panels * depth + part / panels * kDepth) * kColumns];
      };
      for (int64_t number = 0; number < parts; ++number) {
        int64_t part = there_and_back(t, number, parts);
        int64_t next = there_and_back(t, std::min(number + 1, parts - 1), parts);
        int64_t k = part / panels * kDepth, panel = part % panels;
        multiply<kWide>(rows, std::min(kDepth, depth - k), d_h + k, deep_stride, place(part),
                        {place(next), kDepth * kColumns}, d_hidden + panel * kColumns, wide, true);
      }
      if (call.d_inputs && !blocks.few && t % steps == 0)
        give_inputs(block, t, std::min(t + steps, time));
    }
    for (int64_t row = 0; row < rows; ++row) {
      std::copy_n(d_hidden + row * wide, units, call.d_state[0] + (first_row + row) * units);
      if constexpr (Cell::kArrays == 2)
        std::copy_n(d_cell + row * stride, units, call.d_state[1] + (first_row + row) * units);
    }
  });
  if (call.d_inputs && blocks.few) for_steps(pool, blocks, time, steps, give_inputs);
}

template <class Body>
ffi::Error with_cell(std::string_view name, const Body& body) {
  if (name == "lstm") return body(Lstm());
  if (name == "gru") return body(Gru());
  if (name == "rnn") return body(Rnn());
  if (name == "rnn_relu") return body(RnnRelu());
  return ffi::Error::InvalidArgument("no such cell");
}

// Hands out a call's arrays one after the other, and compares their sizes.
struct Operands {
  ffi::RemainingArgs& arguments;
  ffi::RemainingRets& results;
  Sizes& sizes;
  size_t argument = 0, result = 0;

  const Number* next(const char* name, const char* letters, bool given = true) {
    return given ? read(name, letters, arguments.get<Numbers>(argument++)) : nullptr;
  }
  Number* next_result(const char* name, const char* letters, bool given = true) {
    if (!given) return nullptr;
    auto array = results.get<Numbers>(result++);
    if (!array.has_value()) return sizes.need(false, "a result is missing"), nullptr;
    sizes.with(name, **array, letters);
    return (*array)->typed_data();
  }
  void end() {
    sizes.need(argument == arguments.size() && result == results.size(),
               "there are more arrays than the cell has");
  }

 private:
  const Number* read(const char* name, const char* letters, ffi::ErrorOr<Numbers> array) {
    if (!array.has_value()) return sizes.need(false, "an array is missing"), nullptr;
    sizes.with(name, *array, letters);
    return array->typed_data();
  }
};

// Letters: time, batch, inputs, units, and the columns of all gates.
//
// ([input's kernel], its bias, kernel, bias, inputs or their products, state..., [counts]) ->
// (outputs, last state..., [gates, [apart], states...])
ffi::Error RecurForward(ffi::ThreadPool pool, ffi::RemainingArgs arguments,
                        ffi::RemainingRets results, std::string_view cell, bool masked,
                        bool multiplied) {
  return with_cell(cell, [&](auto equations) {
    using Cell = decltype(equations);
    constexpr int kArrays = Cell::kArrays;
    Sizes sizes;
    Operands operands{arguments, results, sizes};
    Forward<Number> call = {};
    call.input_kernel = operands.next("input kernel", "ig", !multiplied);
    call.input_bias = operands.next("input bias", "g");
    call.kernel = operands.next("kernel", "ug"), call.bias = operands.next("bias", "g");
    call.inputs = operands.next("inputs", multiplied ? "tbg" : "tbi");
    for (int i = 0; i < kArrays; ++i) call.state[i] = operands.next("state", "bu");
    call.counts = operands.next("counts", "tbo", masked);
    call.outputs = operands.next_result("outputs", "tbu");
    for (int i = 0; i < kArrays; ++i) call.last[i] = operands.next_result("last state", "bu");
    bool kept = results.size() > operands.result;
    call.gates = operands.next_result("gates", "tbg", kept);
    call.apart = operands.next_result("apart", "tbu", kept && Cell::kApart);
    for (int i = 0; i < kArrays; ++i) call.states[i] = operands.next_result("states", "tbu", kept);
    operands.end();
    sizes.let('g', Cell::kGates * sizes['u']);
    if (masked) sizes.let('o', 1);
    call.sizes = {sizes['t'], sizes['b'], sizes[multiplied ? 'g' : 'i'], sizes['u']};
    return sizes.then([&] { run_forward<Cell>(pool, call); });
  });
}

// ([input's kernel], kernel, gates, [apart], states..., gradients of outputs and last state...,
// [counts]) -> (gradients of [inputs], their product, [the state's product], and first state...)
ffi::Error RecurBackward(ffi::ThreadPool pool, ffi::RemainingArgs arguments,
                         ffi::RemainingRets results, std::string_view cell, bool masked) {
  return with_cell(cell, [&](auto equations) {
    using Cell = decltype(equations);
    constexpr int kArrays = Cell::kArrays;
    Sizes sizes;
    Operands operands{arguments, results, sizes};
    bool wanted = results.size() > 1 + Cell::kApart + kArrays;
    Backward<Number> call = {};
    call.input_kernel = operands.next("input kernel", "ig", wanted);
    call.kernel = operands.next("kernel", "ug");
    call.gates = operands.next("gates", "tbg");
    call.apart = operands.next("apart", "tbu", Cell::kApart);
    for (int i = 0; i < kArrays; ++i) call.states[i] = operands.next("states", "tbu");
    call.d_outputs = operands.next("d_outputs", "tbu");
    for (int i = 0; i < kArrays; ++i) call.d_last[i] = operands.next("d_last", "bu");
    call.counts = operands.next("counts", "tbo", masked);
    call.d_inputs = operands.next_result("d_inputs", "tbi", wanted);
    call.d_gates = operands.next_result("d_gates", "tbg");
    call.d_h = operands.next_result("d_h", "tbg", Cell::kApart);
    for (int i = 0; i < kArrays; ++i) call.d_state[i] = operands.next_result("d_state", "bu");
    operands.end();
    sizes.let('g', Cell::kGates * sizes['u']);
    if (masked) sizes.let('o', 1);
    call.sizes = {sizes['t'], sizes['b'], sizes['i'], sizes['u']};
    return sizes.then([&] { run_backward<Cell>(pool, call); });
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
                                  .Attr<bool>("masked")
                                  .Attr<bool>("multiplied"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(recur_backward, zoo::RecurBackward,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<std::string_view>("cell")
                                  .Attr<bool>("masked"));
