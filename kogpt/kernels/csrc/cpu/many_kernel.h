// Products of many rows, for any instruction set: see linear_kernel.h.
//
// Arithmetic is the limit, so both sides are laid out for it. What is multiplied is a 32-bit word:
// a float, a pair of bfloat16, or four bytes where weights are integers: a row of x is rounded to 8
// bits then, one unit for 128 inputs or more. A vector has a word of each of kLanes outputs and
// meets a word of x that all lanes read, so sums never have to be added across lanes.
//
// A panel of weights is laid out so for a grain of inputs at a time, which share a unit of x and a
// scale, and then all rows pass. Their sums, floats from one grain to the next, stay in the cache.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "linear.h"
#include "numbers.h"
#include "rounding.h"

namespace kogpt::cpu {
namespace {

// Whether pairs of bfloat16 are multiplied.
template <class Simd>
bool in_pairs(const LinearParams& p) {
  const bool packed =
      p.weight.element == Element::kPacked && (Simd::kFewPackedPairs || p.M > kFewRows);
  const bool weights = packed || p.weight.element == Element::kBFloat16;
  return Simd::kPairs && weights && p.x.element == Element::kBFloat16;
}

template <class Simd>
struct Many {
  using Words = typename Simd::Words;
  using Sums = typename Simd::Sums;
  using Floats = typename Simd::Floats;
  using Numbers = cpu::Numbers<Simd>;
  using Rounding = cpu::Rounding<Simd>;

  static constexpr int64_t kLanes = Simd::kLanes;
  // A tile's sums fill three quarters of the registers.
  static constexpr int kRows = kTileRows;
  static constexpr int kVectors = Simd::kVectors;
  static constexpr int64_t kOutputs = kVectors * kLanes;
  static constexpr int64_t kWordsAhead = 512;  // of x, that are asked for ahead

  // What is in a word, and in memory under it.
  template <class Type, Element kElement>
  struct Format {
    using Number = Type;
    static constexpr Element kWeight = kElement;
    static constexpr bool kWhole = std::is_same_v<Number, float>;
    static constexpr bool kPairs = std::is_same_v<Number, uint16_t>;
    static constexpr bool kFloats = kWhole || kPairs;
    static constexpr int64_t kInputs = sizeof(int32_t) / sizeof(Number);  // of a word
    static constexpr int64_t kBits = kWeight == Element::kInt4      ? 4
                                     : kWeight == Element::kInt8    ? 8
                                     : kWeight == Element::kFloat32 ? 32
                                                                    : 16;
    static constexpr int64_t kStored = 32 / kBits;                  // inputs of 32 bits in memory
    static constexpr int64_t kWords = kStored / kInputs;            // that these become
    static constexpr int kRaised = kFloats ? 0 : 1 << (kBits - 1);  // to have weights unsigned

    // What products of integers come to over kRun words.
    using Integers = std::conditional_t<kWeight == Element::kInt4, typename Simd::Nibbles, Sums>;
    static constexpr int64_t kRun = kWeight == Element::kInt4 ? Simd::kNibbleVectors : 1 << 20;

    // A vector of words.
    static auto load(const int32_t* words) {
      if constexpr (kWhole)
        return Simd::load(reinterpret_cast<const float*>(words));
      else
        return Simd::load(reinterpret_cast<const int16_t*>(words));
    }

    // A vector of the same word.
    static auto repeat(const int32_t* word) {
      if constexpr (kWhole)
        return Simd::template spread<1>(reinterpret_cast<const float*>(word));
      else
        return Simd::repeat_words(*word);
    }

    static Floats dot(Floats sums, Floats w, Floats x) { return Simd::fma(w, x, sums); }
    static Floats dot(Floats sums, Words w, Words x) { return Simd::dot_pairs(sums, w, x); }
    static Integers dot(Integers sums, Words w, Words x) {
      if constexpr (kWeight == Element::kInt4)
        return Simd::dot_nibbles(sums, w, x);
      else
        return Simd::dot_bytes(sums, w, x);
    }

    // The n-th word that 32 bits in memory become.
    static Words word(Words stored, int n) {
      return kPairs ? stored : Simd::template word<kWeight>(stored, n);
    }
  };

  // x as the tiles read it.
  struct Rows {
    int64_t count;    // of rows, zeros up to a whole tile among them
    int32_t* words;   // (grain, tile, word, row)
    float* units;     // (grain, row): what integers count
    int32_t* starts;  // (grain, row): where sums begin, for weights that were raised
    float* sums;      // (grain, row): minus what all integers come to
  };

  static Rows rows(const LinearParams& p) {
    Rows rows = {};
    rows.count = padded_rows(p.M);
    rows.words = static_cast<int32_t*>(p.scratch);
    rows.units = reinterpret_cast<float*>(rows.words + rows.count * row_words(p));
    rows.starts = reinterpret_cast<int32_t*>(rows.units + rows.count * (p.K / kGroup));
    rows.sums = reinterpret_cast<float*>(rows.starts + rows.count * (p.K / kGroup));
    return rows;
  }

  // Words of a row.
  static int64_t row_words(const LinearParams& p) {
    return p.scale.data ? p.K / 4 : in_pairs<Simd>(p) ? p.K / 2 : p.K;
  }

  static int64_t scratch(const LinearParams& p) {
    return (padded_rows(p.M) * (row_words(p) + 3 * p.K / kGroup) * 4 + 63) / 64 * 64;
  }

  // Calls `function` with the format of the weights.
  template <class Function>
  static void with_format(const LinearParams& p, Function&& function) {
    switch (p.weight.element) {
      case Element::kFloat32:
        return function(Format<float, Element::kFloat32>());
      case Element::kBFloat16:
      case Element::kPacked:
        if constexpr (Simd::kPairs) {
          if (in_pairs<Simd>(p)) return function(Format<uint16_t, Element::kBFloat16>());
        }
        return function(Format<float, Element::kBFloat16>());
      case Element::kFloat16:
        return function(Format<float, Element::kFloat16>());
      case Element::kInt8:
        return function(Format<int8_t, Element::kInt8>());
      case Element::kInt4:
        return function(Format<int8_t, Element::kInt4>());
    }
  }

  // Inputs that are summed as they are, with one unit of x and one scale.
  static int64_t grain(const LinearParams& p) {
    int64_t inputs = p.weight.element == Element::kInt8 ? 2 * kBlock : kBlock;
    while (p.K / p.G % inputs) inputs /= 2;
    return inputs;
  }

  // --- x ---

  // Lays out the rows [first, last), and behind the last one zeros up to a whole tile.
  static void prepare(const LinearParams& p, int64_t first, int64_t last) {
    const int64_t end = last < p.M ? last : padded_rows(p.M);
    with_format(p, [&](auto format) {
      for (int64_t m = first; m < end; ++m) prepare_row<decltype(format)>(p, m);
    });
  }

  template <class Format>
  static void prepare_row(const LinearParams& p, int64_t m) {
    const Rows to = rows(p);
    const int64_t inputs = grain(p), words = inputs / Format::kInputs;
    const int64_t block = std::max(inputs, kBlock);
    for (int64_t k = 0; k < p.K; k += block) {
      float wide[2 * kBlock] = {};
      typename Format::Number q[2 * kBlock];
      if (m < p.M) Numbers::widen(p.x, m * p.K + k, block, wide);
      const float unit = round<Format>(wide, block, q);
      for (int64_t i = 0; i < block; i += inputs) {
        const int64_t grain = (k + i) / inputs, tile = m / kRows;
        int32_t* at = to.words + (grain * to.count + tile * kRows) * words + m % kRows;
        for (int64_t n = 0; n < words; ++n) at[n * kRows] = word<Format>(q + i, n);
        if constexpr (!Format::kFloats) {
          int32_t sum = 0;
          for (int64_t j = i; j < i + inputs; ++j) sum += q[j];
          to.units[grain * to.count + m] = unit;
          to.starts[grain * to.count + m] = -Format::kRaised * sum;
          to.sums[grain * to.count + m] = -unit * static_cast<float>(sum);
        }
      }
    }
  }

  template <class Format>
  static float round(const float* x, int64_t count, typename Format::Number* q) {
    if constexpr (Format::kFloats) {
      Numbers::narrow(Format::kPairs ? Element::kBFloat16 : Element::kFloat32, x, count, q, 0);
      return 1;
    } else if constexpr (Format::kBits == 8 && Simd::kSaturates) {
      return Rounding::quantize_pairs(x, count, q);
    } else {
      return Rounding::quantize(x, count, q);
    }
  }

  // The n-th word of a row, its inputs as in those of the weights.
  template <class Format>
  static int32_t word(const typename Format::Number* x, int64_t n) {
    x += n / Format::kWords * Format::kStored + n % Format::kWords;
    typename Format::Number parts[Format::kInputs];
    for (int64_t i = 0; i < Format::kInputs; ++i) parts[i] = x[i * Format::kWords];
    int32_t all;
    std::memcpy(&all, parts, sizeof all);
    return all;
  }

  // --- products ---

  // What one call of `outputs` has to itself.
  struct Part {
    float* totals;   // (row, kPanel)
    int32_t* words;  // (tile of outputs, word, output): weights of a grain
    float* scales;   // (kPanel,)
    float* offsets;  // (kPanel,)
  };

  static void outputs(const LinearParams& p, int64_t first, int64_t last, void* memory) {
    Part part;
    part.totals = static_cast<float*>(memory);
    part.scales = part.totals + padded_rows(p.M) * kPanel;
    part.offsets = part.scales + kPanel;
    part.words = reinterpret_cast<int32_t*>(part.offsets + kPanel);
    with_format(p, [&](auto format) {
      for (int64_t n = first; n < last; n += kPanel) {
        panel<decltype(format)>(p, n, std::min(n + kPanel, last), part);
      }
    });
  }

  template <class Format>
  static void panel(const LinearParams& p, int64_t first, int64_t last, const Part& part) {
    const Rows x = rows(p);
    const int64_t inputs = grain(p), words = inputs / Format::kInputs;
    const int64_t columns = (last - first + kOutputs - 1) / kOutputs * kOutputs;
    std::memset(part.totals, 0, x.count * kPanel * sizeof *part.totals);
    for (int64_t k = 0; k < p.K; k += inputs) {
      for (int64_t n = 0; n < columns; n += kLanes) lay_out<Format>(p, first, last, k, n, part);
      for (int64_t m = 0; m < x.count; m += kRows) {
        const int64_t at = k / inputs * x.count + m;
        for (int64_t n = 0; n < columns; n += kOutputs) {
          float* totals = part.totals + m * kPanel + n;
          if constexpr (Format::kFloats) {
            multiply<Format>(x.words + at * words, part.words + n * words, words, totals);
          } else {
            multiply<Format>(x.words + at * words, part.words + n * words, words, x.starts + at,
                             x.units + at, part.scales + n, totals);
            if (p.offset.data) lower(x.sums + at, part.offsets + n, totals);
          }
        }
      }
    }
    finish(p, first, last, part.totals);
  }

  // Lays out what a grain from `k` on has of kLanes outputs' weights, of those of the panel
  // [first, last) from the n-th on. Beyond the last output, it again, for nothing.
  template <class Format>
  static void lay_out(const LinearParams& p, int64_t first, int64_t last, int64_t k, int64_t n,
                      const Part& part) {
    const int64_t inputs = grain(p), bytes = inputs * Format::kBits / 8, group = p.K / p.G;
    const char* rows[kLanes];
    uint16_t unpacked[kLanes][kBlock];
    for (int64_t i = 0; i < kLanes; ++i) {
      const int64_t output = std::min(first + n + i, last - 1);
      if (p.weight.element == Element::kPacked) {
        unpack(p, output, k, unpacked[i]);
        rows[i] = reinterpret_cast<const char*>(unpacked[i]);
        continue;
      }
      rows[i] = static_cast<const char*>(p.weight.data) + (output * p.K + k) * Format::kBits / 8;
      // The next grain of so many outputs is nothing that the processor would see coming.
      for (int64_t b = 0; b < bytes; b += kLine) __builtin_prefetch(rows[i] + bytes + b);
      if (Format::kFloats || k % group) continue;
      Numbers::widen(p.scale, output * p.G + k / group, 1, part.scales + n + i);
      if (!p.offset.data) continue;
      Numbers::widen(p.offset, output * p.G + k / group, 1, part.offsets + n + i);
    }
    int32_t* to = part.words + n / kOutputs * kOutputs * (inputs / Format::kInputs) + n % kOutputs;
    for (int64_t b = 0; b < bytes; b += 4 * sizeof(int32_t)) {
      Words stored[4];
      Simd::columns(rows, b, stored);
      for (int j = 0; j < 4; ++j) {
        for (int i = 0; i < Format::kWords; ++i, to += kOutputs) {
          Simd::store(to, Format::word(stored[j], i));
        }
      }
    }
  }

  // The kBlock weights from `k` on of an output that is packed.
  static void unpack(const LinearParams& p, int64_t output, int64_t k, uint16_t* to) {
    const int64_t bytes = packed_row_bytes(p.K);
    const PackedRow row = {static_cast<const char*>(p.weight.data) + output * bytes, p.K};
    const PackedBlock* block = row.blocks() + k / kBlock;
    const char* next = reinterpret_cast<const char*>(block + 1);
    for (size_t b = 0; b < sizeof *block; b += kLine) __builtin_prefetch(next + b);
    for (int64_t i = 0; i < kBlock; i += 4 * kLanes) {
      Words words[2];
      Simd::unpack(row.data, *block, i, words);
      for (int64_t j = 0; j < 4 * kLanes; j += 8) {
        const char* eight = reinterpret_cast<const char*>(words + j / 8 % 2) + j / 16 * 16;
        std::memcpy(to + i + j, eight, 16);
      }
    }
    row.each_rare(k, k + kBlock, [&](int64_t input, uint16_t bits) { to[input - k] = bits; });
  }

  // Adds a tile's products of floats to its totals.
  template <class Format>
  static void multiply(const int32_t* x, const int32_t* weights, int64_t words, float* totals) {
    Floats sums[kRows][kVectors];
    for (int i = 0; i < kRows; ++i) {
      for (int v = 0; v < kVectors; ++v) sums[i][v] = Simd::load(totals + i * kPanel + v * kLanes);
    }
    for (int64_t n = 0; n < words; ++n) {
      add_products<Format>(x + n * kRows, weights + n * kOutputs, sums);
    }
    for (int i = 0; i < kRows; ++i) {
      for (int v = 0; v < kVectors; ++v) Simd::store(totals + i * kPanel + v * kLanes, sums[i][v]);
    }
  }

  // Adds the products of one word of each row and of each output.
  template <class Format, class Totals>
  static void add_products(const int32_t* x, const int32_t* weights,
                           Totals (&sums)[kRows][kVectors]) {
    __builtin_prefetch(x + kWordsAhead);  // across pages, which the processor alone would not do
    decltype(Format::load(weights)) w[kVectors];
    for (int v = 0; v < kVectors; ++v) w[v] = Format::load(weights + v * kLanes);
    for (int i = 0; i < kRows; ++i) {
      const auto same = Format::repeat(x + i);
      for (int v = 0; v < kVectors; ++v) sums[i][v] = Format::dot(sums[i][v], w[v], same);
    }
  }

  // Adds a tile's products of integers to its totals.
  template <class Format>
  static void multiply(const int32_t* x, const int32_t* weights, int64_t words,
                       const int32_t* starts, const float* units, const float* scales,
                       float* totals) {
    Sums sums[kRows][kVectors];
    for (int i = 0; i < kRows; ++i) {
      for (int v = 0; v < kVectors; ++v) sums[i][v] = Simd::repeat(starts[i]);
    }
    for (int64_t n = 0; n < words;) {
      typename Format::Integers products[kRows][kVectors] = {};
      for (const int64_t end = std::min(words, n + Format::kRun); n < end; ++n) {
        add_products<Format>(x + n * kRows, weights + n * kOutputs, products);
      }
      for (int i = 0; i < kRows; ++i) {
        for (int v = 0; v < kVectors; ++v) sums[i][v] = Simd::add(sums[i][v], products[i][v]);
      }
    }
    for (int i = 0; i < kRows; ++i) {
      const Floats unit = Simd::template spread<1>(units + i);
      for (int v = 0; v < kVectors; ++v) {
        float* total = totals + i * kPanel + v * kLanes;
        const Floats factor = Simd::fma(Simd::load(scales + v * kLanes), unit, Floats{});
        const Floats products = Simd::to_floats(sums[i][v]);
        Simd::store(total, Simd::fma(products, factor, Simd::load(total)));
      }
    }
  }

  // Takes offsets times the sums of x from a tile's totals.
  static void lower(const float* sums, const float* offsets, float* totals) {
    for (int i = 0; i < kRows; ++i) {
      const Floats sum = Simd::template spread<1>(sums + i);
      for (int v = 0; v < kVectors; ++v) {
        float* total = totals + i * kPanel + v * kLanes;
        Simd::store(total, Simd::fma(Simd::load(offsets + v * kLanes), sum, Simd::load(total)));
      }
    }
  }

  static void finish(const LinearParams& p, int64_t first, int64_t last, const float* totals) {
    float bias[kPanel] = {};
    if (p.bias.data) Numbers::widen(p.bias, first, last - first, bias);
    for (int64_t m = 0; m < p.M; ++m, totals += kPanel) {
      float sums[kPanel];
      for (int64_t n = 0; n < last - first; ++n) sums[n] = totals[n] + bias[n];
      Numbers::narrow(p.x.element, sums, last - first, p.y, m * p.N + first);
    }
  }
};

}  // namespace
}  // namespace kogpt::cpu
