// The CUDA implementations of KoGPT's ops: allocate, fill a struct, launch, check the status.
//
// The one file with torch headers, and only those of the stable ABI, so one library serves every
// torch from TORCH_TARGET_VERSION up. Schemas, references, gradient formula and the checks of
// arguments are in Python. Dimension keys as in attention.h, linear.h and norm.h.

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#include "attention.h"
#include "linear.h"
#include "norm.h"

namespace kogpt {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using torch::stable::accelerator::DeviceGuard;

constexpr int64_t kBytesOfVector = 16;  // what one load of the kernels moves
constexpr int64_t kMaxGridZ = 65535;    // blocks, where decoding has a row of the batch for each

std::string text(const char* part) { return part; }
std::string text(int64_t part) { return std::to_string(part); }

// Refuses by a RuntimeError of Python's. Torch's own check formats with iostreams, which crash
// where the compiler has put a C++ runtime of its own into the library.
template <typename... Parts>
void require(bool holds, const Parts&... parts) {
  if (!holds) throw std::runtime_error((text(parts) + ...));
}

bool begins_aligned(const Tensor& x) {
  return reinterpret_cast<uintptr_t>(x.data_ptr()) % kBytesOfVector == 0;
}

bool has_aligned_rows(const Tensor& x) {
  const int64_t elements = kBytesOfVector / static_cast<int64_t>(x.element_size());
  bool aligned = begins_aligned(x);
  for (int64_t i = 0; i < 3; ++i) aligned &= x.size(i) == 1 || x.stride(i) % elements == 0;
  return aligned && x.stride(3) == 1;
}

// `x`, or a copy of it that the kernels can read.
Tensor readable(const Tensor& x) {
  if (has_aligned_rows(x)) return x;
  return x.is_contiguous() ? torch::stable::clone(x) : torch::stable::contiguous(x);
}

Rows rows(const Tensor& x) {
  require(has_aligned_rows(x), "every row must be contiguous and begin on 16 bytes");
  return {x.data_ptr(), x.stride(0), x.stride(1), x.stride(2)};
}

template <typename T>
T* pointer(const Tensor& x) {
  return static_cast<T*>(x.data_ptr());
}

Tensor empty_float(const Tensor& like, const std::array<int64_t, 3>& shape) {
  return torch::stable::new_empty(like, {shape.data(), shape.size()}, ScalarType::Float);
}

Tensor empty_rows(const Tensor& like) {
  const std::array<int64_t, 4> shape = {like.size(0), like.size(1), like.size(2), like.size(3)};
  return torch::stable::new_empty(like, {shape.data(), shape.size()});
}

Element element(const Tensor& x) {
  const bool half = x.scalar_type() == ScalarType::Half;
  require(half || x.scalar_type() == ScalarType::BFloat16, "needs float16 or bfloat16");
  return half ? Element::kFloat16 : Element::kBFloat16;
}

cudaStream_t current_stream(const Tensor& x) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

void check(cudaError_t status, const char* op) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // or the framework would blame its own next kernel
  require(false, op, ": ", cudaGetErrorString(status));
}

// Params of either kind, filled with what both have.
template <typename Params>
Params common_params(const Tensor& q, const Tensor& out, const std::optional<Tensor>& starts) {
  Params params = {};
  params.q = rows(q);
  params.out = rows(out);
  params.starts = starts ? pointer<const int64_t>(*starts) : nullptr;
  require(!starts || (starts->size(0) == q.size(0) && starts->is_contiguous()),
          "starts must be one for each row at least, contiguous");
  params.B = q.size(0);
  params.T = q.size(1);
  params.H = q.size(2);
  params.D = q.size(3);
  params.scale = 1.0f / std::sqrt(static_cast<float>(q.size(3)));
  params.element = element(q);
  return params;
}

// Whether every query has a start of its own, and not every row.
bool of_queries(const std::optional<Tensor>& starts) { return starts && starts->dim() == 2; }

AttentionParams attention_params(const Tensor& q, const Tensor& k, const Tensor& v,
                                 const Tensor& out, const Tensor& lse,
                                 const std::optional<Tensor>& starts) {
  AttentionParams params = common_params<AttentionParams>(q, out, starts);
  params.several = of_queries(starts);
  require(!params.several || (starts->size(0) == params.B && starts->size(1) == params.T &&
                              starts->is_contiguous()),
          "starts of several texts in a row must be (B, T), contiguous");
  params.k = rows(k);
  params.v = rows(v);
  params.lse = pointer<float>(lse);
  params.S = k.size(1);
  return params;
}

DecodeParams decode_params(const Tensor& q, const Tensor& keys, const Tensor& values,
                           const Tensor& out, const std::optional<Tensor>& starts) {
  DecodeParams params = common_params<DecodeParams>(q, out, starts);
  params.keys = rows(keys);
  params.values = rows(values);
  params.capacity = keys.size(1);
  return params;
}

// Gives the params their scratch, and launches.
void launch_decode(DecodeParams params, const Tensor& q, const std::optional<Tensor>& counters) {
  if (q.numel() == 0) return;
  const std::array<int64_t, 2> heads = {q.size(0), q.size(2)};
  const Tensor zeros =
      counters ? *counters
               : torch::stable::new_zeros(q, {heads.data(), heads.size()}, ScalarType::Int);
  const Tensor partials = empty_float(q, {decode_partials(params), 1, 1});
  params.counters = pointer<uint32_t>(zeros);
  params.partials = pointer<float>(partials);
  check(attention_decode(params, current_stream(q)), "kogpt::decode_attention");
}

std::tuple<Tensor, Tensor> attention(const Tensor& q_given, const Tensor& k_given,
                                     const Tensor& v_given, const std::optional<Tensor>& starts) {
  const DeviceGuard guard(q_given.get_device_index());
  const Tensor q = readable(q_given), k = readable(k_given), v = readable(v_given);
  const Tensor out = empty_rows(q), lse = empty_float(q, {q.size(0), q.size(2), q.size(1)});
  if (q.size(1) <= kMaxDecodeTokens && q.size(0) <= kMaxGridZ && !of_queries(starts)) {
    DecodeParams params = decode_params(q, k, v, out, starts);
    params.lse = pointer<float>(lse);
    params.length = k.size(1) - q.size(1);
    launch_decode(params, q, std::nullopt);
  } else {
    const AttentionParams params = attention_params(q, k, v, out, lse, starts);
    check(attention_forward(params, current_stream(q)), "kogpt::attention");
  }
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_given, const Tensor& q_given,
                                            const Tensor& k_given, const Tensor& v_given,
                                            const Tensor& out_given, const Tensor& lse_given,
                                            const std::optional<Tensor>& starts) {
  const DeviceGuard guard(q_given.get_device_index());
  const Tensor grad_out = readable(grad_given), out = readable(out_given);
  const Tensor q = readable(q_given), k = readable(k_given), v = readable(v_given);
  const Tensor lse = torch::stable::contiguous(lse_given);
  const Tensor delta = empty_float(q, {q.size(0), q.size(2), q.size(1)});
  const Tensor grad_q = empty_rows(q), grad_k = empty_rows(k), grad_v = empty_rows(v);
  AttentionBackwardParams params = {};
  params.forward = attention_params(q, k, v, out, lse, starts);
  params.grad_out = rows(grad_out);
  params.grad_q = rows(grad_q);
  params.grad_k = rows(grad_k);
  params.grad_v = rows(grad_v);
  params.delta = pointer<float>(delta);
  check(attention_backward(params, current_stream(q)), "kogpt::attention_backward");
  return {grad_q, grad_k, grad_v};
}

// The params of a step with rotary and append.
DecodeParams append_params(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& keys,
                           const Tensor& values, const Tensor& lengths, const Tensor& cos,
                           const Tensor& sin, const std::optional<Tensor>& starts,
                           const Tensor& out) {
  DecodeParams params = decode_params(q, keys, values, out, starts);
  params.k_new = rows(k);
  params.v_new = rows(v);
  params.lengths = pointer<const int64_t>(lengths);
  params.cos = pointer<const float>(cos);
  params.sin = pointer<const float>(sin);
  params.R = 2 * cos.size(1);
  return params;
}

Tensor decode(const Tensor& q_given, const Tensor& k_given, const Tensor& v_given,
              const Tensor& keys, const Tensor& values, const Tensor& lengths, const Tensor& cos,
              const Tensor& sin, const std::optional<Tensor>& starts, const Tensor& counters) {
  const DeviceGuard guard(q_given.get_device_index());
  const Tensor q = readable(q_given), k = readable(k_given), v = readable(v_given);
  const Tensor out = empty_rows(q);
  launch_decode(append_params(q, k, v, keys, values, lengths, cos, sin, starts, out), q, counters);
  return out;
}

// Reads q, k and v where they are: a copy would be a kernel between, and v is written as well.
void step_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& keys,
                    const Tensor& values, const Tensor& lengths, const Tensor& cos,
                    const Tensor& sin, const std::optional<Tensor>& starts, const Tensor& counters,
                    const Tensor& ready) {
  const DeviceGuard guard(q.get_device_index());
  DecodeParams params = append_params(q, k, v, keys, values, lengths, cos, sin, starts, v);
  params.promised = true;
  params.ready = pointer<uint32_t>(ready);
  launch_decode(params, q, counters);
}

// `x` itself, or a copy, contiguous and where a vector may begin.
Tensor packed(const Tensor& x) {
  const Tensor rows = torch::stable::contiguous(x);
  return begins_aligned(rows) ? rows : torch::stable::clone(rows);
}

// Weights in 16 bits, scales and biases are elements like those of x.
void check_element(const Tensor& part, const Tensor& x, const char* name) {
  require(part.scalar_type() == x.scalar_type(), "kogpt::linear: ", name,
          " of another dtype than x");
}

Format format(const Tensor& weight, const Tensor& x) {
  if (weight.scalar_type() == ScalarType::Char) return Format::kBits8;
  if (weight.scalar_type() == ScalarType::Int) return Format::kBits4;
  check_element(weight, x, "weights");
  return Format::kBits16;
}

// A pointer to what belongs to the outputs, one row for each; null where there is none.
const void* of_outputs(const std::optional<Tensor>& part, const Tensor& x, int64_t N,
                       const char* name) {
  if (!part) return nullptr;
  check_element(*part, x, name);
  require(part->size(0) == N, "kogpt::linear: ", name, " of another size than the outputs");
  return part->data_ptr();
}

std::optional<Tensor> packed(const std::optional<Tensor>& x) {
  return x ? std::optional<Tensor>(packed(*x)) : std::nullopt;
}

// The params of a product, but for what only a step has.
LinearParams linear_params(const Tensor& x, const Tensor& weight,
                           const std::optional<Tensor>& scale, const std::optional<Tensor>& offset,
                           const std::optional<Tensor>& bias, const Tensor& out) {
  LinearParams params = {};
  params.element = element(x);
  params.format = format(weight, x);
  params.x = x.data_ptr();
  params.x_stride = x.stride(0);
  params.values = weight.data_ptr();
  params.scale = of_outputs(scale, x, weight.size(0), "scales");
  params.offset = of_outputs(offset, x, weight.size(0), "offsets");
  params.bias = of_outputs(bias, x, weight.size(0), "a bias");
  params.out = out.data_ptr();
  params.M = x.size(0);
  params.N = params.gelu_from = weight.size(0);
  params.K = x.size(1);
  params.G = scale ? scale->size(1) : 0;
  const int64_t inputs = weight.size(1) * (params.format == Format::kBits4 ? 8 : 1);
  require(inputs == params.K, "kogpt::linear: weights for ", inputs, " inputs, x with ", params.K);
  require(!offset || (scale && offset->size(1) == params.G),
          "kogpt::linear: offsets of other groups than the scales");
  return params;
}

Tensor empty_outputs(const Tensor& x, const Tensor& weight) {
  const std::array<int64_t, 2> shape = {x.size(0), weight.size(0)};
  return torch::stable::new_empty(x, {shape.data(), shape.size()});
}

Tensor linear(const Tensor& x_given, const Tensor& weight_given,
              const std::optional<Tensor>& scale_given, const std::optional<Tensor>& offset_given,
              const std::optional<Tensor>& bias_given) {
  const DeviceGuard guard(x_given.get_device_index());
  const Tensor x = packed(x_given), weight = packed(weight_given);
  const std::optional<Tensor> scale = packed(scale_given), offset = packed(offset_given);
  const std::optional<Tensor> bias = packed(bias_given);
  const Tensor out = empty_outputs(x, weight);
  const LinearParams params = linear_params(x, weight, scale, offset, bias, out);
  if (out.numel() > 0) check(linear_decode(params, current_stream(x)), "kogpt::linear");
  return out;
}

// What a kernel of a chain reads is where it is: a copy would be a kernel between.
void check_packed(const Tensor& x, const char* name) {
  require(begins_aligned(x) && x.is_contiguous(), name,
          " must be contiguous and begin on 16 bytes");
}

Tensor step_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& scale,
                   const std::optional<Tensor>& offset, const std::optional<Tensor>& bias,
                   int64_t gelu_from, const std::optional<Tensor>& residual, int64_t late,
                   const std::optional<Tensor>& ready) {
  const DeviceGuard guard(x.get_device_index());
  const Tensor out = empty_outputs(x, weight);
  LinearParams params = linear_params(x, weight, scale, offset, bias, out);
  const int64_t row_bytes = x.stride(0) * static_cast<int64_t>(x.element_size());
  const bool aligned = begins_aligned(x) && (x.size(0) == 1 || row_bytes % kBytesOfVector == 0);
  require(aligned && x.stride(1) == 1, "every row of x must be contiguous and begin on 16 bytes");
  check_packed(weight, "weights");
  if (scale) check_packed(*scale, "scales");
  if (offset) check_packed(*offset, "offsets");
  if (bias) check_packed(*bias, "a bias");
  if (residual) {
    check_element(*residual, x, "a residual");
    check_packed(*residual, "a residual");
    require(residual->numel() == out.numel(), "a residual of another size than the outputs");
    params.residual = residual->data_ptr();
  }
  require(late == 0 || ready, "late inputs and no flag that tells of the others");
  params.gelu_from = gelu_from;
  params.late = late;
  params.ready = ready ? pointer<uint32_t>(*ready) : nullptr;
  params.promised = true;
  check(linear_decode(params, current_stream(x)), "kogpt::step_linear");
  return out;
}

Tensor widened(const Tensor& weight_given, const Tensor& scale_given,
               const std::optional<Tensor>& offset_given) {
  const DeviceGuard guard(weight_given.get_device_index());
  const Tensor weight = packed(weight_given), scale = packed(scale_given);
  const std::optional<Tensor> offset = packed(offset_given);
  WidenParams params = {};
  params.format = format(weight, scale);
  params.element = element(scale);
  params.N = weight.size(0);
  params.K = weight.size(1) * (params.format == Format::kBits4 ? 8 : 1);
  params.G = scale.size(1);
  const std::array<int64_t, 2> shape = {params.N, params.K};
  const Tensor out = torch::stable::new_empty(scale, {shape.data(), shape.size()});
  params.values = weight.data_ptr();
  params.scale = of_outputs(scale, scale, params.N, "scales");
  params.offset = of_outputs(offset, scale, params.N, "offsets");
  require(!offset || offset->size(1) == params.G,
          "kogpt::widen: offsets of other groups than the scales");
  params.out = out.data_ptr();
  check(widen(params, current_stream(weight)), "kogpt::widen");
  return out;
}

Tensor step_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps) {
  const DeviceGuard guard(x.get_device_index());
  const std::array<int64_t, 2> shape = {x.size(0), x.size(1)};
  const Tensor out = torch::stable::new_empty(x, {shape.data(), shape.size()});
  const std::pair<const Tensor&, const char*> parts[] = {
      {x, "x"}, {weight, "a weight"}, {bias, "a bias"}};
  for (const auto& [part, name] : parts) {
    check_packed(part, name);
    require(part.scalar_type() == x.scalar_type() && part.size(-1) == x.size(1), name,
            " that does not fit x");
  }
  NormParams params = {};
  params.x = x.data_ptr();
  params.weight = weight.data_ptr();
  params.bias = bias.data_ptr();
  params.out = out.data_ptr();
  params.M = x.size(0);
  params.C = x.size(1);
  params.eps = static_cast<float>(eps);
  params.promised = true;
  params.element = element(x);
  check(norm(params, current_stream(x)), "kogpt::step_norm");
  return out;
}

}  // namespace
}  // namespace kogpt

STABLE_TORCH_LIBRARY_IMPL(kogpt, CUDA, library) {
  library.impl("attention", TORCH_BOX(&kogpt::attention));
  library.impl("attention_backward", TORCH_BOX(&kogpt::backward));
  library.impl("decode_attention", TORCH_BOX(&kogpt::decode));
  library.impl("linear", TORCH_BOX(&kogpt::linear));
  library.impl("step_attention", TORCH_BOX(&kogpt::step_attention));
  library.impl("step_linear", TORCH_BOX(&kogpt::step_linear));
  library.impl("step_norm", TORCH_BOX(&kogpt::step_norm));
  library.impl("widen", TORCH_BOX(&kogpt::widened));
}
