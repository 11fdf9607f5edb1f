// Numbers in memory, as kernels are given them.
#pragma once

#include <cstdint>

namespace kogpt::cpu {

enum class Element : int32_t { kFloat32, kBFloat16, kFloat16, kInt8, kInt4, kPacked };

inline int64_t element_bits(Element element) {
  switch (element) {
    case Element::kFloat32:
      return 32;
    case Element::kInt8:
      return 8;
    case Element::kInt4:
      return 4;
    case Element::kPacked:
      return 12;  // and a row has a head, see packed.h
    default:
      return 16;
  }
}

// Contiguous memory, and what is in it.
struct Array {
  const void* data;
  Element element;
};

}  // namespace kogpt::cpu
