// The plain C++ meaning of csrc/ptx.h: kernels run on the CPU, and what they may not do is trapped.
//
// One block runs after another. The threads of a block are fibers of one CPU thread: each runs
// until it waits for others (`sync_threads`, and the operations of a whole warp), so a kernel's
// result does not depend on the machine, and a run can be repeated exactly.
//
// A trap ends the launch with cudaErrorLaunchFailure and a message (`emulation_error`) that names
// launch, block, thread and address:
//   shared memory   out of bounds; misaligned; read before it was written in this block; read or
//                   overwritten while a `copy_async` to it may still be under way; written by one
//                   thread and read or written by another, or read and then written, with no
//                   `sync_threads` between (or, within a warp, `sync_warp`, or `sync_group`)
//   global memory   outside the tensors that the caller registered, or written where read-only;
//                   misaligned; stored to by two threads; shared between threads of a block with no
//                   `sync_threads` between, or between blocks without
//                   `increment_wrapping`
//   early launches  global memory written before `await_previous`; read before it from a tensor
//   that
//                   the kernel right ahead may be writing, or before that and `await_flag` from one
//                   that those before it may be; a flag awaited that nobody has raised
//   threads         a warp operation or barrier that not all threads reach; lanes of one warp in
//                   different operations
// What it cannot see: the time anything takes, registers, and the rounding inside a tensor core
// (here: products exact, sums in float32 in the order of k).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#define __global__
#define __launch_bounds__(...)
#define KOGPT_DEVICE inline

// --- of CUDA, what kernels and their launch functions name ---

using std::max, std::min;

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
  cudaErrorNotSupported = 801,
};
using cudaStream_t = struct CUstream_st*;

struct float2 {
  float x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }

namespace kogpt {

struct Float16 {};
struct BFloat16 {};

struct alignas(16) Vector {
  uint32_t pairs[4];
};

// --- the block and its threads ---

int thread_index();
int block_x();
int block_y();
int block_z();
void sync_threads();
void sync_warp();
inline void release_next() {}
void await_previous();
float shuffle_xor(float x, int mask);
float shuffle_from(float x, int source);
bool any(bool x);
void sync_group_of(uint32_t size, int barrier);

template <int kThreads>
void sync_group(int barrier) {
  sync_group_of(kThreads, barrier);
}

// --- arithmetic ---

inline float product(float x, float y) { return x * y; }
inline uint32_t and_xor(uint32_t x, uint32_t mask, uint32_t y) { return (x & mask) ^ y; }
float exp2_approx(float x);
float log2_approx(float x);

template <typename E>
uint32_t pack(float low, float high);
template <typename E>
float2 unpack(uint32_t pair);
template <typename E>
uint32_t subtract(uint32_t x, uint32_t y);
template <typename E>
void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
uint32_t transpose(uint32_t pair);

// --- shared memory ---

void load_matrices(uint32_t (&pairs)[4], uint32_t offset);
void load_matrices_transposed(uint32_t (&pairs)[4], uint32_t offset);

void read_shared(void* value, uint32_t offset, uint32_t size);
void write_shared(uint32_t offset, const void* value, uint32_t size);

template <typename T>
T load_shared(uint32_t offset) {
  T value;
  read_shared(&value, offset, sizeof(T));
  return value;
}

template <typename T>
void store_shared(uint32_t offset, T value) {
  write_shared(offset, &value, sizeof(T));
}

void copy_async(uint32_t offset, const void* source, bool valid);
void commit_copies();
void wait_for_copies(size_t pending);

template <int kPending>
void wait_copies() {
  wait_for_copies(kPending);
}

// --- global memory ---

void read_global(void* value, const void* source, uint32_t size);
void write_global(void* target, const void* value, uint32_t size);

template <typename T>
T load_global(const void* source) {
  T value;
  read_global(&value, source, sizeof(T));
  return value;
}

template <typename T>
void store_global(void* target, T value) {
  write_global(target, &value, sizeof(T));
}

void prefetch(const void* source);
uint32_t increment_wrapping(uint32_t* counter, uint32_t last);
void raise_flag(uint32_t* flag);
void await_flag(const uint32_t* flag);

// --- launching ---

struct Grid {
  int x, y, z;
};

cudaError_t shared_memory_limit(int* bytes);

// Runs `call(argument)` once for each thread of each block.
cudaError_t run_blocks(Grid grid, int threads, int shared_size, void (*call)(const void*),
                       const void* argument, bool early);

template <typename Params>
cudaError_t launch(void (*kernel)(Params), Grid grid, int threads, int shared_size, cudaStream_t,
                   Params params, bool early = false) {
  struct Call {
    void (*kernel)(Params);
    Params params;
  } call = {kernel, params};
  return run_blocks(
      grid, threads, shared_size,
      [](const void* argument) {
        const Call& call = *static_cast<const Call*>(argument);
        call.kernel(call.params);
      },
      &call, early);
}

// --- for the harness ---

void set_shared_memory_limit(int bytes);

// The order in which blocks run: 0 for their natural order, else shuffled by this seed.
void set_block_order(uint64_t seed);

// Who may be writing a tensor when a kernel is launched early.
enum class Late : int32_t { kNobody, kKernelsBefore, kKernelRightAhead };

// Lets kernels touch a tensor: rows of `row` bytes, counted by three sizes and byte strides.
void register_tensor(void* data, const int64_t* sizes, const int64_t* strides, int64_t row,
                     bool writable, Late late);

// Forgets all tensors and the last error, and counts launches from 1 again.
void reset_emulation();

// What trapped since the last reset; empty for nothing.
const char* emulation_error();

}  // namespace kogpt
