// Tiles of rows in shared memory, and how they become operands of the tensor cores.
#pragma once

#include "attention.h"
#include "ptx.h"

namespace kogpt {

constexpr int kWarp = 32;
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kInfinity = __builtin_huge_valf();

KOGPT_HOST_DEVICE constexpr int ceil_div(int x, int y) { return (x + y - 1) / y; }
KOGPT_HOST_DEVICE constexpr int min_of(int x, int y) { return x < y ? x : y; }
KOGPT_HOST_DEVICE constexpr int max_of(int x, int y) { return x < y ? y : x; }

KOGPT_DEVICE int clamp(int64_t x, int low, int high) {
  return x < low ? low : x > high ? high : static_cast<int>(x);
}

KOGPT_DEVICE int lane() { return thread_index() % kWarp; }
KOGPT_DEVICE int warp() { return thread_index() / kWarp; }

// The rows of one head of one batch row of a tensor, in global memory.
struct HeadRows {
  uint8_t* data;
  int64_t stride;  // bytes from one token to the next

  KOGPT_DEVICE HeadRows(const Rows& rows, int b, int h)
      : data(static_cast<uint8_t*>(rows.data) + 2 * (b * rows.batch_stride + h * rows.head_stride)),
        stride(2 * rows.token_stride) {}

  // Chunk of 8 elements of a token's row.
  KOGPT_DEVICE uint8_t* at(int token, int chunk) const {
    return data + token * stride + 16 * chunk;
  }
};

// Rows of D elements in shared memory, from byte `offset` on.
//
// `ldmatrix` reads one chunk of 8 elements from each of 8 rows at once. Rows are a multiple of 128
// bytes, so the same chunk of all rows lies in the same banks: chunk c of row r is kept at place
// c ^ (r % 8) instead, which spreads any 8 rows over all 32 banks.
template <int D>
struct Tile {
  static constexpr int kRowBytes = 2 * D;
  static constexpr int kChunks = D / 8;

  uint32_t offset;

  KOGPT_HOST_DEVICE static constexpr int size(int rows) { return rows * kRowBytes; }

  KOGPT_DEVICE uint32_t at(int row, int chunk) const {
    return offset + row * kRowBytes + 16 * (chunk ^ (row % 8));
  }

  // Chunk 2 `step` + `half` of a row, half being 0 or 1. Where `step` is a constant, all steps of a
  // row share four addresses, and so do rows that lie a multiple of 8 apart: what is above 128
  // bytes goes into the instruction.
  KOGPT_DEVICE uint32_t at(int row, int half, int step) const {
    return offset + row * kRowBytes + 16 * (half ^ (row % 8) ^ 2 * (step % 4)) + 128 * (step / 4);
  }
};

// Starts copying rows `first`.. of a head into a tile, zeros from row `end` on.
template <int kRows, int kThreads, int D>
KOGPT_DEVICE void copy_rows(Tile<D> tile, const HeadRows& source, int first, int end) {
  constexpr int kStep = kThreads / Tile<D>::kChunks;  // rows that the block copies at once
  static_assert(kThreads % Tile<D>::kChunks == 0 && kRows % kStep == 0);
  const int chunk = thread_index() % Tile<D>::kChunks;
  const int row = thread_index() / Tile<D>::kChunks;
  const uint8_t* from = source.at(first + row, chunk);
#pragma unroll 4  // more would keep too many addresses at hand
  for (int i = 0; i < kRows; i += kStep) {
    copy_async(tile.at(row + i, chunk), from, first + row + i < end);
    from += kStep * source.stride;
  }
  commit_copies();
}

// Writes a tile to rows `first`.. of a head, those before `end`.
template <int kRows, int kThreads, int D>
KOGPT_DEVICE void store_rows(const HeadRows& target, Tile<D> tile, int first, int end) {
  constexpr int kStep = kThreads / Tile<D>::kChunks;
  const int chunk = thread_index() % Tile<D>::kChunks;
#pragma unroll 4
  for (int i = 0; i < kRows; i += kStep) {
    const int row = i + thread_index() / Tile<D>::kChunks;
    if (first + row < end) {
      store_global(target.at(first + row, chunk), load_shared<Vector>(tile.at(row, chunk)));
    }
  }
}

// Operand a: rows `row`..+15, elements 16 `step`..+15.
template <int D>
KOGPT_DEVICE void load_a(uint32_t (&a)[4], Tile<D> tile, int row, int step) {
  load_matrices(a, tile.at(row + lane() % 16, lane() / 16, step));
}

// Operands b of two products against rows `row`..+7 and +8..+15, elements 16 `step`..+15:
// b[0], b[1] for the first and b[2], b[3] for the second.
template <int D>
KOGPT_DEVICE void load_b(uint32_t (&b)[4], Tile<D> tile, int row, int step) {
  load_matrices(b, tile.at(row + lane() % 8 + lane() / 16 * 8, lane() / 8 % 2, step));
}

// Operands b of two products that sum over rows `row`..+15, for elements 16 `step`..+7 and +8..+15.
template <int D>
KOGPT_DEVICE void load_b_transposed(uint32_t (&b)[4], Tile<D> tile, int row, int step) {
  load_matrices_transposed(b, tile.at(row + lane() % 16, lane() / 16, step));
}

// Where a lane's numbers lie in 16 rows of a product: `element`s 0 and 1 of every 8 columns in row
// lane / 4, columns 2 (lane % 4) and the next, 2 and 3 eight rows below.
KOGPT_DEVICE int fragment_row(int element) { return lane() / 4 + element / 2 * 8; }
KOGPT_DEVICE int fragment_column(int block, int element) {
  return 8 * block + lane() % 4 * 2 + element % 2;
}

template <int kBlocks>
KOGPT_DEVICE void clear(float (&x)[kBlocks][4]) {
#pragma unroll
  for (int j = 0; j < kBlocks; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) x[j][e] = 0.0f;
  }
}

// A warp's 16 kHigh rows of a tile, as left operands.
template <int D, int kHigh>
struct ReadRows {
  Tile<D> tile;
  int row;

  KOGPT_DEVICE void operand(uint32_t (&a)[kHigh][4], int step) const {
#pragma unroll
    for (int m = 0; m < kHigh; ++m) load_a(a[m], tile, row + 16 * m, step);
  }
};

// Where in a tile a lane's pair of a block of 8 columns lies, in the upper or lower 8 of 16 rows.
template <int D>
KOGPT_DEVICE uint32_t fragment_address(Tile<D> tile, int row, int block, int half) {
  return tile.at(row + fragment_row(2 * half), block) + lane() % 4 * 4;
}

// Writes a warp's 16 rows, each times its factor, into rows `row`.. of a tile, from the `first`-th
// 8 columns on.
template <typename E, int D, int kBlocks>
KOGPT_DEVICE void store_fragments(Tile<D> tile, int row, int first, const float (&x)[kBlocks][4],
                                  const float (&factor)[2]) {
#pragma unroll
  for (int j = 0; j < kBlocks; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float f = factor[half];
      store_shared(fragment_address(tile, row, first + j, half),
                   pack<E>(x[j][2 * half] * f, x[j][2 * half + 1] * f));
    }
  }
}

// x = `left` times rows `row`..+8 kBlocks - 1 of `right`, transposed.
template <typename E, typename Left, int D, int kHigh, int kBlocks>
KOGPT_DEVICE void multiply_rows(float (&x)[kHigh][kBlocks][4], const Left& left, Tile<D> right,
                                int row) {
#pragma unroll
  for (int m = 0; m < kHigh; ++m) clear(x[m]);
#pragma unroll
  for (int step = 0; step < D / 16; ++step) {
    uint32_t a[kHigh][4];
    left.operand(a, step);
#pragma unroll
    for (int j = 0; j < kBlocks; j += 2) {
      uint32_t b[4];
      load_b(b, right, row + 8 * j, step);
#pragma unroll
      for (int m = 0; m < kHigh; ++m) {
        mma<E>(x[m][j], a[m], b[0], b[1]);
        mma<E>(x[m][j + 1], a[m], b[2], b[3]);
      }
    }
  }
}

// One warp's piece of a block's sum. An operand b that was read from shared memory serves all of
// its rows, and an operand a all of its columns.
template <int kRows, int kColumns>
struct Piece {
  int row, column;
  float sum[kRows / 16][kColumns / 8][4];

  KOGPT_DEVICE Piece(int row, int column) : row(row), column(column) {
#pragma unroll
    for (int m = 0; m < kRows / 16; ++m) clear(sum[m]);
  }

  // sum += columns 16 `first`.. of `left` times the first 16 kSteps rows of `right`.
  template <typename E, int kSteps, int kWidth, int D>
  KOGPT_DEVICE void add_product(Tile<kWidth> left, int first, Tile<D> right) {
    const Tile<D> part{right.offset + column / 64 * 128};  // places change within 64 columns
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t a[kRows / 16][4];
#pragma unroll
      for (int m = 0; m < kRows / 16; ++m) load_a(a[m], left, row + 16 * m, first + step);
#pragma unroll
      for (int j = 0; j < kColumns / 16; ++j) {
        uint32_t b[4];
        load_b_transposed(b, part, 16 * step, column % 64 / 16 + j);
#pragma unroll
        for (int m = 0; m < kRows / 16; ++m) {
          mma<E>(sum[m][2 * j], a[m], b[0], b[1]);
          mma<E>(sum[m][2 * j + 1], a[m], b[2], b[3]);
        }
      }
    }
  }
};

// What a block works on: one tile of one head of one batch row.
//
// Blocks start in the order of their index. Heads are taken in groups whose keys and values fit the
// L2 cache together, and within a group the tiles with the most work come first, so that the last
// blocks to finish are short ones.
struct Work {
  int tile, h, b;

  KOGPT_DEVICE Work(int tiles, const AttentionParams& p, bool last_tile_first) {
    constexpr int64_t kCachedBytes = 24 << 20;  // of 40 to 50 MB of L2 on sm_80 and sm_90
    const int64_t head_bytes = int64_t{4} * p.S * p.D;
    const int heads = p.B * p.H;
    const int group = static_cast<int>(
        head_bytes * heads <= kCachedBytes ? heads : 1 + (kCachedBytes - 1) / head_bytes);
    const int first = block_x() / (group * tiles) * group;  // head that the group begins with
    const int members = first + group <= heads ? group : heads - first;
    const int index = block_x() - first * tiles;
    const int head = first + index % members;
    tile = last_tile_first ? tiles - 1 - index / members : index / members;
    h = head % p.H;
    b = head / p.H;
  }

  // The rows of its head.
  KOGPT_DEVICE HeadRows head(const Rows& rows) const { return HeadRows(rows, b, h); }
};

// A statistic of row t of one head in a (B, H, T) tensor.
KOGPT_DEVICE float* row_statistic(float* data, const AttentionParams& p, const Work& work, int t) {
  return data + (int64_t{work.b} * p.H + work.h) * p.T + t;
}

// Which keys a query sees, on positions in the row, where a row is one text behind padding.
struct OneText {
  int start;  // first key that is not padding

  KOGPT_DEVICE OneText(const AttentionParams& p, int b)
      : start(p.starts ? clamp(load_global<int64_t>(p.starts + b), 0, p.S) : 0) {}

  KOGPT_DEVICE bool operator()(int key, int position) const {
    return key == position || (start <= key && key < position);
  }

  // First key that any query from `position` on sees.
  KOGPT_DEVICE int first_key(int position) const { return start < position ? start : position; }

  // Whether each of `queries` from `position` on sees all keys from `key` to `last`.
  KOGPT_DEVICE bool all(int key, int last, int position, int /*queries*/) const {
    return start <= key && last <= position;
  }

  // The query, by index, from which on nobody sees a key before `key`: padding is seen by nobody
  // but the query at its own position.
  KOGPT_DEVICE int end(int key, int past, int T) const {
    return key <= start ? min(key - past, T) : T;
  }
};

// The same where texts lie in a row one after the other, and every query has the start of its own.
struct SeveralTexts {
  const AttentionParams& p;
  int row;  // place of the row's start for position 0

  KOGPT_DEVICE SeveralTexts(const AttentionParams& p, int b) : p(p), row(b * p.T - (p.S - p.T)) {}

  // The low half of what is stored: nothing more is to spare in registers.
  KOGPT_DEVICE int start(int position) const {
    return load_global<int32_t>(p.starts + row + position);
  }

  KOGPT_DEVICE bool operator()(int key, int position) const {
    return key <= position && (position >= p.S || start(position) <= key);
  }

  // Not before the row, whatever a caller gives.
  KOGPT_DEVICE int first_key(int position) const { return max_of(start(position), 0); }

  KOGPT_DEVICE bool all(int key, int last, int position, int queries) const {
    return last <= position && position + queries <= p.S && start(position + queries - 1) <= key;
  }

  // By bisection, for starts never fall.
  KOGPT_DEVICE int end(int key, int past, int T) const {
    int low = 0, high = T;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (start(past + middle) < key) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }
};

// Hides the keys that a row must not see: scores of keys `key`.. for queries from `position` on.
template <typename Visible, int kBlocks>
KOGPT_DEVICE void hide(float (&scores)[kBlocks][4], const Visible& visible, int key, int position) {
#pragma unroll
  for (int j = 0; j < kBlocks; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (!visible(key + fragment_column(j, e), position + fragment_row(e))) {
        scores[j][e] = -kInfinity;
      }
    }
  }
}

// The same for scores with keys in rows and queries in columns.
template <typename Visible, int kBlocks>
KOGPT_DEVICE void hide_transposed(float (&scores)[kBlocks][4], const Visible& visible, int key,
                                  int position) {
#pragma unroll
  for (int j = 0; j < kBlocks; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (!visible(key + fragment_row(e), position + fragment_column(j, e))) {
        scores[j][e] = -kInfinity;
      }
    }
  }
}

}  // namespace kogpt
