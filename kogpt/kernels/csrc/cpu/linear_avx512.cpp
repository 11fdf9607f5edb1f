// The kernel for AVX-512.
#define KOGPT_TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"
#include "linear_avx512.h"

namespace kogpt::cpu {

extern const Entry kAvx512Entry = Kernel<Avx512>::entry();

}  // namespace kogpt::cpu

KOGPT_END_TARGET
