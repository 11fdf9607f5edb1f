// Weights of bfloat16 in 12 bits each, without loss: what a row of them is in memory.
//
// The low byte of such a number, its fraction and half of what tells even exponents from odd ones,
// may be anything. The high byte, sign and exponent, is nearly always one of 15, which 4 bits tell
// apart, as they do zero; each row has its own 15. The few other numbers are zeros among these, and
// stand once more, whole, in the row's head. Python has the same layout: see packing.py.
#pragma once

#include <cstdint>

namespace kogpt::cpu {

constexpr int64_t kCodes = 16;          // of high bytes; the first is for zero
constexpr int64_t kPackedInputs = 128;  // of a block
constexpr int64_t kRareShare = 256;     // numbers, of which at least one may have no code
constexpr int64_t kKeptShare = 8;       // of most_rare: with no more, a row keeps the codes before
constexpr int64_t kMostPacked = 1 << 16;  // numbers of a row
constexpr int64_t kRowMultiple = 64;      // bytes

// A number that has no code; those of a row are in order. There is none where the bits are 0.
struct Rare {
  uint16_t input;
  uint16_t bits;
};

struct PackedBlock {
  uint8_t codes[kPackedInputs / 2];  // the first half of the numbers in the low halves
  uint8_t low[kPackedInputs];
};

// What a row of K numbers begins with: kCodes high bytes, and numbers without a code. Blocks
// follow.
constexpr int64_t packed_head_bytes(int64_t K) {
  const int64_t bytes = kCodes + K / kRareShare * static_cast<int64_t>(sizeof(Rare));
  return (bytes + kRowMultiple - 1) / kRowMultiple * kRowMultiple;
}

constexpr int64_t most_rare(int64_t K) {
  return (packed_head_bytes(K) - kCodes) / static_cast<int64_t>(sizeof(Rare));
}

constexpr int64_t packed_row_bytes(int64_t K) {
  return packed_head_bytes(K) + K / kPackedInputs * static_cast<int64_t>(sizeof(PackedBlock));
}

// The numbers of a row that is so long: 1.5 bytes each, 1/64 for rare ones, and what fills up.
constexpr int64_t packed_inputs(int64_t bytes) {
  return bytes * 64 / 97 / kPackedInputs * kPackedInputs;
}

// A row of K numbers.
struct PackedRow {
  const char* data;
  int64_t K;

  const PackedBlock* blocks() const {
    return reinterpret_cast<const PackedBlock*>(data + packed_head_bytes(K));
  }

  // Calls `function` with the input, of [first, last), and the bits of each number without a code.
  // They are in order.
  template <class Function>
  void each_rare(int64_t first, int64_t last, Function&& function) const {
    const Rare* rare = reinterpret_cast<const Rare*>(data + kCodes);
    const Rare* end = rare + most_rare(K);
    for (int64_t count = end - rare; count > 0; count /= 2) {
      const Rare* middle = rare + count / 2;
      if (middle->bits == 0 || middle->input >= first) continue;
      rare = middle + 1;
      --count;
    }
    for (; rare < end && rare->bits && rare->input < last; ++rare) {
      function(rare->input, rare->bits);
    }
  }
};

}  // namespace kogpt::cpu
