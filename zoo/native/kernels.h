// What the kernels share: vectors, threads, memory and the inner loop of products.
//
// XLA calls a kernel through its foreign function interface with pointers to dense, row-major
// arrays. A kernel works on XLA's own threads and keeps nothing but memory for its next call.

#ifndef ZOO_KERNELS_KERNELS_H_
#define ZOO_KERNELS_KERNELS_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <type_traits>

#include "xla/ffi/api/ffi.h"

namespace zoo {

// A library has the kernels of one type of numbers: float and F32, or double and F64. The second is
// for checks, and compiled only when asked for.
using Number = ZOO_NUMBER;
using Numbers = xla::ffi::Buffer<xla::ffi::DataType::ZOO_TYPE>;

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
// Registers hold kRows x 2 vectors of sums, two of the right operand, and one to spare.
constexpr int kRows = 12;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
constexpr int kRows = 6;
#else
constexpr int kVectorBytes = 16;
constexpr int kRows = 6;
#endif

template <class T>
struct VectorOf {
  typedef T Type __attribute__((vector_size(kVectorBytes)));
  // The same in memory, where nothing is aligned.
  typedef T Loose __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
  static constexpr int kLanes = kVectorBytes / sizeof(T);
};
template <class T>
using Vector = typename VectorOf<T>::Type;
template <class T>
constexpr int kLanes = VectorOf<T>::kLanes;
// Of a block of sums: what one call of ``product`` computes.
template <class T>
constexpr int kColumns = 2 * kLanes<T>;

// How often a thread asks whether the others are done before it sleeps: 40 to 150 microseconds.
constexpr int kPatience = 4000;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// V is a vector or a single number: what is done with numbers is written once.
template <class V, class T>
inline V load(const T* from) {
  if constexpr (std::is_same_v<V, T>) {
    return *from;
  } else {
    return *reinterpret_cast<const typename VectorOf<T>::Loose*>(from);
  }
}
template <class V, class T>
inline void store(T* to, V value) {
  if constexpr (std::is_same_v<V, T>) {
    *to = value;
  } else {
    *reinterpret_cast<typename VectorOf<T>::Loose*>(to) = value;
  }
}

// Calls body(V{}, place) for all places from 0 to count: for whole vectors, then one by one.
template <class T, class Body>
inline void for_vectors(int64_t count, const Body& body) {
  int64_t place = 0;
  for (; place + kLanes<T> <= count; place += kLanes<T>) body(Vector<T>{}, place);
  for (; place < count; ++place) body(T{}, place);
}

// Memory that a thread has used, for its next calls: most of it is still in the core's cache, and of
// the heap there is one for all threads (see zoo/process.py), which wait for each other there.
class Kept {
 public:
  ~Kept() {
    while (count_ > 0) std::free(blocks_[--count_].memory);
  }

  struct Block {
    void* memory;
    int64_t bytes;
  };

  // The smallest of at least so many bytes and at most twice; null: there is none.
  Block take(int64_t bytes) {
    int best = -1;
    for (int i = 0; i < count_; ++i) {
      bool fits = blocks_[i].bytes >= bytes && blocks_[i].bytes <= 2 * bytes;
      if (fits && (best < 0 || blocks_[i].bytes < blocks_[best].bytes)) best = i;
    }
    return best < 0 ? Block{} : remove(best);
  }

  // The oldest go where they would be too many.
  void put(Block block) {
    if (block.bytes > kMostBytes) return std::free(block.memory);
    while (count_ == kMostBlocks || bytes_ + block.bytes > kMostBytes) std::free(remove(0).memory);
    blocks_[count_++] = block;
    bytes_ += block.bytes;
  }

 private:
  static constexpr int kMostBlocks = 8;
  static constexpr int64_t kMostBytes = 2 << 20;

  Block remove(int place) {
    Block block = blocks_[place];
    std::copy(blocks_ + place + 1, blocks_ + count_--, blocks_ + place);
    bytes_ -= block.bytes;
    return block;
  }

  Block blocks_[kMostBlocks];
  int count_ = 0;
  int64_t bytes_ = 0;
};
inline thread_local Kept kept;

struct Free {
  int64_t bytes = 0;
  void operator()(void* memory) const { kept.put({memory, bytes}); }
};
template <class T>
using Memory = std::unique_ptr<T[], Free>;

// Memory for count numbers, with anything in it.
template <class T>
Memory<T> allocate(int64_t count) {
  constexpr int64_t kLine = 64;
  int64_t bytes = std::max<int64_t>(1, ceil_div(count * sizeof(T), kLine)) * kLine;
  Kept::Block block = kept.take(bytes);
  if (block.memory == nullptr) block = {std::aligned_alloc(kLine, bytes), bytes};
  if (block.memory == nullptr) throw std::bad_alloc();
  return Memory<T>(static_cast<T*>(block.memory), Free{block.bytes});
}

// Waits for a moment, for another thread of the same core not to wait as well.
inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Calls body(item) for items from 0 to count, on all threads of the pool, and waits for the last.
//
// The caller works as well and only waits for items that a thread has begun: the pool's threads may
// all be taken by callers that wait for each other. No template: a body is compiled once. Memory that
// a body finds missing on another thread is missing for the caller, which throws it on.
inline void parallel(xla::ffi::ThreadPool& pool, int64_t count,
                     const std::function<void(int64_t)>& body) {
  struct Progress {
    std::atomic<int64_t> begun{0}, done{0};
    std::atomic<bool> lacks_memory{false};
    std::mutex mutex;
    std::condition_variable all_done;
  };
  // A task may start when all is done and the caller has left.
  auto progress = std::make_shared<Progress>();
  auto work = [progress, count, &body] {
    int64_t mine = 0;
    for (int64_t item; (item = progress->begun++) < count; ++mine) {
      try {
        body(item);
      } catch (const std::bad_alloc&) {
        progress->lacks_memory = true;
      }
    }
    if (mine == 0 || (progress->done += mine) < count) return;
    std::lock_guard<std::mutex> lock(progress->mutex);
    progress->all_done.notify_one();
  };
  int64_t helpers = std::min<int64_t>(pool.num_threads(), count) - 1;
  try {
    for (int64_t helper = 0; helper < helpers; ++helper) pool.Schedule(decltype(work)(work));
  } catch (const std::bad_alloc&) {
    // There are fewer helpers: the caller does their share.
  }
  work();
  // To fall asleep and be woken takes as long as some of the smaller calls.
  auto is_done = [&] { return progress->done == count; };
  for (int turn = 0; turn < kPatience && !is_done(); ++turn) pause();
  std::unique_lock<std::mutex> lock(progress->mutex);
  progress->all_done.wait(lock, is_done);
  if (progress->lacks_memory) throw std::bad_alloc();
}

// A matrix whose element (i, j) is at data[i * rows + j * columns].
template <class T>
struct Matrix {
  const T* data;
  int64_t rows, columns;
};

// Rows of the right operand of a product, kColumns wide.
template <class T>
struct Rows {
  const T* data;
  int64_t stride;
  void operator()(int64_t k, Vector<T>& left, Vector<T>& right) const {
    left = load<Vector<T>>(data + k * stride);
    right = load<Vector<T>>(data + k * stride + kLanes<T>);
  }
};

// Columns of ``a`` times the rows that ``read`` gives; ``to`` becomes that, or grows by it.
//
// Always inlined: a matrix that was copied for a call would be read back before it is whole, which
// waits for all sums that were stored before.
template <int kCount, bool kAdd, class T, class Read>
[[gnu::always_inline]] inline void product_of_rows(int64_t depth, Matrix<T> a, const Read& read,
                                                   T* to, int64_t to_stride) {
  constexpr int kWide = kLanes<T>;
  Vector<T> sums[kCount][2] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vector<T> left, right;
    read(k, left, right);
    const T* column = a.data + k * a.columns;
#pragma GCC unroll 16
    for (int i = 0; i < kCount; ++i) {
      T value = column[i * a.rows];
      sums[i][0] += value * left;
      sums[i][1] += value * right;
    }
  }
  for (int i = 0; i < kCount; ++i) {
    for (int j = 0; j < 2; ++j) {
      T* place = to + i * to_stride + j * kWide;
      store(place, kAdd ? load<Vector<T>>(place) + sums[i][j] : sums[i][j]);
    }
  }
}

// The same for any number of rows.
template <bool kAdd, class T, class Read>
void product(int64_t rows, int64_t depth, const Matrix<T>& of, const Read& read, T* to,
             int64_t to_stride) {
  Matrix<T> a = of;
  auto some = [&](auto count) {
    constexpr int kCount = decltype(count)::value;
    for (; rows >= kCount; rows -= kCount) {
      product_of_rows<kCount, kAdd>(depth, a, read, to, to_stride);
      a.data += kCount * a.rows;
      to += kCount * to_stride;
    }
  };
  some(std::integral_constant<int, kRows>());
  some(std::integral_constant<int, 4>());
  some(std::integral_constant<int, 1>());
}

// The binding of a function of two arrays that fills a third, on XLA's threads; options come after.
inline auto binary() {
  return xla::ffi::Ffi::Bind()
      .Ctx<xla::ffi::ThreadPool>()
      .Arg<Numbers>()
      .Arg<Numbers>()
      .Ret<Numbers>();
}

}  // namespace zoo

#endif  // ZOO_KERNELS_KERNELS_H_
