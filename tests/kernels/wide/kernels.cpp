// The kernels for AVX-512 and VNNI as those of a processor that has them.
#include "cpu.h"

namespace kogpt::cpu {

extern const Kernels kAvx512Kernels, kVnniKernels;

Isa best_isa() { return Isa::kVnni; }

const Kernels& kernels(Isa isa) { return isa == Isa::kVnni ? kVnniKernels : kAvx512Kernels; }

}  // namespace kogpt::cpu
