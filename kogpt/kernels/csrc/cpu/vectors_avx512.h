// Vectors of AVX-512; to be included where it is compiled for.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "array.h"
#include "packed.h"

namespace kogpt::cpu {
namespace {

struct Avx512 {
  using Words = __m512i;
  using Sums = __v16si;  // as what is added, or GCC would keep sums twice
  using Floats = __m512;
  using Nibbles = __v32hi;
  static constexpr int64_t kLanes = 16;
  static constexpr int kVectors = 4;
  static constexpr bool kFewRegisters = false;
  static constexpr int kNibbleVectors = 8;  // 8 x 2 products of at most 15 x 127 are below 2^15
  static constexpr int kFloatOutputs[] = {8, 8, 4, 4};
  static constexpr int kInt8Outputs[] = {8, 8, 4, 4};
  static constexpr int kInt4Outputs[] = {8, 4, 4, 2};
  static constexpr int kPackedOutputs[] = {8, 4, 4, 4};
  static constexpr int kLocality = 2;
  static constexpr bool kSaturates = true;  // dot_bytes, above 16 bits for a pair
  static constexpr bool kPairs = false;
  static constexpr bool kFewPackedPairs = false;

  static constexpr int64_t ahead(int /* streams */) { return 1280; }

  static float from_half(uint16_t bits) { return _cvtsh_ss(bits); }
  static uint16_t to_half(float value) { return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT); }

  static Words load(const void* at) {
    Words words = _mm512_loadu_si512(at);
    asm("" : "+v"(words));  // one load for all that it multiplies, where GCC would repeat it
    return words;
  }
  static Words load(const int16_t* at) { return load(static_cast<const void*>(at)); }
  static Words load(const int8_t* at) { return load(static_cast<const void*>(at)); }
  static Floats load(const float* at) { return _mm512_loadu_ps(at); }
  static Floats from_half(const uint16_t* at) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
  }
  static Floats from_bfloat16(const uint16_t* at) {
    const Words wide =
        _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  static void store(float* at, Floats a) { _mm512_storeu_ps(at, a); }
  static void store(int32_t* at, Words a) { _mm512_storeu_si512(at, a); }

  static Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static float sum(Floats a) { return _mm512_reduce_add_ps(a); }

  // What each of four vectors comes to.
  static void sums(Floats a, Floats b, Floats c, Floats d, float* to) {
    const auto words = [](Floats x) { return _mm512_castps_si512(x); };
    const auto floats = [](Words x) { return _mm512_castsi512_ps(x); };
    const Words ab = words(floats(_mm512_unpacklo_epi32(words(a), words(b))) +
                           floats(_mm512_unpackhi_epi32(words(a), words(b))));
    const Words cd = words(floats(_mm512_unpacklo_epi32(words(c), words(d))) +
                           floats(_mm512_unpackhi_epi32(words(c), words(d))));
    // In each part of 128 bits, what the four have there.
    const Floats parts =
        floats(_mm512_unpacklo_epi64(ab, cd)) + floats(_mm512_unpackhi_epi64(ab, cd));
    const __m128 left = _mm512_extractf32x4_ps(parts, 0) + _mm512_extractf32x4_ps(parts, 1);
    const __m128 right = _mm512_extractf32x4_ps(parts, 2) + _mm512_extractf32x4_ps(parts, 3);
    _mm_storeu_ps(to, left + right);
  }

  static Floats to_floats(Sums a) { return _mm512_cvtepi32_ps(reinterpret_cast<__m512i>(a)); }
  // The first or the second of each pair of bfloat16.
  static Floats to_floats(Words pairs, int n) {
    return _mm512_castsi512_ps(word<Element::kBFloat16>(pairs, n));
  }
  static Sums dot(Sums sums, Words a, Words b) {
    return sums + reinterpret_cast<Sums>(_mm512_madd_epi16(a, b));
  }

  // Of weights below 16 and signed x, both bytes; pairs are added in 16 bits.
  static Nibbles dot_nibbles(Nibbles pairs, Words a, Words b) {
    return pairs + reinterpret_cast<Nibbles>(_mm512_maddubs_epi16(a, b));
  }
  static Sums add(Sums sums, Sums others) { return sums + others; }
  static Sums add(Sums sums, Nibbles pairs) {
    return dot(sums, reinterpret_cast<Words>(pairs), _mm512_set1_epi16(1));
  }
  static Sums dot_bytes(Sums sums, Words a, Words b) {
    return dot(sums, _mm512_maddubs_epi16(a, b), _mm512_set1_epi16(1));
  }

  static Words widen_int8(const void* at) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(static_cast<const __m256i*>(at)));
  }

  // The n-th weight of every byte.
  static Words nibbles(const void* at, int n) {
    const Words words = _mm512_srli_epi16(load(at), 4 * n);
    return _mm512_and_si512(words, _mm512_set1_epi8(15));
  }

  static Sums repeat(int32_t sum) { return reinterpret_cast<Sums>(_mm512_set1_epi32(sum)); }
  static Words repeat_words(int32_t pair) { return _mm512_set1_epi32(pair); }

  // Floats at `at`, each in an equal part of the lanes.
  template <int kCount>
  static Floats spread(const float* at) {
    if constexpr (kCount == 1) return _mm512_set1_ps(*at);
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i part = _mm512_srli_epi32(lane, kCount == 2 ? 3 : 2);
    return _mm512_permutexvar_ps(part, _mm512_maskz_loadu_ps((1 << kCount) - 1, at));
  }

  // Of kLanes rows, the four words of 32 bits that begin at a byte: columns[j] has the j-th of
  // each.
  static void columns(const char* const* rows, int64_t byte, Words (&columns)[4]) {
    const auto four = [&](int i) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[i] + byte));
    };
    Words quads[4];  // all four words of the rows i, 4 + i, 8 + i and 12 + i
    for (int i = 0; i < 4; ++i) {
      quads[i] = _mm512_inserti32x4(_mm512_castsi128_si512(four(i)), four(4 + i), 1);
      quads[i] = _mm512_inserti32x4(quads[i], four(8 + i), 2);
      quads[i] = _mm512_inserti32x4(quads[i], four(12 + i), 3);
    }
    for (int j = 0; j < 2; ++j) {
      const Words left =
          j ? _mm512_unpackhi_epi32(quads[0], quads[1]) : _mm512_unpacklo_epi32(quads[0], quads[1]);
      const Words right =
          j ? _mm512_unpackhi_epi32(quads[2], quads[3]) : _mm512_unpacklo_epi32(quads[2], quads[3]);
      columns[2 * j] = _mm512_unpacklo_epi64(left, right);
      columns[2 * j + 1] = _mm512_unpackhi_epi64(left, right);
    }
  }

  // What many rows are multiplied by, the n-th word that 32 bits in memory become: a float, or four
  // bytes that are unsigned.
  template <Element kWeight>
  static Words word(Words stored, int n) {
    if constexpr (kWeight == Element::kFloat32) return stored;
    if constexpr (kWeight == Element::kBFloat16) {
      return n ? _mm512_and_si512(stored, _mm512_set1_epi32(-65536))
               : _mm512_slli_epi32(stored, 16);
    }
    if constexpr (kWeight == Element::kFloat16) {
      const __m256i halves = _mm512_cvtepi32_epi16(n ? _mm512_srli_epi32(stored, 16) : stored);
      return _mm512_castps_si512(_mm512_cvtph_ps(halves));
    }
    if constexpr (kWeight == Element::kInt8)
      return _mm512_xor_si512(stored, _mm512_set1_epi8(-128));
    return _mm512_and_si512(_mm512_srli_epi16(stored, 4 * n), _mm512_set1_epi8(15));
  }

  template <Element kWeight>
  static void widen(const void* at, Floats& first, Floats& second) {
    if constexpr (kWeight == Element::kFloat32) {
      first = _mm512_loadu_ps(at);
      second = _mm512_loadu_ps(static_cast<const float*>(at) + kLanes);
    } else if constexpr (kWeight == Element::kBFloat16) {
      const Words pairs = load(at);
      first = to_floats(pairs, 0);
      second = to_floats(pairs, 1);
    } else {
      const __m256i* halves = static_cast<const __m256i*>(at);
      first = _mm512_cvtph_ps(_mm256_loadu_si256(halves));
      second = _mm512_cvtph_ps(_mm256_loadu_si256(halves + 1));
    }
  }

  // 4 kLanes numbers of a block, from the i-th on, of a row with those high bytes: of every 16, the
  // first eight in words[0].
  static void unpack(const void* high, const PackedBlock& block, int64_t i, Words (&words)[2]) {
    const int64_t half = kPackedInputs / 2;
    const Words codes = nibbles(block.codes + i % half, i / half);
    const __m128i known = _mm_loadu_si128(static_cast<const __m128i*>(high));
    const Words highs = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(known), codes);
    const Words lows = load(static_cast<const void*>(block.low + i));
    words[0] = _mm512_unpacklo_epi8(lows, highs);
    words[1] = _mm512_unpackhi_epi8(lows, highs);
  }

  // What was found of bytes, and what a table has for those of its 16 that begin with `first`, a
  // multiple of 16.
  static Words look_up(Words found, Words bytes, uint8_t first, const uint8_t* table) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    const Words places = _mm512_xor_si512(bytes, _mm512_set1_epi8(static_cast<char>(first)));
    // From 16 on places get their highest bit, for which there is 0.
    const Words marked = _mm512_adds_epu8(places, _mm512_set1_epi8(112));
    const Words codes_here = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(codes), marked);
    return _mm512_or_si512(found, codes_here);
  }
};

}  // namespace
}  // namespace kogpt::cpu
