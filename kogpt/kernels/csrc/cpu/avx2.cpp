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
#include "decode_kernel.h"
#include "linear_kernel.h"
#include "norm_kernel.h"
#include "packing_kernel.h"
#include "vectors_avx2.h"

namespace kogpt::cpu {

extern const Kernels kAvx2Kernels = {Linear<Avx2>::scratch, Linear<Avx2>::prepare,
                                     Linear<Avx2>::outputs, Decode<Avx2>::heads,
                                     Norm<Avx2>::rows,      Packing<Avx2>::rows};

}  // namespace kogpt::cpu
KOGPT_END_TARGET
#endif
