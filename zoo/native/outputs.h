// How a convolution's outputs are stored, and what they become before.

#ifndef ZOO_KERNELS_OUTPUTS_H_
#define ZOO_KERNELS_OUTPUTS_H_

#include "sizes.h"

namespace zoo {

// Stores what is not read soon: it goes past the caches, where the processor can, and the line that
// it takes is not read first. ``to`` is aligned; ``written_past`` comes before another thread reads.
// Without <immintrin.h>, which takes longer to compile than some of the kernels.
template <class T>
inline void store_past(T* to, Vector<T> value) {
#if defined(__clang__)
  __builtin_nontemporal_store(value, reinterpret_cast<Vector<T>*>(to));
#elif defined(__AVX__)
  using Integers = VectorOf<long long>::Type;
  auto* place = reinterpret_cast<Integers*>(to);
#if defined(__AVX512F__)
  __builtin_ia32_movntdq512(place, reinterpret_cast<Integers>(value));
#else
  __builtin_ia32_movntdq256(place, reinterpret_cast<Integers>(value));
#endif
#else
  store(to, value);
#endif
}
inline void written_past() {
#if defined(__SSE2__)
  __builtin_ia32_sfence();
#endif
}

// Bytes of outputs that no cache keeps until they are read.
constexpr int64_t kManyBytes = 32 << 20;

// Whether outputs go past the caches; kept in them, they are asked for before they are written.
template <class T>
bool goes_past(const T* outputs, int64_t rows, int64_t features) {
  return rows * features * static_cast<int64_t>(sizeof(T)) >= kManyBytes &&
         features % kLanes<T> == 0 && reinterpret_cast<uintptr_t>(outputs) % kVectorBytes == 0;
}

// What outputs become before they are stored: multiplied by a scale and added to a shift of each
// feature, added to other numbers of the same place, and rectified.
template <class T>
struct Finish {
  const T *scale = nullptr, *shift = nullptr, *others = nullptr;
  bool rectify = false;

  Finish() = default;
  // From no arguments, or scale and shift, or these and the others. ``letters``: of the outputs in
  // ``sizes``, the features last.
  Finish(const xla::ffi::RemainingArgs& arguments, bool rectify, Sizes& sizes, const char* letters)
      : rectify(rectify) {
    sizes.need(arguments.size() == 0 || arguments.size() == 2 || arguments.size() == 3,
               "a scale, a shift and other numbers are 0, 2 or 3 arrays");
    auto at = [&](size_t i, const char* name, const char* letters) -> const T* {
      if (i >= arguments.size()) return nullptr;
      auto array = arguments.get<Numbers>(i);
      if (!array.has_value()) return sizes.need(false, "an array has another type"), nullptr;
      sizes.with(name, *array, letters);
      return array->typed_data();
    };
    const char* features = letters + std::strlen(letters) - 1;
    scale = at(0, "scale", features), shift = at(1, "shift", features);
    others = at(2, "others", letters);
  }

  // place: of the first output, among all.
  template <class V>
  V operator()(V y, int64_t feature, int64_t place) const {
    if (scale != nullptr) y = y * load<V>(scale + feature) + load<V>(shift + feature);
    if (others != nullptr) y += load<V>(others + place);
    if (rectify) y = y < 0 ? V{} : y;
    return y;
  }

  // A row of outputs, of some features from one on; kPast: see ``store_past``.
  template <bool kPast = false>
  void row(const T* from, int64_t count, int64_t feature, int64_t place, T* outputs) const {
    for_vectors<T>(count, [&](auto kind, int64_t i) {
      using V = decltype(kind);
      V y = (*this)(load<V>(from + i), feature + i, place + i);
      if constexpr (kPast && !std::is_same_v<V, T>) {
        store_past<T>(outputs + place + i, y);
      } else {
        store<V>(outputs + place + i, y);
      }
    });
  }
};

// The binding of a convolution: of ``binary``, with what ``Finish`` is made of.
inline auto finished() { return binary().RemainingArgs().Attr<bool>("rectify"); }

}  // namespace zoo

#endif  // ZOO_KERNELS_OUTPUTS_H_
