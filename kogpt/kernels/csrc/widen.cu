// Weights in 8 or 4 bits as 16-bit elements, for the library's product with many rows.
//
// One thread widens one load of 16 bytes, which one scale covers, and stores 32 or 64 bytes.
// Nothing but memory limits it. A block's threads take neighbouring loads, so all of it is
// coalesced.

#include "formats.h"
#include "linear.h"
#include "ptx.h"
#include "tile.h"

namespace kogpt {
namespace {

constexpr int kThreads = 256;

// The weights of a word, in their order.
template <typename E, typename W>
KOGPT_DEVICE void widen_word(float (&weights)[2 * W::kPairs], uint32_t word) {
#pragma unroll
  for (int i = 0; i < W::kPairs; ++i) {
    const float2 pair = unpack<E>(W::template pair<E>(word, i));
    weights[i] = pair.x;
    weights[i + W::kPairs] = pair.y;
  }
}

template <typename E, typename W>
__global__ void __launch_bounds__(kThreads) widen_kernel(WidenParams p) {
  constexpr int kWord = 2 * W::kPairs, kChunk = 4 * kWord;  // weights
  const int chunks = p.K / kChunk;                          // of a row
  const int64_t index = int64_t{block_x()} * kThreads + thread_index();
  if (index >= int64_t{p.N} * chunks) return;
  const int row = static_cast<int>(index / chunks), chunk = static_cast<int>(index % chunks);
  const uint32_t group = row * p.G + chunk * kChunk / (p.K / p.G);
  const float scale = load_element<E>(p.scale, group);
  const float offset = p.offset ? load_element<E>(p.offset, group) : 0.0f;
  const Vector words = load_global<Vector>(static_cast<const uint8_t*>(p.values) + 16 * index);
  uint8_t* out = static_cast<uint8_t*>(p.out) + 2 * kChunk * index;
  Vector elements[kChunk / 8];
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    float weights[kWord];
    widen_word<E, W>(weights, words.pairs[w]);
#pragma unroll
    for (int i = 0; i < kWord; i += 2) {
      elements[(w * kWord + i) / 8].pairs[(w * kWord + i) % 8 / 2] =
          pack<E>(weights[i] * scale - offset, weights[i + 1] * scale - offset);
    }
  }
#pragma unroll
  for (int i = 0; i < kChunk / 8; ++i) store_global(out + 16 * i, elements[i]);
}

template <typename E, typename W>
cudaError_t launch_widen(const WidenParams& p, cudaStream_t stream) {
  const int64_t chunks = int64_t{p.N} * (p.K / (8 * W::kPairs));
  const Grid grid{static_cast<int>((chunks + kThreads - 1) / kThreads), 1, 1};
  return launch(widen_kernel<E, W>, grid, kThreads, 0, stream, p);
}

template <typename E>
cudaError_t widen_elements(const WidenParams& p, cudaStream_t stream) {
  return p.format == Format::kBits8 ? launch_widen<E, Bits8>(p, stream)
                                    : launch_widen<E, Bits4>(p, stream);
}

bool fits(const WidenParams& p) {
  return p.N > 0 && p.K > 0 && p.format != Format::kBits16 && groups_fit(p.format, p.K, p.G);
}

}  // namespace

cudaError_t widen(const WidenParams& params, cudaStream_t stream) {
  if (!fits(params)) return cudaErrorInvalidValue;
  return params.element == Element::kFloat16 ? widen_elements<Float16>(params, stream)
                                             : widen_elements<BFloat16>(params, stream);
}

}  // namespace kogpt
