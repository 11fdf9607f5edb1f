// The tanh approximation of GELU, as many at a time as vectors hold.
#pragma once

#include <algorithm>
#include <cstdint>

#include "numbers.h"

namespace kogpt::cpu {
namespace {

template <class Simd>
struct Gelu {
  using Numbers = cpu::Numbers<Simd>;

  // x (1 + tanh u) / 2 is x / (1 + exp(-2 u)), with u = sqrt(2 / pi) (x + 0.044715 x^3).
  static void apply(float* x, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const float power = x[i] * (1 + 0.044715f * x[i] * x[i]) * -1.5957691216f;
      x[i] = x[i] / (1 + exp(power));
    }
  }

  // Without a branch or a call, so that the compiler makes vectors of it; beyond e^87 and e^-87,
  // these. Source of the polynomial: Cephes, expf.
  static float exp(float x) {
    // Bits have the order of the magnitudes; to compare floats would be a branch to GCC.
    const uint32_t bits = Numbers::to_bits(x), sign = bits & 0x80000000;
    x = Numbers::from_bits(sign | std::min(bits ^ sign, Numbers::to_bits(87.0f)));
    // Adding 3 * 2^22 leaves the nearest integer in the low bits of the sum.
    const float shifted = x * 1.44269504089f + 12582912.0f;
    const float whole = shifted - 12582912.0f;
    const float rest = x - whole * 0.693359375f - whole * -2.12194440e-4f;
    float y = 1.9875691500e-4f;
    y = y * rest + 1.3981999507e-3f;
    y = y * rest + 8.3334519073e-3f;
    y = y * rest + 4.1665795894e-2f;
    y = y * rest + 1.6666665459e-1f;
    y = y * rest + 5.0000001201e-1f;
    y = y * rest * rest + rest + 1;
    return Numbers::from_bits(Numbers::to_bits(y) + (Numbers::to_bits(shifted) << 23));
  }
};

}  // namespace
}  // namespace kogpt::cpu
