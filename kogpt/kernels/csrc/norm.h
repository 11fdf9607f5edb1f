// LayerNorm of a few rows: what crosses from the framework to the kernel.
//
// Dimension key: M rows, C elements of each.
#pragma once

#include "attention.h"

namespace kogpt {

// out = (x - mean) / sqrt(variance + eps) * weight + bias, row by row. All is contiguous, begins on
// 16 bytes and has one element type; C is a multiple of 8.
//
// `promised`: the kernels ahead write neither weight nor bias, which are then read before those
// have ended.
struct NormParams {
  const void* x;       // (M, C)
  const void* weight;  // (C,)
  const void* bias;    // (C,)
  void* out;           // (M, C), written
  int32_t M, C;
  float eps;
  bool promised;
  Element element;
};

cudaError_t norm(const NormParams& params, cudaStream_t stream);

}  // namespace kogpt
