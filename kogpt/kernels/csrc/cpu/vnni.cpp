// The kernels for AVX-512 with VNNI, which adds products of 16-bit integers as it makes them.
#ifdef __x86_64__
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "cpu.h"
#define KOGPT_TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c"
#include "target.h"

KOGPT_BEGIN_TARGET
#include "decode_kernel.h"
#include "linear_kernel.h"
#include "vectors_avx512.h"

namespace kogpt::cpu {
namespace {

struct Vnni : Avx512 {
  static constexpr bool kHasBytes = true;

  static Sums dot(Sums sums, Words a, Words b) { return _mm512_dpwssd_epi32(sums, a, b); }

  // Bytes rather than words: unsigned weights times signed x.
  static Sums dot_bytes(Sums sums, Words a, Words b) { return _mm512_dpbusd_epi32(sums, a, b); }

  using Avx512::load;
  static Words load(const int8_t* at) { return load(reinterpret_cast<const int16_t*>(at)); }

  static Words unsigned_bytes(const void* at) {
    return _mm512_xor_si512(_mm512_loadu_si512(at), _mm512_set1_epi8(-128));
  }

  // The low (0) or the high (1) 4 bits of every byte.
  static Words nibble_bytes(const void* at, int n) {
    const Words words = _mm512_loadu_si512(at);
    return _mm512_and_si512(n ? _mm512_srli_epi16(words, 4) : words, _mm512_set1_epi8(15));
  }
};

}  // namespace

extern const Kernels kVnniKernels = {Linear<Vnni>::prepare, Linear<Vnni>::outputs,
                                     Decode<Vnni>::heads};

}  // namespace kogpt::cpu
KOGPT_END_TARGET
#endif
