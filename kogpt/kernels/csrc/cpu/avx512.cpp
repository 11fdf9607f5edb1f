// The kernels for AVX-512.
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
#define KOGPT_TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"
#include "target.h"

KOGPT_BEGIN_TARGET
#include "decode_kernel.h"
#include "linear_kernel.h"
#include "norm_kernel.h"
#include "packing_kernel.h"
#include "vectors_avx512.h"

namespace kogpt::cpu {

extern const Kernels kAvx512Kernels = {Linear<Avx512>::scratch, Linear<Avx512>::prepare,
                                       Linear<Avx512>::outputs, Decode<Avx512>::heads,
                                       Norm<Avx512>::rows,      Packing<Avx512>::rows};

}  // namespace kogpt::cpu
KOGPT_END_TARGET
#endif
