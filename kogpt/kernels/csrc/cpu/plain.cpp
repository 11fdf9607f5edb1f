// Which kernels run, and those in plain C++.
#ifdef __x86_64__
#include <cpuid.h>
#endif

#include "all_kernels.h"
#include "cpu.h"
#include "vectors_plain.h"

namespace kogpt::cpu {

#ifdef __x86_64__
extern const Kernels kAvx2Kernels, kAvx512Kernels, kVnniKernels, kBf16Kernels, kZen5Kernels;

namespace {

// By the number of its family, which is of AMD's alone: compilers older than itself cannot ask. The
// processors after it have the same number; which kernels suit them has not been measured.
bool is_zen5() {
  unsigned eax = 0, ebx, ecx, edx;
  __get_cpuid(1, &eax, &ebx, &ecx, &edx);
  return (eax >> 8 & 15) + (eax >> 20 & 255) == 26;
}

const bool kIsZen5 = is_zen5();  // asked once: in a virtual machine, the host answers

}  // namespace

Isa best_isa() {
  // What has AVX2 and FMA has F16C too, for which clang 16 and older cannot ask.
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::kPlain;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (!avx512) return Isa::kAvx2;
  if (!__builtin_cpu_supports("avx512vnni")) return Isa::kAvx512;
  if (!__builtin_cpu_supports("avx512bf16")) return Isa::kVnni;
  return kIsZen5 ? Isa::kZen5 : Isa::kBf16;
}

const Kernels& kernels(Isa isa) {
  switch (isa) {
    case Isa::kAvx2:
      return kAvx2Kernels;
    case Isa::kAvx512:
      return kAvx512Kernels;
    case Isa::kVnni:
      return kVnniKernels;
    case Isa::kBf16:
      return kBf16Kernels;
    case Isa::kZen5:
      return kZen5Kernels;
    default:
      return kKernelsOf<Plain>;
  }
}
#else
Isa best_isa() { return Isa::kPlain; }

const Kernels& kernels(Isa) { return kKernelsOf<Plain>; }
#endif

}  // namespace kogpt::cpu
