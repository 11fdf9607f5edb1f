// Packs rows of bfloat16, for any instruction set: see linear_kernel.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>

#include "packed.h"

namespace kogpt::cpu {
namespace {

template <class Simd>
struct Packing {
  using Words = typename Simd::Words;

  static constexpr int32_t kBytes = 256;  // that there are
  static constexpr int kTable = 16;       // bytes that a table is for

  // The codes of 16 high bytes that differ in their lower four bits only; 0 for none.
  struct Table {
    uint8_t first;
    uint8_t codes[kTable];
  };

  // What high bytes are coded as.
  struct Codes {
    uint8_t high[kCodes] = {};  // of each code
    Table tables[kCodes - 1];   // two or four, of what is trained: of either sign, close exponents
    int64_t count = 0;          // of tables

    void add(int64_t code, uint8_t byte) {
      high[code] = byte;
      const uint8_t first = byte / kTable * kTable;
      Table* table = std::find_if(tables, tables + count,
                                  [&](const Table& each) { return each.first == first; });
      if (table == tables + count) tables[count++] = {first, {}};
      table->codes[byte - first] = static_cast<uint8_t>(code);
    }
  };

  static bool rows(const uint16_t* numbers, int64_t N, int64_t K, char* to) {
    Codes codes;
    for (int64_t n = 0; n < N; ++n, numbers += K, to += packed_row_bytes(K)) {
      if (row(numbers, K, codes, most_rare(K) / kKeptShare, to)) continue;
      codes = choose(numbers, K);
      if (!row(numbers, K, codes, most_rare(K), to)) return false;
    }
    return true;
  }

  // Packs a row; false if more than `rarest` of its numbers have no code.
  static bool row(const uint16_t* numbers, int64_t K, const Codes& codes, int64_t rarest,
                  char* to) {
    constexpr int64_t kHalf = kPackedInputs / 2;
    std::memset(to, 0, packed_head_bytes(K));
    std::memcpy(to, codes.high, kCodes);
    Rare* rare = reinterpret_cast<Rare*>(to + kCodes);
    const Rare* end = rare + rarest;
    auto* block = reinterpret_cast<PackedBlock*>(to + packed_head_bytes(K));
    for (int64_t k = 0; k < K; k += kPackedInputs, ++block) {
      const uint16_t* some = numbers + k;
      uint8_t high[kPackedInputs], found[kPackedInputs], unknown = 0;
      for (int64_t i = 0; i < kPackedInputs; ++i) high[i] = static_cast<uint8_t>(some[i] >> 8);
      for (int64_t i = 0; i < kPackedInputs; ++i) block->low[i] = static_cast<uint8_t>(some[i]);
      look_up(codes, high, found);
      for (int64_t i = 0; i < kHalf; ++i) {
        block->codes[i] = static_cast<uint8_t>(found[i] | found[kHalf + i] << 4);
      }
      for (int64_t i = 0; i < kPackedInputs; ++i) unknown |= found[i] ? 0 : high[i];
      for (int64_t i = 0; unknown && i < kPackedInputs; ++i) {
        if (found[i] || !high[i]) continue;
        if (rare == end) return false;
        block->low[i] = 0;
        *rare++ = {static_cast<uint16_t>(k + i), some[i]};
      }
    }
    return true;
  }

  // The codes of a row's most frequent high bytes; of equally many, the smaller is first.
  static Codes choose(const uint16_t* numbers, int64_t K) {
    int32_t counts[4][kBytes] = {};  // apart, for the next number is often of the same byte
    for (int64_t k = 0; k < K; k += 4) {
      for (int64_t i = 0; i < 4; ++i) ++counts[i][numbers[k + i] >> 8];
    }
    int32_t present[kBytes];  // each the count, and then what the byte lacks to the largest
    int64_t kinds = 0;
    for (int32_t byte = 1; byte < kBytes; ++byte) {
      const int32_t count = counts[0][byte] + counts[1][byte] + counts[2][byte] + counts[3][byte];
      if (count) present[kinds++] = count * kBytes + kBytes - 1 - byte;
    }
    std::sort(present, present + kinds, std::greater<>());
    Codes codes;
    for (int64_t code = 1; code <= std::min(kinds, kCodes - 1); ++code) {
      codes.add(code, static_cast<uint8_t>(kBytes - 1 - present[code - 1] % kBytes));
    }
    return codes;
  }

  static void look_up(const Codes& codes, const uint8_t* high, uint8_t* found) {
    for (int64_t i = 0; i < kPackedInputs; i += 4 * Simd::kLanes) {
      const Words bytes = Simd::load(reinterpret_cast<const int8_t*>(high + i));
      Words some = Simd::repeat_words(0);
      for (int64_t t = 0; t < codes.count; ++t) {
        some = Simd::look_up(some, bytes, codes.tables[t].first, codes.tables[t].codes);
      }
      Simd::store(reinterpret_cast<int32_t*>(found + i), some);
    }
  }
};

}  // namespace
}  // namespace kogpt::cpu
