// Every instruction and CUDA construct that the kernels use, one small function each.
//
// Kernels call nothing else, and touch shared and global memory only through these functions. So
// the same kernel sources also compile as plain C++ against tests/kernels/emulator/emulator.h,
// which gives each function its second meaning, with traps for what a GPU lets pass silently.
//
// Shared memory is addressed by byte offset from the block's start (`uint32_t`). Elements are
// 16-bit floats, held as raw bits, two to a `uint32_t`, the lower index in the lower half.
#pragma once

#include <cstdint>

#ifdef KOGPT_EMULATE
#include "emulator.h"
#define KOGPT_HOST_DEVICE inline
#else
#include <cuda_runtime.h>

#include <mutex>

#define KOGPT_DEVICE __device__ __forceinline__
#define KOGPT_HOST_DEVICE __host__ __device__ __forceinline__

namespace kogpt {

struct Float16 {};  // tags of the two element types
struct BFloat16 {};

struct alignas(16) Vector {  // 8 elements, what one load or store of 16 bytes moves
  uint32_t pairs[4];
};

// --- the block and its threads ---

KOGPT_DEVICE int thread_index() {
  __builtin_assume(threadIdx.x < 1024);  // not negative: what addresses are made of stays cheap
  return threadIdx.x;
}
KOGPT_DEVICE int block_x() { return blockIdx.x; }
KOGPT_DEVICE int block_y() { return blockIdx.y; }
KOGPT_DEVICE int block_z() { return blockIdx.z; }
KOGPT_DEVICE void sync_threads() { __syncthreads(); }

// Orders the accesses of a warp's lanes to shared memory before and after it.
KOGPT_DEVICE void sync_warp() { __syncwarp(); }

// Once every block has come here, the next kernel may begin, if it is launched early.
KOGPT_DEVICE void release_next() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Where a kernel was launched early: waits until those before it are done, and what they wrote can
// be read. Before that it may read what they do not write, and must write nothing.
KOGPT_DEVICE void await_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Barrier 1 to 15 of the block, passed by kThreads threads: those whose index divided by kThreads
// is that of the caller.
template <int kThreads>
KOGPT_DEVICE void sync_group(int barrier) {
  asm volatile("bar.sync %0, %1;" : : "r"(barrier), "n"(kThreads) : "memory");
}

// Value of `x` in the lane whose index differs by `mask`; every lane of the warp takes part.
KOGPT_DEVICE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }

// Value of `x` in lane `source`; every lane of the warp takes part.
KOGPT_DEVICE float shuffle_from(float x, int source) { return __shfl_sync(0xffffffffu, x, source); }

// Whether `x` holds in any lane; every lane of the warp takes part.
KOGPT_DEVICE bool any(bool x) { return __any_sync(0xffffffffu, x); }

// --- arithmetic ---

// x y, rounded: never fused with a sum that follows.
KOGPT_DEVICE float product(float x, float y) { return __fmul_rn(x, y); }

// 2^x; 0 for -infinity.
KOGPT_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// log2(x).
KOGPT_DEVICE float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two floats rounded to nearest, ties to even.
template <typename E>
KOGPT_DEVICE uint32_t pack(float low, float high);
template <>
KOGPT_DEVICE uint32_t pack<Float16>(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
template <>
KOGPT_DEVICE uint32_t pack<BFloat16>(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// The two elements of a pair as floats.
template <typename E>
KOGPT_DEVICE float2 unpack(uint32_t pair);
template <>
KOGPT_DEVICE float2 unpack<Float16>(uint32_t pair) {
  float2 floats;
  asm("{.reg .f16 low, high;\n"
      " mov.b32 {low, high}, %2;\n"
      " cvt.f32.f16 %0, low;\n"
      " cvt.f32.f16 %1, high;}"
      : "=f"(floats.x), "=f"(floats.y)
      : "r"(pair));
  return floats;
}
template <>
KOGPT_DEVICE float2 unpack<BFloat16>(uint32_t pair) {
  return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

// (x & mask) ^ y in one instruction, which compilers make two where both are constants.
KOGPT_DEVICE uint32_t and_xor(uint32_t x, uint32_t mask, uint32_t y) {
  uint32_t bits;
  asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(bits) : "r"(x), "r"(mask), "r"(y));
  return bits;
}

// x - y of two pairs of elements, rounded.
template <typename E>
KOGPT_DEVICE uint32_t subtract(uint32_t x, uint32_t y);
template <>
KOGPT_DEVICE uint32_t subtract<Float16>(uint32_t x, uint32_t y) {
  uint32_t difference;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(difference) : "r"(x), "r"(y));
  return difference;
}
template <>
KOGPT_DEVICE uint32_t subtract<BFloat16>(uint32_t x, uint32_t y) {
  uint32_t difference;  // of the sum x + y * -1: sm_80 has no difference of such pairs
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(difference) : "r"(y), "r"(0xbf80bf80), "r"(x));
  return difference;
}

// Tensor core: c (16 x 8, float32) += a (16 x 16) b (16 x 8).
//
// With lane = 4 g + i: a[0], a[1], a[2], a[3] hold the column pairs (2i, 2i + 1) of row g, of row
// g + 8, and 8 columns on of row g and of row g + 8; b0 and b1 the row pairs (2i, 2i + 1) and 8 on
// of column g; c[0..1] and c[2..3] the column pairs (2i, 2i + 1) of rows g and g + 8.
// Source: PTX ISA, "Matrix fragments for mma.m16n8k16".
template <typename E>
KOGPT_DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
KOGPT_DEVICE void mma<Float16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
KOGPT_DEVICE void mma<BFloat16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The transpose of an 8 x 8 matrix of elements: lane l gives the pair at row l / 4, columns
// 2 (l % 4) and the next, and gets the pair at rows 2 (l % 4) and the next, column l / 4.
KOGPT_DEVICE uint32_t transpose(uint32_t pair) {
  uint32_t transposed;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(pair));
  return transposed;
}

// --- shared memory ---

extern __shared__ __align__(16) uint8_t shared_bytes[];

KOGPT_DEVICE uint32_t shared_address(uint32_t offset) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared_bytes)) + offset;
}

// Four 8 x 8 matrices of elements: lane l gives the row l % 8 of matrix l / 8 (16 bytes), and gets
// of each matrix the pair at row l / 4, columns 2 (l % 4) and the next.
KOGPT_DEVICE void load_matrices(uint32_t (&pairs)[4], uint32_t offset) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(pairs[0]), "=r"(pairs[1]), "=r"(pairs[2]), "=r"(pairs[3])
               : "r"(shared_address(offset))
               : "memory");
}

// The same, each matrix transposed: the pair is at rows 2 (l % 4) and the next, column l / 4.
KOGPT_DEVICE void load_matrices_transposed(uint32_t (&pairs)[4], uint32_t offset) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(pairs[0]), "=r"(pairs[1]), "=r"(pairs[2]), "=r"(pairs[3])
               : "r"(shared_address(offset))
               : "memory");
}

template <typename T>  // float, uint32_t or Vector
KOGPT_DEVICE T load_shared(uint32_t offset) {
  return *reinterpret_cast<const T*>(shared_bytes + offset);
}

template <typename T>
KOGPT_DEVICE void store_shared(uint32_t offset, T value) {
  *reinterpret_cast<T*>(shared_bytes + offset) = value;
}

// Starts a copy of 16 bytes from global memory; zeros, and no read, where not `valid`. What arrives
// may be read after `wait_copies` by this thread, and by others after `sync_threads` besides.
KOGPT_DEVICE void copy_async(uint32_t offset, const void* source, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
               :
               : "r"(shared_address(offset)), "l"(source), "r"(valid ? 16 : 0)
               : "memory");
}

// Ends a group of copies, perhaps an empty one.
KOGPT_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the `kPending` last groups are still under way.
template <int kPending>
KOGPT_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" : : "n"(kPending) : "memory");
}

// --- global memory ---

template <typename T>  // up to 16 bytes, at a multiple of their number
KOGPT_DEVICE T load_global(const void* source) {
  return *static_cast<const T*>(source);
}

template <typename T>
KOGPT_DEVICE void store_global(void* target, T value) {
  *static_cast<T*>(target) = value;
}

// Has the line of memory that holds `source` brought to the L2 cache.
KOGPT_DEVICE void prefetch(const void* source) {
  asm volatile("prefetch.global.L2 [%0];" : : "l"(source));
}

// Adds 1, or returns to 0 from `last`; gives the value before. What this thread wrote or learned of
// by a barrier can then be read by whoever increments later, and tells others by a barrier.
KOGPT_DEVICE uint32_t increment_wrapping(uint32_t* counter, uint32_t last) {
  uint32_t before;
  asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(counter), "r"(last)
               : "memory");
  return before;
}

// Tells all blocks, of other kernels too, that what this thread wrote or learned of can be read.
KOGPT_DEVICE void raise_flag(uint32_t* flag) {
  asm volatile("st.release.gpu.global.u32 [%0], 1;" : : "l"(flag) : "memory");
}

// Waits in every lane of a warp until a flag is raised.
KOGPT_DEVICE void await_flag(const uint32_t* flag) {
  uint32_t raised = threadIdx.x % warpSize != 0;
  while (!raised) {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(raised) : "l"(flag) : "memory");
  }
  __syncwarp();
}

// --- launching, on the host ---

struct Grid {
  int x, y, z;
};

// Bytes of shared memory that one block may ask for on the current device.
inline cudaError_t shared_memory_limit(int* bytes) {
  int device;
  if (cudaError_t status = cudaGetDevice(&device)) return status;
  return cudaDeviceGetAttribute(bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
}

// Whether kernels may be launched early on the current device: from sm_90 on.
inline cudaError_t takes_early_launches(bool* takes) {
  int device, major;
  if (cudaError_t status = cudaGetDevice(&device)) return status;
  cudaError_t status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  *takes = major >= 9;
  return status;
}

// Starts a kernel; with `early`, as soon as every block of the one before has ended or called
// `release_next`. Its blocks are then in place when their turn comes, which they must await.
template <typename Params>
cudaError_t launch(void (*kernel)(Params), Grid grid, int threads, int shared_size,
                   cudaStream_t stream, Params params, bool early = false) {
  // What a kernel may ask for is kept with the kernel: no other thread must lower it meanwhile.
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  cudaError_t status =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_size);
  if (status != cudaSuccess) return status;
  if (early) {
    if ((status = takes_early_launches(&early)) != cudaSuccess) return status;
  }
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(grid.x, grid.y, grid.z);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_size;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = early;
  return cudaLaunchKernelEx(&config, kernel, params);
}

}  // namespace kogpt
#endif
