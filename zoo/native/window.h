// How a convolution's kernel moves over images.

#ifndef ZOO_KERNELS_WINDOW_H_
#define ZOO_KERNELS_WINDOW_H_

#include <utility>

#include "kernels.h"

namespace zoo {

struct Window {
  int64_t height, width, row_stride, column_stride, top, left;
};

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
