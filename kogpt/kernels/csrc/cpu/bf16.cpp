// The kernels for AVX-512 with VNNI and products of bfloat16.
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

extern const Kernels kBf16Kernels = kKernelsOf<Bf16>;

}  // namespace kogpt::cpu
KOGPT_END_TARGET
#endif
