// LayerNorm of a few rows (Ba et al., arXiv 1607.06450), for the time between two products.
//
// One block computes one row. What it costs is latency: a few kilobytes arrive from the L2 cache,
// are summed up twice and leave. So each thread keeps its chunks of the row in shared memory, where
// it alone reads them; the second sum is of squares of what differs from the mean, as exact as two
// passes over memory. Weight and bias arrive while the kernel before still runs.
//
// Budget: 16 warps; 6 bytes of shared memory for an element of a row, 24 KB at 4096.

#include "norm.h"
#include "ptx.h"
#include "tile.h"

namespace kogpt {
namespace {

constexpr int kWarps = 16;
constexpr int kThreads = kWarps * kWarp;
constexpr int kChunk = 8;              // elements of a Vector
constexpr int kSumBytes = 4 * kWarps;  // the warps' parts of one sum

// Shared memory: the row, weight and bias, then the parts of two sums.
KOGPT_HOST_DEVICE uint32_t sums_at(const NormParams& p) { return 6 * p.C; }

// Calls `visit(i)` for the thread's chunks; the byte offset of chunk i is 16 i in each array.
template <typename Visit>
KOGPT_DEVICE void for_chunks(const NormParams& p, Visit visit) {
  for (int i = thread_index(); i < p.C / kChunk; i += kThreads) visit(i);
}

// The sum of a number of each thread, added up in a fixed order.
KOGPT_DEVICE float block_sum(float x, uint32_t scratch) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
  if (lane() == 0) store_shared(scratch + 4 * warp(), x);
  sync_threads();
  float sum = 0.0f;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum += load_shared<float>(scratch + 4 * w);
  return sum;
}

// The sum over a row of `of(element)`.
template <typename E, typename Of>
KOGPT_DEVICE float row_sum(const NormParams& p, uint32_t scratch, Of of) {
  float sum = 0.0f;
  for_chunks(p, [&](int i) {
    const Vector x = load_shared<Vector>(16 * i);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 pair = unpack<E>(x.pairs[j]);
      sum += of(pair.x) + of(pair.y);
    }
  });
  return block_sum(sum, scratch);
}

// Starts copying a row of C elements to byte `offset`.
KOGPT_DEVICE void copy_row(const NormParams& p, uint32_t offset, const void* source, int row) {
  const uint8_t* from = static_cast<const uint8_t*>(source) + int64_t{2} * row * p.C;
  for_chunks(p, [&](int i) { copy_async(offset + 16 * i, from + 16 * i, true); });
}

template <typename E>
__global__ void __launch_bounds__(kThreads) norm_kernel(NormParams p) {
  release_next();
  if (!p.promised) await_previous();
  const uint32_t weight = 2 * p.C, bias = 4 * p.C, sums = sums_at(p);
  copy_row(p, weight, p.weight, 0);
  copy_row(p, bias, p.bias, 0);
  await_previous();
  copy_row(p, 0, p.x, block_x());
  commit_copies();
  wait_copies<0>();
  const float mean = row_sum<E>(p, sums, [](float x) { return x; }) / p.C;
  const float variance =
      row_sum<E>(p, sums + kSumBytes, [&](float x) { return (x - mean) * (x - mean); }) / p.C;
  const float scale = 1.0f / sqrtf(variance + p.eps);
  uint8_t* out = static_cast<uint8_t*>(p.out) + int64_t{2} * block_x() * p.C;
  for_chunks(p, [&](int i) {
    const Vector x = load_shared<Vector>(16 * i), w = load_shared<Vector>(weight + 16 * i);
    const Vector b = load_shared<Vector>(bias + 16 * i);
    Vector y;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 xs = unpack<E>(x.pairs[j]), ws = unpack<E>(w.pairs[j]);
      const float2 bs = unpack<E>(b.pairs[j]);
      y.pairs[j] =
          pack<E>((xs.x - mean) * scale * ws.x + bs.x, (xs.y - mean) * scale * ws.y + bs.y);
    }
    store_global(out + 16 * i, y);
  });
}

template <typename E>
cudaError_t launch_norm(const NormParams& p, cudaStream_t stream) {
  return launch(norm_kernel<E>, Grid{p.M, 1, 1}, kThreads, sums_at(p) + 2 * kSumBytes, stream, p,
                /*early=*/true);
}

}  // namespace

cudaError_t norm(const NormParams& params, cudaStream_t stream) {
  if (params.M < 1 || params.C < kChunk || params.C % kChunk) return cudaErrorInvalidValue;
  return params.element == Element::kFloat16 ? launch_norm<Float16>(params, stream)
                                             : launch_norm<BFloat16>(params, stream);
}

}  // namespace kogpt
