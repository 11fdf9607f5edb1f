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
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

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
    case ScalarType::Byte:
      return Element::kPacked;
    default:
      throw std::runtime_error("kogpt: a dtype that no kernel of a CPU takes");
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

bool is_integer(Element element) { return element == Element::kInt8 || element == Element::kInt4; }

// Refuses sizes that the kernels could not take.
void check(const LinearParams& p, int64_t width, const std::optional<Tensor>& scale,
           const std::optional<Tensor>& offset, const std::optional<Tensor>& bias) {
  const bool integers = is_integer(p.weight.element);
  const int64_t smallest = p.weight.element == Element::kInt4 ? kGroup : kBlock;
  require(!is_integer(p.x.element), "kogpt::linear: x of integers");
  require(p.K == width && p.K > 0 && p.K % kBlock == 0, "kogpt::linear: ", p.K, " inputs");
  require(integers == scale.has_value(), "kogpt::linear: scales go with integers");
  require(!scale || scale->size(0) == p.N, "kogpt::linear: scale of another size");
  require(!bias || bias->size(0) == p.N, "kogpt::linear: bias of another size");
  require(!offset || (integers && offset->size(0) == p.N && offset->size(1) == p.G),
          "kogpt::linear: offset of another size");
  require(!scale || (p.G > 0 && p.K % p.G == 0 && p.K / p.G % smallest == 0),
          "kogpt::linear: ", p.G, " groups of ", p.K, " inputs");
}

// The inputs of weights.
int64_t width(const Tensor& weight) {
  const int64_t size = weight.size(1);
  switch (element(weight)) {
    case Element::kInt4:
      return 8 * size;
    case Element::kPacked:
      return packed_row_bytes(packed_inputs(size)) == size ? packed_inputs(size) : 0;
    default:
      return size;
  }
}

// A linear layer as it is given.
struct Layer {
  Tensor weight;
  std::optional<Tensor> scale, offset, bias;
};

// Describes a layer on its own.
LinearParams describe(const Tensor& x, const Layer& layer) {
  LinearParams params = {};
  params.x = array(x);
  params.weight = array(layer.weight);
  params.scale = array(layer.scale);
  params.offset = array(layer.offset);
  params.bias = array(layer.bias);
  params.M = x.size(0);
  params.N = layer.weight.size(0);
  params.K = x.size(1);
  params.G = layer.scale ? layer.scale->size(1) : 1;
  check(params, width(layer.weight), layer.scale, layer.offset, layer.bias);
  return params;
}

// Where an array would begin if there were so many rows before it, each of so many numbers.
Array moved(const Array& array, int64_t rows, int64_t numbers) {
  if (!array.data) return array;
  const auto address =
      reinterpret_cast<uintptr_t>(array.data) - rows * row_bytes(array.element, numbers);
  return {reinterpret_cast<const void*>(address), array.element};
}

// Outputs that threads share. Each takes some at a time, few towards the end: one that is held up
// does not keep the others waiting.
class Outputs {
 public:
  Outputs(int64_t count, int64_t most)
      : count_(count), most_(most), shares_(2 * torch::stable::get_num_threads()) {}

  // The first, and the one behind the last; the same where there are no more.
  std::pair<int64_t, int64_t> take() {
    int64_t first = taken_, last;
    do {
      if (first >= count_) return {count_, count_};
      const int64_t share = (count_ - first) / shares_ / kPanel * kPanel;
      last = std::min(first + std::clamp(share, kPanel, most_), count_);
    } while (!taken_.compare_exchange_weak(first, last));
    return {first, last};
  }

 private:
  const int64_t count_, most_, shares_;
  std::atomic<int64_t> taken_ = 0;
};

// Layers of the same input and format, their outputs one after the other in one row. `gelu_from`
// is the number of all outputs for none.
Tensor product(const Tensor& x_given, const std::vector<Layer>& layers, int64_t gelu_from,
               const std::optional<Tensor>& residual_given) {
  const Tensor x = plain(x_given);
  const std::optional<Tensor> residual = plain(residual_given);
  std::vector<Layer> held;
  std::vector<LinearParams> parts;
  int64_t N = 0;
  for (const Layer& layer : layers) {
    held.push_back(
        {plain(layer.weight), plain(layer.scale), plain(layer.offset), plain(layer.bias)});
    parts.push_back(describe(x, held.back()));
    N += parts.back().N;
  }
  const int64_t M = x.size(0), K = x.size(1);
  const std::array<int64_t, 2> shape = {M, N};
  const Tensor y = torch::stable::new_empty(x, {shape.data(), shape.size()});
  const Kernels& chosen = kernels(best_isa());
  const Scratch scratch(chosen.linear_scratch(parts[0]));
  // Each part is described as if its outputs lay where they do in the row.
  std::vector<int64_t> ends;
  for (LinearParams& part : parts) {
    const int64_t start = ends.empty() ? 0 : ends.back();
    ends.push_back(start + part.N);
    require(part.weight.element == parts[0].weight.element && part.G == parts[0].G,
            "kogpt::step_block: weights of other formats");
    require(start % kPanel == 0, "kogpt::step_block: ", start, " outputs before others");
    part.weight = moved(part.weight, start, K);
    part.scale = moved(part.scale, start, part.G);
    part.offset = moved(part.offset, start, part.G);
    part.bias = moved(part.bias, start, 1);
    part.residual = array(residual);
    part.gelu_from = gelu_from;
    part.y = y.data_ptr();
    part.N = N;
    part.scratch = scratch.data();
  }

  torch::stable::parallel_for(0, M, kGrain / K + 1, [&](int64_t first, int64_t last) {
    chosen.linear_prepare(parts[0], first, last);
  });
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, M * K));
  Outputs outputs(N, panel_outputs(parts[0]));
  torch::stable::parallel_for(0, N, grain, [&](int64_t, int64_t) {
    const Scratch own(linear_part(parts[0]));
    for (auto [first, last] = outputs.take(); first < last;
         std::tie(first, last) = outputs.take()) {
      while (first < last) {
        const size_t i = std::upper_bound(ends.begin(), ends.end(), first) - ends.begin();
        const int64_t end = std::min(last, ends[i]);
        chosen.linear(parts[i], first, end, own.data());
        first = end;
      }
    }
  });
  return y;
}

Tensor linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& scale,
              const std::optional<Tensor>& offset, const std::optional<Tensor>& bias) {
  return product(x, {{weight, scale, offset, bias}}, weight.size(0), std::nullopt);
}

// In the thread that calls: whoever packs much has several.
bool pack(const Tensor& weight_given, const Tensor& packed) {
  const Tensor weight = plain(weight_given);
  const int64_t N = weight.size(0), K = weight.size(1), bytes = packed_row_bytes(K);
  require(weight.scalar_type() == ScalarType::BFloat16, "kogpt::pack: another dtype than bfloat16");
  require(K > 0 && K % kBlock == 0 && K <= kMostPacked, "kogpt::pack: ", K, " inputs");
  require(packed.is_contiguous() && element(packed) == Element::kPacked && packed.size(0) == N &&
              packed.size(1) == bytes,
          "kogpt::pack: no place for ", N, " rows of ", bytes, " bytes");
  const auto* numbers = static_cast<const uint16_t*>(weight.data_ptr());
  return kernels(best_isa()).pack(numbers, N, K, static_cast<char*>(packed.data_ptr()));
}

// What is late on a GPU is there on a CPU, where one op ends before the next begins.
Tensor step_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& scale,
                   const std::optional<Tensor>& offset, const std::optional<Tensor>& bias,
                   int64_t gelu_from, const std::optional<Tensor>& residual, int64_t /* late */,
                   const std::optional<Tensor>& /* ready */) {
  const int64_t M = x.size(0), N = weight.size(0);
  require(M <= kFewRows, "kogpt::step_linear: ", M, " rows");
  require(!residual || (residual->dim() == 2 && residual->size(0) == M && residual->size(1) == N),
          "kogpt::step_linear: residual of another size");
  return product(x, {{weight, scale, offset, bias}}, gelu_from, residual);
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

// Refuses what would lead out of the cache, or out of the angles of its places.
void check_places(const Tensor& lengths, const std::optional<Tensor>& starts, int64_t B, int64_t T,
                  int64_t capacity, int64_t positions) {
  require(lengths.size(0) == B && (!starts || starts->size(0) == B),
          "kogpt::decode_attention: lengths or starts for another batch than ", B);
  require(capacity <= positions, "kogpt::decode_attention: a cache of ", capacity, " tokens and ",
          positions, " positions");
  for (int64_t b = 0; b < B; ++b) {
    const int64_t length = static_cast<const int64_t*>(lengths.data_ptr())[b];
    require(0 <= length && length <= capacity - T, "kogpt::decode_attention: ", T,
            " tokens behind ", length, " in a cache of ", capacity);
    const int64_t start = starts ? static_cast<const int64_t*>(starts->data_ptr())[b] : 0;
    require(start >= 0, "kogpt::decode_attention: a text that starts at ", start);
  }
}

// Of T new tokens. Writes to `out`, which may be v: of that a head is read before it is written.
void attend(const Rows& q, const Rows& k, const Rows& v, int64_t T, const Tensor& keys,
            const Tensor& values, const Tensor& lengths, const Tensor& cos, const Tensor& sin,
            const std::optional<Tensor>& starts, const Rows& out) {
  const int64_t B = keys.size(0), H = keys.size(2), D = keys.size(3);
  for (const Tensor* part : {&lengths, &cos, &sin, starts ? &*starts : &lengths}) {
    require(part->is_contiguous(), "kogpt::decode_attention: lengths, starts or angles apart");
  }
  require(D % 8 == 0 && 2 * cos.size(1) <= D, "kogpt::decode_attention: heads of ", D);
  check_places(lengths, starts, B, T, keys.size(1), cos.size(0));
  DecodeParams params = {};
  params.q = q;
  params.k = k;
  params.v = v;
  params.keys = rows(keys);
  params.values = rows(values);
  params.out = out;
  params.lengths = static_cast<const int64_t*>(lengths.data_ptr());
  params.starts = starts ? static_cast<const int64_t*>(starts->data_ptr()) : nullptr;
  params.cos = static_cast<const float*>(cos.data_ptr());
  params.sin = static_cast<const float*>(sin.data_ptr());
  params.element = element(keys);
  params.B = B;
  params.T = T;
  params.H = H;
  params.D = D;
  params.R = 2 * cos.size(1);
  params.capacity = keys.size(1);
  params.scale = 1.0f / std::sqrt(static_cast<float>(D));
  const Scratch scratch(4 * B * H * decode_scratch(params));
  params.scratch = static_cast<float*>(scratch.data());
  const Kernels& chosen = kernels(D % kWidest == 0 ? best_isa() : Isa::kPlain);
  torch::stable::parallel_for(
      0, B * H, 1, [&](int64_t first, int64_t last) { chosen.decode(params, first, last); });
}

// Rows that may lie apart, each contiguous.
Tensor readable(const Tensor& x) { return x.stride(3) == 1 ? x : torch::stable::contiguous(x); }

Tensor decode(const Tensor& q_given, const Tensor& k_given, const Tensor& v_given,
              const Tensor& keys, const Tensor& values, const Tensor& lengths, const Tensor& cos,
              const Tensor& sin, const std::optional<Tensor>& starts,
              const Tensor& /* counters */) {
  const Tensor q = readable(q_given), k = readable(k_given), v = readable(v_given);
  const std::array<int64_t, 4> shape = {q.size(0), q.size(1), q.size(2), q.size(3)};
  const Tensor out = torch::stable::new_empty(q, {shape.data(), shape.size()});
  attend(rows(q), rows(k), rows(v), q.size(1), keys, values, lengths, cos, sin, starts, rows(out));
  return out;
}

void step_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& keys,
                    const Tensor& values, const Tensor& lengths, const Tensor& cos,
                    const Tensor& sin, const std::optional<Tensor>& starts,
                    const Tensor& /* counters */, const Tensor& ready) {
  attend(rows(q), rows(k), rows(v), q.size(1), keys, values, lengths, cos, sin, starts, rows(v));
  *static_cast<int32_t*>(ready.data_ptr()) = 1;
}

// Layers of one input, of which the last has a bias.
std::vector<Layer> layers(const std::vector<Tensor>& weights, const std::vector<Tensor>& scales,
                          const std::vector<Tensor>& offsets, const Tensor& bias) {
  require(!weights.empty() && (scales.empty() || scales.size() == weights.size()),
          "kogpt::step_block: scales go with integers");
  require(offsets.empty() || offsets.size() == scales.size(),
          "kogpt::step_block: offsets go with scales");
  std::vector<Layer> all;
  for (size_t i = 0; i < weights.size(); ++i) {
    all.push_back({weights[i], std::nullopt, std::nullopt, std::nullopt});
    if (!scales.empty()) all.back().scale = scales[i];
    if (!offsets.empty()) all.back().offset = offsets[i];
  }
  all.back().bias = bias;
  return all;
}

Tensor step_block(const Tensor& x, const Tensor& norm_weight, const Tensor& norm_bias, double eps,
                  const std::vector<Tensor>& enter, const std::vector<Tensor>& enter_scales,
                  const std::vector<Tensor>& enter_offsets, const Tensor& enter_bias,
                  const std::vector<Tensor>& leave, const std::vector<Tensor>& leave_scales,
                  const std::vector<Tensor>& leave_offsets, const Tensor& leave_bias,
                  const Tensor& keys, const Tensor& values, const Tensor& lengths,
                  const Tensor& cos, const Tensor& sin, const std::optional<Tensor>& starts) {
  const int64_t M = x.size(0), B = keys.size(0), H = keys.size(2), D = keys.size(3), C = H * D;
  require(M <= kFewRows, "kogpt::step_block: ", M, " rows");
  require(B > 0 && M % B == 0, "kogpt::step_block: ", M, " rows and a cache of ", B);
  const Tensor normed = step_norm(x, norm_weight, norm_bias, eps);
  const std::vector<Layer> entering = layers(enter, enter_scales, enter_offsets, enter_bias);
  const std::vector<Layer> leaving = layers(leave, leave_scales, leave_offsets, leave_bias);
  for (const Layer& layer : leaving) {
    const int64_t outputs = layer.weight.size(0);
    require(outputs == C, "kogpt::step_block: ", outputs, " outputs for ", C);
  }
  Tensor y = product(normed, entering, 3 * C, std::nullopt);
  const int64_t N = y.size(1), T = M / B, bytes = element_bits(element(y)) / 8;
  const int64_t inputs = std::accumulate(
      leaving.begin(), leaving.end(), int64_t{0},
      [](int64_t before, const Layer& layer) { return before + width(layer.weight); });
  require(N >= 3 * C && N == 2 * C + inputs, "kogpt::step_block: ", N, " outputs for ", inputs,
          " inputs");
  const auto heads = [&](int64_t first) {  // (B, T, H, D)
    return Rows{static_cast<char*>(y.data_ptr()) + first * bytes, T * N, N, D};
  };
  const Rows v = heads(2 * C);
  attend(heads(0), heads(C), v, T, keys, values, lengths, cos, sin, starts, v);

  // What attention gives lies in the place of v, and behind it the inner layer.
  Tensor sum = x;
  int64_t first = 2 * C;
  for (const Layer& layer : leaving) {
    const int64_t K = width(layer.weight);
    sum = product(torch::stable::narrow(y, 1, first, K), {layer}, layer.weight.size(0), sum);
    first += K;
  }
  return sum;
}

}  // namespace
}  // namespace kogpt::cpu

STABLE_TORCH_LIBRARY_IMPL(kogpt, CPU, library) {
  library.impl("linear", TORCH_BOX(&kogpt::cpu::linear));
  library.impl("pack", TORCH_BOX(&kogpt::cpu::pack));
  library.impl("decode_attention", TORCH_BOX(&kogpt::cpu::decode));
  library.impl("step_attention", TORCH_BOX(&kogpt::cpu::step_attention));
  library.impl("step_block", TORCH_BOX(&kogpt::cpu::step_block));
  library.impl("step_linear", TORCH_BOX(&kogpt::cpu::step_linear));
  library.impl("step_norm", TORCH_BOX(&kogpt::cpu::step_norm));
}
