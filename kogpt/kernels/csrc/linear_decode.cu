// Products of a few rows with weights in 16, 8 or 4 bits, at the speed of reading the weights.
//
// One block computes 32 outputs of every row of x, up to 8 rows. Decoding costs the reading of the
// weights, so each of their bytes is read once and everything else hides behind that:
//
//   - Products run on the tensor cores even for one row, weights as the 16 rows of an operand and
//     rows of x as its 8 columns: 8 rows take the time of one, and have the same bits as alone.
//     An H100's multiprocessor gets 2 KB of weights in 142 clocks (3.24 TB/s, 132 of them, 1.74
//     GHz) and can issue 568 instructions meanwhile. The loop below spends about 75, 245 or 320 on
//     2 KB of 16, 8 or 4 bits, for any number of rows. Plain cores would need, at 4 bits, about 300
//     to widen to float32 and 128 for each row: no time is left from two rows on.
//   - The warps of a block share out its inputs, in stages of 64 bytes of each of the 32 weight
//     rows, and the block adds up their sums in a fixed order. Nothing is merged across blocks:
//     the products of KoGPT have outputs enough, (28672, 4096) 896 blocks of 16, 8 or 4 warps,
//     (64512, 4096) 2016 of them, (4096, 20480) 128 blocks of 16 warps, which is one for all but 4
//     multiprocessors. In a chain of kernels, those of the next begin where blocks of this one end.
//   - A warp has room for three stages and waits for no other warp: once a stage is multiplied, the
//     copy of the warp's next one begins. So 60 KB and more are under way on a multiprocessor,
//     three times what the latency of memory asks for. The inputs and scales that go with a stage
//     are fetched while the one before is multiplied.
//   - Integers are widened exactly, by masking them into the low bits of a float and subtracting
//     its value. Scales are applied to sums in float32: no product is rounded to 16 bits. Offsets
//     are taken off there too, times the sums of x, which the tensor cores find as the products of
//     one more operand, all ones.
//   - Launched early, a block fills its stages before the kernel ahead has ended, and where the
//     last inputs to come are known it leaves them for the end.
//
// Budget: 1 to 16 warps; 6 KB of shared memory each; on sm_90 54 registers at 16 bits, 63 at 8 and
// 82 at 4; more at 4 bits with offsets (89), or in groups of fewer inputs than a stage has.
// History, of one row on an H100, with 16 stages to a warp: (28672, 4096) 84.5, 47.4 and 28.3 us at
// 16, 8 and 4 bits, (4096, 20480) 61.2, 35.5 and 22.7. A step of the 6B in 4.29, 2.75 and 1.85 ms;
// with 8 stages 4.22, 2.58 and 1.69, with 4 stages 4.22, 2.69 and 1.80, with 2 stages 2.09 at 4
// bits. Prefetching further stages to the L2 cache: 1 to 5% slower.

#include "formats.h"
#include "linear.h"
#include "ptx.h"
#include "tile.h"

namespace kogpt {
namespace {

constexpr int kTiles = 2;           // of 16 weight rows, whose products a warp makes in turn
constexpr int kRows = 16 * kTiles;  // weight rows of a block: its outputs
constexpr int kStageRow = 64;       // bytes of each of them in a stage
constexpr int kChunks = kStageRow / 16;
constexpr int kSlots = 3;  // stages that a warp has room for
constexpr int kSlotBytes = kRows * kStageRow;
constexpr int kWarpBytes = kSlots * kSlotBytes;
constexpr int kMaxWarps = 16;
constexpr int kStagesOfWarp = 8;  // that are worth a warp of their own

// --- what a row holds ---

// Inputs of a row that a word, a chunk of 16 bytes and a stage hold.
template <typename W>
struct Inputs {
  static constexpr int kWord = 2 * W::kPairs;
  static constexpr int kChunk = 4 * kWord;
  static constexpr int kStage = kChunks * kChunk;
};

template <typename W>
KOGPT_HOST_DEVICE int stages(const LinearParams& p) {
  return p.K / Inputs<W>::kStage;
}

// Warps of a block. They follow from K alone, so the sums of a row are the same beside any others.
template <typename W>
KOGPT_HOST_DEVICE int warps(const LinearParams& p) {
  const int worth = stages<W>(p) / kStagesOfWarp;
  return worth < 1 ? 1 : worth > kMaxWarps ? kMaxWarps : worth;
}

// --- what a warp reads ---

// Where a chunk of a weight row is kept in its slot. The same chunk of eight rows, which `ldmatrix`
// reads at once, and both rows that eight lanes copy at once, are spread over all banks.
KOGPT_DEVICE uint32_t place(int row, int chunk) {
  return row * kStageRow + 16 * (chunk ^ row / 2 % kChunks);
}

// A lane's share of copying: one chunk of every eighth row of the block.
struct Copier {
  static constexpr int kStep = kWarp / kChunks;

  const uint8_t* from;
  int64_t row_bytes;
  int rows;  // from its first one to the end of the weights

  KOGPT_DEVICE Copier(const LinearParams& p, int pairs) {
    const int row = block_x() * kRows + lane() / kChunks;
    row_bytes = int64_t{p.K} * 2 / pairs;
    rows = p.N - row;
    from = static_cast<const uint8_t*>(p.values) + row * row_bytes + 16 * (lane() % kChunks);
  }

  // Starts copying a stage, with zeros for rows beyond the last.
  KOGPT_DEVICE void copy(uint32_t slot, int stage) const {
    const uint8_t* source = from + int64_t{stage} * kStageRow;
#pragma unroll
    for (int row = 0; row < kRows; row += kStep) {
      copy_async(slot + place(row + lane() / kChunks, lane() % kChunks), source, row < rows);
      source += kStep * row_bytes;
    }
  }
};

template <int kCount>
struct alignas(4 * kCount) Words {
  uint32_t words[kCount];
};

// The inputs of a stage as operands b. With lane = 4 g + i: those of row g of x that meet word i of
// each chunk. Columns without a row repeat the last one; nobody reads their results.
template <typename W>
struct Columns {
  Words<W::kPairs> x[kChunks];

  KOGPT_DEVICE Columns(const LinearParams& p, int stage) {
    const int row = min(lane() / 4, p.M - 1);
    const int input = stage * Inputs<W>::kStage + lane() % 4 * Inputs<W>::kWord;
    const uint8_t* from =
        static_cast<const uint8_t*>(p.x) + int64_t{2} * (row * p.x_stride + input);
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      x[chunk] = load_global<Words<W::kPairs>>(from + 2 * chunk * Inputs<W>::kChunk);
    }
  }

  // What meets pair i of the word.
  KOGPT_DEVICE uint32_t pair(int chunk, int i) const {
    if (W::kPairs == 1) return x[chunk].words[0];
    const uint32_t first = x[chunk].words[i / 2];
    const uint32_t second = x[chunk].words[i / 2 + W::kPairs / 2];
    return i % 2 == 0 ? (first & 0xffff) | second << 16 : first >> 16 | (second & 0xffff0000);
  }
};

// A scale, and an offset if there are any: then both are kept as the elements they are.
template <typename E, bool kOffset>
struct Scale {
  float scale;

  KOGPT_DEVICE void load(const LinearParams& p, uint32_t index) {
    scale = load_element<E>(p.scale, index);
  }
  KOGPT_DEVICE float2 with_offset() const { return make_float2(scale, 0.0f); }
};

template <typename E>
struct Scale<E, true> {
  uint32_t pair;

  KOGPT_DEVICE void load(const LinearParams& p, uint32_t index) {
    const uint32_t offset = load_global<uint16_t>(static_cast<const uint16_t*>(p.offset) + index);
    pair = load_global<uint16_t>(static_cast<const uint16_t*>(p.scale) + index) | offset << 16;
  }
  KOGPT_DEVICE float2 with_offset() const { return unpack<E>(pair); }
};

// Those of a stage, of every kFold inputs, for the rows of a lane's sums. None (kFold 0) where a
// row has one scale, or none: its sum is scaled in the end.
template <typename E, typename W, int kFold, bool kOffset>
struct Scales {
  Scale<E, kOffset> of[Inputs<W>::kStage / kFold][kTiles][2];

  KOGPT_DEVICE Scales(const LinearParams& p, int stage) {
    const uint32_t group_inputs = p.K / p.G;
#pragma unroll
    for (int fold = 0; fold < Inputs<W>::kStage / kFold; ++fold) {
      const uint32_t group = (stage * Inputs<W>::kStage + fold * kFold) / group_inputs;
#pragma unroll
      for (int i = 0; i < 2 * kTiles; ++i) {
        const int row = min(block_x() * kRows + 8 * i + lane() / 4, p.N - 1);
        of[fold][i / 2][i % 2].load(p, row * p.G + group);
      }
    }
  }
};

template <typename E, typename W>
struct Scales<E, W, 0, false> {
  KOGPT_DEVICE Scales(const LinearParams&, int) {}
};

// Has a row of bytes brought to the L2 cache.
KOGPT_DEVICE void prefetch_bytes(const void* data, int64_t first, int count, int threads) {
  constexpr int kLine = 128;
  const uint8_t* from = static_cast<const uint8_t*>(data) + first;
  for (int at = kLine * thread_index(); at < count; at += kLine * threads) prefetch(from + at);
}

// The same for scales, offsets and bias of the block's rows: few bytes, but each would else keep a
// warp waiting as long as the weights do.
template <typename W>
KOGPT_DEVICE void prefetch_parameters(const LinearParams& p) {
  const int first = block_x() * kRows, rows = min(kRows, p.N - first);
  const int threads = kWarp * warps<W>(p);
  for (const void* data : {p.scale, p.offset}) {
    if (data) prefetch_bytes(data, int64_t{2} * first * p.G, 2 * rows * p.G, threads);
  }
  if (p.bias) prefetch_bytes(p.bias, int64_t{2} * first, 2 * rows, threads);
}

// --- what it computes ---

// Two elements 1.
template <typename E>
constexpr uint32_t kOnes = 0x3c003c00;
template <>
constexpr uint32_t kOnes<BFloat16> = 0x3f803f80;

// A warp's sums, (16 weight rows x columns) for each tile.
struct Sums {
  float of[kTiles][4];

  KOGPT_DEVICE Sums() { clear(of); }

  // Adds the products of one stage: those of kFold inputs are summed up by the tensor cores, then
  // scaled, and added here in float32; those without scales right here.
  template <typename E, typename W, int kFold, bool kOffset>
  KOGPT_DEVICE void add(uint32_t slot, const Columns<W>& x,
                        const Scales<E, W, kFold, kOffset>& scales) {
    constexpr int kPairs = W::kPairs;
    constexpr uint32_t ones[4] = {kOnes<E>, kOnes<E>, kOnes<E>, kOnes<E>};
    float products[kTiles][4], inputs[kTiles][4];  // and sums of x, the same for every weight row
    clear(products);
    clear(inputs);
#pragma unroll
    for (int chunk = 0; chunk < kChunks; chunk += 2) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        uint32_t words[4];
        load_matrices(words, slot + place(16 * tile + lane() % 16, chunk + lane() / 16));
#pragma unroll
        for (int i = 0; i < 2 * kPairs; i += 2) {
          uint32_t a[4], b[2];
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const int second = (i + j) / kPairs, pair = (i + j) % kPairs;  // of the chunks
            a[2 * j] = W::template pair<E>(words[2 * second], pair);
            a[2 * j + 1] = W::template pair<E>(words[2 * second + 1], pair);
            b[j] = x.pair(chunk + second, pair);
          }
          if constexpr (kFold == 0) {
            mma<E>(of[tile], a, b[0], b[1]);
          } else {
            mma<E>(products[tile], a, b[0], b[1]);
            if constexpr (kOffset) mma<E>(inputs[tile], ones, b[0], b[1]);
            constexpr int kProducts = kFold / 16;  // between two scalings
            const int done = (chunk * kPairs + i) / 2 + 1;
            if (done % kProducts == 0) {
              fold(of[tile], products[tile], inputs[tile], scales.of[done / kProducts - 1][tile]);
            }
          }
        }
      }
    }
  }

 private:
  template <typename E, bool kOffset>
  KOGPT_DEVICE static void fold(float (&sums)[4], float (&products)[4], float (&inputs)[4],
                                const Scale<E, kOffset> (&scales)[2]) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float2 factors = scales[e / 2].with_offset();
      sums[e] += factors.x * products[e];
      if constexpr (kOffset) sums[e] -= factors.y * inputs[e];
      products[e] = inputs[e] = 0.0f;
    }
  }
};

// --- the block ---

// The sums of a warp in shared memory: a row for each column, with room that keeps banks apart.
KOGPT_DEVICE uint32_t sum_at(int warp, int row, int column) {
  return warp * kWarpBytes + 4 * (column * (kRows + 4) + row);
}

KOGPT_DEVICE void store_sums(const LinearParams& p, const Sums& sums) {
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int column = fragment_column(0, e);
      if (column >= p.M) continue;
      store_shared(sum_at(warp(), 16 * tile + fragment_row(e), column), sums.of[tile][e]);
    }
  }
}

// The tanh approximation of GELU (Hendrycks & Gimpel, arXiv 1606.08415): its tanh makes it
// x sigmoid(2 u).
KOGPT_DEVICE float gelu(float x) {
  const float u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
  return x / (1.0f + exp2_approx(-2.0f * kLog2E * u));
}

// Adds up the warps' sums in their order, and writes the outputs.
template <typename E, typename W, int kFold>
KOGPT_DEVICE void store_outputs(const LinearParams& p) {
  const int count = warps<W>(p);
  for (int i = thread_index(); i < kRows * p.M; i += count * kWarp) {
    const int row = i % kRows, column = i / kRows, n = block_x() * kRows + row;
    if (n >= p.N) continue;
    float sum = 0.0f;
#pragma unroll 4
    for (int w = 0; w < count; ++w) sum += load_shared<float>(sum_at(w, row, column));
    if (kFold == 0 && p.scale) sum *= load_element<E>(p.scale, n);
    if (p.bias) sum += load_element<E>(p.bias, n);
    if (n >= p.gelu_from) sum = gelu(sum);
    const uint32_t index = column * p.N + n;
    if (p.residual) sum += load_element<E>(p.residual, index);
    store_global(static_cast<uint16_t*>(p.out) + index, static_cast<uint16_t>(pack<E>(sum, 0.0f)));
  }
}

// Blocks of kMaxWarps that a multiprocessor must have registers for; 0 leaves it to the compiler,
// where that many would make it spill.
template <int kFold>
constexpr int kMinBlocks = kFold == 0 ? 2 : 0;

// The order in which stages are multiplied: those whose inputs come last are last.
template <typename W>
struct Order {
  int end, early;  // stages, and how many of them wait for the flag alone

  KOGPT_DEVICE explicit Order(const LinearParams& p)
      : end(stages<W>(p)), early(end - p.late / Inputs<W>::kStage) {}

  KOGPT_DEVICE int stage(int turn) const {
    return turn < early ? turn + end - early : turn - early;
  }

  // Waits for the inputs of a turn, when those of the first turn are there.
  KOGPT_DEVICE void await(int turn) const {
    if (turn >= early) await_previous();
  }
};

template <typename E, typename W, int kFold, bool kOffset>
__global__ void __launch_bounds__(kMaxWarps* kWarp, kMinBlocks<kFold>)
    linear_kernel(LinearParams p) {
  release_next();
  if (!p.promised) await_previous();
  const Order<W> order(p);
  const int step = warps<W>(p);
  const uint32_t ring = warp() * kWarpBytes;
  const Copier copier(p, W::kPairs);
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    const int turn = warp() + i * step;
    if (turn < order.end) copier.copy(ring + i * kSlotBytes, order.stage(turn));
    commit_copies();
  }
  prefetch_parameters<W>(p);
  Scales<E, W, kFold, kOffset> scales(p, order.stage(warp()));
  if (p.ready) {
    await_flag(p.ready);
    order.await(warp());
  } else {
    await_previous();
  }
  Columns<W> x(p, order.stage(warp()));
  Sums sums;
  uint32_t slot = ring;
#pragma unroll 1
  for (int turn = warp(); turn < order.end; turn += step) {
    wait_copies<kSlots - 1>();
    sync_warp();
    const int next = min(turn + step, order.end - 1);
    order.await(next);
    const Columns<W> next_x(p, order.stage(next));
    const Scales<E, W, kFold, kOffset> next_scales(p, order.stage(next));
    sums.add(slot, x, scales);
    sync_warp();
    if (turn + kSlots * step < order.end) {
      copier.copy(slot, order.stage(turn + kSlots * step));
    }
    commit_copies();
    slot = slot == ring + (kSlots - 1) * kSlotBytes ? ring : slot + kSlotBytes;
    x = next_x;
    scales = next_scales;
  }
  await_previous();  // whoever had no late inputs: the outputs may lie where others still read
  store_sums(p, sums);
  sync_threads();
  store_outputs<E, W, kFold>(p);
}

template <typename E, typename W, int kFold, bool kOffset = false>
cudaError_t launch_linear(const LinearParams& p, cudaStream_t stream) {
  const int count = warps<W>(p);
  return launch(linear_kernel<E, W, kFold, kOffset>, Grid{ceil_div(p.N, kRows), 1, 1},
                count * kWarp, count * kWarpBytes, stream, p, /*early=*/true);
}

template <typename E, typename W, int kFold = Inputs<W>::kStage>
cudaError_t launch_folding(const LinearParams& p, cudaStream_t stream) {
  return p.offset ? launch_linear<E, W, kFold, true>(p, stream)
                  : launch_linear<E, W, kFold>(p, stream);
}

// Scales sums in the end where a row has one scale and no offset, or neither; else once a stage,
// unless a group of 4 bits begins within one.
template <typename E>
cudaError_t linear(const LinearParams& p, cudaStream_t stream) {
  if (p.format == Format::kBits16) return launch_linear<E, Bits16, 0>(p, stream);
  if (p.format == Format::kBits8) {
    const bool in_the_end = p.G == 1 && !p.offset;
    return in_the_end ? launch_linear<E, Bits8, 0>(p, stream) : launch_folding<E, Bits8>(p, stream);
  }
  return p.K / p.G % Inputs<Bits4>::kStage == 0
             ? launch_folding<E, Bits4>(p, stream)
             : launch_folding<E, Bits4, kSmallestGroup>(p, stream);
}

bool fits(const LinearParams& p) {
  const bool rows = 0 < p.M && p.M <= kMaxLinearRows && p.N > 0;
  const bool inputs = p.K > 0 && p.K % kLinearBlock == 0;
  const bool late = 0 <= p.late && p.late < p.K && p.late % kLinearBlock == 0;
  return rows && inputs && late &&
         (p.format == Format::kBits16 ? !p.offset : groups_fit(p.format, p.K, p.G));
}

}  // namespace

cudaError_t linear_decode(const LinearParams& params, cudaStream_t stream) {
  if (!fits(params)) return cudaErrorInvalidValue;
  return params.element == Element::kFloat16 ? linear<Float16>(params, stream)
                                             : linear<BFloat16>(params, stream);
}

}  // namespace kogpt
