// The kernels for AVX-512 and what came after it as those of a processor that has all of it.
#include "cpu.h"

namespace kogpt::cpu {

extern const Kernels kAvx512Kernels, kVnniKernels, kBf16Kernels, kZen5Kernels;

Isa best_isa() { return Isa::kZen5; }

const Kernels& kernels(Isa isa) {
  switch (isa) {
    case Isa::kZen5:
      return kZen5Kernels;
    case Isa::kBf16:
      return kBf16Kernels;
    case Isa::kVnni:
      return kVnniKernels;
    default:
      return kAvx512Kernels;
  }
}

}  // namespace kogpt::cpu
