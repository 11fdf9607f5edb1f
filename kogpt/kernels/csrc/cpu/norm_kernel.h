// LayerNorm of rows, for any instruction set: see linear_kernel.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "norm.h"
#include "numbers.h"

namespace kogpt::cpu {
namespace {

template <class Simd>
struct Norm {
  using Floats = typename Simd::Floats;
  using Numbers = cpu::Numbers<Simd>;

  static constexpr int64_t kPart = 64;  // numbers that are finished at once
  static constexpr int kSums = 4;       // that grow side by side

  static void rows(const NormParams& p, int64_t first, int64_t last) {
    for (int64_t m = first; m < last; ++m) row(p, m);
  }

  static void row(const NormParams& p, int64_t m) {
    const int64_t whole = norm_scratch(p.C);
    float* x = p.scratch + m * whole;
    Numbers::widen(p.x, m * p.C, p.C, x);
    std::fill(x + p.C, x + whole, 0.0f);
    const float mean = sum<false>(x, whole) / static_cast<float>(p.C);
    for (int64_t c = 0; c < p.C; ++c) x[c] -= mean;
    const float variance = sum<true>(x, whole) / static_cast<float>(p.C);
    const float inverse = 1 / std::sqrt(variance + p.eps);
    for (int64_t c = 0; c < p.C; c += kPart) {
      const int64_t count = std::min(kPart, p.C - c);
      float weight[kPart], bias[kPart];
      Numbers::widen(p.weight, c, count, weight);
      Numbers::widen(p.bias, c, count, bias);
      for (int64_t i = 0; i < count; ++i) x[c + i] = x[c + i] * inverse * weight[i] + bias[i];
    }
    Numbers::narrow(p.x.element, x, p.C, p.y, m * p.C);
  }

  // The sum of numbers, or of their squares.
  template <bool kSquares>
  static float sum(const float* x, int64_t count) {
    const float one = 1;
    const Floats ones = Simd::template spread<1>(&one);
    Floats sums[kSums] = {};
    for (int64_t i = 0; i < count; i += kSums * Simd::kLanes) {
      for (int j = 0; j < kSums; ++j) {
        const Floats part = Simd::load(x + i + j * Simd::kLanes);
        sums[j] = Simd::fma(part, kSquares ? part : ones, sums[j]);
      }
    }
    float total = 0;
    for (const Floats& part : sums) total += Simd::sum(part);
    return total;
  }
};

}  // namespace
}  // namespace kogpt::cpu
