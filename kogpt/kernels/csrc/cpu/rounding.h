// Floats rounded to integers that count a unit.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "numbers.h"

namespace kogpt::cpu {
namespace {

template <class Simd>
struct Rounding {
  using Numbers = cpu::Numbers<Simd>;

  // Rounds some numbers to integers of 16 or 8 bits; what they count comes back.
  template <class Integer>
  static float quantize(const float* x, int64_t count, Integer* q) {
    constexpr float kMost = std::numeric_limits<Integer>::max();
    uint32_t largest = 0;  // of the magnitudes: as bits they have the order of the numbers
    for (int64_t i = 0; i < count; ++i) {
      largest = std::max(largest, Numbers::to_bits(x[i]) & 0x7fffffff);
    }
    const float size = Numbers::from_bits(largest);
    if (size < 1e-30f) {  // whose inverse would be infinite
      std::memset(q, 0, count * sizeof *q);
      return 0;
    }
    const float inverse = kMost / size;
    for (int64_t i = 0; i < count; ++i) {
      // Adding 3 * 2^22 leaves the nearest integer in the low bits of the sum.
      q[i] = static_cast<Integer>(Numbers::to_bits(x[i] * inverse + 12582912.0f));
    }
    return size <= std::numeric_limits<float>::max() ? size / kMost : NAN;
  }
};

}  // namespace
}  // namespace kogpt::cpu
