"""What was compiled, and what each shape would run: `kogpt inspect --kernels`."""

import re
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch

from kogpt.kernels import extension
from kogpt.kernels.attention import DTYPES, HEAD_DIMS, obstacle
from kogpt.kernels.decode import MAX_TOKENS
from kogpt.kernels.extension import Library
from kogpt.textfiles import aligned

HEADS, KEYS = 16, 2048  # KoGPT's heads, and its context
WIDTHS = sorted((*HEAD_DIMS, 80))  # one that no kernel takes
VECTORS = re.compile("sse4_|avx|fma3|f16c|amx|asimd|neon|sve|vsx|vx")


@dataclass(frozen=True)
class Call:
    """A use of `attention` with B rows of T queries, the last of 2,048 positions."""

    name: str
    T: int
    B: int = 1
    dropout_p: float = 0.0
    with_gradient: bool = False

    def kernels(self) -> tuple[str, ...]:
        """The kernels for this call, of tensors that they take."""
        forward = "decode" if self.T <= MAX_TOKENS else "forward"
        return (forward, "backward") if self.with_gradient else (forward,)


CALLS = (
    Call("prefill, 2048 tokens", 2048),
    Call("training, 2048 tokens", 2048, with_gradient=True),
    Call("training with dropout", 2048, dropout_p=0.1, with_gradient=True),
    Call("decode, 1 token", 1),
    Call(f"decode, {MAX_TOKENS} tokens", MAX_TOKENS),
    Call("decode, batch of 8", 1, B=8),
)


@dataclass(frozen=True)
class Plan:
    """What one call of one width and dtype runs on a CUDA device that has the kernels.

    Attributes:
        kernels: in the order they run; none where SDPA runs.
        reason: why SDPA runs; None where the kernels do.
    """

    call: str
    batch: int
    queries: int
    keys: int
    head_dim: int
    dtype: str
    dropout: float
    kernels: tuple[str, ...]
    reason: str | None

    @property
    def runs(self) -> str:
        """The kernels, or SDPA and why."""
        return f"SDPA: {self.reason}" if self.reason else ", ".join(self.kernels)


@dataclass(frozen=True)
class LibraryReport:
    """One of the two libraries.

    Attributes:
        kind: of device, "cuda" or "cpu".
        library: what was compiled; None for nothing.
        unused: why the current device does not use a library; None where it does.
    """

    kind: str
    library: Library | None
    unused: str | None

    def to_dict(self) -> dict[str, Any]:
        """As `--json` prints it."""
        library = self.library and {"path": str(self.library.path), **asdict(self.library.record)}
        return {"library": library, "unused": self.unused}

    def __str__(self) -> str:
        name = {"cuda": "CUDA", "cpu": "CPU"}[self.kind]
        used = f"this machine uses none: {self.unused}" if self.unused else "this device uses it"
        if self.library is None:
            return f"{name} library: none\n  {used}"
        record = self.library.record
        return "\n".join(
            (
                f"{name} library: {self.library.path}",
                f"  architectures: {record.architectures}",
                f"  compiler: {record.compiler}",
                f"  torch headers: {record.torch}",
                f"  compiled in: {record.seconds} s",
                f"  {used}",
            )
        )


@dataclass(frozen=True)
class KernelReport:
    """All there is to tell of the kernels.

    Attributes:
        libraries: for CUDA and for the CPU.
        instruction_sets: of vectors, that the CPU has; its kernels take the best.
        plans: what attention would run, one for each call, width and dtype.
    """

    libraries: tuple[LibraryReport, ...]
    instruction_sets: tuple[str, ...]
    plans: list[Plan]

    def to_dict(self) -> dict[str, Any]:
        """All of it, as `--json` prints it."""
        return {
            "libraries": {report.kind: report.to_dict() for report in self.libraries},
            "instruction_sets": self.instruction_sets,
            "plans": [asdict(plan) for plan in self.plans],
        }

    def __str__(self) -> str:
        sets = ", ".join(self.instruction_sets) or "none for vectors"
        wrapped = textwrap.wrap(f"  this CPU has: {sets}", 100, subsequent_indent="    ")
        unused = next(report.unused for report in self.libraries if report.kind == "cuda")
        where = "a CUDA device that has the kernels" if unused else "this device"
        rows = [("call", "head dim", "dtype", "runs"), *merged(self.plans)]
        lines = [*map(str, self.libraries), *wrapped, "", f"attention on {where}:", *folded(rows)]
        return "\n".join(lines)


def inspect_kernels() -> KernelReport:
    """Looks for compiled kernels and asks the dispatch rule; compiles and loads nothing."""
    libraries = tuple(LibraryReport(kind, *extension.status(kind)) for kind in ("cuda", "cpu"))
    dtypes = (*DTYPES, torch.float32)
    plans = [ask(call, D, dtype) for call in CALLS for D in WIDTHS for dtype in dtypes]
    return KernelReport(libraries, instruction_sets(), plans)


def instruction_sets() -> tuple[str, ...]:
    """The sets of vector instructions that this processor has, in the words of PyTorch."""
    has = torch.cpu.get_capabilities()
    return tuple(
        sorted(name for name, value in has.items() if value is True and VECTORS.match(name))
    )


def ask(call: Call, D: int, dtype: torch.dtype) -> Plan:
    """Asks the dispatch rule about tensors without memory."""
    q = torch.empty(call.B, call.T, HEADS, D, dtype=dtype, device="meta")
    k = torch.empty(call.B, KEYS, HEADS, D, dtype=dtype, device="meta")
    reason = obstacle(q, k, k, call.dropout_p)
    return Plan(
        call=call.name,
        batch=call.B,
        queries=call.T,
        keys=KEYS,
        head_dim=D,
        dtype=str(dtype).removeprefix("torch."),
        dropout=call.dropout_p,
        kernels=() if reason else call.kernels(),
        reason=reason,
    )


def merged(plans: Sequence[Plan]) -> list[tuple[str, ...]]:
    """Rows for a person: dtypes, then widths of equal outcome share a row."""
    dtypes = defaultdict(list)
    for plan in plans:
        dtypes[plan.call, plan.head_dim, plan.runs].append(plan.dtype)
    widths = defaultdict(list)
    for (call, D, runs), alike in dtypes.items():
        widths[call, " ".join(alike), runs].append(str(D))
    return [(call, " ".join(alike), dtype, runs) for (call, dtype, runs), alike in widths.items()]


def folded(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table in which equal first cells are written once."""
    pairs = pairwise([("",), *rows])
    shown = [("" if first == above[0] else first, *rest) for above, (first, *rest) in pairs]
    return aligned(shown, "<<<<")
