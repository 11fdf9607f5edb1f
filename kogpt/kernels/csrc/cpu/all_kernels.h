// All kernels, for any instruction set: a source defines `Simd` and takes `kKernelsOf<Simd>`.
#pragma once

#include "cpu.h"
#include "decode_kernel.h"
#include "linear_kernel.h"
#include "norm_kernel.h"
#include "packing_kernel.h"

namespace kogpt::cpu {
namespace {

template <class Simd>
constexpr Kernels kKernelsOf = {Linear<Simd>::scratch, Linear<Simd>::prepare, Linear<Simd>::outputs,
                                Decode<Simd>::heads,   Norm<Simd>::rows,      Packing<Simd>::rows};

}  // namespace
}  // namespace kogpt::cpu
