// Vectors of AVX-512 with VNNI and products of bfloat16; to be included where it is compiled for.
#pragma once

#include <immintrin.h>

#include "vectors_vnni.h"

namespace kogpt::cpu {
namespace {

struct Bf16 : Vnni {
  static constexpr bool kPairs = true;

  static Floats dot_pairs(Floats sums, Words a, Words b) {
    return _mm512_dpbf16_ps(sums, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
};

}  // namespace
}  // namespace kogpt::cpu
