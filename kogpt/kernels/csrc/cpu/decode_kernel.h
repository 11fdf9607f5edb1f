// Attention of a few new tokens over a long cache, for any instruction set: see linear_kernel.h.
//
// One head of one row at a time: its keys lie together, and each is read once for the score and
// each value once for the sum, as fast as memory gives them. Everything between is float.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "decode.h"
#include "numbers.h"

namespace kogpt::cpu {
namespace {

template <class Simd>
struct Decode {
  using Floats = typename Simd::Floats;
  using Numbers = cpu::Numbers<Simd>;

  static constexpr int64_t kLanes = Simd::kLanes;

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
      put<kElement>(query, p.D, at<kElement>(p.keys, b, place, h));
      std::memcpy(at<kElement>(p.values, b, place, h), at<kElement>(p.v, b, t, h),
                  p.D * bytes(kElement));
    }
    for (int64_t t = 0; t < p.T; ++t) {
      const int64_t place = p.lengths[b] + t, first = std::min(start, place);
      Numbers::widen({at<kElement>(p.q, b, t, h), kElement}, 0, p.D, query);
      rotate(p, std::max<int64_t>(place - start, 0), query);
      order<kElement>(query, result, p.D);
      score<kElement>(p, b, h, first, place + 1, result, scores);
      const float sum = softmax(scores, place + 1 - first);
      std::memset(query, 0, p.D * sizeof *query);
      mix<kElement>(p, b, h, first, place + 1, scores, query);
      reorder<kElement>(query, result, p.D);
      for (int64_t d = 0; d < p.D; ++d) result[d] /= sum;
      put<kElement>(result, p.D, at<kElement>(p.out, b, t, h));
    }
  }

  static constexpr int64_t bytes(Element element) { return element == Element::kFloat32 ? 4 : 2; }

  template <Element kElement>
  static char* at(const Rows& rows, int64_t b, int64_t token, int64_t h) {
    const int64_t i = b * rows.batch_stride + token * rows.token_stride + h * rows.head_stride;
    return static_cast<char*>(rows.data) + i * bytes(kElement);
  }

  template <Element kElement>
  static void put(const float* from, int64_t count, void* to) {
    for (int64_t i = 0; i < count; ++i) Numbers::store(kElement, to, i, from[i]);
  }

  static void rotate(const DecodeParams& p, int64_t position, float* x) {
    for (int64_t i = 0; i < p.R / 2; ++i) {
      const float cos = p.cos[position * p.R / 2 + i], sin = p.sin[position * p.R / 2 + i];
      const float even = x[2 * i], odd = x[2 * i + 1];
      x[2 * i] = even * cos - odd * sin;
      x[2 * i + 1] = odd * cos + even * sin;
    }
  }

  // Where the number at place `d` of a head comes to lie when vectors widen it.
  template <Element kElement>
  static int64_t place_of(int64_t d) {
    if (kElement != Element::kBFloat16) return d;
    const int64_t pair = d % (2 * kLanes);
    return d - pair + pair / 2 + pair % 2 * kLanes;
  }

  template <Element kElement>
  static void order(const float* from, float* to, int64_t D) {
    for (int64_t d = 0; d < D; ++d) to[place_of<kElement>(d)] = from[d];
  }

  template <Element kElement>
  static void reorder(const float* from, float* to, int64_t D) {
    for (int64_t d = 0; d < D; ++d) to[d] = from[place_of<kElement>(d)];
  }

  template <Element kElement>
  static void score(const DecodeParams& p, int64_t b, int64_t h, int64_t first, int64_t last,
                    const float* query, float* scores) {
    for (int64_t s = first; s < last; ++s) {
      const char* key = at<kElement>(p.keys, b, s, h);
      Floats even = {}, odd = {};
      for (int64_t d = 0; d < p.D; d += 2 * kLanes) {
        Floats k0, k1;
        Simd::template widen<kElement>(key + d * bytes(kElement), k0, k1);
        even = Simd::fma(k0, Simd::load(query + d), even);
        odd = Simd::fma(k1, Simd::load(query + d + kLanes), odd);
      }
      scores[s - first] = (Simd::sum(even) + Simd::sum(odd)) * p.scale;
    }
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
  static void mix(const DecodeParams& p, int64_t b, int64_t h, int64_t first, int64_t last,
                  const float* weights, float* result) {
    for (int64_t s = first; s < last; ++s) {
      const char* value = at<kElement>(p.values, b, s, h);
      const Floats weight = Simd::template spread<1>(weights + s - first);
      for (int64_t d = 0; d < p.D; d += 2 * kLanes) {
        Floats v0, v1;
        Simd::template widen<kElement>(value + d * bytes(kElement), v0, v1);
        Simd::store(result + d, Simd::fma(v0, weight, Simd::load(result + d)));
        Simd::store(result + d + kLanes, Simd::fma(v1, weight, Simd::load(result + d + kLanes)));
      }
    }
  }
};

}  // namespace
}  // namespace kogpt::cpu
