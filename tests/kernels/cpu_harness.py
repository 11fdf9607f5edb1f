"""Runs the kernels for CPUs on torch tensors, one instruction set at a time.

The kernels come from the library that KoGPT loads, so what is tested is what runs. Outputs and
scratch are full of NaN before.
"""

import ctypes
import math
import re
import shutil
import subprocess
from ctypes import Structure, byref, c_float, c_int32, c_int64, c_void_p
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kogpt.kernels import Weight, building, extension
from kogpt.kernels.building import CannotBuildError
from kogpt.kernels.decode import DecodeStep
from kogpt.kernels.targets import Cpu

HERE = Path(__file__).resolve().parent
SOURCES = building.SOURCES["cpu"]
ISAS = ("plain", "avx2", "avx512", "vnni", "bf16", "zen5")  # enum Isa of cpu.h
WIDE_ISAS = ISAS[2:]
# enum Element
ELEMENTS = (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.int32, torch.uint8)
KERNELS = [SOURCES / f"{isa}.cpp" for isa in ISAS]

# The plain kernels as for a processor that is none of ours. The headers of the system stay as they
# are: they want to know where they are.
FOREIGN = """\
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#undef __x86_64__
#include "plain.cpp"
"""


def compiler() -> str:
    """The C++ compiler; skips where there is none."""
    try:
        return building.find_compiler()
    except CannotBuildError as reason:
        pytest.skip(str(reason))


def compile_to(target: Path, *arguments: str | Path) -> Path:
    """Runs the compiler."""
    command = [*compiler().split(), "-std=c++17", "-I", str(SOURCES), "-o", str(target)]
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def build_real(folder: Path) -> ctypes.CDLL:
    """The kernels of the real library; skips where there is none."""
    if not extension.load(Cpu()):
        pytest.skip("no kernels for this processor, see above")
    library = extension.find(Cpu())
    assert library is not None
    source = HERE / "cpu_harness.cpp"
    return ctypes.CDLL(
        str(compile_to(folder / "real.so", "-shared", "-fPIC", source, library.path))
    )


def build_foreign(folder: Path) -> ctypes.CDLL:
    """The kernels in plain C++, compiled as elsewhere."""
    (folder / "foreign.cpp").write_text(FOREIGN)
    sources = (folder / "foreign.cpp", HERE / "cpu_harness.cpp")
    return ctypes.CDLL(str(compile_to(folder / "foreign.so", "-O1", "-shared", "-fPIC", *sources)))


def build_wide(folder: Path) -> ctypes.CDLL:
    """The kernels for AVX-512 and what came after it, on any processor: see wide/immintrin.h."""
    sources = folder / "wide"
    shutil.copytree(SOURCES, sources)
    # The compiler must neither use those instructions itself, nor have names for their registers.
    (sources / "target.h").write_text("#define KOGPT_BEGIN_TARGET\n#define KOGPT_END_TARGET\n")
    vectors = sources / "vectors_avx512.h"
    vectors.write_text(re.sub(r"asm\(.*\);", "", vectors.read_text()))
    names = (*(sources / f"{isa}.cpp" for isa in WIDE_ISAS), HERE / "wide" / "kernels.cpp")
    flags = ("-I", HERE / "wide", "-O1", "-shared", "-fPIC", "-D__x86_64__", "-Wno-psabi")
    return ctypes.CDLL(
        str(compile_to(folder / "wide.so", *flags, *names, HERE / "cpu_harness.cpp"))
    )


class Array(Structure):
    _fields_ = [("data", c_void_p), ("element", c_int32)]


class Rows(Structure):
    _fields_ = [("data", c_void_p), *((f"{name}_stride", c_int64) for name in "bth")]


class LinearParams(Structure):
    _fields_ = [
        *((name, Array) for name in ("x", "weight", "scale", "offset", "bias", "residual")),
        *((name, c_void_p) for name in ("y", "scratch")),
        *((name, c_int64) for name in ("M", "N", "K", "G", "gelu_from")),
    ]


class DecodeParams(Structure):
    _fields_ = [
        *((name, Rows) for name in ("q", "k", "v", "keys", "values", "out")),
        *((name, c_void_p) for name in ("lengths", "starts", "cos", "sin", "scratch")),
        ("element", c_int32),
        *((name, c_int64) for name in ("B", "T", "H", "D", "R", "capacity")),
        ("scale", c_float),
    ]


class NormParams(Structure):
    _fields_ = [
        *((name, Array) for name in ("x", "weight", "bias")),
        *((name, c_void_p) for name in ("y", "scratch")),
        *((name, c_int64) for name in "MC"),
        ("eps", c_float),
    ]


class Kernels:
    """The kernels of one instruction set.

    Attributes:
        saturates: whether they add products of bytes in 16 bits, which hold but some pairs.
    """

    def __init__(self, library: ctypes.CDLL, isa: str) -> None:
        self.library, self.isa = library, ISAS.index(isa)
        self.saturates = isa in ("avx2", "avx512")
        for name in ("linear_scratch_bytes", "decode_scratch_floats", "norm_scratch_floats"):
            getattr(library, name).restype = c_int64
        sizes = (c_int64 * 3)()
        library.struct_sizes(sizes)
        mirrors = map(ctypes.sizeof, (LinearParams, DecodeParams, NormParams))
        assert list(sizes) == list(mirrors), "a struct has changed"
        # The kernels of the last two are of the same instructions.
        best = "zen5" if ISAS[library.best()] == "bf16" else ISAS[library.best()]
        if self.isa > ISAS.index(best):
            pytest.skip(f"this processor has no {isa}, or the library has no kernels for it")

    def linear(
        self,
        x: Tensor,
        weight: Weight,
        bias: Tensor | None = None,
        *,
        share: int = 1 << 30,
        gelu_from: int | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """The product of x (M, K), `share` outputs at a time; the rest as for `step_linear`."""
        (M, K), N = x.shape, weight.shape[0]
        y = torch.full((M, N), math.nan, dtype=x.dtype)
        arrays = [array(part) for part in (x, *weight, bias, residual)]
        sizes = (M, N, K, K // weight.group_size, N if gelu_from is None else gelu_from)
        params = LinearParams(*arrays, y.data_ptr(), None, *sizes)
        size = self.library.linear_scratch_bytes(self.isa, byref(params))
        scratch = torch.full((size + 64,), 255, dtype=torch.uint8)  # NaN in every format
        params.scratch = -(-scratch.data_ptr() // 64) * 64
        self.library.run_linear(self.isa, byref(params), c_int64(share))
        return y

    def norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """LayerNorm of rows (M, C)."""
        (M, C), y = x.shape, torch.full_like(x, math.nan)
        scratch = torch.full((M, self.library.norm_scratch_floats(c_int64(C))), math.nan)
        arrays = [array(part) for part in (x, weight, bias)]
        params = NormParams(*arrays, y.data_ptr(), scratch.data_ptr(), M, C, eps)
        self.library.run_norm(self.isa, byref(params))
        return y

    def pack(self, weight: Tensor, packed: Tensor) -> bool:
        """What `kogpt.kernels.packing.pack` does."""
        assert weight.is_contiguous() and packed.is_contiguous()
        numbers, to = map(c_void_p, (weight.data_ptr(), packed.data_ptr()))
        sizes = map(c_int64, weight.shape)
        return bool(self.library.run_pack(self.isa, numbers, *sizes, to))

    def decode(self, step: DecodeStep, out: Tensor | None = None) -> Tensor:
        """`decode_attention`; the cache is appended to."""
        q, (B, T, H, D) = step.q, step.q.shape
        if out is None:
            out = torch.full((B, T, H, D), math.nan, dtype=q.dtype)
        tensors = (q, step.k, step.v, step.keys, step.values, out)
        given = (step.lengths, step.starts, step.cos, step.sin)
        addresses = (None if x is None else x.data_ptr() for x in given)
        sizes = (B, T, H, D, 2 * step.cos.size(1), step.keys.size(1))
        element = ELEMENTS.index(q.dtype)
        params = DecodeParams(*map(rows, tensors), *addresses, None, element, *sizes, D**-0.5)
        floats = B * H * self.library.decode_scratch_floats(byref(params))
        scratch = torch.full((floats,), math.nan)
        params.scratch = scratch.data_ptr()
        self.library.run_decode(self.isa, byref(params))
        return out


def array(x: Tensor | None) -> Array:
    if x is None:
        return Array()
    assert x.is_contiguous()
    return Array(x.data_ptr(), ELEMENTS.index(x.dtype))


def rows(x: Tensor) -> Rows:
    assert x.stride(3) == 1
    return Rows(x.data_ptr(), *x.stride()[:3])


def tools() -> tuple[str, str]:
    """Paths of nm and objdump; skips where they are missing."""
    found = shutil.which("nm"), shutil.which("objdump")
    if None in found:
        pytest.skip("needs nm and objdump")
    return found
