// The kernels for AVX-512 and what came after it as those of a processor that has all of it.
#include "cpu.h"

namespace kogpt::cpu {

extern const Kernels kAvx512Kernels, kVnniKernels, kBf16Kernels;

Isa best_isa() { return Isa::kBf16; }

const Kernels& kernels(Isa isa) {
  switch (isa) {
    case Isa::kBf16:
      return kBf16Kernels;
    case Isa::kVnni:
      return kVnniKernels;
    default:
      return kAvx512Kernels;
  }
}

}  // namespace kogpt::cpu
