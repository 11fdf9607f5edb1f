// Products of a few rows, for any instruction set: a source defines `Simd`, for all kernels, and
// instantiates `Linear<Simd>`.
//
// Integers: each row of x is rounded to integers with one scale for every 128 inputs, the products
// are exact over those 128, and floats from there on. For weights of 8 bits the integers have 16
// bits, finer than bfloat16 everywhere. For weights of 4 bits, which are coarse themselves, they
// have 8, or arithmetic would be slower than memory. Floating-point weights are widened to float,
// exactly, and x to float; those of bfloat16 may be packed into 12 bits (packed.h). A processor
// that multiplies pairs of bfloat16 does so where x has them too: such products are exact as well.
//
// A tile of a few outputs by up to kMostRows rows stays in registers; weights are read from memory
// once and x from a near cache. Outputs of a tile lie apart, so that the tiles of a panel read a
// few long streams from one end to the other: memory is slower where each row is a stream of its
// own, and also with a single stream. Many rows are those of many_kernel.h.
//
// `Simd` has kLanes floats to a vector. `Words` holds 2 kLanes 16-bit integers or twice as many
// bytes, `Sums` kLanes 32-bit integers, `Floats` kLanes floats. `Nibbles` holds what products of
// 4-bit weights and bytes come to over kNibbleVectors vectors at least. Of 1, 2, 3 and 4 rows,
// kFloatOutputs, kPackedOutputs, kInt8Outputs and kInt4Outputs are the outputs of a tile: more are
// more streams. How many memory is read fastest by depends on the processor, and so do the bytes
// of each that are asked for ahead (`ahead` of so many streams) and into which cache (kLocality, as
// for __builtin_prefetch); where registers are few (kFewRegisters: there are 16), products limit
// the outputs too. Of many rows, a tile has kVectors vectors of outputs; dot_bytes kSaturates above
// 16 bits for a pair. With kPairs there is dot_pairs, of bfloat16, and with kFewPackedPairs that is
// faster for few rows of packed weights too.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "gelu.h"
#include "linear.h"
#include "many_kernel.h"
#include "numbers.h"
#include "rounding.h"

namespace kogpt::cpu {
namespace {

constexpr int64_t kMostRows = 4;
constexpr int64_t kNear = 65536;    // bytes of x that these read before more comes near
constexpr int64_t kTilesAhead = 2;  // tiles whose scales are asked for ahead

template <class Simd>
struct Linear {
  using Words = typename Simd::Words;
  using Sums = typename Simd::Sums;
  using Floats = typename Simd::Floats;
  using Nibbles = typename Simd::Nibbles;
  using Numbers = cpu::Numbers<Simd>;
  using Rounding = cpu::Rounding<Simd>;

  static constexpr int64_t kLanes = Simd::kLanes;
  static constexpr int64_t kPacked = 8 * kLanes;  // 4-bit weights in one vector

  // One row of x as the kernel reads it.
  struct Row {
    float* wide;     // K floats
    int16_t* pairs;  // in the place of wide, where pairs of bfloat16 are multiplied: K of them
    int16_t* q;      // weights of 8 bits: K integers
    int8_t* bytes;   // weights of 4 bits, in the place of q: K, ordered as the weights' vectors are
    float* unit;     // integer weights: what the integers count, for each grain
    float* start;    // weights of 4 bits: what sums of products begin with, for each grain
    float* sum;      // with offsets: minus what all integers of a grain come to, each grain
  };

  static Row row(const LinearParams& params, int64_t m) {
    const int64_t K = params.K;
    char* bytes = static_cast<char*>(params.scratch) + m * linear_row_bytes(K);
    Row row = {};
    row.wide = reinterpret_cast<float*>(bytes);
    row.pairs = reinterpret_cast<int16_t*>(bytes);
    row.q = reinterpret_cast<int16_t*>(bytes + 4 * K);
    row.bytes = reinterpret_cast<int8_t*>(bytes + 4 * K);
    row.unit = reinterpret_cast<float*>(bytes + 6 * K);
    row.start = row.unit + K / kGroup;
    row.sum = row.start + K / kGroup;
    return row;
  }

  static int64_t scratch(const LinearParams& p) {
    return p.M > kFewRows ? Many<Simd>::scratch(p) : p.M * linear_row_bytes(p.K);
  }

  static void prepare(const LinearParams& p, int64_t first, int64_t last) {
    if (p.M > kFewRows) return Many<Simd>::prepare(p, first, last);
    for (int64_t m = first; m < last; ++m) {
      const Row to = row(p, m);
      if (in_pairs<Simd>(p)) {
        std::memcpy(to.pairs, static_cast<const int16_t*>(p.x.data) + m * p.K, 2 * p.K);
        if (p.weight.element == Element::kBFloat16) continue;
        for (int64_t k = 0; k < p.K; k += 4 * kLanes) order_as_unpacked(to.pairs + k);
        continue;
      }
      Numbers::widen(p.x, m * p.K, p.K, to.wide);
      if (p.weight.element == Element::kInt8) {
        round(p, to, to.q);
      } else if (p.weight.element == Element::kInt4) {
        round(p, to, to.bytes);
        // A byte has two weights: one vector gets the first of each, the next one the second.
        for (int64_t k = 0; k < p.K; k += kPacked) split_pairs<kPacked>(to.bytes + k);
      } else if (p.weight.element == Element::kBFloat16) {
        // So has a 32-bit word.
        for (int64_t k = 0; k < p.K; k += 2 * kLanes) split_pairs<2 * kLanes>(to.wide + k);
      } else if (p.weight.element == Element::kPacked) {
        for (int64_t k = 0; k < p.K; k += 4 * kLanes) {
          order_as_unpacked(to.wide + k);
          // A vector gets the first of each pair, the next one the second.
          for (int64_t i = 0; i < 4 * kLanes; i += 2 * kLanes) {
            split_pairs<2 * kLanes>(to.wide + k + i);
          }
        }
      }
    }
  }

  // Of every 16 the first eight, and then the others.
  template <class Number>
  static void order_as_unpacked(Number* x) {
    Number ordered[4 * kLanes];
    for (int64_t i = 0; i < 4 * kLanes; ++i) {
      ordered[i / 8 % 2 * 2 * kLanes + i / 16 * 8 + i % 8] = x[i];
    }
    std::memcpy(x, ordered, sizeof ordered);
  }

  // Inputs whose sum of products counts the same, as one unit of x and one scale make it.
  static int64_t grain(const LinearParams& p) {
    int64_t inputs = kBlock;
    while (p.K / p.G % inputs) inputs /= 2;
    return inputs;
  }

  // Rounds a row to integers `q`.
  template <class Integer>
  static void round(const LinearParams& p, const Row& to, Integer* q) {
    const int64_t inputs = grain(p);
    // Vectors read beyond the last.
    for (float* each : {to.unit, to.start, to.sum}) std::fill_n(each + p.K / inputs, kLanes, 0.0f);
    for (int64_t first = 0; first < p.K; first += kBlock) {
      const float unit = Rounding::quantize(to.wide + first, kBlock, q + first);
      for (int64_t k = first; k < first + kBlock; k += inputs) {
        to.unit[k / inputs] = unit;
        if (one_scale(p)) continue;
        int32_t sum = 0;
        for (int64_t i = k; i < k + inputs; ++i) sum += q[i];
        to.start[k / inputs] = static_cast<float>(-8 * sum);  // 4-bit weights are stored as q + 8
        to.sum[k / inputs] = -unit * static_cast<float>(sum);
      }
    }
  }

  static void outputs(const LinearParams& params, int64_t first, int64_t last, void* part) {
    if (params.M > kFewRows) return Many<Simd>::outputs(params, first, last, part);
    switch (params.weight.element) {
      case Element::kFloat32:
        return panels<Element::kFloat32>(params, first, last);
      case Element::kBFloat16:
        return panels<Element::kBFloat16>(params, first, last);
      case Element::kFloat16:
        return panels<Element::kFloat16>(params, first, last);
      case Element::kInt8:
        return panels<Element::kInt8>(params, first, last);
      case Element::kInt4:
        return panels<Element::kInt4>(params, first, last);
      case Element::kPacked:
        return panels<Element::kPacked>(params, first, last);
    }
  }

  template <Element kWeight>
  static void panels(const LinearParams& params, int64_t first, int64_t last) {
    const int64_t count = panel_outputs(params);
    for (int64_t panel = first; panel < last; panel += count) {
      const int64_t end = std::min(panel + count, last);
      for (int64_t m = 0; m < params.M; m += kMostRows) {
        switch (std::min(kMostRows, params.M - m)) {
          case 1:
            rows<kWeight, 1>(params, m, panel, end);
            break;
          case 2:
            rows<kWeight, 2>(params, m, panel, end);
            break;
          case 3:
            rows<kWeight, 3>(params, m, panel, end);
            break;
          default:
            rows<kWeight, 4>(params, m, panel, end);
        }
      }
    }
  }

  static constexpr int tile_outputs(Element weight, int rows) {
    switch (weight) {
      case Element::kInt4:
        return Simd::kInt4Outputs[rows - 1];
      case Element::kInt8:
        return Simd::kInt8Outputs[rows - 1];
      case Element::kPacked:
        return Simd::kPackedOutputs[rows - 1];
      default:
        return Simd::kFloatOutputs[rows - 1];
    }
  }

  template <int kRows, int kOutputs>
  struct Tile {
    int64_t grain, group;  // inputs that count the same, and that share a scale
    Row x[kRows];
    int64_t output[kOutputs];
    const char* weight[kOutputs];
  };

  // Asks for what a stream will read after these weights, which the processor alone would not do
  // across pages.
  template <int kOutputs>
  static void ask_ahead(const char* at, int64_t bytes) {
    constexpr int64_t kAhead = Simd::ahead(kOutputs);
    for (int64_t i = 0; i < bytes; i += kLine) {
      __builtin_prefetch(at + kAhead + i, 0, Simd::kLocality);
    }
  }

  // Inputs of a tile's rows that fill kNear.
  static constexpr int64_t most_inputs(int rows, Element weight) {
    const int64_t bytes = weight == Element::kInt4 ? 1 : weight == Element::kInt8 ? 2 : 4;
    return kNear / bytes / rows / (2 * kBlock) * (2 * kBlock);
  }

  // All that one panel of outputs needs of some rows, so many inputs at a time that the rows stay
  // in a near cache.
  template <Element kWeight, int kRows>
  static void rows(const LinearParams& p, int64_t m, int64_t first, int64_t last) {
    constexpr int kOutputs = tile_outputs(kWeight, kRows);
    using Totals = Floats[kRows][kOutputs];
    constexpr int64_t most = kRows == 1 ? kLongPanel : kPanel;
    static_assert(most % (4 * kOutputs) == 0, "sums come in fours of each stream");
    Totals totals[most / kOutputs] = {};
    Tile<kRows, kOutputs> tile;
    tile.grain = grain(p);
    tile.group = p.K / p.G;
    for (int i = 0; i < kRows; ++i) tile.x[i] = row(p, m + i);
    const int64_t tiles = (last - first + kOutputs - 1) / kOutputs;
    constexpr int64_t step = most_inputs(kRows, kWeight);
    for (int64_t k = 0; k < p.K; k += step) {
      const int64_t end = std::min(k + step, p.K);
      for (int64_t t = 0; t < tiles; ++t) {
        aim(p, first + t, tiles, last, tile);
        multiply<kWeight>(p, tile, k, end, totals[t]);
      }
    }
    for (int i = 0; i < kRows; ++i) {
      float y[most];
      for (int j = 0; j < kOutputs; ++j) {
        // What a last four has too much, the next stream writes over.
        for (int64_t t = 0; t < tiles; t += 4) {
          const Totals* four = totals + t;
          Simd::sums(four[0][i][j], four[1][i][j], four[2][i][j], four[3][i][j], y + j * tiles + t);
        }
      }
      if constexpr (kWeight == Element::kPacked) add_rare(p, m + i, first, last, y);
      for (int64_t n = first; n < last; n += kPanel) {
        finish(p, m + i, n, std::min(n + kPanel, last), y + n - first);
      }
    }
  }

  // All that follows the products of one row with the outputs [first, last).
  static void finish(const LinearParams& p, int64_t m, int64_t first, int64_t last, float* y) {
    const int64_t count = last - first;
    if (one_scale(p)) {
      float scales[kPanel];
      Numbers::widen(p.scale, first, count, scales);
      for (int64_t n = 0; n < count; ++n) y[n] *= scales[n];
    }
    add(p.bias, first, count, y);
    const int64_t plain = std::clamp(p.gelu_from, first, last) - first;
    Gelu<Simd>::apply(y + plain, count - plain);
    if (p.residual.data) add(p.residual, m * p.N + first, count, y);
    Numbers::narrow(p.x.element, y, count, p.y, m * p.N + first);
  }

  // Adds the numbers from a place on; zeros where there are none.
  static void add(const Array& array, int64_t first, int64_t count, float* y) {
    float more[kPanel] = {};
    if (array.data) Numbers::widen(array, first, count, more);
    for (int64_t n = 0; n < count; ++n) y[n] += more[n];
  }

  // Turns a tile to the output n and those that lie so far apart.
  template <int kRows, int kOutputs>
  static void aim(const LinearParams& p, int64_t n, int64_t apart, int64_t last,
                  Tile<kRows, kOutputs>& tile) {
    const int64_t row = row_bytes(p.weight.element, p.K);
    for (int j = 0; j < kOutputs; ++j) {
      tile.output[j] = std::min(n + j * apart, last - 1);  // beyond the last, it again, for nothing
      tile.weight[j] = static_cast<const char*>(p.weight.data) + tile.output[j] * row;
    }
  }

  // Adds the products of the inputs [first, last) to a tile's totals.
  template <Element kWeight, int kRows, int kOutputs>
  static void multiply(const LinearParams& p, const Tile<kRows, kOutputs>& tile, int64_t first,
                       int64_t last, Floats (&totals)[kRows][kOutputs]) {
    if constexpr (Simd::kPairs && kWeight == Element::kBFloat16) {
      if (in_pairs<Simd>(p)) return pairs(tile, first, last, totals);
    }
    if constexpr (kWeight == Element::kInt4) {
      int4(p, tile, first, last, totals);
    } else if constexpr (kWeight == Element::kPacked) {
      if constexpr (Simd::kFewPackedPairs) {
        if (in_pairs<Simd>(p)) return packed<true>(p, tile, first, last, totals);
      }
      packed<false>(p, tile, first, last, totals);
    } else if constexpr (kWeight != Element::kInt8) {
      floats<kWeight>(tile, first, last, totals);
    } else if (one_scale(p)) {
      steps<kWeight, kBlock, 1, true>(p, tile, first, last, totals);
    } else {
      steps<kWeight, kBlock, 1, false>(p, tile, first, last, totals);
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
        ask_ahead<kOutputs>(tile.weight[j] + k * kBytes, 2 * kLanes * kBytes);
        Simd::template widen<kWeight>(tile.weight[j] + k * kBytes, w0, w1);
        for (int i = 0; i < kRows; ++i) {
          sums[i][j] = Simd::fma(w0, Simd::load(tile.x[i].wide + k), sums[i][j]);
          sums[i][j] = Simd::fma(w1, Simd::load(tile.x[i].wide + k + kLanes), sums[i][j]);
        }
      }
    }
    std::memcpy(totals, sums, sizeof sums);
  }

  // The same where both have bfloat16.
  template <int kRows, int kOutputs>
  static void pairs(const Tile<kRows, kOutputs>& tile, int64_t first, int64_t last,
                    Floats (&totals)[kRows][kOutputs]) {
    Floats sums[kRows][kOutputs];
    std::memcpy(sums, totals, sizeof sums);
    for (int64_t k = first; k < last; k += 2 * kLanes) {
      for (int j = 0; j < kOutputs; ++j) {
        ask_ahead<kOutputs>(tile.weight[j] + 2 * k, 4 * kLanes);
        const Words w = Simd::load(static_cast<const void*>(tile.weight[j] + 2 * k));
        for (int i = 0; i < kRows; ++i) {
          sums[i][j] = Simd::dot_pairs(sums[i][j], w, Simd::load(tile.x[i].pairs + k));
        }
      }
    }
    std::memcpy(totals, sums, sizeof sums);
  }

  template <bool kInPairs, int kRows, int kOutputs>
  static void packed(const LinearParams& p, const Tile<kRows, kOutputs>& tile, int64_t first,
                     int64_t last, Floats (&totals)[kRows][kOutputs]) {
    Floats sums[kRows][kOutputs];
    std::memcpy(sums, totals, sizeof sums);
    const PackedBlock* blocks[kOutputs];
    for (int j = 0; j < kOutputs; ++j) {
      blocks[j] = PackedRow{tile.weight[j], p.K}.blocks() + first / kBlock;
    }
    for (int64_t k = first; k < last; k += kBlock) {
      for (int j = 0; j < kOutputs; ++j) {
        ask_ahead<kOutputs>(reinterpret_cast<const char*>(blocks[j]), sizeof *blocks[j]);
      }
#pragma GCC unroll 4  // or sums would be stored anew each time
      for (int64_t i = 0; i < kBlock; i += 4 * kLanes) {
        for (int j = 0; j < kOutputs; ++j) {
          Words words[2];
          Simd::unpack(tile.weight[j], *blocks[j], i, words);
          if constexpr (kInPairs) {
            for (int v = 0; v < 2; ++v) {
              for (int m = 0; m < kRows; ++m) {
                const int16_t* x = tile.x[m].pairs + k + i + v * 2 * kLanes;
                sums[m][j] = Simd::dot_pairs(sums[m][j], words[v], Simd::load(x));
              }
            }
          } else {
            for (int v = 0; v < 4; ++v) {
              const Floats w = Simd::to_floats(words[v / 2], v % 2);
              for (int m = 0; m < kRows; ++m) {
                const float* x = tile.x[m].wide + k + i + v * kLanes;
                sums[m][j] = Simd::fma(w, Simd::load(x), sums[m][j]);
              }
            }
          }
        }
      }
      for (int j = 0; j < kOutputs; ++j) ++blocks[j];
    }
    std::memcpy(totals, sums, sizeof sums);
  }

  // Adds the products of one row of x with weights that have no code, and were zeros until now: an
  // input that is infinite has made NaN of them.
  static void add_rare(const LinearParams& p, int64_t m, int64_t first, int64_t last, float* y) {
    const char* weight = static_cast<const char*>(p.weight.data);
    const int64_t bytes = packed_row_bytes(p.K);
    for (int64_t n = first; n < last; ++n) {
      PackedRow{weight + n * bytes, p.K}.each_rare(0, p.K, [&](int64_t input, uint32_t bits) {
        float x;
        Numbers::widen(p.x, m * p.K + input, 1, &x);
        y[n - first] += Numbers::from_bits(bits << 16) * x;
      });
    }
  }

  template <int kRows, int kOutputs>
  static void int4(const LinearParams& p, const Tile<kRows, kOutputs>& tile, int64_t first,
                   int64_t last, Floats (&totals)[kRows][kOutputs]) {
    switch (tile.grain) {
      case kBlock:
        return int4_grain<kBlock>(p, tile, first, last, totals);
      case 2 * kGroup:
        return int4_grain<2 * kGroup>(p, tile, first, last, totals);
      default:
        return int4_grain<kGroup>(p, tile, first, last, totals);
    }
  }

  // Inputs of a step, whole vectors of weights.
  static constexpr int64_t int4_step(int64_t grain) { return std::max(grain, kPacked); }

  template <int64_t kGrain, int kRows, int kOutputs>
  static void int4_grain(const LinearParams& p, const Tile<kRows, kOutputs>& tile, int64_t first,
                         int64_t last, Floats (&totals)[kRows][kOutputs]) {
    constexpr int64_t kStep = int4_step(kGrain);
    steps<Element::kInt4, kStep, kStep / kGrain, false>(p, tile, first, last, totals);
  }

  // The products of kStep inputs are summed as integers. With kSpread > 1, the weights of one
  // vector belong to so many groups. With kLateScale, scales are left to the end; else factors are
  // made for a few steps at a time, or memory would rest while those of all inputs are made.
  template <Element kWeight, int64_t kStep, int kSpread, bool kLateScale, int kRows, int kOutputs>
  static void steps(const LinearParams& p, const Tile<kRows, kOutputs>& tile, int64_t first,
                    int64_t last, Floats (&totals)[kRows][kOutputs]) {
    constexpr int64_t kGrain = kStep / kSpread;
    float factors[kRows][kOutputs][kLanes];
    Floats sums[kRows][kOutputs];
    std::memcpy(sums, totals, sizeof sums);
    if (p.offset.data) add_offsets<kGrain>(p, tile, first, last, sums);
    const auto add = [&](int64_t from, int64_t end) {
      const int64_t grain = from / kGrain;
      for (int64_t n = from / kStep; n < end / kStep; ++n) {
        step<kWeight, kStep>(tile, n, [&](int i, int j, Products<kWeight> products) {
          const float* each = kLateScale ? tile.x[i].unit + n : factors[i][j] + n * kSpread - grain;
          const Floats factor = Simd::template spread<kSpread>(each);
          sums[i][j] = Simd::fma(total<kWeight>(products), factor, sums[i][j]);
        });
      }
    };
    if constexpr (kLateScale) {
      add(first, last);
    } else {
      for (int j = 0; j < kOutputs && first == 0; ++j) ask_for_scales(p, tile.output[j]);
      for (int64_t from = first; from < last; from += kLanes * kGrain) {
        fill_factors<kWeight, kGrain>(p, tile, from, last, factors, sums);
        add(from, std::min(from + kLanes * kGrain, last));
      }
    }
    std::memcpy(totals, sums, sizeof sums);
  }

  // Calls `add` with each row, output and their products of the inputs of the n-th step.
  template <Element kWeight, int64_t kStep, int kRows, int kOutputs, class Add>
  static void step(const Tile<kRows, kOutputs>& tile, int64_t n, const Add& add) {
    constexpr int64_t kPerByte = kWeight == Element::kInt4 ? 2 : 1;
    constexpr int64_t kVector = (kWeight == Element::kInt4 ? 4 : 2) * kLanes;  // inputs
    constexpr int kVectors = kStep / kVector;
    static_assert(kWeight != Element::kInt4 || kVectors <= Simd::kNibbleVectors,
                  "or sums could overflow");
    const int64_t k = n * kStep, bytes = n * (kStep / kPerByte);
    // Where registers are few, one output after the other; but weights that several rows share are
    // widened once.
    if constexpr (Simd::kFewRegisters && (kRows == 1 || kWeight == Element::kInt4)) {
      for (int i = 0; i < kRows; ++i) {
        Words q[kVectors];
        for (int v = 0; v < kVectors; ++v) q[v] = inputs<kWeight>(tile.x[i], k + v * kVector);
        for (int j = 0; j < kOutputs; ++j) {
          if (i == 0) ask_ahead<kOutputs>(tile.weight[j] + bytes, kStep / kPerByte);
          Products<kWeight> products = {};
          for (int v = 0; v < kVectors; ++v) {
            products = dot<kWeight>(products, weights<kWeight>(tile.weight[j] + bytes, v), q[v]);
          }
          add(i, j, products);
        }
      }
    } else {
      Products<kWeight> products[kRows][kOutputs];
      for (int j = 0; j < kOutputs; ++j) {
        ask_ahead<kOutputs>(tile.weight[j] + bytes, kStep / kPerByte);
        for (int i = 0; i < kRows; ++i) products[i][j] = Products<kWeight>{};
      }
      for (int v = 0; v < kVectors; ++v) {
        Words w[kOutputs];
        for (int j = 0; j < kOutputs; ++j) w[j] = weights<kWeight>(tile.weight[j] + bytes, v);
        for (int i = 0; i < kRows; ++i) {
          const Words q = inputs<kWeight>(tile.x[i], k + v * kVector);
          for (int j = 0; j < kOutputs; ++j) {
            products[i][j] = dot<kWeight>(products[i][j], w[j], q);
          }
        }
      }
      for (int i = 0; i < kRows; ++i) {
        for (int j = 0; j < kOutputs; ++j) add(i, j, products[i][j]);
      }
    }
  }

  // --- what a step of integers is made of, by the format of its weights ---

  template <Element kWeight>
  using Products = std::conditional_t<kWeight == Element::kInt4, Nibbles, Sums>;

  // The n-th vector of a step's weights.
  template <Element kWeight>
  static Words weights(const char* at, int n) {
    return kWeight == Element::kInt4 ? Simd::nibbles(at + n / 2 * kPacked / 2, n % 2)
                                     : Simd::widen_int8(at + n * 2 * kLanes);
  }

  // The inputs from the k-th on that meet a vector of weights.
  template <Element kWeight>
  static Words inputs(const Row& x, int64_t k) {
    if constexpr (kWeight == Element::kInt4) return Simd::load(x.bytes + k);
    return Simd::load(x.q + k);
  }

  template <Element kWeight>
  static Products<kWeight> dot(Products<kWeight> sums, Words weights, Words x) {
    if constexpr (kWeight == Element::kInt4)
      return Simd::dot_nibbles(sums, weights, x);
    else
      return Simd::dot(sums, weights, x);
  }

  template <Element kWeight>
  static Floats total(Products<kWeight> products) {
    if constexpr (kWeight == Element::kInt4)
      return Simd::to_floats(Simd::add(Sums{}, products));
    else
      return Simd::to_floats(products);
  }

  // Whether all inputs of an output have one scale, which then waits for the end.
  static bool one_scale(const LinearParams& p) {
    return p.weight.element == Element::kInt8 && p.G == 1 && !p.offset.data;
  }

  // What the sums of products of every kGrain inputs count from input k on, scale of the weights
  // times unit of x, a vector of factors; adds to `sums` what those of 4-bit weights begin with.
  template <Element kWeight, int64_t kGrain, int kRows, int kOutputs>
  static void fill_factors(const LinearParams& p, const Tile<kRows, kOutputs>& tile, int64_t k,
                           int64_t last, float (&factors)[kRows][kOutputs][kLanes],
                           Floats (&sums)[kRows][kOutputs]) {
    for (int j = 0; j < kOutputs; ++j) {
      const Floats scale = groups<kGrain>(p.scale, tile.output[j] * p.G, tile.group, k, last);
      for (int i = 0; i < kRows; ++i) {
        const Floats unit = Simd::load(tile.x[i].unit + k / kGrain);
        const Floats factor = Simd::fma(scale, unit, Floats{});
        Simd::store(factors[i][j], factor);
        if (kWeight == Element::kInt4) {
          const Floats start = Simd::load(tile.x[i].start + k / kGrain);
          sums[i][j] = Simd::fma(factor, start, sums[i][j]);
        }
      }
    }
  }

  // Adds to `sums` what offsets make of x.
  template <int64_t kGrain, int kRows, int kOutputs>
  static void add_offsets(const LinearParams& p, const Tile<kRows, kOutputs>& tile, int64_t first,
                          int64_t last, Floats (&sums)[kRows][kOutputs]) {
    for (int64_t k = first; k < last; k += kLanes * kGrain) {
      for (int j = 0; j < kOutputs; ++j) {
        const Floats less = groups<kGrain>(p.offset, tile.output[j] * p.G, tile.group, k, last);
        for (int i = 0; i < kRows; ++i) {
          sums[i][j] = Simd::fma(less, Simd::load(tile.x[i].sum + k / kGrain), sums[i][j]);
        }
      }
    }
  }

  // Scales or offsets, the first of an output's at `from`, for the grains from input `first` on: a
  // vector of them, and zeros from `last` on.
  template <int64_t kGrain>
  static Floats groups(const Array& all, int64_t from, int64_t group, int64_t first, int64_t last) {
    const bool whole = group == kGrain && last - first >= kLanes * kGrain;
    return whole ? Numbers::widen(all, from + first / kGrain)
                 : few_groups<kGrain>(all, from, group, first, last);
  }

  // The same of groups that are wider than a grain, or too few for a vector.
  template <int64_t kGrain>
  [[gnu::noinline]] static Floats few_groups(const Array& all, int64_t from, int64_t group,
                                             int64_t first, int64_t last) {
    const int64_t count = std::min(kLanes, (last - first) / kGrain), grain = first / kGrain;
    const int64_t grains = group / kGrain;
    float each[kLanes] = {};
    if (grains == 1) Numbers::widen(all, from + grain, count, each);
    for (int64_t c = 0, end; c < count && grains > 1; c = end) {
      const int64_t at = (grain + c) / grains;
      end = std::min(count, (at + 1) * grains - grain);
      Numbers::widen(all, from + at, 1, each + c);
      std::fill(each + c + 1, each + end, each[c]);
    }
    return Simd::load(each);
  }

  // Scales are too few to be read as a stream: those of a tile to come are asked for.
  static void ask_for_scales(const LinearParams& p, int64_t output) {
    const int64_t bytes = element_bits(p.scale.element) / 8 * p.G;
    const char* at = static_cast<const char*>(p.scale.data) + (output + kTilesAhead) * bytes;
    for (int64_t i = 0; i < bytes; i += kLine) __builtin_prefetch(at + i);
  }
};

}  // namespace
}  // namespace kogpt::cpu
