// Products of a few rows with weights kept in 32, 16, 8 or 4 bits, on a CPU.
//
// Dimension key, as in Python: M rows, N outputs, K inputs, G groups of inputs that share a scale.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kogpt::cpu {

enum class Element : int32_t { kFloat32, kBFloat16, kFloat16, kInt8, kInt4 };

// Contiguous memory, and what is in it.
struct Array {
  const void* data;
  Element element;
};

// y = x Wᵀ + bias.
struct LinearParams {
  Array x;          // (M, K), floating point
  Array weight;     // (N, K); int4: eight to a 32-bit word from its low end, each as q + 8
  Array scale;      // (N, G), floating point; null data for weights that are floating point
  Array bias;       // (N,), floating point; null data for none
  void* y;          // (M, N), of the element of x
  void* scratch;    // linear_scratch(...) bytes, on 64
  int64_t M, N, K;  // K is a multiple of kBlock
  int64_t G;        // K / G is a multiple of kBlock, or of 32 for int4
};

// Inputs that share a scale once x is rounded to 16-bit integers.
constexpr int64_t kBlock = 128;

// Instruction sets with a kernel of their own, each better than those before it.
enum class Isa : int32_t { kPlain, kAvx2, kAvx512, kVnni };

// The best that this processor has.
Isa best_isa();

// The functions of one instruction set.
struct Entry {
  void (*prepare)(const LinearParams& params);
  void (*outputs)(const LinearParams& params, int64_t first, int64_t last);
};

size_t linear_scratch(const LinearParams& params);

// Brings x into the form that `linear_outputs` reads; before any call of it.
void linear_prepare(const LinearParams& params, Isa isa);

// Computes the outputs [first, last) of every row. Calls for different outputs may run at once.
void linear_outputs(const LinearParams& params, Isa isa, int64_t first, int64_t last);

}  // namespace kogpt::cpu
