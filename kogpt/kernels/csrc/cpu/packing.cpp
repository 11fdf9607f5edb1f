// Packs rows of bfloat16.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "packed.h"

namespace kogpt::cpu {
namespace {

constexpr int64_t kBytes = 256;  // that there are

// What high bytes of a row are coded as.
struct Codes {
  uint8_t high[kCodes] = {};  // of each code
  uint8_t code[kBytes] = {};  // of each high byte, 0 for none
  uint8_t late[kBytes] = {};  // the same four bits higher
  int64_t rare = 0;           // numbers of the row that have none
};

Codes choose_codes(const uint16_t* numbers, int64_t K) {
  int32_t counts[4][kBytes] = {};  // apart, for the next number is often of the same byte
  for (int64_t k = 0; k < K; k += 4) {
    for (int64_t i = 0; i < 4; ++i) ++counts[i][numbers[k + i] >> 8];
  }
  std::pair<int32_t, int32_t> present[kBytes];  // less the count, so that most come first, and byte
  int64_t kinds = 0;
  for (int32_t byte = 1; byte < kBytes; ++byte) {
    const int32_t count = counts[0][byte] + counts[1][byte] + counts[2][byte] + counts[3][byte];
    if (count) present[kinds++] = {-count, byte};
  }
  std::sort(present, present + kinds);
  Codes codes;
  for (int64_t i = 0; i < kinds; ++i) {
    const auto [less, byte] = present[i];
    if (i + 1 < kCodes) {
      codes.high[i + 1] = static_cast<uint8_t>(byte);
      codes.code[byte] = static_cast<uint8_t>(i + 1);
      codes.late[byte] = static_cast<uint8_t>((i + 1) << 4);
    } else {
      codes.rare -= less;
    }
  }
  return codes;
}

// Whether one of the codes is 0.
bool has_zero(const PackedBlock& block) {
  uint64_t borrows = 0;
  for (const uint8_t* at = block.codes; at < block.low; at += sizeof borrows) {
    uint64_t codes;
    std::memcpy(&codes, at, sizeof codes);
    borrows |= (codes - 0x1111111111111111) & ~codes & 0x8888888888888888;
  }
  return borrows;
}

}  // namespace

bool pack_row(const uint16_t* numbers, int64_t K, char* to) {
  const Codes codes = choose_codes(numbers, K);
  if (codes.rare > most_rare(K)) return false;
  std::memset(to, 0, packed_head_bytes(K));
  std::memcpy(to, codes.high, kCodes);
  Rare* rare = reinterpret_cast<Rare*>(to + kCodes);
  auto* block = reinterpret_cast<PackedBlock*>(to + packed_head_bytes(K));
  for (int64_t k = 0; k < K; k += kPackedInputs, ++block) {
    const uint16_t *some = numbers + k, *rest = some + kPackedInputs / 2;
    for (int64_t i = 0; i < kPackedInputs / 2; ++i) {
      block->codes[i] = codes.code[some[i] >> 8] | codes.late[rest[i] >> 8];
    }
    for (int64_t i = 0; i < kPackedInputs; ++i) block->low[i] = static_cast<uint8_t>(some[i]);
    if (codes.rare == 0 || !has_zero(*block)) continue;
    for (int64_t i = 0; i < kPackedInputs; ++i) {
      if (some[i] < kBytes || codes.code[some[i] >> 8]) continue;
      block->low[i] = 0;
      *rare++ = {static_cast<uint16_t>(k + i), some[i]};
    }
  }
  return true;
}

}  // namespace kogpt::cpu
