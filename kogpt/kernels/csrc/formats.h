// How weights in 16, 8 and 4 bits become elements, exactly.
//
// Source: Kim et al., "Who Says Elephants Can't Run" (arXiv 2211.10017), for widening.
#pragma once

#include "linear.h"
#include "ptx.h"

namespace kogpt {

// Two elements 1024, or 128 in bfloat16: what is put into their lowest bits is added to them.
template <typename E>
constexpr uint32_t kBase = 0x64006400;
template <>
constexpr uint32_t kBase<BFloat16> = 0x43004300;

// A word of weights is kPairs pairs of elements: pair i is of the weights i and i + kPairs, since
// these need but masks and one shift. Widening is exact.
struct Bits16 {
  static constexpr int kPairs = 1;

  template <typename E>
  KOGPT_DEVICE static uint32_t pair(uint32_t word, int) {
    return word;
  }
};

struct Bits8 {
  static constexpr int kPairs = 2;

  // Of an integer in two's complement the highest bit counts -128.
  template <typename E>
  KOGPT_DEVICE static uint32_t pair(uint32_t word, int i) {
    const uint32_t bytes = word >> 8 * i;
    return subtract<E>(and_xor(bytes, 0x007f007f, kBase<E>), and_xor(bytes, 0x00800080, kBase<E>));
  }
};

struct Bits4 {
  static constexpr int kPairs = 4;

  template <typename E>
  KOGPT_DEVICE static uint32_t pair(uint32_t word, int i) {
    const uint32_t nibbles = word >> 4 * i;
    return subtract<E>(and_xor(nibbles, 0x000f000f, kBase<E>), 0x00080008 ^ kBase<E>);
  }
};

// Whether the kernels take K inputs of integers in G groups.
inline bool groups_fit(Format format, int K, int G) {
  const int smallest = format == Format::kBits4 ? kSmallestGroup : kLinearBlock;
  return G > 0 && K % G == 0 && K / G % smallest == 0;
}

template <typename E>
KOGPT_DEVICE float load_element(const void* data, uint32_t index) {
  return unpack<E>(load_global<uint16_t>(static_cast<const uint16_t*>(data) + index)).x;
}

}  // namespace kogpt
