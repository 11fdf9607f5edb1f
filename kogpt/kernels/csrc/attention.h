// What crosses from the framework to the kernels: plain structs, launch functions, no torch header.
//
// Dimension key, as in Python: B batch, T queries (new tokens), S keys (cached + new tokens),
// H heads, D head dim, R rotary dim, P positions.
#pragma once

#include <cstdint>

#ifdef KOGPT_EMULATE
#include "emulator.h"
#else
#include <cuda_runtime_api.h>
#endif

namespace kogpt {

enum class Element : int32_t { kFloat16, kBFloat16 };

// A (B, tokens, H, D) tensor. Strides count elements; the last dimension is contiguous and every
// row begins on 16 bytes.
struct Rows {
  void* data;
  int64_t batch_stride;
  int64_t token_stride;
  int64_t head_stride;
};

// Causal attention of T queries that are the last T of S positions.
//
// Query t sits at position S - T + t. It sees the keys up to its own position that are not before
// `starts` of its row, and always its own: padding then has finite values. Where several texts lie
// in a row one after the other, each query has a start of its own, at most its position; starts
// never fall along a row.
struct AttentionParams {
  Rows q;                 // (B, T, H, D)
  Rows k;                 // (B, S, H, D)
  Rows v;                 // (B, S, H, D)
  Rows out;               // (B, T, H, D), written
  float* lse;             // (B, H, T), written: log of the sum of exp(scale * q k) over keys seen
  const int64_t* starts;  // (B,): first key of each row that is not padding; null for none
  int32_t B, T, S, H, D;
  float scale;
  Element element;
  bool several;  // texts in a row: starts are (B, T)
};

// The gradients of `AttentionParams`, whose `out` and `lse` are read here.
struct AttentionBackwardParams {
  AttentionParams forward;
  Rows grad_out;  // (B, T, H, D)
  Rows grad_q;    // (B, T, H, D), written
  Rows grad_k;    // (B, S, H, D), written
  Rows grad_v;    // (B, S, H, D), written
  float* delta;   // (B, H, T), scratch: the dot products of out and grad_out
};

// Attention of a few new tokens over a long cache, split over the keys.
//
// Row b holds lengths[b] tokens before the T new ones. With `k_new`, the kernel also rotates q and
// k_new in interleaved pairs over the first R dims (R = 0: not at all) and writes k_new and v_new
// behind the row's tokens. Without (null), the cache already holds them and q is rotated. A
// token's rotary position is its index in the row less the row's start, at least 0. `out` may be
// v_new, which a head's output then replaces.
//
// `promised`: the kernels ahead write neither what the cache holds nor lengths, starts and angles,
// which are then read before those have ended. `ready` is raised when they have.
struct DecodeParams {
  Rows q;                  // (B, T, H, D)
  Rows k_new, v_new;       // (B, T, H, D), or null data
  Rows keys, values;       // (B, capacity, H, D), appended to when k_new is given
  Rows out;                // (B, T, H, D), written
  float* lse;              // (B, H, T), written; null where nobody asks
  const int64_t* lengths;  // (B,), or null for `length` in every row
  const int64_t* starts;   // (B,), as in AttentionParams
  const float* cos;        // (P, R/2)
  const float* sin;        // (P, R/2)
  float* partials;         // scratch of decode_partials(...) floats
  uint32_t* counters;      // (B, H), zero before and after each launch
  uint32_t* ready;         // a flag; null where nobody asks
  int32_t B, T, H, D, R, capacity, length;
  bool promised;
  float scale;
  Element element;
};

// Most new tokens that `attention_decode` takes.
constexpr int32_t kMaxDecodeTokens = 8;

// Floats of scratch that a decode launch needs.
int64_t decode_partials(const DecodeParams& params);

cudaError_t attention_forward(const AttentionParams& params, cudaStream_t stream);
cudaError_t attention_backward(const AttentionBackwardParams& params, cudaStream_t stream);
cudaError_t attention_decode(const DecodeParams& params, cudaStream_t stream);

}  // namespace kogpt
