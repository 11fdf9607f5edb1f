// The kernels for AVX-512 with VNNI, which adds products of 16-bit integers as it makes them.
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
#define KOGPT_TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c"
#include "target.h"

KOGPT_BEGIN_TARGET
#include "all_kernels.h"
#include "vectors_vnni.h"

namespace kogpt::cpu {

extern const Kernels kVnniKernels = kKernelsOf<Vnni>;

}  // namespace kogpt::cpu
KOGPT_END_TARGET
#endif
