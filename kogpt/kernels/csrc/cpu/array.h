// Numbers in memory, as kernels are given them.
#pragma once

#include <cstdint>

namespace kogpt::cpu {

enum class Element : int32_t { kFloat32, kBFloat16, kFloat16, kInt8, kInt4 };

// Contiguous memory, and what is in it.
struct Array {
  const void* data;
  Element element;
};

}  // namespace kogpt::cpu
