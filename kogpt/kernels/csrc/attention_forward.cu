// Causal attention forward: out = softmax(scale q kᵀ + mask) v, and the log-sum-exp of each row.
//
// One block computes kRows queries of one head: its Q tile stays in shared memory, K and V tiles of
// kKeys keys pass by, and the output stays in registers with the running maximum and sum of each
// row (Milakov & Gimelshein, arXiv 1805.02867; Dao, arXiv 2307.08691).
//
// What limits this is how fast shared memory gives operands to the tensor cores, so each operand
// that is read serves 32 rows. Two warps, twins, share 32 queries: each computes their weights for
// half of the keys, and then half of the columns of their output. The maxima and the weights, in 16
// bits, go from one to the other through shared memory.
//
// K and V tiles have one place each. While K is multiplied V arrives, and while V is multiplied the
// next K arrives. A barrier before each product publishes the tile that arrived, and the weights,
// and tells that everyone is done with the one whose place the next copy takes.
//
// Budget at D = 256: 64 queries, 64 keys, 4 warps, 105 KB (two blocks on an sm_90); 128 queries, 8
// warps, 145 KB on sm_80; 64 queries, 32 keys, 73 KB, on sm_86 and sm_89. Registers: 128 for the
// output, 32 for the scores. Reads of operands (ldmatrix) for one product: 0.41.
// History, on an H100 at D = 256, 16 heads, 8 x 2048 tokens: 994 us with one warp for 16 rows of
// weights and output (0.56 reads for one product; shared memory busy for 74%), 934 with sums
// rescaled lazily, 896 with twins (307 TFLOP/s); 962 with blocks of 128 queries, 947 with two
// places for their keys and values.

#include "tile.h"

namespace kogpt {
namespace {

template <typename E_, int D_, int kRows_, int kKeys_>
struct ForwardShape {
  using E = E_;
  static constexpr int D = D_;
  static constexpr int kRows = kRows_;
  static constexpr int kKeys = kKeys_;
  static constexpr int kThreads = kRows / 16 * kWarp;
  static constexpr int kKeysAt = Tile<D>::size(kRows);
  static constexpr int kValuesAt = kKeysAt + Tile<D>::size(kKeys);
  static constexpr int kWeightsAt = kValuesAt + Tile<D>::size(kKeys);
  static constexpr int kRowsAt = kWeightsAt + Tile<64>::size(kRows);  // of `TwinRows`
  static constexpr int kSharedBytes = kRowsAt + 2 * 4 * kRows;
};

// A float for each of a warp's 32 rows, which its twin combines with its own.
struct TwinRows {
  uint32_t offset;  // of two floats for each row of the block

  KOGPT_DEVICE uint32_t at(int row, int twin) const { return offset + 4 * (2 * row + twin); }

  // Leaves what the four lanes of a row agree on.
  KOGPT_DEVICE void leave(int row, float x) const {
    if (lane() % 4 == 0) store_shared(at(row, warp() % 2), x);
  }

  // What the twin left.
  KOGPT_DEVICE float take(int row) const { return load_shared<float>(at(row, 1 - warp() % 2)); }
};

// Running softmax of the rows whose fragments a lane holds: [m][half] is row 16 m + 8 half of them.
struct Softmax {
  // Exceeding the origin by less than 2^kSlack does not raise it: weights are floats, in 16 bits as
  // well, so their precision is the same, and the sums need not be brought to a new origin (Shah et
  // al., FlashAttention-4). A row's origin depends on that row alone.
  static constexpr float kSlack = 8.0f;

  float origin[2][2];      // of the exponents: a maximum of the scores so far, before scaling
  float sum[2][2];         // this lane's share of the sum of weights
  float correction[2][2];  // brings sums to the latest origin

  KOGPT_DEVICE Softmax() {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) origin[m][half] = -kInfinity, sum[m][half] = 0.0f;
    }
  }

  // Takes in the maxima of a tile's scores, of which a warp and its twin have one half each, and
  // tells whether any row of the warp has a new origin. `scale` includes log2(e).
  template <int kBlocks>
  KOGPT_DEVICE bool raise(const float (&scores)[2][kBlocks][4], TwinRows twin, int row,
                          float scale) {
    float top[2][2];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float x = -kInfinity;
#pragma unroll
        for (int j = 0; j < kBlocks; ++j) {
          x = fmaxf(x, fmaxf(scores[m][j][2 * half], scores[m][j][2 * half + 1]));
        }
        x = fmaxf(x, shuffle_xor(x, 1));  // the four lanes that share the row
        x = fmaxf(x, shuffle_xor(x, 2));
        twin.leave(row + 16 * m + fragment_row(2 * half), x);
        top[m][half] = x;
      }
    }
    sync_group<2 * kWarp>(1 + warp() / 2);
    bool raised = false;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float before = origin[m][half];
        const float x = fmaxf(top[m][half], twin.take(row + 16 * m + fragment_row(2 * half)));
        const bool higher = x * scale > before * scale + kSlack;
        correction[m][half] = higher ? exp2_approx((before - x) * scale) : 1.0f;
        origin[m][half] = higher ? x : before;
        raised |= higher;
      }
    }
    return any(raised);
  }

  // Brings what was summed before (`out`) to the new origin.
  template <int kBlocks>
  KOGPT_DEVICE void rescale(float (&out)[2][kBlocks][4]) {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        sum[m][half] *= correction[m][half];
#pragma unroll
        for (int j = 0; j < kBlocks; ++j) {
          out[m][j][2 * half] *= correction[m][half];
          out[m][j][2 * half + 1] *= correction[m][half];
        }
      }
    }
  }

  // Turns scores into weights.
  template <int kBlocks>
  KOGPT_DEVICE void weigh(float (&scores)[2][kBlocks][4], float scale) {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        // A row that has seen no key yet must not subtract infinity from infinity.
        const float x = origin[m][e / 2];
        const float subtrahend = x == -kInfinity ? 0.0f : x * scale;
#pragma unroll
        for (int j = 0; j < kBlocks; ++j) {
          scores[m][j][e] = exp2_approx(scores[m][j][e] * scale - subtrahend);
          sum[m][e / 2] += scores[m][j][e];
        }
      }
    }
  }

  // Sums over the four lanes of a row, and those of its twin.
  KOGPT_DEVICE void finish(TwinRows twin, int row) {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        sum[m][half] += shuffle_xor(sum[m][half], 1);
        sum[m][half] += shuffle_xor(sum[m][half], 2);
        twin.leave(row + 16 * m + fragment_row(2 * half), sum[m][half]);
      }
    }
    sync_group<2 * kWarp>(1 + warp() / 2);
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        sum[m][half] += twin.take(row + 16 * m + fragment_row(2 * half));
      }
    }
  }
};

template <typename Shape, typename Visible>
__global__ void __launch_bounds__(Shape::kThreads) forward_kernel(AttentionParams p) {
  using E = typename Shape::E;
  constexpr int D = Shape::D, kRows = Shape::kRows, kKeys = Shape::kKeys;
  constexpr int kThreads = Shape::kThreads;

  const Work work(ceil_div(p.T, kRows), p, /*last_tile_first=*/true);
  const Visible visible(p, work.b);
  const HeadRows keys = work.head(p.k), values = work.head(p.v);
  const int query = work.tile * kRows;          // first query of the block
  const int position = p.S - p.T + query;       // its position
  const int row = warp() / 2 * 32;              // the warp's first row in the tile
  const int column = warp() % 2 * (kKeys / 2);  // the first of its keys
  const int end = min(position + kRows, p.S);   // keys from here on are seen by nobody
  const float scale = p.scale * kLog2E;
  int key = visible.first_key(position) / kKeys * kKeys;

  const Tile<D> query_tile{0}, key_tile{Shape::kKeysAt}, value_tile{Shape::kValuesAt};
  const Tile<64> weight_tile{Shape::kWeightsAt};
  const TwinRows twin{Shape::kRowsAt};
  copy_rows<kRows, kThreads>(query_tile, work.head(p.q), query, p.T);
  copy_rows<kKeys, kThreads>(key_tile, keys, key, p.S);

  Piece<32, D / 2> out(row, warp() % 2 * (D / 2));
  Softmax softmax;
  for (; key < end; key += kKeys) {
    wait_copies<0>();
    sync_threads();
    copy_rows<kKeys, kThreads>(value_tile, values, key, p.S);
    float scores[2][kKeys / 16][4];
    multiply_rows<E>(scores, ReadRows<D, 2>{query_tile, row}, key_tile, column);
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      if (!visible.all(key, key + kKeys - 1, position, kRows)) {
        hide(scores[m], visible, key + column, position + row + 16 * m);
      }
    }
    if (softmax.raise(scores, twin, row, scale)) softmax.rescale(out.sum);
    softmax.weigh(scores, scale);
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      store_fragments<E>(weight_tile, row + 16 * m, column / 8, scores[m], {1.0f, 1.0f});
    }

    wait_copies<0>();
    sync_threads();
    if (key + kKeys < end) copy_rows<kKeys, kThreads>(key_tile, keys, key + kKeys, p.S);
    out.template add_product<E, kKeys / 16>(weight_tile, 0, value_tile);
  }

  softmax.finish(twin, row);
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    float factor[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = softmax.sum[m][half];
      factor[half] = 1.0f / sum;
      const int t = query + row + 16 * m + fragment_row(2 * half);
      if (warp() % 2 == 0 && lane() % 4 == 0 && t < p.T) {
        store_global(row_statistic(p.lse, p, work, t),
                     softmax.origin[m][half] * p.scale + log2_approx(sum) / kLog2E);
      }
    }
    // The output takes the place of the queries. Twins write the rows that they alone have read,
    // and a barrier lies between.
    store_fragments<E>(query_tile, row + 16 * m, out.column / 8, out.sum[m], factor);
  }
  sync_threads();
  store_rows<kRows, kThreads>(work.head(p.out), query_tile, query, p.T);
}

template <typename Shape>
cudaError_t launch_forward(const AttentionParams& p, cudaStream_t stream) {
  const Grid grid{ceil_div(p.T, Shape::kRows) * p.H * p.B, 1, 1};
  const auto kernel =
      p.several ? forward_kernel<Shape, SeveralTexts> : forward_kernel<Shape, OneText>;
  return launch(kernel, grid, Shape::kThreads, Shape::kSharedBytes, stream, p);
}

// Two blocks on one multiprocessor hide each other's barriers; where only one fits, a larger one
// reads K and V half as often.
template <typename E, int D>
cudaError_t forward(const AttentionParams& p, cudaStream_t stream, int limit) {
  using Medium = ForwardShape<E, D, 64, 64>;
  using Large = ForwardShape<E, D, 128, 64>;
  const bool two = 2 * Medium::kSharedBytes <= limit;
  return two ? launch_forward<Medium>(p, stream) : launch_forward<Large>(p, stream);
}

template <typename E>
cudaError_t forward(const AttentionParams& p, cudaStream_t stream) {
  if (p.D == 64) return launch_forward<ForwardShape<E, 64, 64, 64>>(p, stream);
  int limit;
  if (cudaError_t status = shared_memory_limit(&limit)) return status;
  if (p.D == 128) return forward<E, 128>(p, stream, limit);
  if (limit >= ForwardShape<E, 256, 128, 64>::kSharedBytes)
    return forward<E, 256>(p, stream, limit);
  return launch_forward<ForwardShape<E, 256, 64, 32>>(p, stream);
}

}  // namespace

cudaError_t attention_forward(const AttentionParams& params, cudaStream_t stream) {
  return params.element == Element::kFloat16 ? forward<Float16>(params, stream)
                                             : forward<BFloat16>(params, stream);
}

}  // namespace kogpt
