// Attention of a few new tokens over a long cache, with rotary and append, on a CPU.
//
// Dimension key, as in Python: B batch, T new tokens, H heads, D head dim, R rotary dim, P
// positions.
#pragma once

#include <cstdint>

#include "array.h"

namespace kogpt::cpu {

// A (B, tokens, H, D) tensor. Strides count elements; the last dimension is contiguous.
struct Rows {
  void* data;
  int64_t batch_stride, token_stride, head_stride;
};

// Row b holds lengths[b] tokens before the T new ones. q and k are rotated in interleaved pairs
// over the first R dims; k and v are written behind the row's tokens. A token's rotary position is
// its index in the row less the row's start, at least 0. It sees the tokens up to its own that are
// not before the start, and always itself.
struct DecodeParams {
  Rows q, k, v;            // (B, T, H, D), not rotated
  Rows keys, values;       // (B, capacity, H, D), appended to
  Rows out;                // (B, T, H, D), written
  const int64_t* lengths;  // (B,)
  const int64_t* starts;   // (B,), null for no padding
  const float* cos;        // (P, R/2)
  const float* sin;        // (P, R/2)
  float* scratch;          // (B, H, decode_scratch(...))
  Element element;         // of q, k, v, the cache and out
  int64_t B, T, H, D, R;   // D is a multiple of 8
  int64_t capacity;
  float scale;
};

// Floats of scratch for a head: a query, its result, its scores.
inline int64_t decode_scratch(const DecodeParams& params) { return 2 * params.D + params.capacity; }

}  // namespace kogpt::cpu
