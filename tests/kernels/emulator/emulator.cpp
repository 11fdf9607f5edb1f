// How emulator.h is done: fibers, warps that meet, and a record of who touched each word last.
#include "emulator.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <random>
#include <string>
#include <vector>

namespace kogpt {
namespace {

constexpr int kLanes = 32;
constexpr int kMaxThreads = 1024;
constexpr size_t kStackSize = 256 << 10;  // of address space: a page takes memory once touched
constexpr uint32_t kWord = 4;             // bytes; accesses to shared memory are of whole words
constexpr uint32_t kElement = 2;          // bytes; accesses to global memory are of whole elements
constexpr uint32_t kNobody = ~0u;
constexpr uint32_t kSeveral = ~1u;
constexpr uint32_t kWholeWarp = 1u << 16;  // and any thread of the warp: several of its lanes

// Barriers passed since the launch began, those of parts of a block included, from 1; an access in
// epoch 0 is one that never was.
using Epoch = uint32_t;

// --- what there is ---

struct Fiber {
  jmp_buf context;
  void* stack = nullptr;
  bool started = false;
  bool ended = false;
  Late awaited = Late::kNobody;  // whose writes it has waited for
  const char* waits_in = nullptr;
  std::deque<std::vector<uint32_t>> copies;  // offsets by group; the last group is still open
};

struct Warp {
  int arrived = 0;
  Epoch synced = 0;        // began with the warp's last `sync_warp`
  Epoch group_synced = 0;  // began with its last `sync_group`, of the threads that follow
  uint32_t group = 0, group_size = 0;
  const char* operation = nullptr;
  void* lanes[kLanes];  // what each lane brought
};

struct SharedWord {
  Epoch written = 0;
  Epoch read = 0;
  uint32_t writer = kNobody;  // thread
  uint32_t reader = kNobody;  // the only one since `sync_threads`; kWholeWarp and it; or kSeveral
  uint32_t copier = kNobody;  // thread with a copy under way to here
};

struct GlobalElement {
  Epoch written = 0;
  Epoch read = 0;
  uint32_t writer = kNobody;    // thread, counted over the whole grid
  uint32_t reader = kNobody;    // likewise, or kSeveral of one block
  bool read_by_blocks = false;  // by more than one
};

struct Tensor {
  char* data;
  int64_t sizes[3], strides[3], row;  // strides descend
  Late late;
  std::vector<GlobalElement> elements;  // empty where not writable

  int64_t extent() const {
    int64_t last = row;
    for (int i = 0; i < 3; ++i) last += (sizes[i] - 1) * strides[i];
    return last;
  }

  bool holds(const void* address, uint32_t size) const {
    int64_t offset = static_cast<const char*>(address) - data;
    if (offset < 0) return false;
    for (int i = 0; i < 3; ++i) {
      if (strides[i] > 0) offset -= std::min(offset / strides[i], sizes[i] - 1) * strides[i];
    }
    return offset + size <= row;
  }

  GlobalElement* element(const void* address) {
    return &elements[(static_cast<const char*>(address) - data) / kElement];
  }
};

int shared_limit = 101376;
uint64_t block_order = 0;
std::vector<Tensor> tensors;
std::string error;

// The launch.
int launches = 0;
Grid grid;
uint32_t threads;
uint32_t shared_size;
void (*call)(const void*);
const void* argument;
bool early;
Epoch epoch;
Epoch block_synced;           // began with the block's last `sync_threads`
std::vector<bool> published;  // by block: `increment_wrapping` since its last store

// The block.
uint32_t block;  // counted over the grid
Epoch block_began;
bool acquired;                            // `increment_wrapping` was called
int waiting;                              // in `sync_threads`
std::vector<uint32_t> group_waiting[16];  // in `sync_group`, by barrier
int ended;
Warp warps[kMaxThreads / kLanes];
std::vector<uint8_t> shared_memory;
std::vector<SharedWord> shared_words;

// The threads.
Fiber fibers[kMaxThreads];
uint32_t current;
std::deque<uint32_t> ready;
jmp_buf host;

uint32_t grid_thread() { return block * threads + current; }

// --- traps ---

// Ends the launch from within a thread, unless another trap did before.
[[noreturn, gnu::format(printf, 1, 2)]] void trap(const char* format, ...) {
  char text[512];
  int length = snprintf(text, sizeof(text), "launch %d, block (%d, %d, %d), thread %u: ", launches,
                        block_x(), block_y(), block_z(), current);
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text + length, sizeof(text) - length, format, arguments);
  va_end(arguments);
  error = text;
  _longjmp(host, 1);
}

// The host's side: an error of the launch itself.
cudaError_t refuse(cudaError_t status, const std::string& why) {
  error = "launch " + std::to_string(launches) + ": " + why;
  return status;
}

// The threads that wait when none can go on, for the message.
std::string deadlock() {
  std::string text = "deadlock:";
  const char* before = nullptr;
  for (uint32_t thread = 0; thread < threads; ++thread) {
    const Fiber& fiber = fibers[thread];
    const char* state = fiber.ended ? "has ended" : fiber.waits_in;
    if (before && !strcmp(state, before)) continue;
    text += (before ? "; thread " : " thread ") + std::to_string(thread);
    text += (fiber.ended ? " " : " waits in ") + std::string(state);
    before = state;
  }
  return text;
}

// --- fibers ---

// Goes on with the next thread that can, or with the host when there is none.
[[noreturn]] void dispatch() {
  if (ready.empty()) _longjmp(host, 1);
  current = ready.front();
  ready.pop_front();
  _longjmp(fibers[current].context, 1);
}

// Stops the calling thread until another puts it into `ready`.
[[gnu::noinline]] void wait_in(const char* operation) {
  Fiber& self = fibers[current];
  self.waits_in = operation;
  if (_setjmp(self.context) == 0) dispatch();
}

ucontext_t starter, started;

// A fiber's whole life: it outlives blocks and launches, for starting one takes system calls.
void live() {
  Fiber& self = fibers[current];
  if (_setjmp(self.context) == 0) swapcontext(&started, &starter);
  while (true) {
    call(argument);
    self.ended = true;
    ++ended;
    if (_setjmp(self.context) == 0) dispatch();
  }
}

void start(uint32_t thread) {
  Fiber& fiber = fibers[thread];
  if (!fiber.stack) {
    fiber.stack = mmap(nullptr, kStackSize, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (fiber.stack == MAP_FAILED) abort();
    mprotect(fiber.stack, 4096, PROT_NONE);  // a stack that overflows crashes, here and now
  }
  getcontext(&started);
  started.uc_stack = {fiber.stack, 0, kStackSize};
  started.uc_link = nullptr;
  makecontext(&started, live, 0);
  current = thread;
  swapcontext(&starter, &started);
  fiber.started = true;
}

// Runs one block to its end, a trap or a deadlock.
void run_block() {
  block_began = block_synced = ++epoch;
  acquired = false;
  waiting = ended = 0;
  shared_words.assign((shared_size + kWord - 1) / kWord, SharedWord());
  for (Warp& warp : warps) {
    warp.arrived = 0;
    warp.synced = warp.group_synced = epoch;
    warp.group_size = 0;
  }
  for (auto& arrived : group_waiting) arrived.clear();
  ready.clear();
  for (uint32_t thread = 0; thread < threads; ++thread) {
    if (!fibers[thread].started) start(thread);
    fibers[thread].ended = false;
    fibers[thread].awaited = early ? Late::kNobody : Late::kKernelRightAhead;
    fibers[thread].copies.assign(1, {});
    ready.push_back(thread);
  }
  if (_setjmp(host) == 0) dispatch();
  if (error.empty() && ended < static_cast<int>(threads)) {
    error = "launch " + std::to_string(launches) + ", block (" + std::to_string(block_x()) + ", " +
            std::to_string(block_y()) + ", " + std::to_string(block_z()) + "): " + deadlock();
  }
}

// --- warps ---

// Joins the 32 lanes of the caller's warp; the last to arrive computes for all.
void meet(const char* operation, void* lane, void (*compute)(void* const* lanes)) {
  Warp& warp = warps[current / kLanes];
  if (warp.arrived > 0 && warp.operation != operation) {
    trap("%s, while other lanes of the warp are in %s", operation, warp.operation);
  }
  warp.operation = operation;
  warp.lanes[current % kLanes] = lane;
  if (++warp.arrived < kLanes) return wait_in(operation);
  compute(warp.lanes);
  warp.arrived = 0;
  uint32_t first = current - current % kLanes;
  for (uint32_t thread = first; thread < first + kLanes; ++thread) {
    if (thread != current) ready.push_back(thread);
  }
}

// --- 16-bit floats ---

template <typename To, typename From>
To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

template <typename E>
float widen(uint16_t element);

template <>
float widen<BFloat16>(uint16_t element) {
  return bits<float>(static_cast<uint32_t>(element) << 16);
}

template <>
float widen<Float16>(uint16_t element) {
  // The exponent's bias is 15 in float16 and 127 in float32; subnormals come out right as well.
  float magnitude = bits<float>((element & 0x7fffu) << 13) * 0x1p112f;
  uint32_t infinite = (element & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0;
  return bits<float>(bits<uint32_t>(magnitude) | infinite | (element & 0x8000u) << 16);
}

constexpr uint16_t kNan = 0x7fff;  // what the GPU's conversions give, in both types

template <typename E>
uint16_t narrow(float value);

template <>
uint16_t narrow<BFloat16>(float value) {
  if (std::isnan(value)) return kNan;
  uint32_t wide = bits<uint32_t>(value);
  return (wide + 0x7fff + (wide >> 16 & 1)) >> 16;
}

template <>
uint16_t narrow<Float16>(float value) {
  if (std::isnan(value)) return kNan;
  uint32_t wide = bits<uint32_t>(value);
  uint32_t sign = wide >> 16 & 0x8000;
  wide &= 0x7fffffff;
  if (wide >= bits<uint32_t>(65520.0f)) return sign | 0x7c00;  // half way beyond the largest
  if (wide < bits<uint32_t>(0x1p-14f)) {
    // Adding 0.5 rounds to multiples of 2^-24, the step of subnormals.
    return sign | (bits<uint32_t>(bits<float>(wide) + 0.5f) - bits<uint32_t>(0.5f));
  }
  return sign | (wide - (112 << 23) + 0xfff + (wide >> 13 & 1)) >> 13;
}

struct MmaLane {
  float* c;
  const uint32_t* a;
  uint32_t b[2];
};

template <typename E>
void multiply(void* const* lanes) {
  float a[16][16], b[16][8], c[16][8];
  for (int l = 0; l < kLanes; ++l) {
    const MmaLane& lane = *static_cast<const MmaLane*>(lanes[l]);
    int g = l / 4, i = l % 4;
    for (int half = 0; half < 2; ++half) {
      for (int r = 0; r < 4; ++r) {
        int row = g + 8 * (r % 2), column = 2 * i + 8 * (r / 2);
        a[row][column + half] = widen<E>(lane.a[r] >> 16 * half);
      }
      for (int r = 0; r < 2; ++r) b[2 * i + 8 * r + half][g] = widen<E>(lane.b[r] >> 16 * half);
      for (int r = 0; r < 2; ++r) c[g + 8 * r][2 * i + half] = lane.c[2 * r + half];
    }
  }
  for (int m = 0; m < 16; ++m) {
    for (int k = 0; k < 16; ++k) {
      for (int n = 0; n < 8; ++n) c[m][n] += a[m][k] * b[k][n];
    }
  }
  for (int l = 0; l < kLanes; ++l) {
    const MmaLane& lane = *static_cast<const MmaLane*>(lanes[l]);
    for (int r = 0; r < 4; ++r) lane.c[r] = c[l / 4 + 8 * (r / 2)][2 * (l % 4) + r % 2];
  }
}

void transpose_pairs(void* const* lanes) {
  uint16_t matrix[8][8];
  for (int l = 0; l < kLanes; ++l) memcpy(&matrix[l / 4][2 * (l % 4)], lanes[l], sizeof(uint32_t));
  for (int l = 0; l < kLanes; ++l) {
    uint16_t* pair = static_cast<uint16_t*>(lanes[l]);
    for (int half = 0; half < 2; ++half) pair[half] = matrix[2 * (l % 4) + half][l / 4];
  }
}

struct ShuffleLane {
  float x;
  int mask;  // or source
  float result;
};

void pick(void* const* lanes) {
  auto lane = [&](int l) { return static_cast<ShuffleLane*>(lanes[l]); };
  for (int l = 0; l < kLanes; ++l) {
    int source = lane(l)->mask;
    if (source < 0 || source >= kLanes) trap("shuffle_from lane %d", source);
    lane(l)->result = lane(source)->x;
  }
}

void vote(void* const* lanes) {
  auto lane = [&](int l) { return static_cast<bool*>(lanes[l]); };
  bool found = false;
  for (int l = 0; l < kLanes; ++l) found |= *lane(l);
  for (int l = 0; l < kLanes; ++l) *lane(l) = found;
}

void exchange(void* const* lanes) {
  auto lane = [&](int l) { return static_cast<ShuffleLane*>(lanes[l]); };
  for (int l = 0; l < kLanes; ++l) {
    int mask = lane(l)->mask;
    if (mask < 0 || mask >= kLanes || mask != lane(0)->mask) trap("shuffle_xor with mask %d", mask);
    lane(l)->result = lane(l ^ mask)->x;
  }
}

// --- shared memory ---

void check_shared(const char* what, uint32_t offset, uint32_t size) {
  if (offset % size) trap("%s of %u bytes at offset %u: misaligned", what, size, offset);
  if (offset > shared_size || size > shared_size - offset) {
    trap("%s of %u bytes at offset %u: the block has %u bytes", what, size, offset, shared_size);
  }
}

void check_copier(const char* what, uint32_t offset, const SharedWord& word) {
  if (word.copier == kNobody) return;
  trap("%s at offset %u: a copy by thread %u may still be under way", what, offset, word.copier);
}

// Whether an access by a thread of this block lies before what `self` does now: the calling thread,
// or kWholeWarp and it. So may be the other.
bool settled(Epoch when, uint32_t thread, uint32_t self) {
  if (when < block_synced || thread == self) return true;
  const Warp& warp = warps[current / kLanes];
  const uint32_t other = thread & ~kWholeWarp;
  if (other / kLanes == current / kLanes && when < warp.synced) return true;
  return other - warp.group < warp.group_size && when < warp.group_synced;
}

// Whom to remember as reader of a word that `before` read as well since the last `sync_threads`.
uint32_t both_readers(uint32_t before, uint32_t reader) {
  if (before == reader) return reader;
  bool same_warp = (before & ~kWholeWarp) / kLanes == (reader & ~kWholeWarp) / kLanes;
  return same_warp ? kWholeWarp | reader : kSeveral;
}

// Reads for thread `reader`, or kWholeWarp and a thread for its warp.
void read_words(const char* what, void* value, uint32_t offset, uint32_t size, uint32_t reader) {
  check_shared(what, offset, size);
  for (uint32_t at = offset; at < offset + size; at += kWord) {
    SharedWord& word = shared_words[at / kWord];
    check_copier(what, at, word);
    if (word.written == 0) trap("%s at offset %u: never written in this block", what, at);
    if (!settled(word.written, word.writer, reader)) {
      trap("%s at offset %u: written by thread %u, with no sync_threads since", what, at,
           word.writer);
    }
    word.reader = word.read < block_synced ? reader : both_readers(word.reader, reader);
    word.read = epoch;
  }
  memcpy(value, &shared_memory[offset], size);
}

// Whether the calling thread may write to words that others may have touched.
void claim_words(const char* what, uint32_t offset, uint32_t size) {
  check_shared(what, offset, size);
  for (uint32_t at = offset; at < offset + size; at += kWord) {
    SharedWord& word = shared_words[at / kWord];
    check_copier(what, at, word);
    if (!settled(word.written, word.writer, current)) {
      trap("%s at offset %u: written by thread %u, with no sync_threads since", what, at,
           word.writer);
    }
    if (settled(word.read, word.reader, current)) continue;
    if (word.reader >= kWholeWarp) {
      trap("%s at offset %u: read by other threads, with no sync_threads since", what, at);
    }
    trap("%s at offset %u: read by thread %u, with no sync_threads since", what, at, word.reader);
  }
}

void mark_written(uint32_t offset, uint32_t size) {
  for (uint32_t at = offset; at < offset + size; at += kWord) {
    SharedWord& word = shared_words[at / kWord];
    word.written = epoch;
    word.writer = current;
    word.copier = kNobody;
  }
}

struct MatrixLane {
  uint32_t* pairs;
  uint32_t offset;
};

template <bool kTransposed>
void read_matrices(void* const* lanes) {
  const char* what = kTransposed ? "load_matrices_transposed" : "load_matrices";
  uint16_t matrices[4][8][8];
  uint32_t last = current;
  for (int l = 0; l < kLanes; ++l) {
    current = last - last % kLanes + l;  // the lane that a trap names
    uint32_t offset = static_cast<const MatrixLane*>(lanes[l])->offset;
    read_words(what, matrices[l / 8][l % 8], offset, 16, kWholeWarp | current);
  }
  current = last;
  for (int l = 0; l < kLanes; ++l) {
    for (int m = 0; m < 4; ++m) {
      int g = l / 4, i = 2 * (l % 4);
      uint16_t low = kTransposed ? matrices[m][i][g] : matrices[m][g][i];
      uint16_t high = kTransposed ? matrices[m][i + 1][g] : matrices[m][g][i + 1];
      static_cast<const MatrixLane*>(lanes[l])->pairs[m] = low | static_cast<uint32_t>(high) << 16;
    }
  }
}

// --- global memory ---

Tensor* find_tensor(const char* what, const void* address, uint32_t size, bool writable) {
  if (reinterpret_cast<uintptr_t>(address) % size) {
    trap("%s of %u bytes at %p: misaligned", what, size, address);
  }
  if (writable && fibers[current].awaited < Late::kKernelRightAhead) {
    trap("%s at %p: with no await_previous yet", what, address);
  }
  Tensor* found = nullptr;
  for (Tensor& tensor : tensors) {
    if (!tensor.holds(address, size)) continue;
    if (!tensor.elements.empty()) return &tensor;
    found = &tensor;
  }
  if (!found) trap("%s of %u bytes at %p: in no tensor", what, size, address);
  if (writable) trap("%s of %u bytes at %p: the tensor is read-only", what, size, address);
  return found;
}

// Whether an access of `thread` of the grid lies before all that the calling thread does now.
bool ordered(Epoch when, uint32_t thread) {
  if (when == 0 || thread == grid_thread()) return true;
  if (when >= block_began) return when < block_synced;
  return thread != kSeveral && published[thread / threads] && acquired;
}

void load(const char* what, void* value, const void* source, uint32_t size) {
  Tensor* tensor = find_tensor(what, source, size, false);
  if (tensor->late > fibers[current].awaited) {
    trap("%s at %p: kernels before may be writing there, and were not awaited", what, source);
  }
  for (uint32_t at = 0; at < size && !tensor->elements.empty(); at += kElement) {
    GlobalElement& element = *tensor->element(static_cast<const char*>(source) + at);
    if (!ordered(element.written, element.writer)) {
      trap("%s at %p: written by thread %u of block %u and not ordered since", what, source,
           element.writer % threads, element.writer / threads);
    }
    element.read_by_blocks |= element.read != 0 && element.read < block_began;
    bool alone = element.read < block_synced || element.reader == grid_thread();
    element.reader = alone ? grid_thread() : kSeveral;
    element.read = epoch;
  }
  memcpy(value, source, size);
}

}  // namespace

// --- the block and its threads ---

int thread_index() { return current; }
int block_x() { return block % grid.x; }
int block_y() { return block / grid.x % grid.y; }
int block_z() { return block / grid.x / grid.y; }

void sync_threads() {
  if (++waiting < static_cast<int>(threads)) return wait_in("sync_threads");
  waiting = 0;
  block_synced = ++epoch;
  for (uint32_t thread = 0; thread < threads; ++thread) {
    if (thread != current) ready.push_back(thread);
  }
}

void sync_warp() {
  meet("sync_warp", nullptr, [](void* const*) { warps[current / kLanes].synced = ++epoch; });
}

void await_previous() { fibers[current].awaited = Late::kKernelRightAhead; }

void sync_group_of(uint32_t size, int barrier) {
  if (barrier < 1 || barrier > 15) trap("sync_group at barrier %d", barrier);
  std::vector<uint32_t>& arrived = group_waiting[barrier];
  uint32_t first = current - current % size;
  if (!arrived.empty() && arrived.front() - first >= size) {
    trap("sync_group of %u threads at barrier %d, where thread %u waits", size, barrier,
         arrived.front());
  }
  arrived.push_back(current);
  if (arrived.size() < size) return wait_in("sync_group");
  ++epoch;
  for (uint32_t thread : arrived) {
    Warp& warp = warps[thread / kLanes];
    warp.group_synced = epoch;
    warp.group = first;
    warp.group_size = size;
    if (thread != current) ready.push_back(thread);
  }
  arrived.clear();
}

float shuffle_from(float x, int source) {
  ShuffleLane lane = {x, source, 0};
  meet("shuffle_from", &lane, pick);
  return lane.result;
}

bool any(bool x) {
  meet("any", &x, vote);
  return x;
}

float shuffle_xor(float x, int mask) {
  ShuffleLane lane = {x, mask, 0};
  meet("shuffle_xor", &lane, exchange);
  return lane.result;
}

// --- arithmetic ---

namespace {
// As the GPU's `.ftz` instructions do with subnormal numbers.
float flush(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }
}  // namespace

float exp2_approx(float x) { return flush(std::exp2(flush(x))); }
float log2_approx(float x) { return std::log2(flush(x)); }

template <typename E>
uint32_t pack(float low, float high) {
  return narrow<E>(low) | static_cast<uint32_t>(narrow<E>(high)) << 16;
}
template uint32_t pack<Float16>(float, float);
template uint32_t pack<BFloat16>(float, float);

template <typename E>
float2 unpack(uint32_t pair) {
  return {widen<E>(pair), widen<E>(pair >> 16)};
}
template float2 unpack<Float16>(uint32_t);
template float2 unpack<BFloat16>(uint32_t);

template <typename E>
uint32_t subtract(uint32_t x, uint32_t y) {
  float2 from = unpack<E>(x), what = unpack<E>(y);
  return pack<E>(from.x - what.x, from.y - what.y);  // float32 is exact, or the result rounds alike
}
template uint32_t subtract<Float16>(uint32_t, uint32_t);
template uint32_t subtract<BFloat16>(uint32_t, uint32_t);

template <>
void mma<Float16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  MmaLane lane = {c, a, {b0, b1}};
  meet("mma<Float16>", &lane, multiply<Float16>);
}
template <>
void mma<BFloat16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  MmaLane lane = {c, a, {b0, b1}};
  meet("mma<BFloat16>", &lane, multiply<BFloat16>);
}

uint32_t transpose(uint32_t pair) {
  meet("transpose", &pair, transpose_pairs);
  return pair;
}

// --- shared memory ---

void load_matrices(uint32_t (&pairs)[4], uint32_t offset) {
  MatrixLane lane = {pairs, offset};
  meet("load_matrices", &lane, read_matrices<false>);
}

void load_matrices_transposed(uint32_t (&pairs)[4], uint32_t offset) {
  MatrixLane lane = {pairs, offset};
  meet("load_matrices_transposed", &lane, read_matrices<true>);
}

void read_shared(void* value, uint32_t offset, uint32_t size) {
  read_words("load_shared", value, offset, size, current);
}

void write_shared(uint32_t offset, const void* value, uint32_t size) {
  claim_words("store_shared", offset, size);
  memcpy(&shared_memory[offset], value, size);
  mark_written(offset, size);
}

// The bytes are there at once, but nobody may look before they are waited for.
void copy_async(uint32_t offset, const void* source, bool valid) {
  claim_words("copy_async", offset, sizeof(Vector));
  Vector value = {};
  if (valid) load("copy_async", &value, source, sizeof(Vector));
  memcpy(&shared_memory[offset], &value, sizeof(Vector));
  for (uint32_t at = 0; at < sizeof(Vector); at += kWord) {
    shared_words[(offset + at) / kWord].copier = current;
  }
  fibers[current].copies.back().push_back(offset);
}

void commit_copies() { fibers[current].copies.emplace_back(); }

void wait_for_copies(size_t pending) {
  auto& groups = fibers[current].copies;
  while (groups.size() - 1 > pending) {
    for (uint32_t offset : groups.front()) mark_written(offset, sizeof(Vector));
    groups.pop_front();
  }
}

// --- global memory ---

void read_global(void* value, const void* source, uint32_t size) {
  load("load_global", value, source, size);
}

void write_global(void* target, const void* value, uint32_t size) {
  Tensor* tensor = find_tensor("store_global", target, size, true);
  for (uint32_t at = 0; at < size; at += kElement) {
    GlobalElement& element = *tensor->element(static_cast<char*>(target) + at);
    if (element.written != 0 && element.writer != grid_thread()) {
      trap("store_global at %p: stored to by thread %u of block %u before", target,
           element.writer % threads, element.writer / threads);
    }
    if (element.read_by_blocks || !ordered(element.read, element.reader)) {
      trap("store_global at %p: read by other threads and not ordered since", target);
    }
    element.written = epoch;
    element.writer = grid_thread();
  }
  memcpy(target, value, size);
  published[block] = false;
}

void prefetch(const void* source) { find_tensor("prefetch", source, kElement, false); }

uint32_t increment_wrapping(uint32_t* counter, uint32_t last) {
  find_tensor("increment_wrapping", counter, sizeof(*counter), true);
  published[block] = true;
  acquired = true;
  uint32_t before = *counter;
  *counter = before >= last ? 0 : before + 1;
  return before;
}

void raise_flag(uint32_t* flag) {
  find_tensor("raise_flag", flag, sizeof(*flag), true);
  *flag = 1;
}

void await_flag(const uint32_t* flag) {
  find_tensor("await_flag", flag, sizeof(*flag), false);
  if (!*flag) trap("await_flag at %p: nobody has raised it", static_cast<const void*>(flag));
  fibers[current].awaited = std::max(fibers[current].awaited, Late::kKernelsBefore);
}

// --- launching ---

cudaError_t shared_memory_limit(int* bytes) {
  *bytes = shared_limit;
  return cudaSuccess;
}

cudaError_t run_blocks(Grid size, int block_threads, int block_shared, void (*kernel)(const void*),
                       const void* params, bool is_early) {
  ++launches;
  if (block_shared < 0 || block_shared > shared_limit) {
    return refuse(cudaErrorInvalidValue,
                  std::to_string(block_shared) + " bytes of shared memory, more than there are");
  }
  if (block_threads < 1 || block_threads > kMaxThreads || block_threads % kLanes) {
    return refuse(cudaErrorInvalidConfiguration, std::to_string(block_threads) + " threads");
  }
  if (size.x < 1 || size.y < 1 || size.z < 1 || size.y > 65535 || size.z > 65535) {
    return refuse(cudaErrorInvalidConfiguration, "grid of " + std::to_string(size.x) + ", " +
                                                     std::to_string(size.y) + ", " +
                                                     std::to_string(size.z) + " blocks");
  }
  grid = size, threads = block_threads, shared_size = block_shared;
  call = kernel, argument = params, early = is_early;
  epoch = 0;
  std::vector<uint32_t> order(static_cast<size_t>(grid.x) * grid.y * grid.z);
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  if (block_order) std::shuffle(order.begin(), order.end(), std::mt19937_64(block_order));
  published.assign(order.size(), false);
  shared_memory.assign(shared_size, 0);
  for (Tensor& tensor : tensors)
    std::fill(tensor.elements.begin(), tensor.elements.end(), GlobalElement());
  for (uint32_t index : order) {
    block = index;
    run_block();
    if (error.empty()) continue;
    for (Fiber& fiber : fibers) fiber.started = false;  // left in the middle of the kernel
    return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}

// --- for the harness ---

void set_shared_memory_limit(int bytes) { shared_limit = bytes; }

void set_block_order(uint64_t seed) { block_order = seed; }

void register_tensor(void* data, const int64_t* sizes, const int64_t* strides, int64_t row,
                     bool writable, Late late) {
  Tensor tensor = {static_cast<char*>(data), {}, {}, row, late, {}};
  int order[3] = {0, 1, 2};
  std::sort(order, order + 3, [&](int i, int j) { return strides[i] > strides[j]; });
  for (int i = 0; i < 3; ++i) {
    tensor.sizes[i] = sizes[order[i]];
    tensor.strides[i] = strides[order[i]];
  }
  if (writable) tensor.elements.resize((tensor.extent() + kElement - 1) / kElement);
  tensors.push_back(std::move(tensor));
}

void reset_emulation() {
  tensors.clear();
  error.clear();
  launches = 0;
}

const char* emulation_error() { return error.c_str(); }

}  // namespace kogpt
