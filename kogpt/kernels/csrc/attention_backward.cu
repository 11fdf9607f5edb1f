// The gradients of causal attention, in two kernels without atomics, so that every run gives the
// same bits (Dao, arXiv 2307.08691, section 3.1, with the two sums taken apart).
//
// With weights P = exp(scale q kᵀ - lse) and dP = dO vᵀ, the gradient of the scores is
// dS = P (dP - delta), where delta is the dot product of a row's output and its gradient. Then
// dQ = scale dS k (a sum over keys), dK = scale dSᵀ q and dV = Pᵀ dO (sums over queries).
//
// `query_kernel`: one block computes dQ of kRows queries of one head, each warp 16 of them, while
// tiles of keys and values pass by. It also writes delta, which the second kernel reads.
//
// `key_kernel`: one block computes dK and dV of kKeys keys while tiles of queries and gradients
// pass by. Both sums would not fit the registers of one warp, so half of the warps compute P and
// sum dV, and their twins compute dP and sum dK: the same two products on other tiles. P goes from
// each thread to its twin through shared memory.
//
// Tiles that pass by have two places: one is multiplied while the other arrives.
//
// Budget at D = 256, registers 128 for the sum in either kernel. query_kernel: 64 queries, 16 keys,
// 4 warps, 96 KB on sm_86 and sm_89; 128 queries, 8 warps, and 16 keys, 160 KB, on sm_80 or 32
// keys, 192 KB, on sm_90. key_kernel: 64 keys, 8 warps, and 16 queries, 98 KB, on sm_86 and sm_89
// or 32 queries, 132 KB. History: not yet run on a GPU.

#include "tile.h"

namespace kogpt {
namespace {

// Two places for a pair of tiles of kRows rows, from byte `offset` on, taken in turn.
template <int D, int kRows>
struct Passing {
  uint32_t offset;

  static constexpr uint32_t kTile = 2 * D * kRows;
  static constexpr uint32_t kBytes = 4 * kTile;

  KOGPT_DEVICE Tile<D> first(int turn) const { return {offset + turn % 2 * 2 * kTile}; }
  KOGPT_DEVICE Tile<D> second(int turn) const { return {offset + turn % 2 * 2 * kTile + kTile}; }
};

// Starts copying rows `row`.. of two heads into the places of a turn, zeros from row `end` on.
template <int kThreads, int D, int kRows>
KOGPT_DEVICE void copy_pair(const Passing<D, kRows>& passing, int turn, const HeadRows& first,
                            const HeadRows& second, int row, int end) {
  copy_rows<kRows, kThreads>(passing.first(turn), first, row, end);
  copy_rows<kRows, kThreads>(passing.second(turn), second, row, end);
}

// --- dQ ---

template <typename E_, int D_, int kRows_, int kKeys_>
struct QueryShape {
  using E = E_;
  static constexpr int D = D_;
  static constexpr int kRows = kRows_;
  static constexpr int kKeys = kKeys_;
  static constexpr int kThreads = kRows / 16 * kWarp;
  static constexpr int kSharedBytes = 2 * D * 2 * kRows + Passing<D, kKeys>::kBytes;
};

// Dot product of two rows, in every lane of the warp.
template <typename E, int D>
KOGPT_DEVICE float dot(const HeadRows& left, const HeadRows& right, int token) {
  float sum = 0.0f;
  if (lane() < D / 8) {
    const Vector x = load_global<Vector>(left.at(token, lane()));
    const Vector y = load_global<Vector>(right.at(token, lane()));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 a = unpack<E>(x.pairs[i]), b = unpack<E>(y.pairs[i]);
      sum += a.x * b.x + a.y * b.y;
    }
  }
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
  return sum;
}

// What the softmax of a lane's two rows is rebuilt from.
struct RowStatistics {
  float lse[2];  // in base 2
  float delta[2];

  // Of 16 rows from query t on; writes their delta for `key_kernel`.
  template <typename E, int D>
  KOGPT_DEVICE static RowStatistics of(const AttentionBackwardParams& p, const Work& work, int t) {
    const HeadRows out = work.head(p.forward.out), grad_out = work.head(p.grad_out);
    RowStatistics rows = {};  // zeros for rows that are not there, whose sums nobody reads
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < 8 && t + 8 * half + i < p.forward.T; ++i) {
        const int token = t + 8 * half + i;
        const float delta = dot<E, D>(out, grad_out, token);
        if (lane() == 0) store_global(row_statistic(p.delta, p.forward, work, token), delta);
        if (lane() / 4 != i) continue;
        rows.delta[half] = delta;
        rows.lse[half] =
            kLog2E * load_global<float>(row_statistic(p.forward.lse, p.forward, work, token));
      }
    }
    return rows;
  }
};

template <typename Shape>
__global__ void __launch_bounds__(Shape::kThreads) query_kernel(AttentionBackwardParams params) {
  using E = typename Shape::E;
  constexpr int D = Shape::D, kRows = Shape::kRows, kKeys = Shape::kKeys;
  constexpr int kThreads = Shape::kThreads;
  const AttentionParams& p = params.forward;

  const Work work(ceil_div(p.T, kRows), p, /*last_tile_first=*/true);
  const Visible visible(p, work.b);
  const HeadRows keys = work.head(p.k), values = work.head(p.v);
  const int query = work.tile * kRows;
  const int position = p.S - p.T + query;
  const int warp_row = warp() * 16;
  const int end = min(position + kRows, p.S);
  int key = visible.first_key(position) / kKeys * kKeys;

  const Tile<D> query_tile{0}, grad_tile{Tile<D>::size(kRows)};
  const Passing<D, kKeys> passing{Tile<D>::size(2 * kRows)};
  copy_rows<kRows, kThreads>(query_tile, work.head(p.q), query, p.T);
  copy_rows<kRows, kThreads>(grad_tile, work.head(params.grad_out), query, p.T);
  copy_pair<kThreads>(passing, 0, keys, values, key, p.S);
  const RowStatistics rows = RowStatistics::of<E, D>(params, work, query + warp_row);

  Accumulator<D> grad_q;
  clear(grad_q);
  for (int turn = 0; key < end; key += kKeys, ++turn) {
    wait_copies<0>();
    sync_threads();
    if (key + kKeys < end) {
      copy_pair<kThreads>(passing, turn + 1, keys, values, key + kKeys, p.S);
    }
    Accumulator<kKeys> scores, grad_weights;
    multiply_rows<E>(scores, query_tile, warp_row, passing.first(turn));
    multiply_rows<E>(grad_weights, grad_tile, warp_row, passing.second(turn));
    if (!visible.all(key, key + kKeys - 1, position)) {
      hide(scores, visible, key, position + warp_row);
    }
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float weight = exp2_approx(scores[j][e] * (p.scale * kLog2E) - rows.lse[e / 2]);
        scores[j][e] = weight * (grad_weights[j][e] - rows.delta[e / 2]);
      }
    }
    add_product(grad_q, Operand<E, kKeys / 16>(scores), passing.first(turn));
  }

  sync_threads();  // every warp is done with the queries, whose place the gradients take
  const float factor[2] = {p.scale, p.scale};
  store_fragments<E, D>(query_tile, warp_row, grad_q, factor);
  sync_threads();
  store_rows<kRows, kThreads>(work.head(params.grad_q), query_tile, query, p.T);
}

// --- dK and dV ---

template <typename E_, int D_, int kKeys_, int kQueries_>
struct KeyShape {
  using E = E_;
  static constexpr int D = D_;
  static constexpr int kKeys = kKeys_;
  static constexpr int kQueries = kQueries_;
  static constexpr int kTwins = kKeys / 16 * kWarp;  // threads that sum dV; as many sum dK
  static constexpr int kThreads = 2 * kTwins;
  static constexpr int kExchangeBytes = kKeys * kQueries * 2;
  static constexpr int kSharedBytes =
      2 * D * 2 * kKeys + Passing<D, kQueries>::kBytes + kExchangeBytes;
};

// A statistic of the queries in a lane's columns, 0 from the `count`-th on: the gradients of
// queries that are not there are zeros, and so is all that they add.
template <int kBlocks>
KOGPT_DEVICE void load_statistics(float (&statistics)[kBlocks][2], const float* data, int count) {
#pragma unroll
  for (int j = 0; j < kBlocks; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int column = fragment_column(j, e);
      statistics[j][e] = column < count ? load_global<float>(data + column) : 0.0f;
    }
  }
}

// Where a thread leaves 16 columns of its weights for its twin.
template <typename Shape>
KOGPT_DEVICE uint32_t exchange(int step) {
  constexpr int kOffset = Shape::kSharedBytes - Shape::kExchangeBytes;
  return kOffset + 16 * (step * Shape::kTwins + thread_index() % Shape::kTwins);
}

template <typename Shape, int kBlocks>
KOGPT_DEVICE void leave_weights(const float (&weights)[kBlocks][4]) {
  const Operand<typename Shape::E, kBlocks / 2> rounded(weights);
#pragma unroll
  for (int step = 0; step < kBlocks / 2; ++step) {
    const uint32_t (&a)[4] = rounded.a[step];
    store_shared(exchange<Shape>(step), Vector{{a[0], a[1], a[2], a[3]}});
  }
}

// Multiplies by what the twin left, in the order of `Operand`.
template <typename Shape, int kBlocks>
KOGPT_DEVICE void multiply_by_weights(float (&x)[kBlocks][4]) {
#pragma unroll
  for (int step = 0; step < kBlocks / 2; ++step) {
    const Vector weights = load_shared<Vector>(exchange<Shape>(step));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 weight = unpack<typename Shape::E>(weights.pairs[i]);
      float (&c)[4] = x[2 * step + i / 2];
      c[i % 2 * 2] *= weight.x;
      c[i % 2 * 2 + 1] *= weight.y;
    }
  }
}

template <typename Shape>
__global__ void __launch_bounds__(Shape::kThreads) key_kernel(AttentionBackwardParams params) {
  using E = typename Shape::E;
  constexpr int D = Shape::D, kKeys = Shape::kKeys, kQueries = Shape::kQueries;
  constexpr int kThreads = Shape::kThreads;
  const AttentionParams& p = params.forward;

  const Work work(ceil_div(p.S, kKeys), p, /*last_tile_first=*/false);
  const Visible visible(p, work.b);
  const HeadRows queries = work.head(p.q), grads = work.head(params.grad_out);
  const int key = work.tile * kKeys;
  const bool sums_keys = thread_index() >= Shape::kTwins;  // dK, else dV
  const int warp_row = warp() % (kKeys / 16) * 16;
  const int past = p.S - p.T;  // position of query 0
  // Padding is seen by nobody but the query at its own position.
  const int end = key + kKeys <= visible.start ? min(key + kKeys - past, p.T) : p.T;
  int query = max(key - past, 0) / kQueries * kQueries;

  const Tile<D> key_tile{0}, value_tile{Tile<D>::size(kKeys)};
  const Passing<D, kQueries> passing{Tile<D>::size(2 * kKeys)};
  copy_rows<kKeys, kThreads>(key_tile, work.head(p.k), key, p.S);
  copy_rows<kKeys, kThreads>(value_tile, work.head(p.v), key, p.S);
  copy_pair<kThreads>(passing, 0, queries, grads, query, p.T);

  Accumulator<D> sum;
  clear(sum);
  for (int turn = 0; query < end; query += kQueries, ++turn) {
    wait_copies<0>();
    sync_threads();
    if (query + kQueries < end) {
      copy_pair<kThreads>(passing, turn + 1, queries, grads, query + kQueries, p.T);
    }
    float statistics[kQueries / 8][2];  // read early, they arrive during the product
    load_statistics(statistics, row_statistic(sums_keys ? params.delta : p.lse, p, work, query),
                    p.T - query);
    const Tile<D> query_tile = passing.first(turn), grad_tile = passing.second(turn);
    Accumulator<kQueries> x;  // scores, then weights; or gradients of weights, then of scores
    multiply_rows<E>(x, sums_keys ? value_tile : key_tile, warp_row,
                     sums_keys ? grad_tile : query_tile);
    if (!sums_keys && !visible.all(key, key + kKeys - 1, past + query)) {
      hide_transposed(x, visible, key + warp_row, past + query);
    }
#pragma unroll
    for (int j = 0; j < kQueries / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float statistic = statistics[j][e % 2];
        x[j][e] =
            sums_keys ? x[j][e] - statistic : exp2_approx((x[j][e] * p.scale - statistic) * kLog2E);
      }
    }
    if (!sums_keys) leave_weights<Shape>(x);
    sync_threads();
    if (sums_keys) multiply_by_weights<Shape>(x);
    add_product(sum, Operand<E, kQueries / 16>(x), sums_keys ? query_tile : grad_tile);
  }

  wait_copies<0>();
  sync_threads();  // every warp is done with the keys and values, whose place the gradients take
  const float scale = sums_keys ? p.scale : 1.0f;
  const float factor[2] = {scale, scale};
  store_fragments<E, D>(sums_keys ? key_tile : value_tile, warp_row, sum, factor);
  sync_threads();
  store_rows<kKeys, kThreads>(work.head(params.grad_k), key_tile, key, p.S);
  store_rows<kKeys, kThreads>(work.head(params.grad_v), value_tile, key, p.S);
}

// --- launching ---

template <typename Query, typename Key>
cudaError_t launch_both(const AttentionBackwardParams& p, cudaStream_t stream) {
  const int heads = p.forward.H * p.forward.B;
  const Grid queries{ceil_div(p.forward.T, Query::kRows) * heads, 1, 1};
  const Grid keys{ceil_div(p.forward.S, Key::kKeys) * heads, 1, 1};
  if (cudaError_t status =
          launch(query_kernel<Query>, queries, Query::kThreads, Query::kSharedBytes, stream, p)) {
    return status;
  }
  return launch(key_kernel<Key>, keys, Key::kThreads, Key::kSharedBytes, stream, p);
}

template <typename E>
cudaError_t backward(const AttentionBackwardParams& p, cudaStream_t stream) {
  const int D = p.forward.D;
  if (D == 64) return launch_both<QueryShape<E, 64, 64, 32>, KeyShape<E, 64, 64, 32>>(p, stream);
  if (D == 128) return launch_both<QueryShape<E, 128, 64, 32>, KeyShape<E, 128, 64, 32>>(p, stream);
  int limit;
  if (cudaError_t status = shared_memory_limit(&limit)) return status;
  using Hopper = QueryShape<E, 256, 128, 32>;
  using Ampere = QueryShape<E, 256, 128, 16>;
  using Small = QueryShape<E, 256, 64, 16>;
  using LargeKey = KeyShape<E, 256, 64, 32>;
  using SmallKey = KeyShape<E, 256, 64, 16>;
  if (Hopper::kSharedBytes <= limit) return launch_both<Hopper, LargeKey>(p, stream);
  if (Ampere::kSharedBytes <= limit) return launch_both<Ampere, LargeKey>(p, stream);
  return launch_both<Small, SmallKey>(p, stream);
}

}  // namespace

cudaError_t attention_backward(const AttentionBackwardParams& params, cudaStream_t stream) {
  return params.forward.element == Element::kFloat16 ? backward<Float16>(params, stream)
                                                     : backward<BFloat16>(params, stream);
}

}  // namespace kogpt
