// Attention of a few new tokens over a long cache, for any instruction set: see linear_kernel.h.
//
// One query of one head at a time. The keys of a head lie together, and so do its values: they are
// read as a few long streams, as weights are. Everything between is float. What a query gives
// depends on its own keys and values alone, not on how many new tokens come with it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "decode.h"
#include "numbers.h"

namespace kogpt::cpu {
namespace {

template <class Simd>
struct Decode {
  using Floats = typename Simd::Floats;
  using Numbers = cpu::Numbers<Simd>;

  static constexpr int64_t kLanes = Simd::kLanes;
  static constexpr int64_t kPair = 2 * kLanes;  // numbers that are widened at once
  static constexpr int kStreams = 4;

  static void heads(const DecodeParams& p, int64_t first, int64_t last) {
    for (int64_t head = first; head < last; ++head) {
      switch (p.element) {
        case Element::kFloat32:
          run<Element::kFloat32>(p, head);
          break;
        case Element::kBFloat16:
          run<Element::kBFloat16>(p, head);
          break;
        default:
          run<Element::kFloat16>(p, head);
      }
    }
  }

  // The keys of what a query sees, or the values.
  struct Seen {
    const char* data;
    int64_t stride;  // bytes from one to the next
    int64_t count;

    const char* operator[](int64_t i) const { return data + i * stride; }
  };

  template <Element kElement>
  static void run(const DecodeParams& p, int64_t head) {
    const int64_t b = head / p.H, h = head % p.H;
    const int64_t start = p.starts ? p.starts[b] : 0;
    float* query = p.scratch + head * decode_scratch(p);
    float* result = query + p.D;
    float* scores = result + p.D;
    for (int64_t t = 0; t < p.T; ++t) {
      const int64_t place = p.lengths[b] + t;
      Numbers::widen({at<kElement>(p.k, b, t, h), kElement}, 0, p.D, query);
      rotate(p, std::max<int64_t>(place - start, 0), query);
      Numbers::narrow(kElement, query, p.D, at<kElement>(p.keys, b, place, h), 0);
      std::memcpy(at<kElement>(p.values, b, place, h), at<kElement>(p.v, b, t, h),
                  p.D * bytes(kElement));
    }
    for (int64_t t = 0; t < p.T; ++t) {
      const int64_t place = p.lengths[b] + t, first = std::min(start, place);
      const int64_t count = place + 1 - first;
      Numbers::widen({at<kElement>(p.q, b, t, h), kElement}, 0, p.D, query);
      rotate(p, std::max<int64_t>(place - start, 0), query);
      reorder<kElement>(query, p.D, split_pairs<kPair, float>);
      score<kElement>(p, seen<kElement>(p.keys, b, first, h, count), query, scores);
      const float sum = softmax(scores, count);
      std::memset(result, 0, p.D * sizeof *result);
      mix<kElement>(p, seen<kElement>(p.values, b, first, h, count), scores, result);
      reorder<kElement>(result, p.D, join_pairs<kPair, float>);
      for (int64_t d = 0; d < p.D; ++d) result[d] /= sum;
      Numbers::narrow(kElement, result, p.D, at<kElement>(p.out, b, t, h), 0);
    }
  }

  static constexpr int64_t bytes(Element element) { return element == Element::kFloat32 ? 4 : 2; }

  template <Element kElement>
  static char* at(const Rows& rows, int64_t b, int64_t token, int64_t h) {
    const int64_t i = b * rows.batch_stride + token * rows.token_stride + h * rows.head_stride;
    return static_cast<char*>(rows.data) + i * bytes(kElement);
  }

  template <Element kElement>
  static Seen seen(const Rows& rows, int64_t b, int64_t first, int64_t h, int64_t count) {
    return {at<kElement>(rows, b, first, h), rows.token_stride * bytes(kElement), count};
  }

  static void rotate(const DecodeParams& p, int64_t position, float* x) {
    for (int64_t i = 0; i < p.R / 2; ++i) {
      const float cos = p.cos[position * p.R / 2 + i], sin = p.sin[position * p.R / 2 + i];
      const float even = x[2 * i], odd = x[2 * i + 1];
      x[2 * i] = even * cos - odd * sin;
      x[2 * i + 1] = odd * cos + even * sin;
    }
  }

  // Brings a head's numbers into the order in which vectors widen them, or back.
  template <Element kElement>
  static void reorder(float* x, int64_t D, void (*pairs)(float*)) {
    if (kElement != Element::kBFloat16) return;
    for (int64_t d = 0; d < D; d += kPair) pairs(x + d);
  }

  // Calls `tokens(n, i, apart)` until every one of `count` tokens was among the n that begin with
  // the i-th and lie `apart`.
  template <class Function>
  static void streams(int64_t count, Function&& tokens) {
    const int64_t apart = count / kStreams;
    for (int64_t i = 0; i < apart; ++i) {
      tokens(std::integral_constant<int, kStreams>(), i, apart);
    }
    for (int64_t i = kStreams * apart; i < count; ++i) {
      tokens(std::integral_constant<int, 1>(), i, int64_t{0});
    }
  }

  template <Element kElement>
  static void score(const DecodeParams& p, const Seen& keys, const float* query, float* scores) {
    streams(keys.count, [&](auto n, int64_t i, int64_t apart) {
      const char* key[n];
      Floats sums[n] = {};
      for (int j = 0; j < n; ++j) key[j] = keys[i + j * apart];
      for (int64_t d = 0; d < p.D; d += kPair) {
        const Floats q0 = Simd::load(query + d), q1 = Simd::load(query + d + kLanes);
        for (int j = 0; j < n; ++j) {
          Floats k0, k1;
          Simd::template widen<kElement>(key[j] + d * bytes(kElement), k0, k1);
          sums[j] = Simd::fma(k1, q1, Simd::fma(k0, q0, sums[j]));
        }
      }
      for (int j = 0; j < n; ++j) scores[i + j * apart] = Simd::sum(sums[j]) * p.scale;
    });
  }

  // Scores to weights, up to the factor that comes back.
  static float softmax(float* scores, int64_t count) {
    float largest = scores[0];
    for (int64_t i = 1; i < count; ++i) largest = std::max(largest, scores[i]);
    float sum = 0;
    for (int64_t i = 0; i < count; ++i) {
      scores[i] = std::exp(scores[i] - largest);
      sum += scores[i];
    }
    return sum;
  }

  template <Element kElement>
  static void mix(const DecodeParams& p, const Seen& values, const float* weights, float* result) {
    streams(values.count, [&](auto n, int64_t i, int64_t apart) {
      const char* value[n];
      Floats weight[n];
      for (int j = 0; j < n; ++j) {
        value[j] = values[i + j * apart];
        weight[j] = Simd::template spread<1>(weights + i + j * apart);
      }
      for (int64_t d = 0; d < p.D; d += kPair) {
        Floats r0 = Simd::load(result + d), r1 = Simd::load(result + d + kLanes);
        for (int j = 0; j < n; ++j) {
          Floats v0, v1;
          Simd::template widen<kElement>(value[j] + d * bytes(kElement), v0, v1);
          r0 = Simd::fma(v0, weight[j], r0);
          r1 = Simd::fma(v1, weight[j], r1);
        }
        Simd::store(result + d, r0);
        Simd::store(result + d + kLanes, r1);
      }
    });
  }
};

}  // namespace
}  // namespace kogpt::cpu
