// The kernel for AVX-512 with VNNI, which adds products of 16-bit integers as it makes them.
#define KOGPT_TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c"
#include "linear_avx512.h"

namespace kogpt::cpu {
namespace {

struct Vnni : Avx512 {
  static Sums dot(Sums sums, Words a, Words b) { return _mm512_dpwssd_epi32(sums, a, b); }
};

}  // namespace

extern const Entry kVnniEntry = Kernel<Vnni>::entry();

}  // namespace kogpt::cpu

KOGPT_END_TARGET
