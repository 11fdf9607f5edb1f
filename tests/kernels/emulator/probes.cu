// Tiny kernels for the emulator's own tests: the instructions, and one fault each.
#include <cstring>

#include "../../../kogpt/kernels/csrc/ptx.h"

namespace kogpt {
namespace {

// Words that a probe may only read, and words that it may also write.
struct Probe {
  const uint32_t* source;
  uint32_t* target;
};

// --- instructions: one block of 32 threads ---

// source: per lane a[4], b[2], c[4]; target: per lane c[4].
template <typename E>
void multiply(Probe probe) {
  uint32_t words[10];
  const uint32_t* from = probe.source + 10 * thread_index();
  for (int i = 0; i < 10; ++i) words[i] = load_global<uint32_t>(from + i);
  uint32_t a[4] = {words[0], words[1], words[2], words[3]};
  float c[4];
  memcpy(c, words + 6, sizeof(c));
  mma<E>(c, a, words[4], words[5]);
  for (int i = 0; i < 4; ++i) store_global(probe.target + 4 * thread_index() + i, c[i]);
}

// source: 32 rows of 16 bytes; target: per lane pairs[4].
template <bool kTransposed>
void load_rows(Probe probe) {
  uint32_t row = 16 * thread_index(), pairs[4];
  copy_async(row, probe.source + 4 * thread_index(), true);
  commit_copies();
  wait_copies<0>();
  sync_threads();
  kTransposed ? load_matrices_transposed(pairs, row) : load_matrices(pairs, row);
  for (int i = 0; i < 4; ++i) store_global(probe.target + 4 * thread_index() + i, pairs[i]);
}

// source: 4,096 pairs; target: the differences of every two that follow each other.
template <typename E>
void subtract_all(Probe probe) {
  for (int i = thread_index(); i < 2048; i += 32) {
    const uint32_t* pair = probe.source + 2 * i;
    store_global(probe.target + i,
                 subtract<E>(load_global<uint32_t>(pair), load_global<uint32_t>(pair + 1)));
  }
}

// source: 32 words; target: their lower halves alone, then every other byte inverted.
void mask_all(Probe probe) {
  const uint32_t word = load_global<uint32_t>(probe.source + thread_index());
  store_global(probe.target + thread_index(), and_xor(word, 0x0000ffffu, 0x00ff00ffu));
}

// target: 64 elements, each of its own thread.
void write_elements(Probe probe) {
  uint16_t* elements = reinterpret_cast<uint16_t*>(probe.target);
  store_global(elements + thread_index(), static_cast<uint16_t>(thread_index()));
}

// source: 4,096 floats; target: their 2,048 pairs.
template <typename E>
void narrow_all(Probe probe) {
  for (int i = thread_index(); i < 2048; i += 32) {
    float low = load_global<float>(probe.source + 2 * i);
    float high = load_global<float>(probe.source + 2 * i + 1);
    store_global(probe.target + i, pack<E>(low, high));
  }
}

// source: 32,768 pairs; target: their 65,536 floats.
template <typename E>
void widen_all(Probe probe) {
  for (int i = thread_index(); i < 32768; i += 32) {
    float2 floats = unpack<E>(load_global<uint32_t>(probe.source + i));
    store_global(probe.target + 2 * i, floats.x);
    store_global(probe.target + 2 * i + 1, floats.y);
  }
}

// source and target: 32 pairs.
void transpose_matrix(Probe probe) {
  uint32_t pair = load_global<uint32_t>(probe.source + thread_index());
  store_global(probe.target + thread_index(), transpose(pair));
}

// target: two rounds of 64 words, in which the lanes of each warp turn their words around by way of
// shared memory.
void turn_around(Probe probe) {
  for (int round = 0; round < 2; ++round) {
    store_shared(4 * thread_index(), static_cast<uint32_t>(64 * round + thread_index()));
    sync_warp();
    uint32_t word = load_shared<uint32_t>(4 * (thread_index() ^ 31));
    store_global(probe.target + 64 * round + thread_index(), word);
    sync_warp();
  }
}

// target: per lane, x of the lanes that differ by 1, 2, 4, 8 and 16.
void shuffle(Probe probe) {
  for (int i = 0; i < 5; ++i) {
    float x = shuffle_xor(static_cast<float>(thread_index()), 1 << i);
    store_global(probe.target + 5 * thread_index() + i, x);
  }
}

// target: 128 words, which the threads of each group of 64 turn around by way of shared memory.
void turn_around_groups(Probe probe) {
  store_shared(4 * thread_index(), static_cast<uint32_t>(thread_index()));
  sync_group<64>(1 + thread_index() / 64);
  store_global(probe.target + thread_index(), load_shared<uint32_t>(4 * (thread_index() ^ 63)));
}

// target: per lane, x of the lane three times as far.
void pick_lanes(Probe probe) {
  float x = shuffle_from(static_cast<float>(thread_index()), 3 * thread_index() % 32);
  store_global(probe.target + thread_index(), x);
}

// target: of each warp, whether any lane is that of thread 40, and whether any is of none.
void vote(Probe probe) {
  bool found = any(thread_index() == 40), nothing = any(thread_index() < 0);
  store_global(probe.target + thread_index(), static_cast<uint32_t>(found + 2 * nothing));
}

// source and target: 96 words, copied in three groups of which one is under way at a time.
void pipeline(Probe probe) {
  if (thread_index() < 8) copy_async(16 * thread_index(), probe.source + 4 * thread_index(), true);
  commit_copies();
  for (int i = 0; i < 3; ++i) {
    int next = 32 * (i + 1) + 4 * thread_index();
    if (thread_index() < 8) copy_async(4 * next % 256, probe.source + next % 96, i < 2);
    commit_copies();
    wait_copies<1>();
    sync_threads();
    uint32_t offset = 4 * (32 * (i % 2) + thread_index());
    store_global(probe.target + 32 * i + thread_index(), load_shared<uint32_t>(offset));
    sync_threads();
  }
}

// target: rows 128 words apart, one for each of two blocks.
void write_rows(Probe probe) { store_global(probe.target + 128 * block_x() + thread_index(), 1u); }

// --- what blocks may share: 4 blocks of 64 threads ---

// The last block adds up what each thread left: target[0], by way of target[1 + grid thread].
template <bool kInTime>
void merge(Probe probe) {
  uint32_t* partials = probe.target + 2;
  if (kInTime) store_global(partials + 64 * block_x() + thread_index(), 1u);
  sync_threads();
  if (thread_index() == 0) store_shared(0, increment_wrapping(probe.target + 1, 3));
  if (!kInTime) store_global(partials + 64 * block_x() + thread_index(), 1u);
  sync_threads();
  if (load_shared<uint32_t>(0) != 3 || thread_index() != 0) return;
  uint32_t sum = 0;
  for (int i = 0; i < 256; ++i) sum += load_global<uint32_t>(partials + i);
  store_global(probe.target, sum);
}

// The place of each block in the order of running.
void order(Probe probe) {
  if (thread_index() != 0) return;
  uint32_t place = increment_wrapping(probe.target, 1000);
  store_global(probe.target + 1 + block_x(), place);
}

// --- faults: 2 blocks of 64 threads, 1,024 bytes of shared memory, 1,024 words each way ---

void read_shared_out_of_bounds(Probe) { load_shared<float>(1024); }
void write_shared_out_of_bounds(Probe) { store_shared(1020, Vector()); }
void read_shared_misaligned(Probe) { load_shared<Vector>(8); }
void write_shared_misaligned(Probe) { store_shared(6, 1.0f); }
void load_matrices_out_of_bounds(Probe) {
  uint32_t pairs[4];
  store_shared(16 * thread_index(), Vector());
  sync_threads();
  load_matrices(pairs, 16 * thread_index() + 16);
}

void read_shared_unwritten(Probe) {
  store_shared(16 * thread_index(), 1.0f);
  load_shared<Vector>(16 * thread_index());
}

void read_shared_of_the_block_before(Probe) {
  if (block_x() == 0) store_shared(4 * thread_index(), 1.0f);
  if (block_x() == 1) load_shared<float>(4 * thread_index());
}

void read_after_write(Probe) {
  if (thread_index() == 0) store_shared(0, 1.0f);
  if (thread_index() == 1) load_shared<float>(0);
}

void write_after_read(Probe) {
  if (thread_index() == 0) store_shared(0, 1.0f);
  sync_threads();
  if (thread_index() == 1) load_shared<float>(0);
  if (thread_index() == 2) store_shared(0, 2.0f);
}

void write_after_reads(Probe) {
  if (thread_index() == 0) store_shared(0, 1.0f);
  sync_threads();
  if (thread_index() != 62) load_shared<float>(0);
  if (thread_index() == 62) store_shared(0, 2.0f);
}

void write_after_write(Probe) { store_shared(0, 1.0f); }

void read_after_write_of_another_warp(Probe) {
  if (thread_index() < 32) store_shared(4 * thread_index(), 1.0f);
  sync_warp();
  if (thread_index() >= 32) load_shared<float>(4 * (thread_index() - 32));
}

void write_after_read_of_another_warp(Probe) {
  if (thread_index() == 40) store_shared(0, 1.0f);
  sync_threads();
  if (thread_index() < 32) load_shared<float>(0);
  sync_warp();
  if (thread_index() == 40) store_shared(0, 2.0f);
}

void read_after_write_of_another_group(Probe) {
  if (thread_index() == 0) store_shared(0, 1.0f);
  sync_group<32>(1 + thread_index() / 32);
  if (thread_index() == 63) load_shared<float>(0);
}

void end_before_group(Probe) {
  if (thread_index() < 32) sync_group<64>(1);
}

void two_groups_at_a_barrier(Probe) {
  sync_group<64>(1);
  sync_group<32>(1);
}

void no_such_barrier(Probe) { sync_group<64>(16); }

void load_matrices_after_write(Probe) {  // by the same lanes: other lanes get the bytes
  uint32_t pairs[4];
  store_shared(16 * (thread_index() % 32), Vector());
  load_matrices(pairs, 16 * (thread_index() % 32));
}

void write_after_load_matrices(Probe) {
  uint32_t pairs[4], row = 16 * thread_index();
  store_shared(row, Vector());
  sync_threads();
  load_matrices(pairs, row);
  store_shared(row, Vector());
}

void read_before_wait(Probe probe) {
  copy_async(16 * thread_index(), probe.source, true);
  commit_copies();
  wait_copies<1>();
  load_shared<float>(16 * thread_index());
}

void read_without_commit(Probe probe) {
  copy_async(16 * thread_index(), probe.source, true);
  wait_copies<0>();
  load_shared<float>(16 * thread_index());
}

void read_after_the_wait_of_another(Probe probe) {
  if (thread_index() == 0) copy_async(0, probe.source, true);
  commit_copies();
  if (thread_index() == 1) wait_copies<0>();
  sync_threads();
  if (thread_index() == 1) load_shared<float>(0);
}

void read_waited_for_without_barrier(Probe probe) {
  copy_async(16 * thread_index(), probe.source, true);
  commit_copies();
  wait_copies<0>();
  load_shared<float>(16 * (thread_index() / 2));
}

void copy_over_what_is_read(Probe probe) {
  store_shared(16 * thread_index(), Vector());
  sync_threads();
  if (thread_index() == 0) load_shared<Vector>(16);
  if (thread_index() == 1) copy_async(16, probe.source, true);
}

void copy_over_a_copy(Probe probe) {
  copy_async(16 * thread_index(), probe.source, true);
  copy_async(16 * thread_index(), probe.source, true);
}

void copy_to_misaligned(Probe probe) { copy_async(8, probe.source, true); }
void copy_from_misaligned(Probe probe) { copy_async(0, probe.source + 1, true); }
void copy_out_of_bounds(Probe probe) {
  copy_async(16 * thread_index(), probe.source + 1020 + 4 * thread_index(), true);
}

void read_global_out_of_bounds(Probe probe) { load_global<float>(probe.source + 1024); }
void read_global_before_the_start(Probe probe) { load_global<float>(probe.source - 1); }
void read_global_misaligned(Probe probe) { load_global<Vector>(probe.source + 2); }
void write_global_out_of_bounds(Probe probe) { store_global(probe.target + 1024, Vector()); }
void write_global_read_only(Probe probe) {
  store_global(const_cast<uint32_t*>(probe.source), 1.0f);
}

void prefetch_out_of_bounds(Probe probe) { prefetch(probe.source + 1024); }

void write_an_element_twice(Probe probe) {
  uint16_t* elements = reinterpret_cast<uint16_t*>(probe.target);
  store_global(elements + thread_index() / 2, static_cast<uint16_t>(1));
}

void write_global_twice(Probe probe) {
  store_global(probe.target + thread_index(), 1.0f);  // by both blocks
}

void read_global_after_write(Probe probe) {
  if (thread_index() == 0) store_global(probe.target + block_x(), 1.0f);
  if (thread_index() == 1) load_global<float>(probe.target + block_x());
}

void write_global_after_read(Probe probe) {
  load_global<float>(probe.target);
  if (block_x() == 1) store_global(probe.target, 1.0f);
}

void end_before_barrier(Probe) {
  if (thread_index() < 60) sync_threads();
}

void end_before_mma(Probe) {
  uint32_t a[4] = {};
  float c[4] = {};
  if (thread_index() != 40) mma<Float16>(c, a, 0, 0);
}

void barrier_within_a_warp(Probe) {
  if (thread_index() == 5) {
    sync_threads();
  } else {
    shuffle_xor(1.0f, 1);
  }
}

void different_operations(Probe) {
  uint32_t a[4] = {};
  float c[4] = {};
  if (thread_index() == 33) {
    mma<BFloat16>(c, a, 0, 0);
  } else {
    mma<Float16>(c, a, 0, 0);
  }
}

// Launched early: nothing of what the kernels before write may be read, nor anything written.
void read_before_await(Probe probe) { load_global<uint32_t>(probe.source); }
void copy_before_await(Probe probe) { copy_async(0, probe.source, true); }
void write_before_await(Probe probe) { store_global(probe.target + thread_index(), 1u); }
void read_after_a_flag_alone(Probe probe) {
  await_flag(probe.source + 1);
  load_global<uint32_t>(probe.source);
}
void await_a_flag_in_vain(Probe probe) { await_flag(probe.source); }

// Of 1 block of 64 threads.
void double_after_await(Probe probe) {
  await_previous();
  store_global(probe.target + thread_index(),
               2 * load_global<uint32_t>(probe.source + thread_index()));
}

void different_masks(Probe) { shuffle_xor(1.0f, thread_index() < 50 ? 1 : 2); }

struct Entry {
  const char* name;
  void (*kernel)(Probe);
  int blocks, threads;
  bool early = false;
};

#define FAULT(name) {#name, name, 2, 64}
#define EARLY_FAULT(name) {#name, name, 2, 64, true}

const Entry kProbes[] = {
    {"multiply_float16", multiply<Float16>, 1, 32},
    {"multiply_bfloat16", multiply<BFloat16>, 1, 32},
    {"load_rows", load_rows<false>, 1, 32},
    {"load_rows_transposed", load_rows<true>, 1, 32},
    {"narrow_float16", narrow_all<Float16>, 1, 32},
    {"narrow_bfloat16", narrow_all<BFloat16>, 1, 32},
    {"subtract_float16", subtract_all<Float16>, 1, 32},
    {"subtract_bfloat16", subtract_all<BFloat16>, 1, 32},
    {"mask", mask_all, 1, 32},
    {"write_elements", write_elements, 1, 64},
    {"widen_float16", widen_all<Float16>, 1, 32},
    {"widen_bfloat16", widen_all<BFloat16>, 1, 32},
    {"transpose", transpose_matrix, 1, 32},
    {"turn_around", turn_around, 1, 64},
    {"shuffle", shuffle, 1, 32},
    {"turn_around_groups", turn_around_groups, 1, 128},
    {"pick_lanes", pick_lanes, 1, 32},
    {"vote", vote, 1, 64},
    {"pipeline", pipeline, 1, 32},
    {"write_rows", write_rows, 2, 64},
    {"merge", merge<true>, 4, 64},
    {"merge_too_late", merge<false>, 4, 64},
    {"order", order, 16, 32},
    {"double_after_await", double_after_await, 1, 64, true},
    {"too_many_threads", shuffle, 1, 1056},
    {"part_of_a_warp", shuffle, 1, 48},
    {"no_blocks", shuffle, 0, 32},
    FAULT(read_shared_out_of_bounds),
    FAULT(write_shared_out_of_bounds),
    FAULT(read_shared_misaligned),
    FAULT(write_shared_misaligned),
    FAULT(load_matrices_out_of_bounds),
    FAULT(read_shared_unwritten),
    FAULT(read_shared_of_the_block_before),
    FAULT(read_after_write),
    FAULT(write_after_read),
    FAULT(write_after_reads),
    FAULT(write_after_write),
    FAULT(read_after_write_of_another_warp),
    FAULT(write_after_read_of_another_warp),
    FAULT(read_after_write_of_another_group),
    FAULT(end_before_group),
    FAULT(two_groups_at_a_barrier),
    FAULT(no_such_barrier),
    FAULT(load_matrices_after_write),
    FAULT(write_after_load_matrices),
    FAULT(read_before_wait),
    FAULT(read_without_commit),
    FAULT(read_after_the_wait_of_another),
    FAULT(read_waited_for_without_barrier),
    FAULT(copy_over_what_is_read),
    FAULT(copy_over_a_copy),
    FAULT(copy_to_misaligned),
    FAULT(copy_from_misaligned),
    FAULT(copy_out_of_bounds),
    FAULT(read_global_out_of_bounds),
    FAULT(read_global_before_the_start),
    FAULT(read_global_misaligned),
    FAULT(write_global_out_of_bounds),
    FAULT(write_global_read_only),
    FAULT(prefetch_out_of_bounds),
    FAULT(write_an_element_twice),
    FAULT(write_global_twice),
    FAULT(read_global_after_write),
    FAULT(write_global_after_read),
    FAULT(end_before_barrier),
    FAULT(end_before_mma),
    FAULT(barrier_within_a_warp),
    FAULT(different_operations),
    FAULT(different_masks),
    EARLY_FAULT(read_before_await),
    EARLY_FAULT(copy_before_await),
    EARLY_FAULT(write_before_await),
    EARLY_FAULT(read_after_a_flag_alone),
    EARLY_FAULT(await_a_flag_in_vain),
};

}  // namespace

extern "C" int emulator_probe(const char* name, const uint32_t* source, uint32_t* target) {
  for (const Entry& entry : kProbes) {
    if (strcmp(entry.name, name)) continue;
    return launch(entry.kernel, {entry.blocks, 1, 1}, entry.threads, 1024, nullptr,
                  Probe{source, target}, entry.early);
  }
  return cudaErrorInvalidValue;
}

}  // namespace kogpt
