"""Times the compiled kernels on a GPU beside their peers and the machine's ceilings, in one run.

    python scripts/benchmark_kernels.py [--json FILE] [--plot FILE]

Ceilings come first: a copy, a sum that only reads, a large product. Then causal attention forward
and backward, of one text and of several in a row, and a decode step, ours beside every backend of
PyTorch's SDPA that takes the shape and flash-attn where it is installed; then the products of
decoding, with weights in 16, 8 and 4 bits, ours beside those of PyTorch. Each shape is checked
against float64 within the budget of the tests before it is timed. Contenders take turns, on random
inputs whose buffers rotate past the L2 cache; calls queue up behind a pause, so that the GPU never
waits for Python. Figures are medians.

Prints Markdown as it goes, the goals at the end. What fails its check or ends in an error is told,
and left out of the figures of its shape; the others are measured all the same. `--dry-run` runs
everything small on the CPU, with figures that mean nothing.

Dimension key: `B` batch, `T` queries, `S` keys, `H` heads, `D` head dim; of products `M` rows,
`N` outputs, `K` inputs.
"""

import argparse
import functools
import importlib.util
import itertools
import json
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType

import torch
from goals import Goal
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear, scaled_dot_product_attention

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests' error budget

from kogpt.cli import FAILED, exit_code
from kogpt.commands.common import check_file, check_plot
from kogpt.errors import KoGPTError
from kogpt.kernels import DecodeStep, Weight, decode_attention, extension_available
from kogpt.kernels.attention import attention_mask
from kogpt.kernels.linear import pack_int4
from kogpt.model.rotary import RotaryEmbedding, Rotation
from tests.kernels import budget
from tests.kernels.products import check_product

OURS, FLASH = "**KoGPT**", "SDPA flash"
PASSES = ("forward", "backward")
ALONE = "attention alone"  # a decode step without rotary and append
BACKENDS = {
    FLASH: SDPBackend.FLASH_ATTENTION,
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "SDPA math": SDPBackend.MATH,
}
ROTARY_DIM = 64
BACKWARD_FLOPS = 2.5  # of the forward pass: five products of matrices instead of two
PAUSE_CYCLES = 1_000_000  # a call; about half a millisecond, more than Python takes

Call = Callable[[], object]
Function = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Sizes:
    """How much is run.

    Attributes:
        heads: of every shape.
        tokens: in a batch of the forward and backward pass.
        prefills: (D, T) of those.
        packed: (D, T, tokens of a text) of those with several texts in a row.
        goal_length: T for which there are goals.
        decodes: (B, S), for each of which there is a goal.
        products: (N, K) of the two in each of the `blocks`, and of the head.
        blocks: of the model whose tokens a second are a goal.
        rows: M of the products; there are goals for the first and the last.
        group: inputs that share a scale of 4 bits.
        ceiling: elements of the ceilings' vectors.
        product: side of the ceiling's matrices.
        rounds: times of which the median is taken.
    """

    heads: int = 16
    tokens: int = 16384
    prefills: tuple[tuple[int, int], ...] = (
        *((256, T) for T in (512, 1024, 2048, 4096, 8192)),
        (128, 2048),
        (64, 2048),
    )
    packed: tuple[tuple[int, int, int], ...] = ((256, 2048, 128), (256, 2048, 512))
    goal_length: int = 2048
    decodes: tuple[tuple[int, int], ...] = ((1, 2048), (8, 1024), (64, 1024))
    products: tuple[tuple[int, int], ...] = ((28672, 4096), (4096, 20480), (64512, 4096))
    blocks: int = 28
    rows: tuple[int, ...] = (1, 2, 4, 8)
    group: int = 128
    ceiling: int = 1 << 28
    product: int = 8192
    rounds: int = 31


DRY = Sizes(
    heads=2,
    tokens=64,
    prefills=((256, 16), (64, 32)),
    packed=((256, 16, 8),),
    goal_length=16,
    decodes=((1, 48), (2, 24), (3, 24)),
    products=((96, 128), (64, 256), (160, 128)),
    blocks=2,
    rows=(1, 8),
    ceiling=1 << 12,
    product=32,
    rounds=3,
)


@dataclass
class Workload:
    """One shape and how long each contender takes for it.

    Attributes:
        kind: "forward" or "backward", both also "packed ...", "decode" or "product".
        shape: in words.
        D: head dim; of a product bits of a weight.
        length: T of a forward or backward pass, S of a decode step, N of a product.
        batch: rows.
        flops: multiplications and additions that the result needs, masked ones not counted.
        traffic: bytes that have to be moved at least.
        seconds: by contender, one for each round.
        refused: why a contender does not take part.
    """

    kind: str
    shape: str
    D: int
    length: int
    batch: int
    flops: float
    traffic: float
    seconds: dict[str, list[float]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def speedup(self, peer: str) -> float:
        """How many times as fast as a peer ours is: the median over rounds."""
        rounds = zip(self.seconds[peer], self.seconds[OURS], strict=True)
        return statistics.median(theirs / ours for theirs, ours in rounds)

    def best_peer(self, ending: str = "") -> str | None:
        """The fastest peer that does all that ours does and whose name ends like that."""
        peers = [name for name in self.seconds if name != OURS and name.endswith(ending)]
        peers = [name for name in peers if not name.endswith(ALONE)]
        return min(peers, key=self.median, default=None)


class Bench:
    """Where and how often things are timed."""

    def __init__(self, device: str, sizes: Sizes) -> None:
        self.device, self.sizes = torch.device(device), sizes
        self.generator = torch.Generator(device).manual_seed(0)
        self.cache = 0
        if self.device.type == "cuda":
            self.cache = torch.cuda.get_device_properties(self.device).L2_cache_size

    def random(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        x = torch.randn(shape, generator=self.generator, device=self.device)
        return x.to(dtype)

    def sets(self, size: int) -> range:
        """As many sets of buffers of `size` bytes as fill the L2 cache four times, at least two."""
        return range(max(2, -(-4 * self.cache // size)))

    def seconds(self, calls: list[Call]) -> float:
        """Mean time of a call, one right behind the other."""
        if self.device.type != "cuda":
            began = time.perf_counter()
            for call in calls:
                call()
            return (time.perf_counter() - began) / len(calls)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(PAUSE_CYCLES * len(calls))
        start.record()
        for call in calls:
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / len(calls)

    def compare(self, contenders: dict[str, list[Call]], workload: Workload) -> None:
        """Times contenders in turn; one that does not take the shape is noted as refusing."""
        ready = {}
        for name, calls in contenders.items():
            try:
                for call in calls:
                    call()
                self.seconds(calls)
            except RuntimeError as error:  # no such kernel, or no memory for it
                workload.refused[name] = first_sentence(error)
            else:
                ready[name] = calls
        assert OURS in ready, workload.refused[OURS]
        workload.seconds = {name: [] for name in ready}
        for _ in range(self.sizes.rounds):
            for name, calls in ready.items():
                workload.seconds[name].append(self.seconds(calls))

    def median(self, call: Call) -> float:
        self.seconds([call])
        return statistics.median(self.seconds([call]) for _ in range(self.sizes.rounds))


def first_sentence(error: RuntimeError) -> str:
    return str(error).splitlines()[0].split(". ")[0]


# --- ceilings ---


@dataclass(frozen=True)
class Ceilings:
    """What the machine gives at best: bytes and operations a second."""

    copy: float
    read: float
    product: float


def measure_ceilings(bench: Bench) -> Ceilings:
    source = bench.random(bench.sizes.ceiling, dtype=torch.float32)
    target = torch.empty_like(source)
    size = source.nbytes
    copy = 2 * size / bench.median(lambda: target.copy_(source))
    read = size / bench.median(source.sum)
    side = bench.sizes.product
    a, b = bench.random(side, side), bench.random(side, side)
    return Ceilings(copy, read, 2 * side**3 / bench.median(lambda: a @ b))


# --- forward and backward ---


def by_backend(
    backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None = None
) -> Tensor:
    """SDPA of (B, T, H, D) tensors by one backend alone."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    with sdpa_kernel(backend):
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    return out.transpose(1, 2)


def prefill_functions() -> dict[str, Function]:
    """Causal attention by each contender."""
    functions: dict[str, Function] = {
        OURS: lambda q, k, v: torch.ops.kogpt.attention(q, k, v, None)[0]
    }
    for name, backend in BACKENDS.items():
        functions[name] = lambda q, k, v, backend=backend: by_backend(backend, q, k, v, True)
    if flash := flash_attn():
        functions["flash-attn"] = lambda q, k, v: flash.flash_attn_func(q, k, v, causal=True)
    return functions


@functools.cache
def flash_attn() -> ModuleType | None:
    """The package, where it is installed and works."""
    if importlib.util.find_spec("flash_attn") is None:
        return None
    try:
        return importlib.import_module("flash_attn")
    except ImportError as error:  # built for another torch
        print(f"benchmark_kernels.py: flash-attn takes no part: {error}", file=sys.stderr)
        return None


def packed_functions(starts: Tensor, length: int) -> dict[str, Function]:
    """Causal attention within texts of one length that lie end to end in rows.

    The peers have their mask for nothing. What a kernel for ragged rows could reach is flash's
    time where each text is a row.
    """
    mask = attention_mask(starts.size(1), starts.size(1), starts, starts.device)

    def apart(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = [x.reshape(-1, length, *x.shape[2:]) for x in (q, k, v)]
        return by_backend(SDPBackend.FLASH_ATTENTION, *rows, True).reshape(q.shape)

    functions: dict[str, Function] = {
        OURS: lambda q, k, v: torch.ops.kogpt.attention(q, k, v, starts)[0]
    }
    for name, backend in BACKENDS.items():
        functions[f"{name}, mask"] = lambda q, k, v, backend=backend: by_backend(
            backend, q, k, v, False, mask
        )
    return functions | {"SDPA flash, a row for each text": apart}


def check_prefill(q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, starts: Tensor | None) -> None:
    """Asserts the budget of the first and the last row, in one head each."""
    out, lse = torch.ops.kogpt.attention(q, k, v, starts)
    grads = torch.ops.kogpt.attention_backward(grad_out, q, k, v, out, lse, starts)
    for b, h in ((0, q.size(2) - 1), (-1, 0)):
        part = [x[b, :, h][None, :, None] for x in (q, k, v)]
        part.append(None if starts is None else starts[b][None])
        budget.check_forward(out[b, :, h][None, :, None], lse[b, h][None, None], *part)
        parts = tuple(x[b, :, h][None, :, None] for x in grads)
        budget.check_backward(parts, grad_out[b, :, h][None, :, None], *part)


def backward_call(
    function: Function,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad_out: Tensor,
) -> Call:
    """The backward pass of a function alone, to be called any number of times."""
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = function(*leaves)
    return lambda: torch.autograd.grad(out, leaves, grad_out, retain_graph=True)


def measure_prefill(bench: Bench, D: int, T: int, length: int | None = None) -> Iterator[Workload]:
    """The forward and the backward pass of one shape, of rows or of texts of a length in them."""
    H = bench.sizes.heads
    B = max(1, bench.sizes.tokens // T)
    flops = 2.0 * B * H * T * (length or T) * D  # two products for each text, half of each masked
    row = 2 * B * T * H * D  # bytes of each tensor
    shape, kind = f"D = {D}, {B} x {T}", ""
    inputs = [[bench.random(B, T, H, D) for _ in range(4)] for _ in bench.sets(4 * row)]
    if length is None:
        starts, functions = None, prefill_functions()
    else:
        shape, kind = f"{shape}, texts of {length}", "packed "
        tokens = torch.arange(T, device=bench.device)
        starts = (tokens - tokens % length).repeat(B, 1)
        functions = packed_functions(starts, length)
    check_prefill(*inputs[0], starts)

    forward = Workload(f"{kind}forward", shape, D, T, B, flops, 4 * row)
    bench.compare(
        {name: [lambda f=f, x=x: f(*x[:3]) for x in inputs] for name, f in functions.items()},
        forward,
    )
    yield forward

    backward = Workload(f"{kind}backward", shape, D, T, B, BACKWARD_FLOPS * flops, 8 * row)
    calls: dict[str, list[Call]] = {}
    for name in forward.seconds:
        try:
            calls[name] = [backward_call(functions[name], *x) for x in inputs]
        except RuntimeError as error:
            backward.refused[name] = first_sentence(error)
    bench.compare(calls, backward)
    yield backward


# --- decoding ---


class Decoding:
    """One new token in each row behind S - 1 others, by each contender."""

    def __init__(self, bench: Bench, B: int, S: int) -> None:
        H, D = bench.sizes.heads, 256
        new = (bench.random(B, 1, H, D) for _ in range(3))
        caches = (bench.random(B, H, S, D).transpose(1, 2) for _ in range(2))
        lengths = torch.full((B,), S - 1, device=bench.device)
        table = RotaryEmbedding(ROTARY_DIM, S).to(bench.device).table
        counters = torch.zeros(B, H, dtype=torch.int32, device=bench.device)
        self.step = DecodeStep(*new, *caches, lengths, *table, counters=counters)

    def ours(self) -> Tensor:
        return decode_attention(self.step)

    def separate(self, backend: SDPBackend) -> Tensor:
        """Rotary, append and attention as ops of their own, as the model has them."""
        step, last = self.step, self.step.keys.size(1) - 1
        rotate = Rotation(step.cos[None, last:, None], step.sin[None, last:, None])
        q = rotate(step.q)
        step.keys[:, last:] = rotate(step.k)
        step.values[:, last:] = step.v
        return self.attend(backend, q)

    def attend(self, backend: SDPBackend, q: Tensor) -> Tensor:
        """Attention alone."""
        return by_backend(backend, q, self.step.keys, self.step.values, False)

    def check(self) -> None:
        """Asserts the budget."""
        before = budget.on_own_cache(self.step)
        budget.check_decode(self.ours(), before)

    def contenders(self) -> dict[str, Call]:
        calls: dict[str, Call] = {OURS: self.ours}
        for name, backend in BACKENDS.items():
            calls[f"{name} + separate ops"] = lambda backend=backend: self.separate(backend)
        for name, backend in BACKENDS.items():
            calls[f"{name}, {ALONE}"] = lambda backend=backend: self.attend(backend, self.step.q)
        if flash := flash_attn():
            calls["flash-attn with rotary and append"] = self.by_flash_attn(flash)
        return calls

    def by_flash_attn(self, flash: ModuleType) -> Call:
        step = self.step
        keys, values = step.keys.contiguous(), step.values.contiguous()
        lengths, cos, sin = step.lengths.int(), step.cos.to(step.q.dtype), step.sin.to(step.q.dtype)
        return lambda: flash.flash_attn_with_kvcache(
            step.q, keys, values, step.k, step.v, cos, sin, lengths, causal=True
        )


def measure_decode(bench: Bench, B: int, S: int) -> Iterator[Workload]:
    """A step of one shape."""
    H, D = bench.sizes.heads, 256
    cache = 2 * 2 * B * H * S * D  # bytes of keys and values
    workload = Workload("decode", f"{B} x {S}", D, S, B, 4.0 * B * H * S * D, cache)
    steps = [Decoding(bench, B, S) for _ in bench.sets(cache)]
    steps[0].check()
    calls: dict[str, list[Call]] = {}
    for step in steps:
        for name, call in step.contenders().items():
            calls.setdefault(name, []).append(call)
    bench.compare(calls, workload)
    yield workload


# --- products with weights ---


class Product:
    """Weights of one format, and their product with few rows by each contender."""

    def __init__(self, bench: Bench, bits: int, N: int, K: int) -> None:
        self.bits = bits
        if bits == 16:
            self.weight = Weight(bench.random(N, K))
            return
        end = 1 << (bits - 1)
        self.q = torch.randint(-end, end, (N, K), generator=bench.generator, device=bench.device)
        self.q = self.q.to(torch.int8)
        groups = 1 if bits == 8 else K // bench.sizes.group
        scale = bench.random(N, groups).abs() / 64
        self.weight = Weight(pack_int4(self.q) if bits == 4 else self.q, scale)

    @property
    def traffic(self) -> int:
        """Bytes of the weights."""
        return sum(part.nbytes for part in self.weight if part is not None)

    def ours(self, x: Tensor) -> Tensor:
        return torch.ops.kogpt.linear(x, *self.weight, None)

    def peer(self) -> tuple[str, Callable[[Tensor], Tensor]]:
        """What PyTorch has for this format, by name.

        Raises:
            RuntimeError: not on this device, or not in this release.
        """
        if self.bits == 16:
            return "F.linear", lambda x: linear(x, self.weight.values)
        name = f"_weight_int{self.bits}pack_mm"
        if not hasattr(torch.ops.aten, name):
            raise RuntimeError(f"this torch has no {name}")
        function = getattr(torch.ops.aten, name)
        values, scale = self.weight.values, self.weight.scale
        assert scale is not None
        if self.bits == 8:
            return name, lambda x: function(x, values, scale[:, 0])
        # Two numbers q + 8 to a byte, the first in its upper half; scale and zero together, (G, N).
        unsigned = (self.q + 8).to(torch.uint8)
        tiles = torch.ops.aten._convert_weight_to_int4pack(
            unsigned[:, ::2] << 4 | unsigned[:, 1::2], 8
        )
        scales = torch.stack([scale, torch.zeros_like(scale)], dim=2).transpose(0, 1).contiguous()
        group = self.q.size(1) // scale.size(1)
        return name, lambda x: function(x, tiles, group, scales)


def measure_products(bench: Bench, bits: int, N: int, K: int) -> Iterator[Workload]:
    """One matrix in one format, with each number of rows."""
    products = [Product(bench, bits, N, K)]
    traffic = products[0].traffic
    products += [Product(bench, bits, N, K) for _ in bench.sets(traffic)[1:]]
    functions: dict[str, list[Callable[[Tensor], Tensor]]] = {OURS: [p.ours for p in products]}
    refused = {}
    try:
        peers = [p.peer() for p in products]
        functions[peers[0][0]] = [function for _, function in peers]
    except RuntimeError as error:
        refused[f"PyTorch's product in {bits} bits"] = first_sentence(error)
    for M in bench.sizes.rows:
        x = bench.random(M, K)
        # A CPU's kernels, those of a dry run, round x and have a budget of their own.
        check = check_product if x.device.type == "cpu" else budget.check_linear
        check(products[0].ours(x), x, products[0].weight)
        moved = traffic + 2 * M * (N + K)
        workload = Workload(
            "product", f"{bits} bits, {N} x {K}, M = {M}", bits, N, M, 2.0 * M * N * K, moved
        )
        workload.refused |= refused
        bench.compare(
            {name: [lambda f=f, x=x: f(x) for f in some] for name, some in functions.items()},
            workload,
        )
        yield workload


# --- all of them ---


def parts(bench: Bench) -> Iterator[tuple[str, Iterable[Workload]]]:
    """What is measured, in its order: in words, and as it will be found."""
    sizes = bench.sizes
    for D, T in sizes.prefills:
        yield f"attention, D = {D}, T = {T}", measure_prefill(bench, D, T)
    for D, T, length in sizes.packed:
        words = f"attention, D = {D}, T = {T}, texts of {length}"
        yield words, measure_prefill(bench, D, T, length)
    for B, S in sizes.decodes:
        yield f"decode, {B} x {S}", measure_decode(bench, B, S)
    for bits, (N, K) in itertools.product((16, 8, 4), sizes.products):
        yield f"product, {bits} bits, {N} x {K}", measure_products(bench, bits, N, K)


@dataclass
class Run:
    """Everything that was found.

    Attributes:
        workloads: those that were measured.
        faults: what failed its check, or ended in an error.
    """

    bench: Bench
    ceilings: Ceilings
    workloads: list[Workload] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def measure(self) -> Iterator[Workload]:
        for words, part in parts(self.bench):
            try:
                for workload in part:
                    self.workloads.append(workload)
                    yield workload
            except (AssertionError, RuntimeError) as error:
                self.faults.append(f"{words}: {error}")
                print(f"benchmark_kernels.py: {self.faults[-1]}", file=sys.stderr, flush=True)


# --- what is reported ---


def goals(sizes: Sizes, ceilings: Ceilings, workloads: list[Workload]) -> list[Goal]:
    """The goals, those of attention at D = 256; of what failed nothing is found."""
    shapes = {(w.kind, w.batch, w.length): w for w in workloads if w.D == 256}
    T = sizes.goal_length
    forward, backward = (shapes.get((kind, sizes.tokens // T, T)) for kind in PASSES)
    single, few, many = (shapes.get(("decode", B, S)) for B, S in sizes.decodes)

    def against(peer: str | None, w: Workload | None) -> float | None:
        return w.speedup(peer) if w and peer in w.seconds else None

    def of_read(w: Workload | None) -> float | None:
        return 100 * w.traffic / w.median(OURS) / ceilings.read if w else None

    fused = against(single.best_peer("separate ops") if single else None, single)
    teraflops = forward.flops / forward.median(OURS) / 1e12 if forward else None
    microseconds = single.median(OURS) * 1e6 if single else None
    one, eight, most = (f"decode, {B} x {S}" for B, S in sizes.decodes)
    return [
        Goal(f"forward, {T}, x SDPA flash", 0.95, against(FLASH, forward)),
        Goal(f"forward, {T}, TFLOP/s", 260, teraflops),
        Goal(f"backward, {T}, x SDPA flash", 0.9, against(FLASH, backward)),
        Goal(f"{one}, x fastest SDPA + separate ops", 1.2, fused),
        Goal(f"{one}, us", 17, microseconds, at_most=True),
        Goal(f"{eight}, % of read ceiling", 83, of_read(few)),
        Goal(f"{most}, % of read ceiling", 95, of_read(many)),
        *product_goals(sizes, workloads),
    ]


def product_goals(sizes: Sizes, workloads: list[Workload]) -> Iterator[Goal]:
    """Tokens a second that the products leave time for: no more can be had of the whole model."""
    found = {(w.D, w.length, w.batch): w.median(OURS) for w in workloads if w.kind == "product"}
    wide, narrow, head = (N for N, _ in sizes.products)
    one, many = sizes.rows[0], sizes.rows[-1]
    for bits, M, goal in ((16, one, 225), (8, one, 400), (4, one, 560), (16, many, 1650)):
        keys = (bits, wide, M), (bits, narrow, M), (max(bits, 8), head, M)  # no head is in 4 bits
        rate = None
        if all(key in found for key in keys):
            enter, leave, last = (found[key] for key in keys)
            rate = M / (sizes.blocks * (enter + leave) + last)
        yield Goal(f"products of a token, {bits} bits, M = {M}, tokens/s", goal, rate)


def machine() -> dict[str, str]:
    """What the figures were taken on."""
    found = {"torch": torch.__version__, "CUDA": torch.version.cuda or "none"}
    if torch.cuda.is_available():
        query = "--query-gpu=name,driver_version,power.limit,clocks.max.sm"
        which = f"--id=GPU-{torch.cuda.get_device_properties().uuid}"
        if tool := shutil.which("nvidia-smi"):
            found["GPU, driver, power, clock"] = subprocess.run(
                [tool, query, "--format=csv,noheader", which], capture_output=True, text=True
            ).stdout.strip()
        found["GPU"] = torch.cuda.get_device_name()
        found["cuDNN"] = str(torch.backends.cudnn.version())
    return {**found, "command": shlex.join(["python", *sys.argv])}


def acceptance(bench: Bench) -> Iterator[str]:
    """What torch says about each backend at D = 256, causal, with a gradient."""
    if bench.device.type != "cuda":  # the question itself would fail
        return
    q, k, v = (bench.random(1, bench.sizes.heads, 64, 256).requires_grad_() for _ in range(3))
    params = torch.backends.cuda.SDPAParams(q, k, v, None, 0.0, True, False)
    for backend in ("flash", "cudnn", "efficient"):
        accepts = getattr(torch.backends.cuda, f"can_use_{backend}_attention")
        yield f"- `torch.backends.cuda.{accepts.__name__}`: {accepts(params)}"


def rows(workload: Workload, ceilings: Ceilings) -> Iterator[str]:
    """Rows of the table, ours first."""
    reads = workload.kind in ("decode", "product")
    for name in workload.seconds:
        seconds = workload.median(name)
        rate = (workload.traffic if reads else workload.flops) / seconds
        share = rate / (ceilings.read if reads else ceilings.product)
        speed = f"{rate / 1e9:.0f} GB/s" if reads else f"{rate / 1e12:.1f} TFLOP/s"
        ratio = "" if name == OURS else f"{workload.speedup(name):.2f}"
        yield (
            f"| {workload.kind} | {workload.shape} | {name} | {seconds * 1e6:.1f} us"
            f" | {ratio} | {speed} | {share:.1%} |"
        )


def report(about: dict[str, str], run: Run) -> Iterator[str]:
    """All figures as Markdown, measured as they are asked for."""
    bench, ceilings = run.bench, run.ceilings
    yield from (f"- {key}: {value}" for key, value in about.items())
    yield from acceptance(bench)
    yield from ("", "| ceiling | |", "|---|---:|")
    yield f"| device copy | {ceilings.copy / 1e9:.0f} GB/s |"
    yield f"| sum, which only reads | {ceilings.read / 1e9:.0f} GB/s |"
    yield f"| bfloat16 product of {bench.sizes.product}^3 | {ceilings.product / 1e12:.1f} TFLOP/s |"
    yield ""
    yield "| | shape | | median | its time / ours | speed | of ceiling |"
    yield "|---|---|---|---:|---:|---:|---:|"
    for workload in run.measure():
        yield from rows(workload, ceilings)
    yield ""
    yield from (f"- failed: {fault}" for fault in run.faults)
    for w in run.workloads:
        yield from (
            f"- {w.kind}, {w.shape}: {name} refused: {why}" for name, why in w.refused.items()
        )
    yield from ("", "| goal, on an H100 | | measured | |", "|---|---:|---:|---|")
    for goal in goals(bench.sizes, ceilings, run.workloads):
        found = "" if goal.found is None else f"{goal.found:.2f}"
        sign = "at most" if goal.at_most else "at least"
        yield f"| {goal.text} | {sign} {goal.goal} | {found} | {goal.verdict} |"


def draw_roofline(path: Path, title: str, ceilings: Ceilings, workloads: list[Workload]) -> None:
    """Speed over operations per byte, under the roof of the two ceilings."""
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(8, 5), layout="constrained")).subplots()
    intensities = [10 ** (i / 20) for i in range(-10, 90)]
    roof = [min(ceilings.product, x * ceilings.read) / 1e12 for x in intensities]
    axes.loglog(intensities, roof, color="black", label="ceilings measured in this run")
    colours = {"forward": "C0", "backward": "C1", "decode": "C2", "product": "C3"}
    for kind, colour in colours.items():
        chosen = [w for w in workloads if w.kind == kind]
        x = [w.flops / w.traffic for w in chosen]
        ours = [w.flops / w.median(OURS) / 1e12 for w in chosen]
        axes.loglog(x, ours, "o", color=colour, label=f"{kind}, KoGPT")
        raced = [w for w in chosen if w.best_peer()]
        peers = [w.flops / w.median(w.best_peer()) / 1e12 for w in raced]
        x = [w.flops / w.traffic for w in raced]
        axes.loglog(x, peers, "x", color=colour, label=f"{kind}, fastest peer")
    axes.set(xlabel="operations per byte", ylabel="TFLOP/s", title=title)
    axes.legend()
    figure.savefig(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="file for every time that was taken")
    parser.add_argument("--plot", type=Path, help="file for a roofline plot, needs matplotlib")
    parser.add_argument("--dry-run", action="store_true", help="everything small, on the CPU")
    args = parser.parse_args()
    if not args.dry_run and not torch.cuda.is_available():
        raise KoGPTError("needs a CUDA device")
    if not args.dry_run and not extension_available():
        raise KoGPTError("needs the fused kernels, which are not there")
    if args.json:
        check_file("json", args.json)
    if args.plot:
        check_plot(args.plot)
    about = {"dry run": "figures mean nothing"} if args.dry_run else {}
    about |= machine()
    bench = Bench("cpu", DRY) if args.dry_run else Bench("cuda", Sizes())
    run = Run(bench, measure_ceilings(bench))
    for line in report(about, run):
        print(line, flush=True)
    if args.json:
        found = {"machine": about, "ceilings": asdict(run.ceilings), "faults": run.faults}
        found["workloads"] = [asdict(workload) for workload in run.workloads]
        found["goals"] = [asdict(goal) for goal in goals(bench.sizes, run.ceilings, run.workloads)]
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    if args.plot:
        draw_roofline(args.plot, about.get("GPU", "dry run"), run.ceilings, run.workloads)
    return FAILED if run.faults else 0


if __name__ == "__main__":
    sys.exit(exit_code(main, Path(__file__).name))
