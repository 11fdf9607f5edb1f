"""Runs the kernels' own sources on the CPU, on torch tensors, and raises what the emulator traps.

    out, lse = forward(q, k, v, starts, limit=SHARED_LIMITS["sm_86"], seed=1)

Each function builds the library of its kernel file on first use (g++, cached by source hash),
registers exactly the rows of each tensor as memory that the kernel may touch, and fills outputs
with NaN before. A test that calls one skips where there is no g++.
"""

import ctypes
import functools
import hashlib
import math
import os
import shutil
import subprocess
from ctypes import Structure, byref, c_bool, c_float, c_int32, c_int64, c_void_p
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kogpt.kernels import Weight

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parents[2] / "kogpt" / "kernels" / "csrc"
FLAGS = [
    *("-std=c++17", "-O2", "-fPIC", "-DKOGPT_EMULATE", "-Wall", "-Wno-unknown-pragmas"),
    "-ffp-contract=off",  # the same results on every CPU
    "-U_FORTIFY_SOURCE",  # its longjmp forbids what fibers do
    *("-I", str(HERE), "-I", str(SOURCES)),
]

# Bytes of shared memory one block may have, by architecture (CUDA C++ Programming Guide, table
# "Technical specifications per compute capability").
SHARED_LIMITS = {"sm_86": 101376, "sm_80": 166912, "sm_90": 232448}
ELEMENTS = {torch.float16: 0, torch.bfloat16: 1}
FORMATS = {torch.float16: 0, torch.bfloat16: 0, torch.int8: 1, torch.int32: 2}


# Who may be writing a tensor when a kernel is launched early: nobody, the kernels before, of which
# a flag tells, or the one right ahead.
NOBODY, KERNELS_BEFORE, KERNEL_RIGHT_AHEAD = range(3)


class EmulatorError(RuntimeError):
    """A launch that failed, with what was trapped."""


# --- the structs of csrc/attention.h, csrc/linear.h and csrc/norm.h ---


class Rows(Structure):
    _fields_ = [
        ("data", c_void_p),
        ("batch_stride", c_int64),
        ("token_stride", c_int64),
        ("head_stride", c_int64),
    ]


class AttentionParams(Structure):
    _fields_ = [
        *((name, Rows) for name in ("q", "k", "v", "out")),
        *((name, c_void_p) for name in ("lse", "starts")),
        *((name, c_int32) for name in ("B", "T", "S", "H", "D")),
        ("scale", c_float),
        ("element", c_int32),
        ("several", c_bool),
    ]


class AttentionBackwardParams(Structure):
    _fields_ = [
        ("forward", AttentionParams),
        *((name, Rows) for name in ("grad_out", "grad_q", "grad_k", "grad_v")),
        ("delta", c_void_p),
    ]


class DecodeParams(Structure):
    _fields_ = [
        *((name, Rows) for name in ("q", "k_new", "v_new", "keys", "values", "out")),
        *((name, c_void_p) for name in ("lse", "lengths", "starts", "cos", "sin")),
        *((name, c_void_p) for name in ("partials", "counters", "ready")),
        *((name, c_int32) for name in ("B", "T", "H", "D", "R", "capacity", "length")),
        ("promised", c_bool),
        ("scale", c_float),
        ("element", c_int32),
    ]


class LinearParams(Structure):
    _fields_ = [
        *(
            (name, c_void_p)
            for name in ("x", "values", "scale", "offset", "bias", "residual", "out", "ready")
        ),
        *((name, c_int32) for name in ("M", "N", "K", "G", "x_stride", "gelu_from", "late")),
        ("promised", c_bool),
        *((name, c_int32) for name in ("format", "element")),
    ]


class WidenParams(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("values", "scale", "offset", "out")),
        *((name, c_int32) for name in ("N", "K", "G", "format", "element")),
    ]


class NormParams(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("x", "weight", "bias", "out")),
        *((name, c_int32) for name in ("M", "C")),
        ("eps", c_float),
        ("promised", c_bool),
        ("element", c_int32),
    ]


# --- building ---


def cache_folder() -> Path:
    """Where built libraries stay between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "kogpt" / "emulator"


def compiled(source: Path) -> Path:
    """The object file of one source, compiled unless these very sources were before."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("the kernel emulator needs g++")
    headers = sorted([*HERE.glob("*.h"), *SOURCES.glob("*.h"), *SOURCES.glob("*.cuh")])
    key = hashlib.sha256(" ".join([compiler, *FLAGS]).encode())
    for path in [source, *headers]:
        key.update(path.read_bytes())
    target = cache_folder() / f"{source.stem}-{key.hexdigest()[:16]}.o"
    run_to(target, [compiler, *FLAGS, "-x", "c++", "-c", str(source)])
    return target


def run_to(target: Path, command: list[str]) -> None:
    """Runs a compiler whose output appears under its name only once it is whole."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}.partial")
    result = subprocess.run([*command, "-o", str(partial)], capture_output=True, text=True)
    if result.returncode != 0:
        errors = [line for line in result.stderr.splitlines() if " error: " in line]
        raise EmulatorError("\n".join([" ".join(command), *errors[:10]]))
    partial.replace(target)


@functools.cache
def library(name: str) -> ctypes.CDLL:
    """The emulator with the kernels of csrc/`name`.cu (or `name`.cu beside this file)."""
    source = SOURCES / f"{name}.cu"
    source = source if source.exists() else HERE / f"{name}.cu"
    if not source.exists():
        pytest.skip(f"there is no {name}.cu yet")
    objects = [
        str(compiled(path)) for path in (source, HERE / "emulator.cpp", HERE / "harness.cpp")
    ]
    key = hashlib.sha256(" ".join(objects).encode()).hexdigest()[:16]
    target = cache_folder() / f"{name}-{key}.so"
    run_to(target, [shutil.which("g++") or "g++", "-shared", *objects])
    lib = ctypes.CDLL(str(target))
    lib.emulator_error.restype = ctypes.c_char_p
    lib.emulator_decode_partials.restype = c_int64
    mirrors = (
        *(AttentionParams, AttentionBackwardParams, DecodeParams),
        *(LinearParams, NormParams, WidenParams),
    )
    sizes = (c_int64 * len(mirrors))()
    lib.emulator_struct_sizes(sizes)
    assert list(sizes) == [ctypes.sizeof(mirror) for mirror in mirrors], "a struct has changed"
    return lib


class Run:
    """One call of a launch function: registers the tensors it may touch, then makes the call.

    Args:
        name: of the kernel file.
        limit: bytes of shared memory that a block may have.
        seed: 0 runs blocks in the order of their index, another shuffles them.
        promised: whether kernels ahead leave alone what is not `late`; else nothing may be read
            before they are awaited.
    """

    def __init__(
        self,
        name: str,
        *,
        limit: int = SHARED_LIMITS["sm_86"],
        seed: int = 0,
        promised: bool = False,
    ) -> None:
        self.lib = library(name)
        self.promised = promised
        self.lib.emulator_reset(c_int32(limit), ctypes.c_uint64(seed))

    def rows(self, x: Tensor | None, *, writable: bool = False, late: int = NOBODY) -> Rows:
        """Registers a (B, tokens, H, D) tensor with any strides whose rows are contiguous.

        Args:
            writable: by the kernel.
            late: whom an early launch has to wait for before it reads this.
        """
        if x is None:
            return Rows()
        assert x.stride(-1) == 1 and x.data_ptr() % 16 == 0
        assert all(stride * x.element_size() % 16 == 0 for stride in x.stride()[:3])
        self.register(x, writable, late)
        return Rows(x.data_ptr(), *x.stride()[:3])

    def flat(self, x: Tensor | None, *, writable: bool = False, late: int = NOBODY) -> int | None:
        """Registers a contiguous tensor of any rank, and gives its address."""
        if x is None:
            return None
        assert x.is_contiguous()
        self.register(x.view(1, 1, 1, x.numel()), writable, late)
        return x.data_ptr()

    def register(self, x: Tensor, writable: bool, late: int = NOBODY) -> None:
        if x.numel() == 0:
            return
        size, late = x.element_size(), late if self.promised else KERNEL_RIGHT_AHEAD
        sizes = (c_int64 * 3)(*x.shape[:3])
        strides = (c_int64 * 3)(*(stride * size for stride in x.stride()[:3]))
        self.lib.emulator_register(
            c_void_p(x.data_ptr()), sizes, strides, c_int64(x.size(3) * size), writable, late
        )

    def call(self, function: str, *arguments: object) -> None:
        """Calls a function of harness.cpp.

        Raises:
            EmulatorError: something was trapped, or the launch function refused.
        """
        status = getattr(self.lib, function)(*arguments)
        if status != 0:
            raise EmulatorError(self.lib.emulator_error().decode() or f"cudaError_t {status}")


# --- the launch functions: `options` are those of `Run` ---


def unwritten(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory that a kernel has yet to write: NaN."""
    return torch.full(shape, float("nan"), dtype=dtype)


def unwritten_results(q: Tensor) -> tuple[Tensor, Tensor]:
    """out (B, T, H, D) and lse (B, H, T)."""
    B, T, H, _ = q.shape
    return unwritten(*q.shape, dtype=q.dtype), unwritten(B, H, T)


def attention_params(
    run: Run, q: Tensor, k: Tensor, v: Tensor, out: Rows, lse: int | None, starts: Tensor | None
) -> AttentionParams:
    """The struct that forward and backward share."""
    B, T, H, D = q.shape
    rows = run.rows(q), run.rows(k), run.rows(v)
    pointers = lse, run.flat(starts)
    several = starts is not None and starts.ndim == 2
    sizes = B, T, k.size(1), H, D
    return AttentionParams(
        *rows, out, *pointers, *sizes, 1 / math.sqrt(D), ELEMENTS[q.dtype], several
    )


def forward(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None = None, **options: int
) -> tuple[Tensor, Tensor]:
    """attention_forward.cu: q (B, T, H, D), k and v (B, S, H, D).

    Returns:
        out (B, T, H, D) and lse (B, H, T).
    """
    run = Run("attention_forward", **options)
    out, lse = unwritten_results(q)
    params = attention_params(
        run, q, k, v, run.rows(out, writable=True), run.flat(lse, writable=True), starts
    )
    run.call("emulator_forward", byref(params))
    return out, lse


def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    starts: Tensor | None = None,
    **options: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """attention_backward.cu: the gradients of q, k and v, in their shapes."""
    run = Run("attention_backward", **options)
    grads = [unwritten(*x.shape, dtype=x.dtype) for x in (q, k, v)]
    delta = unwritten(*lse.shape)
    params = AttentionBackwardParams(
        attention_params(run, q, k, v, run.rows(out), run.flat(lse), starts),
        run.rows(grad_out),
        *(run.rows(grad, writable=True) for grad in grads),
        run.flat(delta, writable=True),
    )
    run.call("emulator_backward", byref(params))
    return grads[0], grads[1], grads[2]


def decode(
    q: Tensor,
    k_new: Tensor | None,
    v_new: Tensor | None,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor | int,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    *,
    starts: Tensor | None = None,
    counters: Tensor | None = None,
    promised: bool = False,
    ready: Tensor | None = None,
    **options: int,
) -> tuple[Tensor, Tensor]:
    """attention_decode.cu: q, k_new, v_new (B, T, H, D); keys, values (B, capacity, H, D).

    Appends to `keys` and `values` in place. Without `cos` and `sin` ((P, R/2), float32) nothing is
    rotated. `counters` ((B, H), int32) are zeros, made when None. With `promised` the result is
    written over `v_new`, as a step's is, and the flag `ready` (int32) is raised.

    Returns:
        out (B, T, H, D) and lse (B, H, T).
    """
    B, T, H, D = q.shape
    run = Run("attention_decode", promised=promised, **options)
    out, lse = unwritten_results(q)
    if promised:
        assert v_new is not None
        out = v_new
    counters = torch.zeros(B, H, dtype=torch.int32) if counters is None else counters
    append = k_new is not None
    same = isinstance(lengths, int)
    params = DecodeParams(
        *(run.rows(x, late=KERNEL_RIGHT_AHEAD) for x in (q, k_new, v_new)),
        *(run.rows(x, writable=append) for x in (keys, values)),
        run.rows(out, writable=True, late=KERNEL_RIGHT_AHEAD),
        run.flat(lse, writable=True),
        None if same else run.flat(lengths),
        *(run.flat(x) for x in (starts, cos, sin)),
        None,  # partials, below
        run.flat(counters, writable=True),
        run.flat(ready, writable=True),
        *(B, T, H, D, 0 if cos is None else 2 * cos.size(-1), keys.size(1)),
        lengths if same else 0,
        promised,
        1 / math.sqrt(D),
        ELEMENTS[q.dtype],
    )
    floats = run.lib.emulator_decode_partials(byref(params))
    partials = unwritten(floats)
    params.partials = run.flat(partials, writable=True)
    run.call("emulator_decode", byref(params))
    assert not counters.any(), "counters must be left zero"
    return out, lse


def linear(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None = None,
    gelu_from: int | None = None,
    residual: Tensor | None = None,
    late: int = 0,
    ready: Tensor | None = None,
    promised: bool = False,
    **options: int,
) -> Tensor:
    """linear_decode.cu: the arguments are those of `kogpt.kernels.step_linear`.

    Returns:
        (M, N).
    """
    run = Run("linear_decode", promised=promised, **options)
    values, scale, offset = weight
    out = unwritten(x.size(0), values.size(0), dtype=x.dtype)
    rows = run.rows(x[:, None, None, late:], late=KERNELS_BEFORE if late else KERNEL_RIGHT_AHEAD)
    if late:
        run.rows(x[:, None, None, :late], late=KERNEL_RIGHT_AHEAD)
    params = LinearParams(
        x.data_ptr(),
        *(run.flat(part) for part in (values, scale, offset, bias)),
        run.flat(residual, late=KERNELS_BEFORE if late else KERNEL_RIGHT_AHEAD),
        run.flat(out, writable=True, late=KERNEL_RIGHT_AHEAD),
        run.flat(ready),
        *(*out.shape, x.size(1), 0 if scale is None else scale.size(1), rows.batch_stride),
        out.size(1) if gelu_from is None else gelu_from,
        late,
        promised,
        FORMATS[values.dtype],
        ELEMENTS[x.dtype],
    )
    run.call("emulator_linear", byref(params))
    return out


def widen(values: Tensor, scale: Tensor, offset: Tensor | None = None, **options: int) -> Tensor:
    """widen.cu: values, scale and offset as in `kogpt.kernels.Weight`.

    Returns:
        (N, K).
    """
    run = Run("widen", **options)
    inputs = values.size(1) * (8 if values.dtype == torch.int32 else 1)
    out = unwritten(values.size(0), inputs, dtype=scale.dtype)
    params = WidenParams(
        *(run.flat(part) for part in (values, scale, offset)),
        run.flat(out, writable=True),
        *(*out.shape, scale.size(1)),
        *(FORMATS[values.dtype], ELEMENTS[scale.dtype]),
    )
    run.call("emulator_widen", byref(params))
    return out


def norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, promised: bool = False, **options: int
) -> Tensor:
    """norm.cu: x (M, C), weight and bias (C,).

    Returns:
        (M, C).
    """
    run = Run("norm", promised=promised, **options)
    out = unwritten(*x.shape, dtype=x.dtype)
    params = NormParams(
        run.flat(x, late=KERNEL_RIGHT_AHEAD),
        *(run.flat(part) for part in (weight, bias)),
        run.flat(out, writable=True, late=KERNEL_RIGHT_AHEAD),
        *(*x.shape, eps, promised, ELEMENTS[x.dtype]),
    )
    run.call("emulator_norm", byref(params))
    return out


def probe(name: str, source: Tensor, target: Tensor, **options: int) -> None:
    """Runs a kernel of probes.cu: `source` is what it may read, `target` what it may write."""
    run = Run("probes", **options)
    pointers = c_void_p(run.flat(source)), c_void_p(run.flat(target, writable=True))
    run.call("emulator_probe", name.encode(), *pointers)
