// The kernel, for any instruction set: a source defines `Simd` and instantiates `Linear<Simd>`.
//
// Integers: each row of x is rounded to 16-bit integers with one scale for every 128 inputs (finer
// than bfloat16 everywhere), the products are exact in 32 bits over those 128, and floats from
// there on. Floating-point weights are widened to float, exactly, and x to float.
//
// A tile of a few outputs by up to kMostRows rows stays in registers; weights are read from memory
// once and x from the nearest cache. With more rows, a panel of kPanel outputs stays in the cache
// while all rows pass, so many rows run at the speed of arithmetic.
//
// `Simd` has kLanes floats to a vector. `Words` holds 2 kLanes 16-bit integers, `Sums` kLanes
// 32-bit integers, `Floats` kLanes floats.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "linear.h"
#include "numbers.h"

namespace kogpt::cpu {
namespace {

constexpr int64_t kMostRows = 4;
constexpr int64_t kPanel = 32;
constexpr int64_t kLine = 64;     // bytes that memory gives at once
constexpr int64_t kNear = 16384;  // bytes of x in the nearest cache, beside what streams through

template <class Simd>
struct Linear {
  using Words = typename Simd::Words;
  using Sums = typename Simd::Sums;
  using Floats = typename Simd::Floats;
  using Numbers = cpu::Numbers<Simd>;

  static constexpr int64_t kLanes = Simd::kLanes;
  static constexpr int64_t kPacked = 8 * kLanes;  // 4-bit weights in one vector

  // One row of x as the kernel reads it.
  struct Row {
    float* wide;     // K floats
    int16_t* q;      // integer weights: K, in the order of the weights' vectors
    float* unit;     // integer weights: what q counts, for each block
    int32_t* start;  // 4 bits: what the sums of each vector begin with, as weights are q + 8
  };

  static Row row(const LinearParams& params, int64_t m) {
    const int64_t K = params.K;
    char* bytes = static_cast<char*>(params.scratch) + m * linear_row_bytes(K);
    Row row = {};
    row.wide = reinterpret_cast<float*>(bytes);
    row.q = reinterpret_cast<int16_t*>(bytes + 4 * K);
    row.start = reinterpret_cast<int32_t*>(bytes + 6 * K);  // K / 8 of them
    row.unit = reinterpret_cast<float*>(bytes + 6 * K + K / 2);
    return row;
  }

  static void prepare(const LinearParams& params) {
    for (int64_t m = 0; m < params.M; ++m) {
      const Row to = row(params, m);
      Numbers::widen(params.x, m * params.K, params.K, to.wide);
      for (int64_t k = 0; k < params.K; k += kBlock) {
        if (params.weight.element == Element::kBFloat16) {
          order_pairs(to.wide + k);
        } else if (params.weight.element == Element::kInt8) {
          to.unit[k / kBlock] = quantize(to.wide + k, to.q + k);
        } else if (params.weight.element == Element::kInt4) {
          int16_t q[kBlock];
          to.unit[k / kBlock] = quantize(to.wide + k, q);
          order_fours(q, to.q + k, to.start + k / 8);
        }
      }
    }
  }

  // A 32-bit word has two bfloat16: one vector gets the first of each, the next one the second.
  static void order_pairs(float* x) {
    float ordered[kBlock];
    for (int64_t i = 0; i < kBlock; ++i) {
      const int64_t lane = i % kLanes, half = i % (2 * kLanes) / kLanes;
      ordered[i] = x[i / (2 * kLanes) * (2 * kLanes) + 2 * lane + half];
    }
    std::memcpy(x, ordered, sizeof ordered);
  }

  // A 16-bit word has four weights: vector n gets the n-th of each.
  static void order_fours(const int16_t* from, int16_t* to, int32_t* start) {
    for (int64_t first = 0; first < kBlock; first += kPacked) {
      for (int64_t n = 0; n < 4; ++n) {
        for (int64_t lane = 0; lane < 2 * kLanes; ++lane) {
          to[first + n * 2 * kLanes + lane] = from[first + 4 * lane + n];
        }
      }
    }
    for (int64_t i = 0; i < kBlock / 8; ++i) {
      int32_t sum = 0;
      for (int64_t n = 0; n < 8; ++n) sum += from[8 * i + n];
      start[i] = -8 * sum;
    }
  }

  // Rounds a block to 16-bit integers; what they count comes back.
  static float quantize(const float* x, int16_t* q) {
    uint32_t largest = 0;  // of the magnitudes: as bits they have the order of the numbers
    for (int64_t i = 0; i < kBlock; ++i) {
      largest = std::max(largest, Numbers::to_bits(x[i]) & 0x7fffffff);
    }
    const float size = Numbers::from_bits(largest);
    if (size < 1e-30f) {  // whose inverse would be infinite
      std::memset(q, 0, kBlock * sizeof *q);
      return 0;
    }
    const float inverse = 32767 / size;
    for (int64_t i = 0; i < kBlock; ++i) {
      // Adding 3 * 2^22 leaves the nearest integer in the low bits of the sum.
      q[i] = static_cast<int16_t>(Numbers::to_bits(x[i] * inverse + 12582912.0f));
    }
    return size <= std::numeric_limits<float>::max() ? size / 32767 : NAN;
  }

  static void outputs(const LinearParams& params, int64_t first, int64_t last) {
    for (int64_t panel = first; panel < last; panel += kPanel) {
      const int64_t end = std::min(panel + kPanel, last);
      for (int64_t m = 0; m < params.M; m += kMostRows) {
        switch (std::min(kMostRows, params.M - m)) {
          case 1:
            rows<1, 4>(params, m, panel, end);
            break;
          case 2:
            rows<2, 4>(params, m, panel, end);
            break;
          case 3:
            rows<3, 2>(params, m, panel, end);
            break;
          default:
            rows<4, 2>(params, m, panel, end);
        }
      }
    }
  }

  template <int kRows, int kOutputs>
  struct Tile {
    Row x[kRows];
    int64_t output[kOutputs];
    const char* weight[kOutputs];
    int64_t stride;  // bytes of a row of weights
  };

  // Asks for what the next tile will read: rows are too short for the processor to see it coming.
  static void ahead(const char* at, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += kLine) __builtin_prefetch(at + i, 0, 2);
  }

  // All that one panel of outputs needs of some rows, so many inputs at a time that the rows stay
  // in the nearest cache.
  template <int kRows, int kOutputs>
  static void rows(const LinearParams& p, int64_t m, int64_t first, int64_t last) {
    using Totals = Floats[kRows][kOutputs];
    Totals totals[kPanel / kOutputs] = {};
    const int64_t bytes = p.scale.data ? sizeof(int16_t) : sizeof(float);
    const int64_t step = kNear / bytes / kRows / kBlock * kBlock;
    for (int64_t k = 0; k < p.K; k += step) {
      const int64_t end = std::min(k + step, p.K);
      for (int64_t n = first; n < last; n += kOutputs) {
        const auto tile = tile_at<kRows, kOutputs>(p, m, n, last);
        multiply(p, tile, k, end, totals[(n - first) / kOutputs]);
      }
    }
    for (int64_t n = first; n < last; ++n) {
      float bias = 0;
      if (p.bias.data) Numbers::widen(p.bias, n, 1, &bias);
      for (int i = 0; i < kRows; ++i) {
        const Floats& total = totals[(n - first) / kOutputs][i][(n - first) % kOutputs];
        Numbers::store(p.x.element, p.y, (m + i) * p.N + n, Simd::sum(total) + bias);
      }
    }
  }

  template <int kRows, int kOutputs>
  static Tile<kRows, kOutputs> tile_at(const LinearParams& p, int64_t m, int64_t n, int64_t last) {
    Tile<kRows, kOutputs> tile;
    tile.stride = stride(p);
    for (int i = 0; i < kRows; ++i) tile.x[i] = row(p, m + i);
    for (int j = 0; j < kOutputs; ++j) {
      tile.output[j] = std::min(n + j, last - 1);  // beyond the last, it again, for nothing
      tile.weight[j] = static_cast<const char*>(p.weight.data) + tile.output[j] * tile.stride;
    }
    return tile;
  }

  // Adds the products of the inputs [first, last) to a tile's totals.
  template <int kRows, int kOutputs>
  static void multiply(const LinearParams& p, const Tile<kRows, kOutputs>& tile, int64_t first,
                       int64_t last, Floats (&totals)[kRows][kOutputs]) {
    const int64_t group = p.K / p.G;
    switch (p.weight.element) {
      case Element::kFloat32:
        return floats<Element::kFloat32>(tile, first, last, totals);
      case Element::kBFloat16:
        return floats<Element::kBFloat16>(tile, first, last, totals);
      case Element::kFloat16:
        return floats<Element::kFloat16>(tile, first, last, totals);
      case Element::kInt8:
        return integers<Element::kInt8, 1>(p, tile, first, last, totals);
      case Element::kInt4:
        if (group % kPacked == 0) return integers<Element::kInt4, 1>(p, tile, first, last, totals);
        if constexpr (kPacked >= 64) {
          if (group % (kPacked / 2) == 0) {
            return integers<Element::kInt4, 2>(p, tile, first, last, totals);
          }
        }
        if constexpr (kPacked >= 128) integers<Element::kInt4, 4>(p, tile, first, last, totals);
    }
  }

  // Bytes of a row of weights.
  static int64_t stride(const LinearParams& p) {
    switch (p.weight.element) {
      case Element::kFloat32:
        return 4 * p.K;
      case Element::kInt8:
        return p.K;
      case Element::kInt4:
        return p.K / 2;
      default:
        return 2 * p.K;
    }
  }

  template <Element kWeight, int kRows, int kOutputs>
  static void floats(const Tile<kRows, kOutputs>& tile, int64_t first, int64_t last,
                     Floats (&totals)[kRows][kOutputs]) {
    constexpr int64_t kBytes = kWeight == Element::kFloat32 ? 4 : 2;
    Floats sums[kRows][kOutputs];
    std::memcpy(sums, totals, sizeof sums);
    for (int64_t k = first; k < last; k += 2 * kLanes) {
      for (int j = 0; j < kOutputs; ++j) {
        Floats w0, w1;
        ahead(tile.weight[j] + kOutputs * tile.stride + k * kBytes, 2 * kLanes * kBytes);
        Simd::template widen<kWeight>(tile.weight[j] + k * kBytes, w0, w1);
        for (int i = 0; i < kRows; ++i) {
          sums[i][j] = Simd::fma(w0, Simd::load(tile.x[i].wide + k), sums[i][j]);
          sums[i][j] = Simd::fma(w1, Simd::load(tile.x[i].wide + k + kLanes), sums[i][j]);
        }
      }
    }
    std::memcpy(totals, sums, sizeof sums);
  }

  // With kSpread > 1, the weights of one vector belong to so many groups.
  template <Element kWeight, int kSpread, int kRows, int kOutputs>
  static void integers(const LinearParams& p, const Tile<kRows, kOutputs>& tile, int64_t first,
                       int64_t last, Floats (&totals)[kRows][kOutputs]) {
    constexpr bool kFour = kWeight == Element::kInt4;
    constexpr int64_t kStep = kFour ? kPacked : kBlock;  // weights whose products are summed first
    constexpr int64_t kFactors = kSpread * kBlock / kStep;  // of a block
    float factors[kRows][kOutputs][kFactors * kNear / sizeof(int16_t) / kRows / kBlock];
    fill<kFactors>(p, tile, first, last, factors);
    Floats sums[kRows][kOutputs];
    std::memcpy(sums, totals, sizeof sums);
    for (int64_t k = first; k < last; k += kStep) {
      Sums products[kRows][kOutputs];
      for (int i = 0; i < kRows; ++i) {
        for (int j = 0; j < kOutputs; ++j) {
          products[i][j] = kFour ? Simd::load(tile.x[i].start + k / 8) : Sums{};
        }
      }
      for (int j = 0; j < kOutputs; ++j) {
        ahead(tile.weight[j] + kOutputs * tile.stride + (kFour ? k / 2 : k),
              kFour ? kStep / 2 : kStep);
      }
      for (int v = 0; v < kStep / (2 * kLanes); ++v) {
        Words w[kOutputs];
        for (int j = 0; j < kOutputs; ++j) {
          w[j] = kFour ? Simd::nibbles(tile.weight[j] + k / 2, v)
                       : Simd::widen_int8(tile.weight[j] + k + v * 2 * kLanes);
        }
        for (int i = 0; i < kRows; ++i) {
          const Words q = Simd::load(tile.x[i].q + k + v * 2 * kLanes);
          for (int j = 0; j < kOutputs; ++j) products[i][j] = Simd::dot(products[i][j], w[j], q);
        }
      }
      const int64_t at = (k - first) / kStep * kSpread;
      for (int i = 0; i < kRows; ++i) {
        for (int j = 0; j < kOutputs; ++j) {
          const Floats factor = Simd::template spread<kSpread>(factors[i][j] + at);
          sums[i][j] = Simd::fma(Simd::to_floats(products[i][j]), factor, sums[i][j]);
        }
      }
    }
    std::memcpy(totals, sums, sizeof sums);
  }

  // What the sums of products count, kFactors to a block: scale of the weights times unit of x.
  template <int64_t kFactors, int kRows, int kOutputs, size_t kSize>
  static void fill(const LinearParams& p, const Tile<kRows, kOutputs>& tile, int64_t first,
                   int64_t last, float (&factors)[kRows][kOutputs][kSize]) {
    const int64_t group = p.K / p.G, grain = kBlock / kFactors;
    const int64_t count = (last - first) / grain;
    for (int j = 0; j < kOutputs; ++j) {
      float scales[kSize];
      const int64_t at = tile.output[j] * p.G;
      if (group == grain) {
        Numbers::widen(p.scale, at + first / group, count, scales);
      } else {
        for (int64_t c = 0; c < count; ++c)
          Numbers::widen(p.scale, at + (first + c * grain) / group, 1, scales + c);
      }
      for (int i = 0; i < kRows; ++i) {
        const float* unit = tile.x[i].unit + first / kBlock;
        for (int64_t c = 0; c < count; ++c) factors[i][j][c] = scales[c] * unit[c / kFactors];
      }
    }
  }
};

}  // namespace
}  // namespace kogpt::cpu
