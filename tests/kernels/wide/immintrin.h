// The intrinsics that the kernels for AVX-512, VNNI and products of bfloat16 use, in plain C++, for
// processors without.
//
// It takes the place of the compiler's header, so that the kernels' own sources run anywhere. Loops
// say what Intel's manual says of each lane; the compiler may make of them what it likes.
#pragma once

#include <cstdint>
#include <cstring>

typedef long long __m128i __attribute__((vector_size(16), may_alias));
typedef long long __m256i __attribute__((vector_size(32), may_alias));
typedef long long __m512i __attribute__((vector_size(64), may_alias));
typedef float __m128 __attribute__((vector_size(16), may_alias));
typedef float __m512 __attribute__((vector_size(64), may_alias));
typedef int16_t __m512bh __attribute__((vector_size(64), may_alias));
typedef int32_t __v16si __attribute__((vector_size(64)));
typedef int8_t __v64qi __attribute__((vector_size(64)));
typedef int16_t __v32hi __attribute__((vector_size(64)));
typedef uint16_t __v32hu __attribute__((vector_size(64)));
typedef uint32_t __v16su __attribute__((vector_size(64)));
typedef uint16_t __mmask16;

enum { _MM_FROUND_TO_NEAREST_INT = 0 };

namespace {

template <class To, class From>
To same_bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "a vector as another of its size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// The numbers in a vector, or in half of one.
template <class Number, int kBytes = 64>
struct Lanes {
  Number lanes[kBytes / sizeof(Number)];
};

template <class Vector>
Vector load(const void* at) {
  Vector vector;
  std::memcpy(&vector, at, sizeof vector);
  return vector;
}

float _cvtsh_ss(uint16_t bits) { return static_cast<float>(same_bits<_Float16>(bits)); }
uint16_t _cvtss_sh(float value, int) { return same_bits<uint16_t>(static_cast<_Float16>(value)); }

__m128i _mm_loadu_si128(const __m128i* at) { return load<__m128i>(at); }
__m256i _mm256_loadu_si256(const __m256i* at) { return load<__m256i>(at); }
__m512i _mm512_loadu_si512(const void* at) { return load<__m512i>(at); }
__m512 _mm512_loadu_ps(const void* at) { return load<__m512>(at); }
void _mm512_storeu_si512(void* at, __m512i a) { std::memcpy(at, &a, sizeof a); }
void _mm512_storeu_ps(void* at, __m512 a) { std::memcpy(at, &a, sizeof a); }
void _mm_storeu_ps(float* at, __m128 a) { std::memcpy(at, &a, sizeof a); }
__m512 _mm512_maskz_loadu_ps(__mmask16 mask, const void* at) {
  Lanes<float> some = {};
  for (int i = 0; i < 16; ++i) {
    if (mask >> i & 1) std::memcpy(some.lanes + i, static_cast<const char*>(at) + 4 * i, 4);
  }
  return same_bits<__m512>(some);
}

__m512 _mm512_set1_ps(float value) { return __m512{} + value; }
__m512i _mm512_set1_epi32(int32_t value) { return same_bits<__m512i>(__v16si{} + value); }
__m512i _mm512_set1_epi8(int8_t value) { return same_bits<__m512i>(__v64qi{} + value); }
__m512i _mm512_set1_epi16(int16_t value) { return same_bits<__m512i>(__v32hi{} + value); }
template <class... Lanes>
__m512i _mm512_set_epi32(Lanes... lanes) {  // the last lane comes first
  const int32_t given[] = {lanes...};
  __v16si all;
  for (int i = 0; i < 16; ++i) all[i] = given[15 - i];
  return same_bits<__m512i>(all);
}

__m512 _mm512_castsi512_ps(__m512i a) { return same_bits<__m512>(a); }
__m512i _mm512_castps_si512(__m512 a) { return same_bits<__m512i>(a); }
__m512i _mm512_castsi128_si512(__m128i a) { return __m512i{a[0], a[1]}; }
__m512i _mm512_xor_si512(__m512i a, __m512i b) { return a ^ b; }
__m512i _mm512_and_si512(__m512i a, __m512i b) { return a & b; }
__m512i _mm512_or_si512(__m512i a, __m512i b) { return a | b; }
__m512i _mm512_slli_epi32(__m512i a, unsigned count) {
  return same_bits<__m512i>(same_bits<__v16su>(a) << count);
}
__m512i _mm512_srli_epi32(__m512i a, unsigned count) {
  return same_bits<__m512i>(same_bits<__v16su>(a) >> count);
}
__m512i _mm512_srli_epi16(__m512i a, unsigned count) {
  return same_bits<__m512i>(same_bits<__v32hu>(a) >> static_cast<uint16_t>(count));
}

// Sums of unsigned bytes, the largest where that is too small.
__m512i _mm512_adds_epu8(__m512i a, __m512i b) {
  auto sums = same_bits<Lanes<uint8_t>>(a);
  const auto others = same_bits<Lanes<uint8_t>>(b);
  for (int i = 0; i < 64; ++i) {
    const int sum = sums.lanes[i] + others.lanes[i];
    sums.lanes[i] = static_cast<uint8_t>(sum < 255 ? sum : 255);
  }
  return same_bits<__m512i>(sums);
}

__m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
  for (int i = 0; i < 16; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
}
float _mm512_reduce_add_ps(__m512 a) {
  for (int count = 8; count; count /= 2) {
    for (int i = 0; i < count; ++i) a[i] += a[i + count];
  }
  return a[0];
}
__m512 _mm512_permutexvar_ps(__m512i places, __m512 a) {
  __m512 moved;
  for (int i = 0; i < 16; ++i) moved[i] = a[same_bits<__v16si>(places)[i] & 15];
  return moved;
}

// In each part of 128 bits, the bytes of `a` at the places that `b` has, or 0 where they are below.
__m512i _mm512_shuffle_epi8(__m512i a, __m512i b) {
  const auto bytes = same_bits<Lanes<int8_t>>(a), places = same_bits<Lanes<int8_t>>(b);
  Lanes<int8_t> moved;
  for (int i = 0; i < 64; ++i) {
    const int8_t place = places.lanes[i];
    moved.lanes[i] = place < 0 ? 0 : bytes.lanes[i / 16 * 16 + place % 16];
  }
  return same_bits<__m512i>(moved);
}
__m512i _mm512_broadcast_i32x4(__m128i a) {
  return __m512i{a[0], a[1], a[0], a[1], a[0], a[1], a[0], a[1]};
}

__m512i _mm512_inserti32x4(__m512i a, __m128i b, int part) {
  a[2 * part] = b[0], a[2 * part + 1] = b[1];
  return a;
}
__m128 _mm512_extractf32x4_ps(__m512 a, int part) {
  return same_bits<Lanes<__m128>>(a).lanes[part];
}

// In each part of 128 bits, the numbers of `a` and of `b` in turn, from the `first`-th on.
template <class Number>
__m512i interleave(__m512i a, __m512i b, int first) {
  constexpr int kEach = 16 / sizeof(Number);
  const auto x = same_bits<Lanes<Number>>(a), y = same_bits<Lanes<Number>>(b);
  Lanes<Number> both;
  for (int part = 0; part < 4 * kEach; part += kEach) {
    for (int i = 0; i < kEach; ++i) {
      both.lanes[part + i] = (i % 2 ? y : x).lanes[part + first + i / 2];
    }
  }
  return same_bits<__m512i>(both);
}
__m512i _mm512_unpacklo_epi8(__m512i a, __m512i b) { return interleave<int8_t>(a, b, 0); }
__m512i _mm512_unpackhi_epi8(__m512i a, __m512i b) { return interleave<int8_t>(a, b, 8); }
__m512i _mm512_unpacklo_epi32(__m512i a, __m512i b) { return interleave<int32_t>(a, b, 0); }
__m512i _mm512_unpackhi_epi32(__m512i a, __m512i b) { return interleave<int32_t>(a, b, 2); }
__m512i _mm512_unpacklo_epi64(__m512i a, __m512i b) { return interleave<int64_t>(a, b, 0); }
__m512i _mm512_unpackhi_epi64(__m512i a, __m512i b) { return interleave<int64_t>(a, b, 1); }

__m256i _mm512_cvtepi32_epi16(__m512i a) {
  Lanes<int16_t, 32> words;
  for (int i = 0; i < 16; ++i) words.lanes[i] = static_cast<int16_t>(same_bits<__v16si>(a)[i]);
  return same_bits<__m256i>(words);
}
__m512 _mm512_cvtepi32_ps(__m512i a) {
  __m512 floats;
  for (int i = 0; i < 16; ++i) floats[i] = static_cast<float>(same_bits<__v16si>(a)[i]);
  return floats;
}
__m512 _mm512_cvtph_ps(__m256i a) {
  __m512 floats;
  const auto halves = same_bits<Lanes<uint16_t, 32>>(a);
  for (int i = 0; i < 16; ++i) floats[i] = _cvtsh_ss(halves.lanes[i]);
  return floats;
}
__m512i _mm512_cvtepu16_epi32(__m256i a) {
  __v16si words;
  const auto numbers = same_bits<Lanes<uint16_t, 32>>(a);
  for (int i = 0; i < 16; ++i) words[i] = numbers.lanes[i];
  return same_bits<__m512i>(words);
}
__m512i _mm512_cvtepi8_epi16(__m256i a) {
  __v32hi words;
  const auto bytes = same_bits<Lanes<int8_t, 32>>(a);
  for (int i = 0; i < 32; ++i) words[i] = bytes.lanes[i];
  return same_bits<__m512i>(words);
}

// Adds the products of `a` and `b` to the 32-bit sum that their lanes lie in.
template <class A, class B>
__m512i dot(__m512i sums, __m512i a, __m512i b) {
  constexpr int kEach = sizeof(int32_t) / sizeof(A);
  __v16si all = same_bits<__v16si>(sums);
  const auto x = same_bits<Lanes<A>>(a);
  const auto y = same_bits<Lanes<B>>(b);
  for (int i = 0; i < 16 * kEach; ++i) all[i / kEach] += x.lanes[i] * y.lanes[i];
  return same_bits<__m512i>(all);
}
__m512i _mm512_madd_epi16(__m512i a, __m512i b) { return dot<int16_t, int16_t>(__m512i{}, a, b); }
__m512i _mm512_maddubs_epi16(__m512i a, __m512i b) {
  __v32hi pairs;
  const auto x = same_bits<Lanes<uint8_t>>(a);
  const auto y = same_bits<Lanes<int8_t>>(b);
  for (int i = 0; i < 32; ++i) {
    const int sum = x.lanes[2 * i] * y.lanes[2 * i] + x.lanes[2 * i + 1] * y.lanes[2 * i + 1];
    pairs[i] = static_cast<int16_t>(sum > 32767 ? 32767 : sum < -32768 ? -32768 : sum);
  }
  return same_bits<__m512i>(pairs);
}
__m512i _mm512_dpwssd_epi32(__m512i sums, __m512i a, __m512i b) {
  return dot<int16_t, int16_t>(sums, a, b);
}
__m512i _mm512_dpbusd_epi32(__m512i sums, __m512i a, __m512i b) {
  return dot<uint8_t, int8_t>(sums, a, b);
}

// Adds the products of pairs, each rounded once with the sum; what has no whole fraction is zero.
__m512 _mm512_dpbf16_ps(__m512 sums, __m512bh a, __m512bh b) {
  const auto flushed = [](float x) { return __builtin_fabsf(x) < 0x1p-126f ? 0 * x : x; };
  const auto wide = [&](int16_t bits) {
    return flushed(same_bits<float>(static_cast<uint32_t>(static_cast<uint16_t>(bits)) << 16));
  };
  for (int i = 0; i < 32; ++i) {
    const int at = i ^ 1;  // the second of a pair is first
    sums[i / 2] = flushed(__builtin_fmaf(wide(a[at]), wide(b[at]), sums[i / 2]));
  }
  return sums;
}

}  // namespace
