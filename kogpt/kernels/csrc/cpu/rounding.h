// Floats rounded to integers that count a unit.
#pragma once

#include <algorithm>
#include <cmath>
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
    uint32_t largest = 0;
    for (int64_t i = 0; i < count; ++i) largest = std::max(largest, magnitude(x[i]));
    return quantize(x, count, q, Numbers::from_bits(largest), std::numeric_limits<Integer>::max());
  }

  // The same so that the magnitudes of no pair of neighbours come to more than 128: its products
  // with bytes then come to 255 * 128 at most, which 16 bits hold.
  static float quantize_pairs(const float* x, int64_t count, int8_t* q) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < count; i += 2) {
      const float mean = std::fabs(x[i]) * 0.5f + std::fabs(x[i + 1]) * 0.5f;
      largest = std::max(largest, magnitude(mean));
    }
    return quantize(x, count, q, Numbers::from_bits(largest), 63.5f);
  }

 private:
  // As bits that have the order of the magnitudes, and NaN above all numbers.
  static uint32_t magnitude(float x) { return Numbers::to_bits(x) & 0x7fffffff; }

  // Rounds so that `size` becomes `most`.
  template <class Integer>
  static float quantize(const float* x, int64_t count, Integer* q, float size, float most) {
    if (size < 1e-30f) {  // whose inverse would be infinite
      std::memset(q, 0, count * sizeof *q);
      return 0;
    }
    const float inverse = most / size;
    for (int64_t i = 0; i < count; ++i) {
      // Adding 3 * 2^22 leaves the nearest integer in the low bits of the sum.
      q[i] = static_cast<Integer>(Numbers::to_bits(x[i] * inverse + 12582912.0f));
    }
    return size <= std::numeric_limits<float>::max() ? size / most : NAN;
  }
};

}  // namespace
}  // namespace kogpt::cpu
