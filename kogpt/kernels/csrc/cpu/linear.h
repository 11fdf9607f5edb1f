// Products of a few rows with weights kept in 32, 16, 12, 8 or 4 bits, on a CPU.
//
// Dimension key, as in Python: M rows, N outputs, K inputs, G groups of inputs that share a scale.
#pragma once

#include <cstdint>

#include "array.h"
#include "packed.h"

namespace kogpt::cpu {

// y = residual + x Wᵀ + bias, of which the outputs from `gelu_from` on go through GELU before the
// residual. GELU and residual are for few rows.
struct LinearParams {
  Array x;          // (M, K), floating point
  Array weight;     // (N, K); int4: eight to a 32-bit word from its low end, each as q + 8; packed:
                    // rows of packed.h
  Array scale;      // (N, G), floating point; null data for weights that are floating point
  Array offset;     // (N, G), floating point, what integers times scale are too much; or null data
  Array bias;       // (N,), floating point; null data for none
  Array residual;   // (M, N), floating point; null data for none
  void* y;          // (M, N), of the element of x
  void* scratch;    // as many bytes as the kernels say, on 64
  int64_t M, N, K;  // K is a multiple of kBlock
  int64_t G;        // K / G is a multiple of kBlock, or of 32 for int4
  int64_t gelu_from;  // N for none
};

// Inputs that share a unit once x is rounded to integers.
constexpr int64_t kBlock = 128;
static_assert(kBlock == kPackedInputs);

// Bytes of a row of so many numbers.
inline int64_t row_bytes(Element element, int64_t K) {
  return element == Element::kPacked ? packed_row_bytes(K) : K * element_bits(element) / 8;
}

// Bytes that memory gives at once.
constexpr int64_t kLine = 64;

// The smallest group of 4-bit weights.
constexpr int64_t kGroup = 32;

// Up to so many rows, memory is the limit; with more, arithmetic.
constexpr int64_t kFewRows = 8;  // MAX_ROWS of linear.py

// Outputs of a panel, which share what is near of x. A thread takes at least so many at a time.
constexpr int64_t kPanel = 64;

// The same of one row, whose streams begin less often then. With four panels, those of packed
// weights would lie whole pages apart where there are 4096 inputs, and meet in few sets of a cache.
constexpr int64_t kLongPanel = 3 * kPanel;
static_assert(kLongPanel % kPanel == 0);

inline int64_t panel_outputs(const LinearParams& params) {
  return params.M == 1 ? kLongPanel : kPanel;
}

// Rows that many rows are taken by.
constexpr int64_t kTileRows = 6;

// Many rows and what fills up their last tile.
inline int64_t padded_rows(int64_t M) { return (M + kTileRows - 1) / kTileRows * kTileRows; }

// Bytes of what a kernel makes of one of few rows of x, a multiple of 64: K floats, K 16-bit
// integers, and three times K / kGroup floats and a vector of them.
inline int64_t linear_row_bytes(int64_t K) { return (6 * K + 12 * K / kGroup + 127) / 64 * 64; }

// Bytes that each call of a kernel has to itself: of many rows, floats for every output of a panel,
// its scale and offset, and its weights of kBlock inputs.
inline int64_t linear_part(const LinearParams& params) {
  if (params.M <= kFewRows) return 0;
  return 4 * kPanel * (padded_rows(params.M) + 2 + kBlock);
}

}  // namespace kogpt::cpu
