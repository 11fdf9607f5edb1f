// LayerNorm of rows, on a CPU.
#pragma once

#include <cstdint>

#include "array.h"

namespace kogpt::cpu {

struct NormParams {
  Array x;             // (M, C), floating point
  Array weight, bias;  // (C,), floating point
  void* y;             // (M, C), of the element of x
  float* scratch;      // (M, norm_scratch(C))
  int64_t M, C;
  float eps;
};

// Floats of scratch for a row: its numbers, up to whole vectors.
inline int64_t norm_scratch(int64_t C) { return (C + 63) / 64 * 64; }

}  // namespace kogpt::cpu
