// Floating-point numbers of any width to and from float.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "array.h"

namespace kogpt::cpu {
namespace {

// Puts the first of every pair before the second of every pair.
template <int64_t kCount, class T>
void split_pairs(T* x) {
  T split[kCount];
  for (int64_t i = 0; i < kCount / 2; ++i) {
    split[i] = x[2 * i];
    split[kCount / 2 + i] = x[2 * i + 1];
  }
  std::memcpy(x, split, sizeof split);
}

// The other way round.
template <int64_t kCount, class T>
void join_pairs(T* x) {
  T joined[kCount];
  for (int64_t i = 0; i < kCount / 2; ++i) {
    joined[2 * i] = x[i];
    joined[2 * i + 1] = x[kCount / 2 + i];
  }
  std::memcpy(x, joined, sizeof joined);
}

template <class Simd>
struct Numbers {
  // Widens `count` numbers from place `first` on.
  static void widen(const Array& array, int64_t first, int64_t count, float* to) {
    if (array.element == Element::kFloat32) {
      std::memcpy(to, static_cast<const float*>(array.data) + first, 4 * count);
      return;
    }
    const uint16_t* from = static_cast<const uint16_t*>(array.data) + first;
    if (array.element == Element::kBFloat16) {
      for (int64_t i = 0; i < count; ++i) to[i] = from_bits(static_cast<uint32_t>(from[i]) << 16);
    } else {
      for (int64_t i = 0; i < count; ++i) to[i] = Simd::from_half(from[i]);
    }
  }

  // Widens a vector of numbers from place `first` on.
  static typename Simd::Floats widen(const Array& array, int64_t first) {
    switch (array.element) {
      case Element::kFloat32:
        return Simd::load(static_cast<const float*>(array.data) + first);
      case Element::kBFloat16:
        return Simd::from_bfloat16(static_cast<const uint16_t*>(array.data) + first);
      default:
        return Simd::from_half(static_cast<const uint16_t*>(array.data) + first);
    }
  }

  // Rounds `count` numbers to the places from `first` on.
  static void narrow(Element element, const float* from, int64_t count, void* to, int64_t first) {
    if (element == Element::kFloat32) {
      std::memcpy(static_cast<float*>(to) + first, from, 4 * count);
    } else if (element == Element::kBFloat16) {
      uint16_t* at = static_cast<uint16_t*>(to) + first;
      for (int64_t i = 0; i < count; ++i) at[i] = to_bfloat16(from[i]);
    } else {
      uint16_t* at = static_cast<uint16_t*>(to) + first;
      for (int64_t i = 0; i < count; ++i) at[i] = Simd::to_half(from[i]);
    }
  }

  static float from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }

  static uint32_t to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
  }

  static uint16_t to_bfloat16(float value) {
    const uint32_t bits = to_bits(value);
    if (std::isnan(value)) return 0x7fc0;
    return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);  // to nearest even
  }
};

}  // namespace
}  // namespace kogpt::cpu
