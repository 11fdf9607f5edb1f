// Products with weights kept in 16, 8 or 4 bits: what crosses from the framework to the kernel.
//
// Dimension key, as in Python: M rows, N outputs, K inputs, G groups of inputs that share a scale.
#pragma once

#include "attention.h"

namespace kogpt {

enum class Format : int32_t { kBits16, kBits8, kBits4 };

// out = residual + activation(x Wᵀ + bias), for a few rows of x; the activation is the tanh
// approximation of GELU for the outputs from `gelu_from` on, and none for those before. Rows of x
// and of the values begin on 16 bytes; all but the rows of x is contiguous. What is 16-bit has one
// element type.
//
// A weight is its value, or q * scale - offset, both of [n, k / (K / G)], q being -128..127 in 8
// bits or -8..7 in 4.
//
// `promised`: the kernels ahead write nothing that a layer has of its own (weights, scales,
// offsets, bias), which is then read before those have ended. Of x the kernel right ahead may write
// the first `late` inputs alone: the others are multiplied first, once it has raised `ready`.
struct LinearParams {
  const void* x;          // (M, K), rows `x_stride` elements apart
  const void* values;     // (N, K) 16-bit or int8; or (N, K / 8) words of eight q + 8, first lowest
  const void* scale;      // (N, G); null for 16-bit weights
  const void* offset;     // (N, G); null for none
  const void* bias;       // (N,); null for none
  const void* residual;   // (M, N); null for none
  void* out;              // (M, N), written
  const uint32_t* ready;  // raised when all of x but the `late` inputs is there; null for none late
  int32_t M, N, K, G, x_stride;
  int32_t gelu_from;  // N for no activation
  int32_t late;       // a multiple of kLinearBlock
  bool promised;
  Format format;
  Element element;
};

// Most rows that `linear_decode` takes; what K, and K / G at 8 bits, must be multiples of; and what
// K / G must be at 4.
constexpr int32_t kMaxLinearRows = 8;
constexpr int32_t kLinearBlock = 128;
constexpr int32_t kSmallestGroup = 32;

cudaError_t linear_decode(const LinearParams& params, cudaStream_t stream);

// Weights in 8 or 4 bits as 16-bit elements, rounded once. All is as in LinearParams, and so is
// what K / G must be a multiple of; all is contiguous and begins on 16 bytes.
struct WidenParams {
  const void* values;
  const void* scale;   // (N, G)
  const void* offset;  // (N, G); null for none
  void* out;           // (N, K), written
  int32_t N, K, G;
  Format format;
  Element element;
};

cudaError_t widen(const WidenParams& params, cudaStream_t stream);

}  // namespace kogpt
