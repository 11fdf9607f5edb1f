// Tells which kernels the launch functions start on a GPU, without one.
//
// Linked with the kernel files' own objects in place of the CUDA runtime, whose part it plays: that
// of a GPU which says that it has BYTES of shared memory, and on which any launch succeeds and is
// written down. So the figures come from the code that launches, and stand nowhere twice. Both
// element types, every head dim, every number of new tokens, every format of weights and rows of
// several widths are launched.
//
//     launches BYTES    prints for each launch: kernel, threads, bytes of dynamic shared memory
//
// Kernels have their mangled names, as ptxas prints them. Functions with two underscores are those
// that nvcc's host code calls (crt/host_runtime.h).
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

#include "attention.h"
#include "linear.h"
#include "norm.h"

namespace kogpt {
__attribute__((weak)) cudaError_t attention_forward(const AttentionParams&, cudaStream_t);
__attribute__((weak)) cudaError_t attention_backward(const AttentionBackwardParams&, cudaStream_t);
__attribute__((weak)) cudaError_t attention_decode(const DecodeParams&, cudaStream_t);
__attribute__((weak)) cudaError_t linear_decode(const LinearParams&, cudaStream_t);
__attribute__((weak)) cudaError_t widen(const WidenParams&, cudaStream_t);
__attribute__((weak)) cudaError_t norm(const NormParams&, cudaStream_t);
}  // namespace kogpt

namespace {

int shared_memory;  // bytes that one block may have

struct Kernel {
  std::string name;
  int granted = 48 << 10;  // bytes of dynamic shared memory that a launch may ask for
};

Kernel& kernel_of(const void* function) {
  static std::map<const void*, Kernel> kernels;  // filled before main
  return kernels[function];
}

cudaError_t record(const void* function, dim3 block, size_t shared) {
  const Kernel& kernel = kernel_of(function);
  if (shared > static_cast<size_t>(kernel.granted)) return cudaErrorInvalidValue;
  std::printf("%s %u %zu\n", kernel.name.c_str(), block.x * block.y * block.z, shared);
  return cudaSuccess;
}

}  // namespace

// --- the part of the CUDA runtime ---

extern "C" {

void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, uint3*,
                            uint3*, dim3*, dim3*, int*) {
  kernel_of(function).name = name;
}

// Of <<<>>>, which the compiler prepares for every kernel and nobody uses.
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { std::abort(); }
cudaError_t __cudaGetKernel(const void**, const void*) { std::abort(); }
cudaError_t __cudaLaunchKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t) {
  std::abort();
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel, void**) {
  return record(kernel, config->blockDim, config->dynamicSmemBytes);
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaErrorInvalidValue;
  kernel_of(function).granted = value;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  if (attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin) {
    *value = shared_memory;
  } else if (attribute == cudaDevAttrComputeCapabilityMajor) {
    *value = 9;
  } else {
    return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }

}  // extern "C"

// --- every shape of launch ---

namespace kogpt {
namespace {

int failures = 0;

void check(cudaError_t status, const char* function, const std::string& sizes) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "%s refuses %s with %d bytes: cudaError_t %d\n", function, sizes.c_str(),
               shared_memory, status);
  ++failures;
}

std::string sizes(const char* first, int x, const char* second, int y) {
  return std::string(first) + " = " + std::to_string(x) + ", " + second + " = " + std::to_string(y);
}

void launch_prefill(Element element, int D, int T, bool several) {
  AttentionBackwardParams params = {};
  AttentionParams& forward = params.forward;
  forward.B = forward.H = 1;
  forward.T = forward.S = T;
  forward.D = D;
  forward.element = element;
  forward.several = several;
  if (attention_forward)
    check(attention_forward(forward, nullptr), "attention_forward", sizes("D", D, "T", T));
  if (attention_backward)
    check(attention_backward(params, nullptr), "attention_backward", sizes("D", D, "T", T));
}

void launch_decode(Element element, int D, int T) {
  if (!attention_decode) return;
  float table = 0.0f;
  DecodeParams params = {};
  params.B = params.H = 1;
  params.T = T;
  params.D = D;
  params.R = 64;
  params.cos = params.sin = &table;
  params.capacity = 2048;
  params.element = element;
  check(attention_decode(params, nullptr), "attention_decode", sizes("D", D, "T", T));
  params.keys.data = params.values.data = params.k_new.data = params.v_new.data = &table;
  check(attention_decode(params, nullptr), "attention_decode, appending,", sizes("D", D, "T", T));
}

void launch_norm(Element element, int C) {
  if (!norm) return;
  NormParams params = {};
  params.M = 1;
  params.C = C;
  params.element = element;
  check(norm(params, nullptr), "norm", sizes("M", 1, "C", C));
}

void launch_widen(Element element, Format format) {
  if (!widen || format == Format::kBits16) return;
  WidenParams params = {};
  params.N = params.G = 1;
  params.K = 4096;
  params.format = format;
  params.element = element;
  check(widen(params, nullptr), "widen", sizes("N", 1, "K", params.K));
}

void launch_linear(Element element, Format format, int K, int group, bool offset) {
  if (!linear_decode || (format != Format::kBits4 && group < kLinearBlock)) return;
  if (format == Format::kBits16 && offset) return;
  LinearParams params = {};
  params.M = params.N = 1;
  params.K = K;
  params.G = K / group;
  params.offset = offset ? &params : nullptr;  // nobody reads it
  params.format = format;
  params.element = element;
  check(linear_decode(params, nullptr), "linear_decode", sizes("K", K, "group", group));
}

}  // namespace
}  // namespace kogpt

int main(int, char** arguments) {
  shared_memory = std::atoi(arguments[1]);
  using kogpt::Format;
  for (const auto element : {kogpt::Element::kFloat16, kogpt::Element::kBFloat16}) {
    for (const int D : {64, 128, 256}) {
      for (const int T : {1, 64, 2048}) {
        for (const bool several : {false, true}) kogpt::launch_prefill(element, D, T, several);
      }
      for (int T = 1; T <= kogpt::kMaxDecodeTokens; ++T) kogpt::launch_decode(element, D, T);
    }
    for (const int C : {256, 4096, 8192}) kogpt::launch_norm(element, C);
    for (const auto format : {Format::kBits16, Format::kBits8, Format::kBits4}) {
      for (const int group : {32, 128, 20480}) {
        for (const bool offset : {false, true}) {
          kogpt::launch_linear(element, format, 20480, group, offset);
        }
      }
      kogpt::launch_widen(element, format);
    }
  }
  return kogpt::failures != 0;
}
