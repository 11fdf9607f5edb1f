// The kernels of one instruction set, and which a processor has.
#pragma once

#include <cstdint>

#include "decode.h"
#include "linear.h"
#include "norm.h"

namespace kogpt::cpu {

// Instruction sets with kernels of their own, each better than those before it. Zen 5 has the last
// one's, and reads memory otherwise.
enum class Isa : int32_t { kPlain, kAvx2, kAvx512, kVnni, kBf16, kZen5 };

struct Kernels {
  // Bytes of `scratch`, which `linear_prepare` fills: a multiple of 64.
  int64_t (*linear_scratch)(const LinearParams& params);
  // Brings the rows [first, last) of x into the form that `linear` reads; all before any call of
  // it.
  void (*linear_prepare)(const LinearParams& params, int64_t first, int64_t last);
  // Computes the outputs [first, last) of every row. Calls for different outputs may run at once,
  // each with linear_part(...) bytes of its own, on 64.
  void (*linear)(const LinearParams& params, int64_t first, int64_t last, void* part);
  // Runs the heads [first, last) of all B H. Calls for different heads may run at once.
  void (*decode)(const DecodeParams& params, int64_t first, int64_t last);
  // Norms the rows [first, last). Calls for different rows may run at once.
  void (*norm)(const NormParams& params, int64_t first, int64_t last);
  // Packs N rows of K numbers of bfloat16, a multiple of kPackedInputs and at most kMostPacked,
  // into packed_row_bytes(K) each; false if more than most_rare(K) of a row have no code.
  bool (*pack)(const uint16_t* numbers, int64_t N, int64_t K, char* to);
};

// The best that this processor has.
Isa best_isa();

const Kernels& kernels(Isa isa);

}  // namespace kogpt::cpu
