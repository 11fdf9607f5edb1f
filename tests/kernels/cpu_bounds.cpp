// Runs every kernel of this processor on memory that ends where the numbers do, to be compiled with
// the address and undefined-behaviour sanitizers. `cpu_bounds 1` puts every array one number behind
// where its allocation begins, as views do.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "cpu.h"

using namespace kogpt::cpu;

namespace {

int64_t g_offset = 0;
std::mt19937 g_random;

// Memory for so many numbers, or bytes that are packed, and not a byte more.
class Block {
 public:
  Block(int64_t count, Element element) {
    const bool packed = element == Element::kPacked;
    const int64_t unit = element == Element::kInt4 ? 4 : packed ? 2 : element_bits(element) / 8;
    const int64_t size = packed ? count : count * element_bits(element) / 8;
    all_.reset(static_cast<char*>(std::malloc(size + g_offset * unit)));
    data = all_.get() + g_offset * unit;
    // Small numbers in every format: 0.5 to 1 as floats, anything as integers.
    char* bytes = static_cast<char*>(data);
    for (int64_t i = 0; i < size; ++i) bytes[i] = static_cast<char>(g_random());
    const int64_t high = element_bits(element) / 8;
    if (element == Element::kFloat32 || element == Element::kBFloat16) {
      for (int64_t i = 0; i < count; ++i) bytes[i * high + high - 1] = 0x3f;
    } else if (element == Element::kFloat16) {
      for (int64_t i = 0; i < count; ++i) bytes[i * high + high - 1] = 0x38;
    }
  }

  void* data;

 private:
  struct Free {
    void operator()(char* at) const { std::free(at); }
  };
  std::unique_ptr<char, Free> all_;
};

using Aligned = std::unique_ptr<void, decltype(&std::free)>;

Aligned aligned(int64_t bytes) { return Aligned(std::aligned_alloc(64, bytes), &std::free); }

constexpr Element kFloats[] = {Element::kFloat32, Element::kBFloat16, Element::kFloat16};

// Fills rows with numbers of which as many have no code as may be.
void pack(Isa isa, void* to, int64_t N, int64_t K) {
  Block numbers(N * K, Element::kBFloat16);
  auto* row = static_cast<uint16_t*>(numbers.data);
  for (int64_t n = 0; n < N; ++n, row += K) {
    std::fill(row, row + K, static_cast<uint16_t>(0x3f12));
    // High bytes of 16 kinds of upper bits, and then any.
    for (int64_t i = 0; i < most_rare(K) + kCodes - 2; ++i) row[K - 1 - i] = i * 0x1011 | 0x34;
  }
  const auto* first = static_cast<const uint16_t*>(numbers.data);
  if (!kernels(isa).pack(first, N, K, static_cast<char*>(to))) std::abort();
}

void linear(Isa isa, Element x_element, Element weight_element, int64_t M, int64_t N, int64_t K,
            int64_t G) {
  const Element scale_element = kFloats[(M + N) % 3], bias_element = kFloats[N % 3];
  const int64_t size = weight_element == Element::kPacked ? N * packed_row_bytes(K) : N * K;
  Block x(M * K, x_element), weight(size, weight_element);
  Block scale(N * G, scale_element);
  if (weight_element == Element::kPacked) pack(isa, weight.data, N, K);
  Block offset(N * G, scale_element), bias(N, bias_element), y(M * N, x_element);
  Block residual(M * N, x_element);
  const bool integers = weight_element == Element::kInt8 || weight_element == Element::kInt4;
  LinearParams params = {};
  params.x = {x.data, x_element};
  params.weight = {weight.data, weight_element};
  if (integers) params.scale = {scale.data, scale_element};
  if (integers && M % 4 < 2) params.offset = {offset.data, scale_element};
  if (M % 2) params.bias = {bias.data, bias_element};
  if (M % 3 && M <= kFewRows) params.residual = {residual.data, x_element};
  params.gelu_from = M <= kFewRows ? N / 3 : N;
  params.y = y.data;
  params.M = M, params.N = N, params.K = K, params.G = G;
  const Aligned scratch = aligned(kernels(isa).linear_scratch(params)),
                part = aligned(linear_part(params));
  params.scratch = scratch.get();
  kernels(isa).linear_prepare(params, 0, M / 2);
  kernels(isa).linear_prepare(params, M / 2, M);
  const int64_t half = N / 2;
  kernels(isa).linear(params, 0, half, part.get());
  kernels(isa).linear(params, half, N, part.get());
}

void decode(Isa isa, Element element, int64_t D, int64_t R, int64_t T, bool padded) {
  const int64_t B = 2, H = 3, capacity = 11;
  Block q(B * T * H * D, element), k(B * T * H * D, element), v(B * T * H * D, element);
  Block keys(B * H * capacity * D, element), values(B * H * capacity * D, element);
  Block out(B * T * H * D, element);
  Block cos(capacity * R / 2, Element::kFloat32), sin(capacity * R / 2, Element::kFloat32);
  const std::vector<int64_t> lengths = {0, capacity - T}, starts = {0, T};
  DecodeParams params = {};
  params.q = {q.data, T * H * D, H * D, D};
  params.k = {k.data, T * H * D, H * D, D};
  params.v = {v.data, T * H * D, H * D, D};
  params.keys = {keys.data, H * capacity * D, D, capacity * D};
  params.values = {values.data, H * capacity * D, D, capacity * D};
  params.out = {out.data, T * H * D, H * D, D};
  params.lengths = lengths.data();
  params.starts = padded ? starts.data() : nullptr;
  params.cos = static_cast<const float*>(cos.data);
  params.sin = static_cast<const float*>(sin.data);
  params.element = element;
  params.B = B, params.T = T, params.H = H, params.D = D, params.R = R;
  params.capacity = capacity;
  params.scale = 1;
  Block scratch(B * H * decode_scratch(params), Element::kFloat32);
  params.scratch = static_cast<float*>(scratch.data);
  kernels(isa).decode(params, 0, B * H);
}

void norm(Isa isa, Element x_element, Element weight_element, int64_t M, int64_t C) {
  Block x(M * C, x_element), y(M * C, x_element), weight(C, weight_element), bias(C, x_element);
  Block scratch(M * norm_scratch(C), Element::kFloat32);
  NormParams params = {};
  params.x = {x.data, x_element};
  params.weight = {weight.data, weight_element};
  params.bias = {bias.data, x_element};
  params.y = y.data;
  params.scratch = static_cast<float*>(scratch.data);
  params.M = M, params.C = C;
  params.eps = 1e-5f;
  kernels(isa).norm(params, 0, M / 2);
  kernels(isa).norm(params, M / 2, M);
}

void run(Isa isa) {
  for (const Element x : kFloats) {
    for (const int64_t C : {1, 7, 64, 65, 200}) {
      for (const Element weight : kFloats) norm(isa, x, weight, 3, C);
    }
    for (const int64_t M : {1, 2, 3, 5, 8, 9, 17}) {
      const int64_t N = M % 2 ? 37 : 3;
      for (const Element weight : kFloats) linear(isa, x, weight, M, N, 128, 1);
      for (const int64_t K : {128, 384}) linear(isa, x, Element::kPacked, M, N, K, 1);
      linear(isa, x, Element::kInt8, M, N, 128, 1);
      linear(isa, x, Element::kInt8, M, N, 256, 2);
      linear(isa, x, Element::kInt4, M, N, 128, 4);
      for (const int64_t group : {32, 64, 96, 128, 384}) {
        linear(isa, x, Element::kInt4, M, N, 384, 384 / group);
      }
    }
    // Several long panels of one row, and a row that is left over from several.
    for (const int64_t N : {369, 383, 450}) {
      for (const int64_t M : {1, 5}) {
        for (const Element weight : kFloats) linear(isa, x, weight, M, N, 128, 1);
        for (const Element weight : {Element::kPacked, Element::kInt8, Element::kInt4}) {
          linear(isa, x, weight, M, N, 128, 1);
        }
      }
    }
    // So long that the rows take several steps: see kNear.
    linear(isa, x, Element::kInt4, 4, 1, 8320, 65);
    linear(isa, x, Element::kInt8, 4, 1, 4224, 1);
    linear(isa, x, Element::kInt8, 9, 1, 2176, 1);
    linear(isa, x, Element::kPacked, 4, 1, 4224, 1);
    linear(isa, x, x, 4, 1, 2176, 1);
    for (const int64_t D : {8, 24, 64, 256}) {
      if (isa != Isa::kPlain && D % 32) continue;  // see bindings.cpp
      for (const int64_t R : {static_cast<int64_t>(0), static_cast<int64_t>(8), D}) {
        for (const int64_t T : {1, 8}) decode(isa, x, D, R, T, R > 0);
      }
    }
  }
}

}  // namespace

int main(int count, char** arguments) {
  g_offset = count > 1 ? std::atoi(arguments[1]) : 0;
  // The kernels of the last two are of the same instructions.
  const Isa last = best_isa() == Isa::kBf16 ? Isa::kZen5 : best_isa();
  for (int32_t isa = 0; isa <= static_cast<int32_t>(last); ++isa) run(static_cast<Isa>(isa));
  std::puts("every kernel ran");
  return 0;
}
