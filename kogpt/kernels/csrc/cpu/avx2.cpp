// The kernels for AVX2.
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
#define KOGPT_TARGET "avx2,fma,f16c"
#include "target.h"

KOGPT_BEGIN_TARGET
#include "all_kernels.h"
#include "vectors_avx2.h"

namespace kogpt::cpu {

extern const Kernels kAvx2Kernels = kKernelsOf<Avx2>;

}  // namespace kogpt::cpu
KOGPT_END_TARGET
#endif
