// The kernels for CPUs as plain C functions: any instruction set by its number, without torch.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "cpu.h"

using namespace kogpt::cpu;

extern "C" {

int32_t best() { return static_cast<int32_t>(best_isa()); }

void struct_sizes(int64_t* sizes) {
  sizes[0] = sizeof(LinearParams);
  sizes[1] = sizeof(DecodeParams);
  sizes[2] = sizeof(NormParams);
}

int64_t linear_scratch_bytes(int32_t isa, const LinearParams* params) {
  return kernels(static_cast<Isa>(isa)).linear_scratch(*params);
}

int64_t norm_scratch_floats(int64_t C) { return norm_scratch(C); }

int64_t decode_scratch_floats(const DecodeParams* params) { return decode_scratch(*params); }

// Computes `share` outputs at a time, as one thread of several would.
void run_linear(int32_t isa, const LinearParams* params, int64_t share) {
  const Kernels& chosen = kernels(static_cast<Isa>(isa));
  chosen.linear_prepare(*params, 0, params->M);
  const int64_t bytes = linear_part(*params) + 64;
  const std::unique_ptr<void, decltype(&std::free)> part(std::aligned_alloc(64, bytes / 64 * 64),
                                                         &std::free);
  for (int64_t first = 0; first < params->N; first += share) {
    std::memset(part.get(), 255, bytes / 64 * 64);  // NaN in every format
    chosen.linear(*params, first, std::min(first + share, params->N), part.get());
  }
}

void run_decode(int32_t isa, const DecodeParams* params) {
  kernels(static_cast<Isa>(isa)).decode(*params, 0, params->B * params->H);
}

void run_norm(int32_t isa, const NormParams* params) {
  kernels(static_cast<Isa>(isa)).norm(*params, 0, params->M);
}

int32_t run_pack(int32_t isa, const uint16_t* numbers, int64_t N, int64_t K, char* to) {
  return kernels(static_cast<Isa>(isa)).pack(numbers, N, K, to);
}

}  // extern "C"
