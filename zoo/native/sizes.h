// What a kernel asks of its arrays before it reads them: a wrong rule in Python must not become a
// read or write outside an array.

#ifndef ZOO_KERNELS_SIZES_H_
#define ZOO_KERNELS_SIZES_H_

#include <string>

#include "kernels.h"

namespace zoo {

// The sizes of a call's arrays. A letter stands for the same size wherever it occurs, a digit for
// itself, and every size is at least 1. What does not fit is kept as an error.
class Sizes {
 public:
  // letters: one for each axis.
  Sizes& with(const char* name, const Numbers& array, const char* letters) {
    auto sizes = array.dimensions();
    if (sizes.size() != std::strlen(letters)) {
      return refuse(std::string(name) + " has " + std::to_string(sizes.size()) + " axes, not [" +
                    letters + "]");
    }
    for (size_t axis = 0; axis < sizes.size(); ++axis) {
      char letter = letters[axis];
      bool is_digit = letter >= '0' && letter <= '9';
      int64_t& known = is_digit ? digit_ : known_[letter - 'a'];
      if (is_digit) known = letter - '0';
      if (known == 0) known = sizes[axis];
      if (sizes[axis] < 1 || sizes[axis] != known) {
        return refuse(std::string(name) + " has " + std::to_string(sizes[axis]) + " where '" +
                      letter + "' of [" + letters + "] is " +
                      std::to_string(std::max<int64_t>(known, 1)));
      }
    }
    return *this;
  }

  // A size that follows from others.
  Sizes& let(char letter, int64_t size) {
    int64_t& known = known_[letter - 'a'];
    if (known != 0 && known != size) {
      return refuse(std::string("'") + letter + "' is " + std::to_string(known) + ", not " +
                    std::to_string(size));
    }
    known = size;
    return *this;
  }

  Sizes& need(bool holds, const char* what) { return holds ? *this : refuse(what); }

  int64_t operator[](char letter) const { return known_[letter - 'a']; }

  // Calls body() if all sizes fit; an error where they do not, or where memory is missing.
  template <class Body>
  xla::ffi::Error then(const Body& body) const {
    if (!failure_.empty()) return xla::ffi::Error::InvalidArgument("zoo's kernel: " + failure_);
    try {
      body();
    } catch (const std::bad_alloc&) {
      return {xla::ffi::ErrorCode::kResourceExhausted, "zoo's kernel: there is no memory left"};
    }
    return xla::ffi::Error::Success();
  }

 private:
  Sizes& refuse(std::string what) {
    if (failure_.empty()) failure_ = std::move(what);
    return *this;
  }

  int64_t known_[26] = {};
  int64_t digit_ = 0;
  std::string failure_;
};

}  // namespace zoo

#endif  // ZOO_KERNELS_SIZES_H_
