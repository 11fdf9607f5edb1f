// The kernels of bf16.cpp for Zen 5, whose memory is read fastest as two streams, asked for so
// early that they come into the nearest cache.
#ifdef __x86_64__
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <type_traits>

#include "cpu.h"
#define KOGPT_TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c"
#include "target.h"

KOGPT_BEGIN_TARGET
#include "all_kernels.h"
#include "vectors_bf16.h"

namespace kogpt::cpu {
namespace {

struct Zen5 : Bf16 {
  static constexpr int kFloatOutputs[] = {2, 2, 2, 4};
  static constexpr int kInt8Outputs[] = {2, 2, 4, 4};
  static constexpr int kInt4Outputs[] = {2, 2, 2, 2};
  static constexpr int kPackedOutputs[] = {2, 2, 2, 2};
  static constexpr int kLocality = 3;
  static constexpr bool kFewPackedPairs = true;

  static constexpr int64_t ahead(int streams) { return 8192 / streams; }
};

}  // namespace

extern const Kernels kZen5Kernels = kKernelsOf<Zen5>;

}  // namespace kogpt::cpu
KOGPT_END_TARGET
#endif
