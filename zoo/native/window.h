// How a convolution's kernel moves over images.

#ifndef ZOO_KERNELS_WINDOW_H_
#define ZOO_KERNELS_WINDOW_H_

#include <utility>

#include "sizes.h"

namespace zoo {

struct Window {
  int64_t height, width, row_stride, column_stride, top, left;
};

// The sizes of a convolution's arrays: its images, the kernel that moves over them, and outputs.
inline Sizes sizes_of(const Numbers& x, const Numbers& kernel, const Numbers& y,
                      int64_t row_stride, int64_t column_stride) {
  return Sizes()
      .with("x", x, "bhwc")
      .with("kernel", kernel, "ijcf")
      .with("y", y, "bpqf")
      .need(row_stride >= 1 && column_stride >= 1, "a stride is less than 1");
}

// The binding of a function that is given all of a window but its size.
template <class Binding>
auto with_window(Binding binding) {
  return std::move(binding)
      .template Attr<int64_t>("row_stride")
      .template Attr<int64_t>("column_stride")
      .template Attr<int64_t>("top")
      .template Attr<int64_t>("left");
}

}  // namespace zoo

#endif  // ZOO_KERNELS_WINDOW_H_
