// Vectors of AVX2; to be included where it is compiled for.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "array.h"
#include "packed.h"

namespace kogpt::cpu {
namespace {

struct Avx2 {
  using Words = __m256i;
  using Sums = __v8si;  // as what is added, or GCC would keep sums twice
  using Floats = __m256;
  using Nibbles = __v16hi;
  static constexpr int64_t kLanes = 8;
  static constexpr int kVectors = 2;
  static constexpr bool kFewRegisters = true;
  static constexpr int kNibbleVectors = 8;  // 8 x 2 products of at most 15 x 127 are below 2^15
  static constexpr int kFloatOutputs[] = {4, 4, 4, 4};
  static constexpr int kInt8Outputs[] = {4, 2, 4, 4};
  static constexpr int kInt4Outputs[] = {4, 2, 2, 2};
  static constexpr int kPackedOutputs[] = {4, 4, 2, 2};
  static constexpr int kLocality = 2;
  static constexpr bool kSaturates = true;  // dot_bytes, above 16 bits for a pair
  static constexpr bool kPairs = false;
  static constexpr bool kFewPackedPairs = false;

  static constexpr int64_t ahead(int /* streams */) { return 1280; }

  static float from_half(uint16_t bits) { return _cvtsh_ss(bits); }
  static uint16_t to_half(float value) { return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT); }

  static __m256i load(const void* at) {
    __m256i words = _mm256_loadu_si256(static_cast<const __m256i*>(at));
    asm("" : "+x"(words));  // one load for all that it multiplies, where GCC would repeat it
    return words;
  }
  static Words load(const int16_t* at) { return load(static_cast<const void*>(at)); }
  static Words load(const int8_t* at) { return load(static_cast<const void*>(at)); }
  static Floats load(const float* at) { return _mm256_loadu_ps(at); }
  static Floats from_half(const uint16_t* at) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
  }
  static Floats from_bfloat16(const uint16_t* at) {
    const Words wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
  static void store(float* at, Floats a) { _mm256_storeu_ps(at, a); }
  static void store(int32_t* at, Words a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), a);
  }

  static Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
  static float sum(Floats a) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
  }

  // What each of four vectors comes to.
  static void sums(Floats a, Floats b, Floats c, Floats d, float* to) {
    const Floats four = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(four), _mm256_extractf128_ps(four, 1)));
  }

  static Floats to_floats(Sums a) { return _mm256_cvtepi32_ps(reinterpret_cast<__m256i>(a)); }
  // The first or the second of each pair of bfloat16.
  static Floats to_floats(Words pairs, int n) {
    return _mm256_castsi256_ps(word<Element::kBFloat16>(pairs, n));
  }
  static Sums dot(Sums sums, Words a, Words b) {
    return sums + reinterpret_cast<Sums>(_mm256_madd_epi16(a, b));
  }

  // Of weights below 16 and signed x, both bytes; pairs are added in 16 bits.
  static Nibbles dot_nibbles(Nibbles pairs, Words a, Words b) {
    return pairs + reinterpret_cast<Nibbles>(_mm256_maddubs_epi16(a, b));
  }
  static Sums add(Sums sums, Sums others) { return sums + others; }
  static Sums add(Sums sums, Nibbles pairs) {
    return dot(sums, reinterpret_cast<Words>(pairs), _mm256_set1_epi16(1));
  }
  static Sums dot_bytes(Sums sums, Words a, Words b) {
    return dot(sums, _mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1));
  }

  static Words widen_int8(const void* at) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(static_cast<const __m128i*>(at)));
  }

  // The n-th weight of every byte.
  static Words nibbles(const void* at, int n) {
    return _mm256_and_si256(_mm256_srli_epi16(load(at), 4 * n), _mm256_set1_epi8(15));
  }

  static Sums repeat(int32_t sum) { return reinterpret_cast<Sums>(_mm256_set1_epi32(sum)); }
  static Words repeat_words(int32_t pair) { return _mm256_set1_epi32(pair); }

  // Floats at `at`, each in an equal part of the lanes.
  template <int kCount>
  static Floats spread(const float* at) {
    if constexpr (kCount == 1) return _mm256_set1_ps(*at);
    return _mm256_set_m128(_mm_set1_ps(at[1]), _mm_set1_ps(at[0]));
  }

  // Of kLanes rows, the four words of 32 bits that begin at a byte: columns[j] has the j-th of
  // each.
  static void columns(const char* const* rows, int64_t byte, Words (&columns)[4]) {
    const auto four = [&](int i) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[i] + byte));
    };
    Words quads[4];  // all four words of the rows i and 4 + i
    for (int i = 0; i < 4; ++i) quads[i] = _mm256_set_m128i(four(4 + i), four(i));
    for (int j = 0; j < 2; ++j) {
      const Words left =
          j ? _mm256_unpackhi_epi32(quads[0], quads[1]) : _mm256_unpacklo_epi32(quads[0], quads[1]);
      const Words right =
          j ? _mm256_unpackhi_epi32(quads[2], quads[3]) : _mm256_unpacklo_epi32(quads[2], quads[3]);
      columns[2 * j] = _mm256_unpacklo_epi64(left, right);
      columns[2 * j + 1] = _mm256_unpackhi_epi64(left, right);
    }
  }

  // What many rows are multiplied by, the n-th word that 32 bits in memory become: a float, or four
  // bytes that are unsigned.
  template <Element kWeight>
  static Words word(Words stored, int n) {
    if constexpr (kWeight == Element::kFloat32) return stored;
    if constexpr (kWeight == Element::kBFloat16) {
      return n ? _mm256_and_si256(stored, _mm256_set1_epi32(-65536))
               : _mm256_slli_epi32(stored, 16);
    }
    if constexpr (kWeight == Element::kFloat16) {
      const __m256i numbers =
          n ? _mm256_srli_epi32(stored, 16) : _mm256_and_si256(stored, _mm256_set1_epi32(65535));
      const __m128i halves =
          _mm_packus_epi32(_mm256_castsi256_si128(numbers), _mm256_extracti128_si256(numbers, 1));
      return _mm256_castps_si256(_mm256_cvtph_ps(halves));
    }
    if constexpr (kWeight == Element::kInt8)
      return _mm256_xor_si256(stored, _mm256_set1_epi8(-128));
    return _mm256_and_si256(_mm256_srli_epi16(stored, 4 * n), _mm256_set1_epi8(15));
  }

  template <Element kWeight>
  static void widen(const void* at, Floats& first, Floats& second) {
    if constexpr (kWeight == Element::kFloat32) {
      first = _mm256_loadu_ps(static_cast<const float*>(at));
      second = _mm256_loadu_ps(static_cast<const float*>(at) + kLanes);
    } else if constexpr (kWeight == Element::kBFloat16) {
      const Words pairs = load(at);
      first = to_floats(pairs, 0);
      second = to_floats(pairs, 1);
    } else {
      const __m128i* halves = static_cast<const __m128i*>(at);
      first = _mm256_cvtph_ps(_mm_loadu_si128(halves));
      second = _mm256_cvtph_ps(_mm_loadu_si128(halves + 1));
    }
  }

  // 4 kLanes numbers of a block, from the i-th on, of a row with those high bytes: of every 16, the
  // first eight in words[0].
  static void unpack(const void* high, const PackedBlock& block, int64_t i, Words (&words)[2]) {
    const int64_t half = kPackedInputs / 2;
    const Words codes = nibbles(block.codes + i % half, i / half);
    const __m128i known = _mm_loadu_si128(static_cast<const __m128i*>(high));
    const Words highs = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(known), codes);
    const Words lows = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block.low + i));
    words[0] = _mm256_unpacklo_epi8(lows, highs);
    words[1] = _mm256_unpackhi_epi8(lows, highs);
  }

  // What was found of bytes, and what a table has for those of its 16 that begin with `first`, a
  // multiple of 16.
  static Words look_up(Words found, Words bytes, uint8_t first, const uint8_t* table) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    const Words places = _mm256_xor_si256(bytes, _mm256_set1_epi8(static_cast<char>(first)));
    // From 16 on places get their highest bit, for which there is 0.
    const Words marked = _mm256_adds_epu8(places, _mm256_set1_epi8(112));
    const Words codes_here = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(codes), marked);
    return _mm256_or_si256(found, codes_here);
  }
};

}  // namespace
}  // namespace kogpt::cpu
