// What harness.py calls through ctypes. A library holds one kernel file, so the launch functions
// of the others are absent: weak, null.
#include "../../../kogpt/kernels/csrc/attention.h"
#include "../../../kogpt/kernels/csrc/linear.h"
#include "../../../kogpt/kernels/csrc/norm.h"

namespace kogpt {
__attribute__((weak)) cudaError_t attention_forward(const AttentionParams&, cudaStream_t);
__attribute__((weak)) cudaError_t attention_backward(const AttentionBackwardParams&, cudaStream_t);
__attribute__((weak)) cudaError_t attention_decode(const DecodeParams&, cudaStream_t);
__attribute__((weak)) int64_t decode_partials(const DecodeParams&);
__attribute__((weak)) cudaError_t linear_decode(const LinearParams&, cudaStream_t);
__attribute__((weak)) cudaError_t widen(const WidenParams&, cudaStream_t);
__attribute__((weak)) cudaError_t norm(const NormParams&, cudaStream_t);
}  // namespace kogpt

extern "C" {

void emulator_reset(int shared_limit, uint64_t block_order) {
  kogpt::reset_emulation();
  kogpt::set_shared_memory_limit(shared_limit);
  kogpt::set_block_order(block_order);
}

void emulator_register(void* data, const int64_t* sizes, const int64_t* strides, int64_t row,
                       bool writable, int late) {
  kogpt::register_tensor(data, sizes, strides, row, writable, static_cast<kogpt::Late>(late));
}

const char* emulator_error() { return kogpt::emulation_error(); }

// Sizes of the structs, for harness.py to compare with its mirrors.
void emulator_struct_sizes(int64_t* sizes) {
  sizes[0] = sizeof(kogpt::AttentionParams);
  sizes[1] = sizeof(kogpt::AttentionBackwardParams);
  sizes[2] = sizeof(kogpt::DecodeParams);
  sizes[3] = sizeof(kogpt::LinearParams);
  sizes[4] = sizeof(kogpt::NormParams);
  sizes[5] = sizeof(kogpt::WidenParams);
}

int emulator_forward(const kogpt::AttentionParams* params) {
  return kogpt::attention_forward(*params, nullptr);
}

int emulator_backward(const kogpt::AttentionBackwardParams* params) {
  return kogpt::attention_backward(*params, nullptr);
}

int emulator_decode(const kogpt::DecodeParams* params) {
  return kogpt::attention_decode(*params, nullptr);
}

int64_t emulator_decode_partials(const kogpt::DecodeParams* params) {
  return kogpt::decode_partials(*params);
}

int emulator_linear(const kogpt::LinearParams* params) {
  return kogpt::linear_decode(*params, nullptr);
}

int emulator_widen(const kogpt::WidenParams* params) { return kogpt::widen(*params, nullptr); }

int emulator_norm(const kogpt::NormParams* params) { return kogpt::norm(*params, nullptr); }

}  // extern "C"
