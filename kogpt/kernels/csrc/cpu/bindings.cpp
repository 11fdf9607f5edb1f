// The CPU implementations of KoGPT's ops: describe the arguments, and share out the work.
//
// The one file with torch headers, and only those of the stable ABI, as for CUDA. Schemas and
// references are in Python.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>

#include "cpu.h"

namespace kogpt::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kAlignment = 64;   // bytes of the widest vector
constexpr int64_t kWidest = 32;      // numbers that the widest kernel widens at once
constexpr int64_t kGrain = 1 << 16;  // least weights that are worth a thread

std::string text(const char* part) { return part; }
std::string text(int64_t part) { return std::to_string(part); }

// Refuses by a RuntimeError of Python's. Torch's own check formats with iostreams, which crash
// where the compiler has put a C++ runtime of its own into the library.
template <typename... Parts>
void require(bool holds, const Parts&... parts) {
  if (!holds) throw std::runtime_error((text(parts) + ...));
}

// Memory that begins on kAlignment.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) : all_(new char[bytes + kAlignment]) {}

  void* data() const {
    const auto address = reinterpret_cast<uintptr_t>(all_.get());
    return reinterpret_cast<void*>((address + kAlignment - 1) / kAlignment * kAlignment);
  }

 private:
  std::unique_ptr<char[]> all_;
};

Element element(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return Element::kFloat32;
    case ScalarType::BFloat16:
      return Element::kBFloat16;
    case ScalarType::Half:
      return Element::kFloat16;
    case ScalarType::Char:
      return Element::kInt8;
    case ScalarType::Int:
      return Element::kInt4;
    default:
      throw std::runtime_error("kogpt::linear: a dtype without a kernel");
  }
}

Array array(const Tensor& x) { return {x.data_ptr(), element(x)}; }

Array array(const std::optional<Tensor>& x) { return x ? array(*x) : Array{nullptr, {}}; }

Tensor plain(const Tensor& x) {
  return x.is_contiguous() ? x : torch::stable::contiguous(x);  // which takes long to find out
}

std::optional<Tensor> plain(const std::optional<Tensor>& x) {
  return x ? std::optional<Tensor>(plain(*x)) : std::nullopt;
}

// Refuses sizes that the kernels could not take.
void check(const LinearParams& p, int64_t width, const std::optional<Tensor>& scale,
           const std::optional<Tensor>& bias, const std::optional<Tensor>& offset) {
  const bool integers = p.weight.element == Element::kInt8 || p.weight.element == Element::kInt4;
  const int64_t smallest = p.weight.element == Element::kInt4 ? kGroup : kBlock;
  require(p.K == width && p.K % kBlock == 0, "kogpt::linear: ", p.K, " inputs");
  require(integers == scale.has_value(), "kogpt::linear: scales go with integers");
  require(!scale || scale->size(0) == p.N, "kogpt::linear: scale of another size");
  require(!bias || bias->size(0) == p.N, "kogpt::linear: bias of another size");
  require(!offset || (integers && offset->size(0) == p.N && offset->size(1) == p.G),
          "kogpt::linear: offset of another size");
  require(!scale || (p.K % p.G == 0 && p.K / p.G % smallest == 0), "kogpt::linear: ", p.G,
          " groups of ", p.K, " inputs");
}

// `gelu_from` is N for none.
Tensor product(const Tensor& x_given, const Tensor& weight_given,
               const std::optional<Tensor>& scale_given, const std::optional<Tensor>& bias_given,
               const std::optional<Tensor>& offset_given, int64_t gelu_from,
               const std::optional<Tensor>& residual_given) {
  const Tensor x = plain(x_given), weight = plain(weight_given);
  const std::optional<Tensor> scale = plain(scale_given), bias = plain(bias_given);
  const std::optional<Tensor> offset = plain(offset_given), residual = plain(residual_given);
  const int64_t M = x.size(0), K = x.size(1), N = weight.size(0);
  const std::array<int64_t, 2> shape = {M, N};
  const Tensor y = torch::stable::new_empty(x, {shape.data(), shape.size()});

  LinearParams params = {};
  params.x = array(x);
  params.weight = array(weight);
  params.scale = array(scale);
  params.offset = array(offset);
  params.bias = array(bias);
  params.residual = array(residual);
  params.gelu_from = gelu_from;
  params.y = y.data_ptr();
  params.M = M;
  params.N = N;
  params.K = K;
  params.G = scale ? scale->size(1) : 1;
  const int64_t width =
      params.weight.element == Element::kInt4 ? 8 * weight.size(1) : weight.size(1);
  check(params, width, scale, bias, offset);

  const Scratch scratch(linear_scratch(params));
  params.scratch = scratch.data();

  const Kernels& chosen = kernels(best_isa());
  torch::stable::parallel_for(0, M, kGrain / K + 1, [&](int64_t first, int64_t last) {
    chosen.linear_prepare(params, first, last);
  });
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, M * K));
  // Threads take a panel at a time: one that is held up does not keep the others waiting.
  std::atomic<int64_t> taken = 0;
  torch::stable::parallel_for(0, N, grain, [&](int64_t, int64_t) {
    const Scratch part(linear_part(params));
    for (int64_t first; (first = taken.fetch_add(kPanel)) < N;) {
      chosen.linear(params, first, std::min(first + kPanel, N), part.data());
    }
  });
  return y;
}

Tensor linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& scale,
              const std::optional<Tensor>& bias, const std::optional<Tensor>& offset) {
  return product(x, weight, scale, bias, offset, weight.size(0), std::nullopt);
}

// What is late on a GPU is there on a CPU, where one op ends before the next begins.
Tensor step_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& scale,
                   const std::optional<Tensor>& bias, int64_t gelu_from,
                   const std::optional<Tensor>& residual, int64_t /* late */,
                   const std::optional<Tensor>& /* ready */) {
  const int64_t M = x.size(0), N = weight.size(0);
  require(M <= kFewRows, "kogpt::step_linear: ", M, " rows");
  require(!residual || (residual->dim() == 2 && residual->size(0) == M && residual->size(1) == N),
          "kogpt::step_linear: residual of another size");
  return product(x, weight, scale, bias, std::nullopt, gelu_from, residual);
}

Tensor step_norm(const Tensor& x_given, const Tensor& weight_given, const Tensor& bias_given,
                 double eps) {
  const Tensor x = plain(x_given), weight = plain(weight_given), bias = plain(bias_given);
  const int64_t M = x.size(0), C = x.size(1);
  require(weight.size(0) == C && bias.size(0) == C, "kogpt::step_norm: weights of another size");
  const std::array<int64_t, 2> shape = {M, C};
  const Tensor y = torch::stable::new_empty(x, {shape.data(), shape.size()});
  NormParams params = {};
  params.x = array(x);
  params.weight = array(weight);
  params.bias = array(bias);
  params.y = y.data_ptr();
  params.M = M;
  params.C = C;
  params.eps = static_cast<float>(eps);
  const Scratch scratch(4 * M * norm_scratch(C));
  params.scratch = static_cast<float*>(scratch.data());
  const Kernels& chosen = kernels(best_isa());
  torch::stable::parallel_for(
      0, M, kGrain / std::max<int64_t>(1, C) + 1,
      [&](int64_t first, int64_t last) { chosen.norm(params, first, last); });
  return y;
}

Rows rows(const Tensor& x) {
  require(x.stride(3) == 1, "kogpt::decode_attention: rows must be contiguous");
  return {x.data_ptr(), x.stride(0), x.stride(1), x.stride(2)};
}

// Writes to `out`, which may be v: of that a head is read before it is written.
void attend(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& keys,
            const Tensor& values, const Tensor& lengths, const Tensor& cos_given,
            const Tensor& sin_given, const std::optional<Tensor>& starts, const Tensor& out) {
  const Tensor cos = plain(cos_given), sin = plain(sin_given);
  const int64_t B = q.size(0), T = q.size(1), H = q.size(2), D = q.size(3);
  DecodeParams params = {};
  params.q = rows(q);
  params.k = rows(k);
  params.v = rows(v);
  params.keys = rows(keys);
  params.values = rows(values);
  params.out = rows(out);
  params.lengths = static_cast<const int64_t*>(lengths.data_ptr());
  params.starts = starts ? static_cast<const int64_t*>(starts->data_ptr()) : nullptr;
  params.cos = static_cast<const float*>(cos.data_ptr());
  params.sin = static_cast<const float*>(sin.data_ptr());
  params.element = element(q);
  params.B = B;
  params.T = T;
  params.H = H;
  params.D = D;
  params.R = 2 * cos.size(1);
  params.capacity = keys.size(1);
  params.scale = 1.0f / std::sqrt(static_cast<float>(D));
  const std::array<int64_t, 1> floats = {B * H * decode_scratch(params)};
  const Tensor scratch =
      torch::stable::new_empty(q, {floats.data(), floats.size()}, ScalarType::Float);
  params.scratch = static_cast<float*>(scratch.data_ptr());
  const Kernels& chosen = kernels(D % kWidest == 0 ? best_isa() : Isa::kPlain);
  torch::stable::parallel_for(
      0, B * H, 1, [&](int64_t first, int64_t last) { chosen.decode(params, first, last); });
}

Tensor decode(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& keys,
              const Tensor& values, const Tensor& lengths, const Tensor& cos, const Tensor& sin,
              const std::optional<Tensor>& starts, const Tensor& /* counters */) {
  const std::array<int64_t, 4> shape = {q.size(0), q.size(1), q.size(2), q.size(3)};
  const Tensor out = torch::stable::new_empty(q, {shape.data(), shape.size()});
  attend(q, k, v, keys, values, lengths, cos, sin, starts, out);
  return out;
}

void step_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& keys,
                    const Tensor& values, const Tensor& lengths, const Tensor& cos,
                    const Tensor& sin, const std::optional<Tensor>& starts,
                    const Tensor& /* counters */, const Tensor& ready) {
  attend(q, k, v, keys, values, lengths, cos, sin, starts, v);
  *static_cast<int32_t*>(ready.data_ptr()) = 1;
}

}  // namespace
}  // namespace kogpt::cpu

STABLE_TORCH_LIBRARY_IMPL(kogpt, CPU, library) {
  library.impl("linear", TORCH_BOX(&kogpt::cpu::linear));
  library.impl("decode_attention", TORCH_BOX(&kogpt::cpu::decode));
  library.impl("step_attention", TORCH_BOX(&kogpt::cpu::step_attention));
  library.impl("step_linear", TORCH_BOX(&kogpt::cpu::step_linear));
  library.impl("step_norm", TORCH_BOX(&kogpt::cpu::step_norm));
}
