// Vectors of AVX-512 with VNNI; to be included where it is compiled for.
#pragma once

#include <immintrin.h>

#include "vectors_avx512.h"

namespace kogpt::cpu {
namespace {

struct Vnni : Avx512 {
  using Nibbles = Sums;
  static constexpr int kNibbleVectors = 64;  // and more: sums have 32 bits
  static constexpr bool kSaturates = false;

  static Sums dot(Sums sums, Words a, Words b) {
    return reinterpret_cast<Sums>(_mm512_dpwssd_epi32(reinterpret_cast<__m512i>(sums), a, b));
  }

  // Bytes rather than words: unsigned weights times signed x.
  static Sums dot_bytes(Sums sums, Words a, Words b) {
    return reinterpret_cast<Sums>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sums), a, b));
  }
  static Nibbles dot_nibbles(Nibbles sums, Words a, Words b) { return dot_bytes(sums, a, b); }
};

}  // namespace
}  // namespace kogpt::cpu
