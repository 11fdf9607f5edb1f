// Causal attention forward: out = softmax(scale q kᵀ + mask) v, and the log-sum-exp of each row.
//
// One block computes kRows queries of one head: its Q tile stays in shared memory, K and V tiles of
// kKeys keys pass by, and each warp keeps 16 rows of the output in registers with their
// running maximum and sum (Milakov & Gimelshein, arXiv 1805.02867; Dao, arXiv 2307.08691).
//
// K and V tiles have one place each. While K is multiplied V arrives, and while V is multiplied the
// next K arrives. A barrier before each product publishes the tile that arrived and tells that
// everyone is done with the one whose place the next copy takes.
//
// Budget at D = 256: 64 queries, 4 warps, 96 KB (fits sm_86 and sm_89; two blocks on an sm_90), or
// 128 queries, 8 warps, 128 KB on sm_80. Registers: 128 for the output, 32 for the scores.
// History: not yet run on a GPU.

#include "tile.h"

namespace kogpt {
namespace {

template <typename E_, int D_, int kRows_>
struct ForwardShape {
  using E = E_;
  static constexpr int D = D_;
  static constexpr int kRows = kRows_;
  static constexpr int kKeys = 64;
  static constexpr int kThreads = kRows / 16 * kWarp;
  static constexpr int kSharedBytes = Tile<D>::size(kRows + 2 * kKeys);
};

// Running softmax of the two rows whose fragments a lane holds.
struct Softmax {
  float maximum[2] = {-kInfinity, -kInfinity};  // of the scores so far, before scaling
  float sum[2] = {0.0f, 0.0f};                  // this lane's share of the sum of weights

  // Turns scores into weights relative to the new maximum, and brings what was summed before
  // (`out`) to that maximum. `scale` includes log2(e).
  template <int kBlocks, int kOutBlocks>
  KOGPT_DEVICE void update(float (&scores)[kBlocks][4], float (&out)[kOutBlocks][4], float scale) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float top = maximum[half];
#pragma unroll
      for (int j = 0; j < kBlocks; ++j) {
        top = fmaxf(top, fmaxf(scores[j][2 * half], scores[j][2 * half + 1]));
      }
      top = fmaxf(top, shuffle_xor(top, 1));  // the four lanes that share the row
      top = fmaxf(top, shuffle_xor(top, 2));
      // A row that has seen no key yet must not subtract infinity from infinity.
      const float origin = top == -kInfinity ? 0.0f : top * scale;
      const float correction = exp2_approx(maximum[half] * scale - origin);
      maximum[half] = top;
      sum[half] *= correction;
#pragma unroll
      for (int j = 0; j < kOutBlocks; ++j) {
        out[j][2 * half] *= correction;
        out[j][2 * half + 1] *= correction;
      }
#pragma unroll
      for (int j = 0; j < kBlocks; ++j) {
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; ++e) {
          scores[j][e] = exp2_approx(scores[j][e] * scale - origin);
          sum[half] += scores[j][e];
        }
      }
    }
  }

  // Sums over the four lanes of a row.
  KOGPT_DEVICE void finish() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sum[half] += shuffle_xor(sum[half], 1);
      sum[half] += shuffle_xor(sum[half], 2);
    }
  }
};

template <typename Shape>
__global__ void __launch_bounds__(Shape::kThreads) forward_kernel(AttentionParams p) {
  using E = typename Shape::E;
  constexpr int D = Shape::D, kRows = Shape::kRows, kKeys = Shape::kKeys;
  constexpr int kThreads = Shape::kThreads;

  const Work work(ceil_div(p.T, kRows), p, /*last_tile_first=*/true);
  const Visible visible(p, work.b);
  const HeadRows keys = work.head(p.k), values = work.head(p.v);
  const int query = work.tile * kRows;         // first query of the block
  const int position = p.S - p.T + query;      // its position
  const int warp_row = warp() * 16;            // the warp's first row in the tile
  const int end = min(position + kRows, p.S);  // keys from here on are seen by nobody
  int key = visible.first_key(position) / kKeys * kKeys;

  const Tile<D> query_tile{0}, key_tile{Tile<D>::size(kRows)};
  const Tile<D> value_tile{Tile<D>::size(kRows + kKeys)};
  copy_rows<kRows, kThreads>(query_tile, work.head(p.q), query, p.T);
  copy_rows<kKeys, kThreads>(key_tile, keys, key, p.S);

  Accumulator<D> out;
  clear(out);
  Softmax softmax;
  for (; key < end; key += kKeys) {
    wait_copies<0>();
    sync_threads();
    copy_rows<kKeys, kThreads>(value_tile, values, key, p.S);
    Accumulator<kKeys> scores;
    multiply_rows<E>(scores, query_tile, warp_row, key_tile);
    if (!visible.all(key, key + kKeys - 1, position)) {
      hide(scores, visible, key, position + warp_row);
    }
    softmax.update(scores, out, p.scale * kLog2E);
    const Operand<E, kKeys / 16> weights(scores);

    wait_copies<0>();
    sync_threads();
    if (key + kKeys < end) copy_rows<kKeys, kThreads>(key_tile, keys, key + kKeys, p.S);
    add_product(out, weights, value_tile);
  }

  softmax.finish();
  float factor[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    factor[half] = 1.0f / softmax.sum[half];
    const int t = query + warp_row + fragment_row(2 * half);
    if (lane() % 4 == 0 && t < p.T) {
      store_global(row_statistic(p.lse, p, work, t),
                   softmax.maximum[half] * p.scale + log2_approx(softmax.sum[half]) / kLog2E);
    }
  }
  // The output takes the place of the queries. Each warp writes the rows that it alone has read,
  // and a barrier lies between.
  store_fragments<E>(query_tile, warp_row, 0, out, factor);
  sync_threads();
  store_rows<kRows, kThreads>(work.head(p.out), query_tile, query, p.T);
}

template <typename Shape>
cudaError_t launch_forward(const AttentionParams& p, cudaStream_t stream) {
  const Grid grid{ceil_div(p.T, Shape::kRows) * p.H * p.B, 1, 1};
  return launch(forward_kernel<Shape>, grid, Shape::kThreads, Shape::kSharedBytes, stream, p);
}

template <typename E>
cudaError_t forward(const AttentionParams& p, cudaStream_t stream) {
  if (p.D == 64) return launch_forward<ForwardShape<E, 64, 64>>(p, stream);
  if (p.D == 128) return launch_forward<ForwardShape<E, 128, 64>>(p, stream);
  using Small = ForwardShape<E, 256, 64>;
  using Large = ForwardShape<E, 256, 128>;
  int limit;
  if (cudaError_t status = shared_memory_limit(&limit)) return status;
  // Two small blocks on one multiprocessor hide each other's barriers; where only one fits, the
  // large one reads K and V half as often.
  const bool large = Large::kSharedBytes <= limit && limit < 2 * Small::kSharedBytes;
  return large ? launch_forward<Large>(p, stream) : launch_forward<Small>(p, stream);
}

}  // namespace

cudaError_t attention_forward(const AttentionParams& params, cudaStream_t stream) {
  return params.element == Element::kFloat16 ? forward<Float16>(params, stream)
                                             : forward<BFloat16>(params, stream);
}

}  // namespace kogpt
