// The gradients of causal attention, in two kernels without atomics, so that every run gives the
// same bits (Dao, arXiv 2307.08691, section 3.1, with the two sums taken apart).
//
// With weights P = exp(scale q kᵀ - lse) and dP = dO vᵀ, the gradient of the scores is
// dS = P (dP - delta), where delta is the dot product of a row's output and its gradient. Then
// dQ = scale dS k (a sum over keys), dK = scale dSᵀ q and dV = Pᵀ dO (sums over queries).
//
// `query_kernel`: one block computes dQ of kRows queries of one head while tiles of keys and values
// pass by. It also writes delta, which the second kernel reads. `key_kernel`: one block computes dK
// and dV of kKeys keys while tiles of queries and gradients pass by.
//
// What limits both is how fast shared memory gives operands to the tensor cores, so each operand
// that is read serves as many products as registers allow. For every passing tile, half of the
// warps compute a piece of P each and their twins the same piece of dP: the same product of other
// tiles. P and dS go to shared memory, rounded, and then all share the sums in pieces that are as
// square as they come: those of dQ, or of dV (half of the warps) and dK (their twins).
//
// Warps that need one another's P and dS are a group, which waits for itself alone: while one group
// turns scores into weights, another multiplies.
//
// The rows that stay are either read again from shared memory, 32 to a warp, where it has room for
// them, or kept in registers, 16 to a warp. Tiles that pass by have two places: one is multiplied
// while the other arrives.
//
// Budget at D = 256, 8 warps to a block. sm_90: query_kernel 128 queries and 32 keys, key_kernel 64
// keys and 64 queries, 208 KB each, in groups of 32 rows. Others, with rows kept in registers: 64
// rows and passing tiles of 32, 72 KB each, one group. Registers: 128 for the sum (64 in a
// query_kernel of 64 queries), 64 for rows that are kept, 32 or 16 for P or dP. Reads of operands
// (ldmatrix) for one product: 0.44 or 0.46 in query_kernel, 0.41 or 0.38 in key_kernel.
// History, on an H100 at D = 256, 16 heads, 8 x 2048 tokens: 1.71 and 2.28 ms with one warp for 16
// rows of P, dP and the sum (0.67 and 0.63 reads for one product, shared memory busy for 75%); 1.74
// and 1.91 with rows kept in registers, 1.55 and 1.84 with one group, 1.54 and 1.71 as it is, but
// for what rounding takes off P, which is exchanged since.

#include <type_traits>

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

// Where things lie in shared memory: two tiles of kRows rows that stay, from byte 0 on, whose place
// the results take; the tiles that pass by, which take it as well where the rows are kept in
// registers; and what the warps exchange.
template <int D, int kRows, int kPassing, bool kKept>
struct Places {
  static constexpr int kStay = 2 * Tile<D>::size(kRows);
  static constexpr int kPass = Passing<D, kPassing>::kBytes;
  static constexpr int kPassAt = kKept ? 0 : kStay;
  static constexpr int kExchangeAt = kKept ? max_of(kStay, kPass) : kStay + kPass;
  static constexpr int kBytes = kExchangeAt + Tile<2 * kPassing>::size(kRows);
};

// --- what the warps of a block share ---

// The rows of a piece of a sum of kSumRows x D that kWarps warps share: so many that it has 64
// columns, where that goes.
template <int kSumRows, int D, int kWarps>
constexpr int kShareRows = min_of(kSumRows, max_of(16, kSumRows* D / kWarps / 64));

// One warp's piece of such a sum, which begins with row `row` of the block.
template <int kSumRows, int D, int kWarps, int kHigh = kShareRows<kSumRows, D, kWarps>>
struct Share : Piece<kHigh, kSumRows * D / kWarps / kHigh> {
  static constexpr int kPieces = kSumRows / kHigh;  // one below the other
  static constexpr int kWide = kSumRows * D / kWarps / kHigh;

  KOGPT_DEVICE Share(int row, int index)
      : Piece<kHigh, kWide>(row + index % kPieces * kHigh, index / kPieces * kWide) {}

  // Writes the piece, times `factor`, into its place in a tile.
  template <typename E>
  KOGPT_DEVICE void store(Tile<D> tile, float factor) const {
#pragma unroll
    for (int m = 0; m < kHigh / 16; ++m) {
      store_fragments<E>(tile, this->row + 16 * m, this->column / 8, this->sum[m],
                         {factor, factor});
    }
  }
};

// A warp's 16 of the rows that stay, kept in registers, as left operands.
template <int D>
struct KeptRows {
  uint32_t kept[D / 16][4];

  KOGPT_DEVICE KeptRows(Tile<D> tile, int row) {
#pragma unroll
    for (int step = 0; step < D / 16; ++step) load_a(kept[step], tile, row, step);
  }

  KOGPT_DEVICE void operand(uint32_t (&a)[1][4], int step) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[0][i] = kept[step][i];
  }
};

// What the warps of a block exchange for one passing tile: weights P and gradients of scores dS,
// side by side in the rows of one tile, kPassing columns each. P is rounded, as an operand must be;
// what that takes off lies where dS will, so that dS is rounded once and not twice.
template <typename E, int kPassing>
struct Exchange {
  Tile<2 * kPassing> tile;

  static constexpr int kGradStep = kPassing / 16;  // of the operands a, the first of dS

  // Where a lane's pair of a piece lies in P.
  KOGPT_DEVICE uint32_t weights_at(int row, int column, int half) const {
    return fragment_address(tile, row, column / 8, half);
  }

  // The same place in dS, kPassing columns on: 64 bytes, which is half of what is swizzled, or 128.
  KOGPT_DEVICE static uint32_t grads_at(uint32_t weights_at) {
    static_assert(kPassing == 32 || kPassing == 64);
    return kPassing == 32 ? weights_at ^ 64 : weights_at + 128;
  }

  template <int kHigh, int kBlocks>
  KOGPT_DEVICE void leave_weights(int row, int column, const float (&x)[kHigh][kBlocks][4]) const {
#pragma unroll
    for (int i = 0; i < kHigh * kBlocks * 2; ++i) {
      const int m = i / (kBlocks * 2), j = i / 2 % kBlocks, half = i % 2;
      const float* pair = &x[m][j][2 * half];
      const uint32_t rounded = pack<E>(pair[0], pair[1]);
      const float2 kept = unpack<E>(rounded);
      const uint32_t at = weights_at(row + 16 * m, column + 8 * j, half);
      store_shared(at, rounded);
      store_shared(grads_at(at), pack<E>(pair[0] - kept.x, pair[1] - kept.y));
    }
  }

  // Multiplies dP - delta by the weights of the same elements, and leaves that.
  template <int kHigh, int kBlocks>
  KOGPT_DEVICE void leave_grads(int row, int column, const float (&x)[kHigh][kBlocks][4]) const {
#pragma unroll
    for (int i = 0; i < kHigh * kBlocks * 2; ++i) {
      const int m = i / (kBlocks * 2), j = i / 2 % kBlocks, half = i % 2;
      const uint32_t at = weights_at(row + 16 * m, column + 8 * j, half);
      const float2 rounded = unpack<E>(load_shared<uint32_t>(at));
      const float2 rest = unpack<E>(load_shared<uint32_t>(grads_at(at)));
      store_shared(grads_at(at), pack<E>(x[m][j][2 * half] * (rounded.x + rest.x),
                                         x[m][j][2 * half + 1] * (rounded.y + rest.y)));
    }
  }
};

// Whether the halves of the caller's group have changed parts. Warps 0, 4.. share a scheduler and
// its exponentials, and so do warps 1, 5..: half of them should compute P, and half dP.
template <typename Shape>
KOGPT_DEVICE bool turned() {
  return Shape::kGroups > 1 && warp() / 4 % 2 == 1;
}

// --- dQ ---

template <typename E_, int D_, int kRows_, int kKeys_, bool kKept_, int kGroupRows_ = kRows_>
struct QueryShape {
  using E = E_;
  static constexpr int D = D_;
  static constexpr int kRows = kRows_;
  static constexpr int kKeys = kKeys_;
  static constexpr bool kKept = kKept_;  // in registers: the rows that stay
  static constexpr int kHigh = kKept ? 1 : 2;
  static constexpr int kGroupRows = kGroupRows_;
  static constexpr int kTwins = kGroupRows / kHigh / 16;  // warps for P; as many for dP
  static constexpr int kGroup = 2 * kTwins * kWarp;
  static constexpr int kGroups = kRows / kGroupRows;
  static constexpr int kThreads = kGroups * kGroup;
  using At = Places<D, kRows, kKeys, kKept>;
  using Left = std::conditional_t<kKept, KeptRows<D>, ReadRows<D, kHigh>>;
};

// Dot product of two rows of which the four lanes of a row of fragments each take a part.
template <typename E, int D>
KOGPT_DEVICE float dot(const HeadRows& left, const HeadRows& right, int token, int end) {
  float sum = 0.0f;
  if (token < end) {
#pragma unroll
    for (int chunk = 0; chunk < D / 8; chunk += 4) {
      const Vector x = load_global<Vector>(left.at(token, chunk + lane() % 4));
      const Vector y = load_global<Vector>(right.at(token, chunk + lane() % 4));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 a = unpack<E>(x.pairs[i]), b = unpack<E>(y.pairs[i]);
        sum += a.x * b.x + a.y * b.y;
      }
    }
  }
  sum += shuffle_xor(sum, 1);
  return sum + shuffle_xor(sum, 2);
}

// Of the two rows of a lane's fragments from query t on: lse in base 2, or delta, which it writes
// for `key_kernel`. Zeros for rows that are not there, whose sums nobody reads.
template <typename E, int D>
KOGPT_DEVICE void row_statistics(float (&statistics)[2], const AttentionBackwardParams& p,
                                 const Work& work, int t, bool deltas) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int token = t + fragment_row(2 * half), end = p.forward.T;
    statistics[half] = 0.0f;
    if (deltas) {
      statistics[half] = dot<E, D>(work.head(p.forward.out), work.head(p.grad_out), token, end);
      if (lane() % 4 == 0 && token < end) {
        store_global(row_statistic(p.delta, p.forward, work, token), statistics[half]);
      }
    } else if (token < end) {
      statistics[half] =
          kLog2E * load_global<float>(row_statistic(p.forward.lse, p.forward, work, token));
    }
  }
}

template <typename Shape, typename Visible>
__global__ void __launch_bounds__(Shape::kThreads) query_kernel(AttentionBackwardParams params) {
  using E = typename Shape::E;
  using At = typename Shape::At;
  constexpr int D = Shape::D, kRows = Shape::kRows, kKeys = Shape::kKeys;
  constexpr int kThreads = Shape::kThreads, kHigh = Shape::kHigh;
  const AttentionParams& p = params.forward;

  const Work work(ceil_div(p.T, kRows), p, /*last_tile_first=*/true);
  const Visible visible(p, work.b);
  const HeadRows keys = work.head(p.k), values = work.head(p.v);
  const int query = work.tile * kRows;
  const int position = p.S - p.T + query;
  const int group = Shape::kGroups == 1 ? 0 : thread_index() / Shape::kGroup;
  const int group_row = group * Shape::kGroupRows;
  const int index = warp() % (2 * Shape::kTwins);
  const bool grads = (index >= Shape::kTwins) != turned<Shape>();  // computes dP, else P
  const int warp_row = group_row + index % Shape::kTwins * 16 * kHigh;
  const int end = min(position + kRows, p.S);
  int key = visible.first_key(position) / kKeys * kKeys;

  const Tile<D> query_tile{0}, grad_tile{Tile<D>::size(kRows)};
  const Passing<D, kKeys> passing{At::kPassAt};
  const Exchange<E, kKeys> exchange{{At::kExchangeAt}};
  copy_rows<kRows, kThreads>(query_tile, work.head(p.q), query, p.T);
  copy_rows<kRows, kThreads>(grad_tile, work.head(params.grad_out), query, p.T);
  if constexpr (Shape::kKept) {
    wait_copies<0>();
    sync_threads();
  }
  const typename Shape::Left left{grads ? grad_tile : query_tile, warp_row};
  if constexpr (Shape::kKept) sync_threads();  // every warp has its rows
  copy_pair<kThreads>(passing, 0, keys, values, key, p.S);
  float statistics[kHigh][2];
#pragma unroll
  for (int m = 0; m < kHigh; ++m) {
    row_statistics<E, D>(statistics[m], params, work, query + warp_row + 16 * m, grads);
  }

  Share<Shape::kGroupRows, D, 2 * Shape::kTwins> grad_q(group_row, index);
  for (int turn = 0; key < end; key += kKeys, ++turn) {
    wait_copies<0>();
    sync_threads();
    if (key + kKeys < end) {
      copy_pair<kThreads>(passing, turn + 1, keys, values, key + kKeys, p.S);
    }
    const Tile<D> key_tile = passing.first(turn);
    float x[kHigh][kKeys / 8][4];  // scores, then weights; or gradients of weights, then of scores
    multiply_rows<E>(x, left, grads ? passing.second(turn) : key_tile, 0);
#pragma unroll
    for (int m = 0; m < kHigh; ++m) {
      if (!grads && !visible.all(key, key + kKeys - 1, position, kRows)) {
        hide(x[m], visible, key, position + warp_row + 16 * m);
      }
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float statistic = statistics[m][e / 2];
          x[m][j][e] = grads ? x[m][j][e] - statistic
                             : exp2_approx(x[m][j][e] * (p.scale * kLog2E) - statistic);
        }
      }
    }
    if (!grads) exchange.leave_weights(warp_row, 0, x);
    sync_group<Shape::kGroup>(1 + group);
    if (grads) exchange.leave_grads(warp_row, 0, x);
    sync_group<Shape::kGroup>(1 + group);
    grad_q.template add_product<E, kKeys / 16>(exchange.tile, exchange.kGradStep, key_tile);
  }

  sync_threads();  // every warp is done with the tiles, whose place the gradients take
  grad_q.template store<E>(query_tile, p.scale);
  sync_threads();
  store_rows<kRows, kThreads>(work.head(params.grad_q), query_tile, query, p.T);
}

// --- dK and dV ---

template <typename E_, int D_, int kKeys_, int kQueries_, bool kKept_, int kGroupKeys_ = kKeys_>
struct KeyShape {
  using E = E_;
  static constexpr int D = D_;
  static constexpr int kKeys = kKeys_;
  static constexpr int kQueries = kQueries_;
  static constexpr bool kKept = kKept_;
  static constexpr int kHigh = kKept ? 1 : 2;
  static constexpr int kGroupKeys = kGroupKeys_;
  static constexpr int kTwins = kGroupKeys / 16;  // warps for P and dV; as many for dP and dK
  static constexpr int kGroup = 2 * kTwins * kWarp;
  static constexpr int kGroups = kKeys / kGroupKeys;
  static constexpr int kThreads = kGroups * kGroup;
  static constexpr int kColumns = kQueries / kHigh;  // of a warp's piece of P or dP
  static_assert(kColumns == kWarp, "each lane reads one statistic");
  using At = Places<D, kKeys, kQueries, kKept>;
  using Left = std::conditional_t<kKept, KeptRows<D>, ReadRows<D, kHigh>>;
};

template <typename Shape, typename Visible>
__global__ void __launch_bounds__(Shape::kThreads) key_kernel(AttentionBackwardParams params) {
  using E = typename Shape::E;
  using At = typename Shape::At;
  constexpr int D = Shape::D, kKeys = Shape::kKeys, kQueries = Shape::kQueries;
  constexpr int kThreads = Shape::kThreads, kHigh = Shape::kHigh;
  const AttentionParams& p = params.forward;

  const Work work(ceil_div(p.S, kKeys), p, /*last_tile_first=*/false);
  const Visible visible(p, work.b);
  const HeadRows queries = work.head(p.q), grads = work.head(params.grad_out);
  const int key = work.tile * kKeys;
  const int group = Shape::kGroups == 1 ? 0 : thread_index() / Shape::kGroup;
  const int group_row = group * Shape::kGroupKeys;
  const bool sums_keys =
      (warp() % (2 * Shape::kTwins) >= Shape::kTwins) != turned<Shape>();  // dK, else dV
  const int index = warp() % Shape::kTwins;
  const int warp_row = group_row + index % (Shape::kTwins / kHigh) * 16 * kHigh;
  const int warp_column = index / (Shape::kTwins / kHigh) * Shape::kColumns;
  const int past = p.S - p.T;  // position of query 0
  const int end = visible.end(key + kKeys, past, p.T);
  int query = max(key - past, 0) / kQueries * kQueries;

  const Tile<D> key_tile{0}, value_tile{Tile<D>::size(kKeys)};
  const Passing<D, kQueries> passing{At::kPassAt};
  const Exchange<E, kQueries> exchange{{At::kExchangeAt}};
  copy_rows<kKeys, kThreads>(key_tile, work.head(p.k), key, p.S);
  copy_rows<kKeys, kThreads>(value_tile, work.head(p.v), key, p.S);
  if constexpr (Shape::kKept) {
    wait_copies<0>();
    sync_threads();
  }
  const typename Shape::Left left{sums_keys ? value_tile : key_tile, warp_row};
  if constexpr (Shape::kKept) sync_threads();  // every warp has its rows
  copy_pair<kThreads>(passing, 0, queries, grads, query, p.T);

  Share<Shape::kGroupKeys, D, Shape::kTwins> sum(group_row, index);
  for (int turn = 0; query < end; query += kQueries, ++turn) {
    wait_copies<0>();
    sync_threads();
    if (query + kQueries < end) {
      copy_pair<kThreads>(passing, turn + 1, queries, grads, query + kQueries, p.T);
    }
    // Of the query in the warp's column that is the lane's; read early, it arrives during the
    // product. The gradients of queries that are not there are zeros, and so is all that they add.
    const int column = query + warp_column + lane();
    float statistic = 0.0f;
    if (column < p.T) {
      statistic =
          load_global<float>(row_statistic(sums_keys ? params.delta : p.lse, p, work, column));
    }
    const Tile<D> query_tile = passing.first(turn), grad_tile = passing.second(turn);
    float x[kHigh][kWarp / 8][4];  // scores, then weights; or gradients of weights, then of scores
    multiply_rows<E>(x, left, sums_keys ? grad_tile : query_tile, warp_column);
    if (!sums_keys && !visible.all(key, key + kKeys - 1, past + query, kQueries)) {
#pragma unroll
      for (int m = 0; m < kHigh; ++m) {
        hide_transposed(x[m], visible, key + warp_row + 16 * m, past + query + warp_column);
      }
    }
    if (!sums_keys) statistic *= kLog2E;
#pragma unroll
    for (int j = 0; j < kWarp / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float of_column = shuffle_from(statistic, fragment_column(j, e));
#pragma unroll
        for (int m = 0; m < kHigh; ++m) {
          x[m][j][e] = sums_keys ? x[m][j][e] - of_column
                                 : exp2_approx(x[m][j][e] * (p.scale * kLog2E) - of_column);
        }
      }
    }
    if (!sums_keys) exchange.leave_weights(warp_row, warp_column, x);
    sync_group<Shape::kGroup>(1 + group);
    if (sums_keys) exchange.leave_grads(warp_row, warp_column, x);
    sync_group<Shape::kGroup>(1 + group);
    sum.template add_product<E, kQueries / 16>(exchange.tile, sums_keys ? exchange.kGradStep : 0,
                                               sums_keys ? query_tile : grad_tile);
  }

  wait_copies<0>();
  sync_threads();  // every warp is done with the tiles, whose place the gradients take
  sum.template store<E>(sums_keys ? key_tile : value_tile, sums_keys ? p.scale : 1.0f);
  sync_threads();
  store_rows<kKeys, kThreads>(work.head(params.grad_k), key_tile, key, p.S);
  store_rows<kKeys, kThreads>(work.head(params.grad_v), value_tile, key, p.S);
}

// --- launching ---

template <typename Query, typename Key, typename Visible>
cudaError_t launch_both(const AttentionBackwardParams& p, cudaStream_t stream) {
  const int heads = p.forward.H * p.forward.B;
  const Grid queries{ceil_div(p.forward.T, Query::kRows) * heads, 1, 1};
  const Grid keys{ceil_div(p.forward.S, Key::kKeys) * heads, 1, 1};
  if (cudaError_t status = launch(query_kernel<Query, Visible>, queries, Query::kThreads,
                                  Query::At::kBytes, stream, p)) {
    return status;
  }
  return launch(key_kernel<Key, Visible>, keys, Key::kThreads, Key::At::kBytes, stream, p);
}

template <typename Query, typename Key>
cudaError_t launch_both(const AttentionBackwardParams& p, cudaStream_t stream) {
  return p.forward.several ? launch_both<Query, Key, SeveralTexts>(p, stream)
                           : launch_both<Query, Key, OneText>(p, stream);
}

template <typename E, int D>
cudaError_t backward(const AttentionBackwardParams& p, cudaStream_t stream) {
  return launch_both<QueryShape<E, D, 64, 32, true>, KeyShape<E, D, 64, 32, true>>(p, stream);
}

template <typename E>
cudaError_t backward(const AttentionBackwardParams& p, cudaStream_t stream) {
  if (p.forward.D == 64) return backward<E, 64>(p, stream);
  if (p.forward.D == 128) return backward<E, 128>(p, stream);
  using Query = QueryShape<E, 256, 128, 32, false, 32>;
  using Key = KeyShape<E, 256, 64, 64, false, 32>;
  int limit;
  if (cudaError_t status = shared_memory_limit(&limit)) return status;
  const bool fits = max_of(Query::At::kBytes, Key::At::kBytes) <= limit;
  return fits ? launch_both<Query, Key>(p, stream) : backward<E, 256>(p, stream);
}

}  // namespace

cudaError_t attention_backward(const AttentionBackwardParams& params, cudaStream_t stream) {
  return params.forward.element == Element::kFloat16 ? backward<Float16>(params, stream)
                                                     : backward<BFloat16>(params, stream);
}

}  // namespace kogpt
