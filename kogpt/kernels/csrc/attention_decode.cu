// Decode attention: a few new tokens over a long cache, with rotary and append inside.
//
// One block computes, for one head of one row, what up to 8 queries see among 256 neighbouring keys
// (a split); the block of a row and head that finishes last merges the splits. Decoding costs the
// reading of the cache, so each of its bytes is read once and everything else hides behind that:
//
//   - Splits have a fixed size and fixed borders: a row's result depends neither on its batch nor
//     on the capacity. 256 keys put 16 heads of 2048 keys on 128 of an H100's 132 multiprocessors,
//     and partial results add less than 1 % to what is read.
//   - A warp owns every fourth tile of 16 keys, and room for one tile of K and one of V. It waits
//     for no other warp: once a tile is multiplied, the copy of the warp's next one begins. So 64
//     KB per block are under way at the start, and at least half of that ever after.
//   - Products run on the tensor cores, keys as the 16 rows and queries as the 8 columns: 8 queries
//     take the time of one, and one takes a fraction of the instructions that plain cores need.
//   - Weights enter the product with V as the sum of two elements, the second being the rounding
//     error of the first: the tensor cores have time to spare, and nothing is lost to rounding.
//   - Interleaved pairs stay within a lane, so rotating q and the new k takes no pass of its own.
//   - The new tokens are a tile of their own, in the block whose split they fall into. That block
//     alone appends them and nobody reads them from the cache, so there is no race.
//
// Budget at D = 256: 4 warps; 64 KB of tiles and 1.5 KB per new token; 165 registers, of which 64
// hold the output and 32 the queries. With few new tokens three blocks fit a multiprocessor of
// sm_90, two one of sm_80, and one those of sm_86 and sm_89.
// Source: Dao et al., "Flash-Decoding for long-context inference" (2023), for the split over keys.
// History, on an H100 at D = 256, 16 heads: 1 x 2048 keys in 18.1 us at first, 17.2 launched early,
// 16.9 with one ordered increment in place of fences; 8 x 1024 in 50.8 us, 64 x 1024 in 357 us (99%
// of the read bandwidth). Splits of 128 keys: 1 to 3% slower.

#include "tile.h"

namespace kogpt {
namespace {

constexpr int kSplit = 256;  // keys of a block
constexpr int kKeys = 16;    // keys of a tile: the rows of a product, whose columns are queries

template <int D>
struct DecodeShape {
  static constexpr int kWarps = D == 256 ? 4 : 8;
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kStride = kWarps * kKeys;  // keys from one tile of a warp to its next

  // Shared memory: K and V tile of each warp, then rows of the new tokens' q, k and v. In the end
  // each warp's tiles give way to its part of the result.
  static constexpr int kWarpBytes = 2 * Tile<D>::size(kKeys);
  static constexpr int kNewRows = kWarps * kWarpBytes;
  static constexpr int shared_bytes(int T) { return kNewRows + 3 * Tile<D>::size(T); }
};

// --- what there is to do ---

// Positions from `begin` up to `end`, without `end`.
struct Span {
  int begin, end;

  KOGPT_DEVICE bool has(int position) const { return begin <= position && position < end; }
  KOGPT_DEVICE bool empty() const { return begin >= end; }
  KOGPT_DEVICE Span within(int low, int high) const {
    return {begin > low ? begin : low, end < high ? end : high};
  }
};

// One row of the batch. No number a caller gives leads out of the cache.
struct Sequence {
  int length;  // tokens before the new ones
  int end;     // tokens with the new ones
  int start;   // first token that is not padding

  KOGPT_DEVICE Sequence(const DecodeParams& p, int b) {
    const int64_t held = p.lengths ? load_global<int64_t>(p.lengths + b) : p.length;
    const int64_t padding = p.starts ? load_global<int64_t>(p.starts + b) : 0;
    length = clamp(held, 0, p.capacity);
    end = clamp(held + p.T, 1, p.capacity);
    start = clamp(padding, 0, p.capacity);
  }

  KOGPT_DEVICE bool sees(int query, int key) const {
    const int position = length + query;
    return key == position || (start <= key && key < position);
  }

  // What is seen by any query.
  KOGPT_DEVICE Span seen() const { return {start < length ? start : length, end}; }
};

// Splits of the longest row there may be, which is what the grid has.
KOGPT_HOST_DEVICE int max_splits(const DecodeParams& p) { return ceil_div(p.capacity, kSplit); }

// The share of one block: a split of one head of one row.
struct Share {
  int h, b;
  Sequence sequence;
  int first_split, splits;  // of the row: those with a key that is seen
  Span cached;              // keys of this split that lie in the cache
  Span fresh;               // those that come with this launch

  KOGPT_DEVICE explicit Share(const DecodeParams& p) : h(block_y()), b(block_z()), sequence(p, b) {
    const Span seen = sequence.seen();
    first_split = seen.begin / kSplit;
    splits = (seen.end - 1) / kSplit - first_split + 1;
    const Span split = seen.within(block_x() * kSplit, (block_x() + 1) * kSplit);
    const int held = p.k_new.data ? sequence.length : sequence.end;
    cached = split.within(0, held);
    fresh = split.within(held, sequence.end);
  }

  KOGPT_DEVICE bool empty() const { return cached.empty() && fresh.empty(); }

  // The rows of its head.
  KOGPT_DEVICE HeadRows head(const Rows& rows) const { return HeadRows(rows, b, h); }

  // Index of a query in (B, H, T).
  KOGPT_DEVICE int64_t query_index(const DecodeParams& p, int query) const {
    return (int64_t{b} * p.H + h) * p.T + query;
  }
};

// --- the new tokens ---

// Rotates interleaved pairs as the plain operations do, bit for bit: every product is rounded.
struct Rotary {
  const float* cos;
  const float* sin;
  int dims;

  // Chunk of the row of a token at `position`.
  template <typename E>
  KOGPT_DEVICE Vector rotate(Vector x, int position, int chunk) const {
    if (8 * chunk >= dims) return x;
    const int64_t angle = int64_t{position} * (dims / 2) + 4 * chunk;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float c = load_global<float>(cos + angle + i), s = load_global<float>(sin + angle + i);
      const float2 pair = unpack<E>(x.pairs[i]);
      x.pairs[i] =
          pack<E>(product(pair.x, c) - product(pair.y, s), product(pair.y, c) + product(pair.x, s));
    }
    return x;
  }
};

// Calls `visit(token, chunk)` for all chunks of the new tokens' rows, from warp `first` on.
template <int D, typename Visit>
KOGPT_DEVICE void for_new_chunks(int T, int first, Visit visit) {
  constexpr int kWarps = DecodeShape<D>::kWarps;
  constexpr int kRows = kWarp / Tile<D>::kChunks;  // of one warp at once
  const int turn = (warp() + kWarps - first) % kWarps;
#pragma unroll 1
  for (int t = turn * kRows + lane() / Tile<D>::kChunks; t < T; t += kWarps * kRows) {
    visit(t, lane() % Tile<D>::kChunks);
  }
}

// Tiles of the new tokens: q in every block, k and v in those that have a share of them.
template <int D>
struct NewRows {
  Tile<D> q, k, v;

  KOGPT_DEVICE explicit NewRows(int T)
      : q{DecodeShape<D>::kNewRows},
        k{q.offset + Tile<D>::size(T)},
        v{k.offset + Tile<D>::size(T)} {}
};

// Brings the new tokens to shared memory, rotated, and those of the block's split to the cache.
// q, k and v begin at different warps: with one new token, three warps fetch one row each.
template <typename E, int D>
KOGPT_DEVICE void take_new_rows(const DecodeParams& p, const Share& share, const NewRows<D>& rows) {
  const Sequence& sequence = share.sequence;
  const Rotary rotary{p.cos, p.sin, p.R};
  const auto turn = [&](int t) {  // the rotary position of a new token
    return clamp(int64_t{sequence.length} + t - sequence.start, 0, p.capacity - 1);
  };
  const HeadRows queries = share.head(p.q);
  for_new_chunks<D>(p.T, 0, [&](int t, int chunk) {
    const Vector x = load_global<Vector>(queries.at(t, chunk));
    store_shared(rows.q.at(t, chunk), rotary.rotate<E>(x, turn(t), chunk));
  });
  if (share.fresh.empty()) return;
  const HeadRows new_keys = share.head(p.k_new), keys = share.head(p.keys);
  for_new_chunks<D>(p.T, 1, [&](int t, int chunk) {
    const int position = sequence.length + t;
    Vector x = load_global<Vector>(new_keys.at(t, chunk));
    x = rotary.rotate<E>(x, turn(t), chunk);
    store_shared(rows.k.at(t, chunk), x);
    if (share.fresh.has(position)) store_global(keys.at(position, chunk), x);
  });
  const HeadRows new_values = share.head(p.v_new), values = share.head(p.values);
  for_new_chunks<D>(p.T, 2, [&](int t, int chunk) {
    const int position = sequence.length + t;
    Vector x = {};  // of another split: there its place may already hold an output
    if (share.fresh.has(position)) {
      x = load_global<Vector>(new_values.at(t, chunk));
      store_global(values.at(position, chunk), x);
    }
    store_shared(rows.v.at(t, chunk), x);
  });
}

// --- one warp ---

// The queries as operands b of all steps: [2 step] and [2 step + 1]. Columns without a query repeat
// the last one; nobody reads their results.
template <int D>
struct Queries {
  uint32_t b[D / 8];

  KOGPT_DEVICE Queries(Tile<D> tile, int T) {
    const int query = lane() % 8 < T ? lane() % 8 : T - 1;
#pragma unroll
    for (int i = 0; i < D / 32; ++i) {
      uint32_t pairs[4];
      load_matrices(pairs, tile.at(query, 4 * i + lane() / 8));
#pragma unroll
      for (int j = 0; j < 4; ++j) b[4 * i + j] = pairs[j];
    }
  }
};

// Starts copying the 16 rows from `first` on, zeros for those outside of `span`.
template <int D>
KOGPT_DEVICE void copy_keys(Tile<D> tile, const HeadRows& source, int first, Span span) {
  constexpr int kStep = kWarp / Tile<D>::kChunks;  // rows that a warp copies at once
  const int chunk = lane() % Tile<D>::kChunks;
  const int row = lane() / Tile<D>::kChunks;
  if (first < span.end) {
    const uint8_t* from = source.at(first + row, chunk);
#pragma unroll 4  // enough, and the loop of the tiles stays short
    for (int i = 0; i < kKeys; i += kStep) {
      copy_async(tile.at(row + i, chunk), from, span.has(first + row + i));
      from += kStep * source.stride;
    }
  }
  commit_copies();
}

// scores (keys x queries) = the tile's rows times the queries. A tile of fewer than 16 rows repeats
// the last of them.
template <typename E, int D>
KOGPT_DEVICE void multiply_queries(float (&scores)[4], Tile<D> keys, int rows,
                                   const Queries<D>& queries) {
  const int row = lane() % 16 < rows ? lane() % 16 : rows - 1;
  float sums[2][4] = {};  // in turn, so that a product need not wait for the one before
#pragma unroll
  for (int step = 0; step < D / 16; ++step) {
    uint32_t a[4];
    load_matrices(a, keys.at(row, lane() / 16, step));
    mma<E>(sums[step % 2], a, queries.b[2 * step], queries.b[2 * step + 1]);
  }
#pragma unroll
  for (int e = 0; e < 4; ++e) scores[e] = sums[0][e] + sums[1][e];
}

// Scores in base 2, -infinity where a query does not see a key of the tile that begins at `first`.
KOGPT_DEVICE void mask(float (&scores)[4], const Share& share, Span span, int first, float scale) {
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const int key = first + fragment_row(e), query = fragment_column(0, e);
    const bool seen = span.has(key) && share.sequence.sees(query, key);
    scores[e] = seen ? scores[e] * scale : -kInfinity;
  }
}

// What scores are taken relative to. Where no key was seen, the maximum is -infinity, and must not
// be subtracted from itself.
KOGPT_DEVICE float origin(float maximum) { return maximum == -kInfinity ? 0.0f : maximum; }

// What a warp has summed up so far. With lane = 4 g + i: queries 2 i and 2 i + 1, and of each 16
// dims those at g and g + 8.
template <typename E, int D>
struct State {
  float maximum[2] = {-kInfinity, -kInfinity};  // of the scores
  float sum[2] = {0.0f, 0.0f};                  // of the weights in this lane
  float out[D / 16][4];

  KOGPT_DEVICE State() { clear(out); }

  // Turns scores into weights relative to the new maximum, to which all sums are brought.
  KOGPT_DEVICE void update(float (&scores)[4]) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float top = fmaxf(scores[j], scores[j + 2]);
      top = fmaxf(top, shuffle_xor(top, 4));  // the eight lanes with the same queries
      top = fmaxf(top, shuffle_xor(top, 8));
      top = fmaxf(top, shuffle_xor(top, 16));
      top = fmaxf(top, maximum[j]);
      const float correction = exp2_approx(maximum[j] - origin(top));
      maximum[j] = top;
      scores[j] = exp2_approx(scores[j] - origin(top));
      scores[j + 2] = exp2_approx(scores[j + 2] - origin(top));
      sum[j] = sum[j] * correction + (scores[j] + scores[j + 2]);
#pragma unroll
      for (int m = 0; m < D / 16; ++m) {
        out[m][j] *= correction;
        out[m][j + 2] *= correction;
      }
    }
  }

  // Sums over the lanes with the same queries.
  KOGPT_DEVICE void finish() {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      sum[j] += shuffle_xor(sum[j], 4);
      sum[j] += shuffle_xor(sum[j], 8);
      sum[j] += shuffle_xor(sum[j], 16);
    }
  }

  // out (dims x queries) += the tile's rows, transposed, times the weights (keys x queries).
  KOGPT_DEVICE void add(const float (&weights)[4], Tile<D> values, int rows) {
    uint32_t high[2], low[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float x = weights[2 * half], y = weights[2 * half + 1];
      const uint32_t rounded = pack<E>(x, y);
      const float2 kept = unpack<E>(rounded);
      high[half] = transpose(rounded);
      low[half] = transpose(pack<E>(x - kept.x, y - kept.y));
    }
    const int key = lane() % 8 + lane() / 16 * 8;
    const int row = key < rows ? key : rows - 1;
#pragma unroll
    for (int m = 0; m < D / 16; ++m) {
      uint32_t a[4];
      load_matrices_transposed(a, values.at(row, lane() / 8 % 2, m));
      mma<E>(out[m], a, high[0], high[1]);
      mma<E>(out[m], a, low[0], low[1]);
    }
  }
};

// --- parts of a result, and merging them ---

// A part of the result: for each query D sums, maximum and sum of the weights, and room that keeps
// rows on 16 bytes and apart in banks.
template <int D>
struct Part {
  static constexpr int kRow = 4 * (D + 4);
  static constexpr int kMaximum = 4 * D;
  static constexpr int kSum = 4 * D + 4;
};

struct alignas(16) Floats {
  float x[4];
};

// Parts in shared memory, `stride` bytes apart.
struct SharedParts {
  uint32_t offset, stride;

  template <typename T>
  KOGPT_DEVICE T load(int part, int byte) const {
    return load_shared<T>(offset + part * stride + byte);
  }
};

// Parts in global memory.
struct GlobalParts {
  uint8_t* data;
  int64_t stride;

  template <typename T>
  KOGPT_DEVICE T load(int part, int byte) const {
    return load_global<T>(data + part * stride + byte);
  }
};

// One chunk of one query's result, not yet divided by the sum.
struct Result {
  float maximum = -kInfinity, sum = 0.0f;
  float out[8] = {};

  // Brings what was added so far to a new maximum.
  KOGPT_DEVICE void rescale(float top) {
    const float correction = exp2_approx(maximum - origin(top));
    maximum = top;
    sum *= correction;
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i] *= correction;
  }

  // Adds a part whose maximum is not above this one's.
  KOGPT_DEVICE void add(float part_maximum, float part_sum, const Floats& low, const Floats& high) {
    const float weight = exp2_approx(part_maximum - origin(maximum));
    sum += weight * part_sum;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out[i] += weight * low.x[i];
      out[i + 4] += weight * high.x[i];
    }
  }
};

// Merges `count` parts in their order. The loads of kAtOnce parts are under way together; what lies
// beyond the last part repeats it and is not added.
template <int D, int kAtOnce, typename Parts>
KOGPT_DEVICE Result merge(const Parts& parts, int count, int query, int chunk) {
  const int row = query * Part<D>::kRow;
  Result result;
#pragma unroll 1
  for (int first = 0; first < count; first += kAtOnce) {
    float maximum[kAtOnce], sum[kAtOnce];
    Floats low[kAtOnce], high[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int part = first + i < count ? first + i : count - 1;
      maximum[i] = parts.template load<float>(part, row + Part<D>::kMaximum);
      sum[i] = parts.template load<float>(part, row + Part<D>::kSum);
      low[i] = parts.template load<Floats>(part, row + 32 * chunk);
      high[i] = parts.template load<Floats>(part, row + 32 * chunk + 16);
    }
    float top = result.maximum;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) top = fmaxf(top, maximum[i]);
    result.rescale(top);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + i < count) result.add(maximum[i], sum[i], low[i], high[i]);
    }
  }
  return result;
}

// Writes a warp's state as a part in shared memory.
template <typename E, int D>
KOGPT_DEVICE void store_part(uint32_t offset, State<E, D>& state, int T) {
  state.finish();
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int query = fragment_column(0, j);
    if (query >= T) continue;
    const uint32_t row = offset + query * Part<D>::kRow;
#pragma unroll
    for (int m = 0; m < D / 16; ++m) {
      store_shared(row + 4 * (16 * m + fragment_row(0)), state.out[m][j]);
      store_shared(row + 4 * (16 * m + fragment_row(2)), state.out[m][j + 2]);
    }
    if (fragment_row(0) == 0) {
      store_shared(row + Part<D>::kMaximum, state.maximum[j]);
      store_shared(row + Part<D>::kSum, state.sum[j]);
    }
  }
}

// Writes one chunk of a query's result as part of a part in global memory.
template <int D>
KOGPT_DEVICE void store_result(uint8_t* part, const Result& result, int query, int chunk) {
  uint8_t* row = part + query * Part<D>::kRow;
  const float* x = result.out;
  store_global(row + 32 * chunk, Floats{{x[0], x[1], x[2], x[3]}});
  store_global(row + 32 * chunk + 16, Floats{{x[4], x[5], x[6], x[7]}});
  if (chunk > 0) return;
  store_global(row + Part<D>::kMaximum, result.maximum);
  store_global(row + Part<D>::kSum, result.sum);
}

// Writes one chunk of a query's output, and the lse.
template <typename E>
KOGPT_DEVICE void store_output(const DecodeParams& p, const Share& share, const Result& result,
                               int query, int chunk) {
  // The sum is 0 only where the cache had no room for a query's own token.
  const float factor = result.sum == 0.0f ? 0.0f : 1.0f / result.sum;
  Vector x;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x.pairs[i] = pack<E>(result.out[2 * i] * factor, result.out[2 * i + 1] * factor);
  }
  store_global(share.head(p.out).at(query, chunk), x);
  if (chunk > 0 || !p.lse) return;
  store_global(p.lse + share.query_index(p, query),
               (result.maximum + log2_approx(result.sum)) / kLog2E);
}

// --- the block ---

// Of the whole grid.
KOGPT_DEVICE bool is_first_thread() {
  return block_x() == 0 && block_y() == 0 && block_z() == 0 && thread_index() == 0;
}

// Whether this block is the last of its row and head to come here, and may then read what the
// others wrote. One thread orders for all: barriers pass it on.
KOGPT_DEVICE bool arrive_last(const DecodeParams& p, const Share& share, uint32_t scratch) {
  const uint32_t last = share.splits - 1;
  sync_threads();
  if (thread_index() == 0) {
    uint32_t* counter = p.counters + int64_t{share.b} * p.H + share.h;
    store_shared(scratch, increment_wrapping(counter, last));
  }
  sync_threads();
  return load_shared<uint32_t>(scratch) == last;
}

// Merges the warps' parts and, if the row has several splits, those; writes the output.
template <typename E, int D>
KOGPT_DEVICE void finish(const DecodeParams& p, const Share& share) {
  using Shape = DecodeShape<D>;
  constexpr int kChunks = Tile<D>::kChunks;
  const int64_t stride = int64_t{p.T} * Part<D>::kRow;
  const int64_t head = int64_t{share.b} * p.H + share.h;
  uint8_t* parts = reinterpret_cast<uint8_t*>(p.partials) + head * max_splits(p) * stride;
  const SharedParts warps{0, Shape::kWarpBytes};
  for (int i = thread_index(); i < p.T * kChunks; i += Shape::kThreads) {
    const Result result = merge<D, 4>(warps, Shape::kWarps, i / kChunks, i % kChunks);
    if (share.splits == 1) {
      store_output<E>(p, share, result, i / kChunks, i % kChunks);
    } else {
      store_result<D>(parts + block_x() * stride, result, i / kChunks, i % kChunks);
    }
  }
  if (share.splits == 1 || !arrive_last(p, share, Shape::kNewRows)) return;
  const GlobalParts splits{parts + share.first_split * stride, stride};
  for (int i = thread_index(); i < p.T * kChunks; i += Shape::kThreads) {
    const Result result = merge<D, D / 32>(splits, share.splits, i / kChunks, i % kChunks);
    store_output<E>(p, share, result, i / kChunks, i % kChunks);
  }
}

template <typename E, int D>
__global__ void __launch_bounds__(DecodeShape<D>::kThreads) decode_kernel(DecodeParams p) {
  using Shape = DecodeShape<D>;
  release_next();
  if (!p.promised) await_previous();
  const Share share(p);
  const HeadRows keys = share.head(p.keys), values = share.head(p.values);
  const Tile<D> key_tile{static_cast<uint32_t>(warp() * Shape::kWarpBytes)};
  const Tile<D> value_tile{key_tile.offset + Tile<D>::size(kKeys)};
  int first = block_x() * kSplit + warp() * kKeys;  // key of the warp's first tile
  while (first + kKeys <= share.cached.begin) first += Shape::kStride;
  copy_keys(key_tile, keys, first, share.cached);
  copy_keys(value_tile, values, first, share.cached);

  await_previous();
  if (p.ready && is_first_thread()) raise_flag(p.ready);
  if (share.empty()) return;

  const NewRows<D> rows(p.T);
  take_new_rows<E>(p, share, rows);
  sync_threads();
  const Queries<D> queries(rows.q, p.T);
  const float scale = p.scale * kLog2E;
  State<E, D> state;
  float scores[4];
  if (!share.fresh.empty() && warp() == Shape::kWarps - 1) {  // the warp with the fewest tiles
    multiply_queries<E>(scores, rows.k, p.T, queries);
    mask(scores, share, share.fresh, share.sequence.length, scale);
    state.update(scores);
    state.add(scores, rows.v, p.T);
  }
  for (; first < share.cached.end; first += Shape::kStride) {
    wait_copies<1>();
    sync_warp();
    multiply_queries<E>(scores, key_tile, kKeys, queries);
    sync_warp();
    copy_keys(key_tile, keys, first + Shape::kStride, share.cached);
    mask(scores, share, share.cached, first, scale);
    state.update(scores);
    wait_copies<1>();
    sync_warp();
    state.add(scores, value_tile, kKeys);
    sync_warp();
    copy_keys(value_tile, values, first + Shape::kStride, share.cached);
  }
  store_part(key_tile.offset, state, p.T);
  sync_threads();
  finish<E, D>(p, share);
}

template <typename E, int D>
cudaError_t launch_decode(const DecodeParams& p, cudaStream_t stream) {
  using Shape = DecodeShape<D>;
  return launch(decode_kernel<E, D>, Grid{max_splits(p), p.H, p.B}, Shape::kThreads,
                Shape::shared_bytes(p.T), stream, p, /*early=*/true);
}

template <typename E>
cudaError_t decode(const DecodeParams& p, cudaStream_t stream) {
  if (p.D == 64) return launch_decode<E, 64>(p, stream);
  if (p.D == 128) return launch_decode<E, 128>(p, stream);
  if (p.D == 256) return launch_decode<E, 256>(p, stream);
  return cudaErrorInvalidValue;
}

}  // namespace

int64_t decode_partials(const DecodeParams& params) {
  return int64_t{params.B} * params.H * max_splits(params) * params.T * (params.D + 4);
}

cudaError_t attention_decode(const DecodeParams& params, cudaStream_t stream) {
  return params.element == Element::kFloat16 ? decode<Float16>(params, stream)
                                             : decode<BFloat16>(params, stream);
}

}  // namespace kogpt
