// Vectors in plain C++, for processors without any that is written for them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "array.h"
#include "packed.h"

namespace kogpt::cpu {
namespace {

struct Plain {
  static constexpr int64_t kLanes = 4;
  static constexpr int kVectors = 2;
  static constexpr bool kFewRegisters = true;
  static constexpr int kNibbleVectors = 8;  // and many more: sums have 32 bits
  static constexpr int kFloatOutputs[] = {4, 8, 4, 4};
  static constexpr int kInt8Outputs[] = {2, 8, 4, 4};
  static constexpr int kInt4Outputs[] = {2, 4, 4, 2};
  static constexpr int kPackedOutputs[] = {4, 4, 2, 2};
  static constexpr int kLocality = 2;
  static constexpr bool kSaturates = false;
  static constexpr bool kPairs = false;
  static constexpr bool kFewPackedPairs = false;
  struct Words {
    int16_t lanes[2 * kLanes];
  };
  struct Bytes {  // of Words
    uint8_t lanes[4 * kLanes];
  };
  struct Sums {
    int32_t lanes[kLanes];
  };
  struct Floats {
    float lanes[kLanes];
  };
  using Nibbles = Sums;

  static constexpr int64_t ahead(int /* streams */) { return 1280; }

  static float from_half(uint16_t bits) {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
    const uint32_t exponent = bits >> 10 & 31, fraction = bits & 1023;
    if (exponent == 0) {
      const float tiny = std::ldexp(static_cast<float>(fraction), -24);
      return sign ? -tiny : tiny;
    }
    const uint32_t wide = exponent == 31 ? 255 : exponent + 112;
    return from_bits(sign | wide << 23 | fraction << 13);
  }

  static uint16_t to_half(float value) {
    const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    const float size = std::fabs(value);
    if (size == 0) return sign;
    if (std::isnan(value)) return sign | 0x7e00;
    if (size >= 65520) return sign | 0x7c00;
    int exponent;
    std::frexp(size, &exponent);
    // A half has 11 bits from its first, and none below 2^-24.
    const int unit = std::max(exponent - 11, -24);
    const auto steps = static_cast<uint32_t>(std::nearbyint(std::ldexp(size, -unit)));
    return sign | static_cast<uint16_t>(steps + (static_cast<uint32_t>(unit + 24) << 10));
  }

  static float from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }

  template <class Vector>
  static Vector copy(const void* at) {
    Vector vector;
    std::memcpy(&vector, at, sizeof vector);
    return vector;
  }

  static Words load(const int16_t* at) { return copy<Words>(at); }
  static Words load(const int8_t* at) { return copy<Words>(at); }
  static Floats load(const float* at) { return copy<Floats>(at); }
  static Floats from_half(const uint16_t* at) {
    Floats wide;
    for (int64_t i = 0; i < kLanes; ++i) wide.lanes[i] = from_half(at[i]);
    return wide;
  }
  static Floats from_bfloat16(const uint16_t* at) {
    Floats wide;
    for (int64_t i = 0; i < kLanes; ++i) {
      wide.lanes[i] = from_bits(static_cast<uint32_t>(at[i]) << 16);
    }
    return wide;
  }
  static void store(float* at, Floats a) { std::memcpy(at, &a, sizeof a); }
  static void store(int32_t* at, Words a) { std::memcpy(at, &a, sizeof a); }

  static Floats fma(Floats a, Floats b, Floats c) {
    for (int64_t i = 0; i < kLanes; ++i) c.lanes[i] += a.lanes[i] * b.lanes[i];
    return c;
  }
  static float sum(Floats a) { return (a.lanes[0] + a.lanes[2]) + (a.lanes[1] + a.lanes[3]); }

  // What each of four vectors comes to.
  static void sums(Floats a, Floats b, Floats c, Floats d, float* to) {
    to[0] = sum(a);
    to[1] = sum(b);
    to[2] = sum(c);
    to[3] = sum(d);
  }

  static Floats to_floats(Sums a) {
    Floats wide;
    for (int64_t i = 0; i < kLanes; ++i) wide.lanes[i] = static_cast<float>(a.lanes[i]);
    return wide;
  }
  // The first or the second of each pair of bfloat16.
  static Floats to_floats(Words pairs, int n) {
    const Words all = word<Element::kBFloat16>(pairs, n);
    return copy<Floats>(&all);
  }
  static Sums dot(Sums sums, Words a, Words b) {
    for (int64_t i = 0; i < kLanes; ++i) {
      for (int64_t j = 2 * i; j < 2 * i + 2; ++j) sums.lanes[i] += a.lanes[j] * b.lanes[j];
    }
    return sums;
  }

  // Of unsigned weights and signed x.
  static Sums dot_bytes(Sums sums, Words a, Words b) {
    const auto weights = copy<Bytes>(&a), x = copy<Bytes>(&b);
    for (int64_t i = 0; i < 4 * kLanes; ++i) {
      sums.lanes[i / 4] += weights.lanes[i] * static_cast<int8_t>(x.lanes[i]);
    }
    return sums;
  }
  static Nibbles dot_nibbles(Nibbles sums, Words a, Words b) { return dot_bytes(sums, a, b); }
  static Sums add(Sums sums, Nibbles others) {
    for (int64_t i = 0; i < kLanes; ++i) sums.lanes[i] += others.lanes[i];
    return sums;
  }

  static Words widen_int8(const void* at) {
    Words words;
    for (int64_t i = 0; i < 2 * kLanes; ++i) words.lanes[i] = static_cast<const int8_t*>(at)[i];
    return words;
  }
  static Words nibbles(const void* at, int n) {
    auto bytes = copy<Bytes>(at);
    for (uint8_t& lane : bytes.lanes) lane = lane >> 4 * n & 15;
    return copy<Words>(&bytes);
  }
  static Sums repeat(int32_t sum) {
    Sums all;
    for (int32_t& lane : all.lanes) lane = sum;
    return all;
  }
  static Words repeat_words(int32_t pair) {
    const Sums all = repeat(pair);
    return copy<Words>(&all);
  }
  template <int kCount>
  static Floats spread(const float* at) {
    static_assert(kCount == 1, "a vector holds 32 weights of 4 bits");
    Floats all;
    for (float& lane : all.lanes) lane = *at;
    return all;
  }

  // Of kLanes rows, the four words of 32 bits that begin at a byte: columns[j] has the j-th of
  // each.
  static void columns(const char* const* rows, int64_t byte, Words (&columns)[4]) {
    for (int64_t j = 0; j < 4; ++j) {
      int32_t words[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) std::memcpy(words + i, rows[i] + byte + 4 * j, 4);
      columns[j] = copy<Words>(words);
    }
  }

  // What many rows are multiplied by, the n-th word that 32 bits in memory become: a float, or four
  // bytes that are unsigned.
  template <Element kWeight>
  static Words word(Words stored, int n) {
    uint32_t words[kLanes];
    std::memcpy(words, &stored, sizeof words);
    for (uint32_t& word : words) {
      if constexpr (kWeight == Element::kBFloat16) word = n ? word & 0xffff0000 : word << 16;
      if constexpr (kWeight == Element::kFloat16) {
        const float value = from_half(static_cast<uint16_t>(word >> 16 * n));
        std::memcpy(&word, &value, sizeof word);
      }
      if constexpr (kWeight == Element::kInt8) word ^= 0x80808080;
      if constexpr (kWeight == Element::kInt4) word = word >> 4 * n & 0x0f0f0f0f;
    }
    return copy<Words>(words);
  }

  template <Element kWeight>
  static void widen(const void* at, Floats& first, Floats& second) {
    if constexpr (kWeight == Element::kFloat32) {
      first = copy<Floats>(at);
      second = copy<Floats>(static_cast<const char*>(at) + sizeof first);
    } else {
      const Words words = copy<Words>(at);
      for (int64_t i = 0; i < kLanes; ++i) {
        if constexpr (kWeight == Element::kBFloat16) {
          first.lanes[i] = from_bits(static_cast<uint32_t>(words.lanes[2 * i]) << 16);
          second.lanes[i] = from_bits(static_cast<uint32_t>(words.lanes[2 * i + 1]) << 16);
        } else {
          first.lanes[i] = from_half(words.lanes[i]);
          second.lanes[i] = from_half(words.lanes[kLanes + i]);
        }
      }
    }
  }

  // 4 kLanes numbers of a block, from the i-th on, of a row with those high bytes: of every 16, the
  // first eight in words[0].
  static void unpack(const void* high, const PackedBlock& block, int64_t i, Words (&words)[2]) {
    const int64_t half = kPackedInputs / 2;
    const auto codes = copy<Bytes>(block.codes + i % half);
    for (int64_t j = 0; j < 4 * kLanes; ++j) {
      const int code = codes.lanes[j] >> 4 * (i / half) & 15;
      const int bits = static_cast<const uint8_t*>(high)[code] << 8 | block.low[i + j];
      words[j / 8].lanes[j % 8] = static_cast<int16_t>(bits);
    }
  }

  // What was found of bytes, and what a table has for those of its 16 that begin with `first`, a
  // multiple of 16.
  static Words look_up(Words found, Words words, uint8_t first, const uint8_t* table) {
    auto codes = copy<Bytes>(&found);
    const auto bytes = copy<Bytes>(&words);
    for (int64_t j = 0; j < 4 * kLanes; ++j) {
      const int place = bytes.lanes[j] - first;
      if (place >= 0 && place < 16) codes.lanes[j] |= table[place];
    }
    return copy<Words>(&codes);
  }
};

}  // namespace
}  // namespace kogpt::cpu
