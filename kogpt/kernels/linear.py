"""Products with weights kept in 32, 16, 12, 8 or 4 bits: the op, its definition, what runs when.

Decoding reads every weight once per token, so its speed is bytes over bandwidth. The kernels, on a
CPU and on a GPU, read weights as they are stored and widen them in registers. They serve few rows;
for many, arithmetic is the limit, and the weights are widened in memory for the library's product.
Only a CPU's kernels take many rows as well: of integers, of packed weights, and of those of 16 bits
that PyTorch has to widen first, or whose own product is slow.

Dimension key: `M` rows, `N` outputs, `K` inputs, `G` groups of inputs that share a scale.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kogpt.kernels import packing
from kogpt.kernels.extension import extension_available, on_gpu
from kogpt.kernels.packing import LEAST_INPUTS, MOST_INPUTS, packed_inputs, unpack

MAX_ROWS = 8  # kMaxLinearRows of csrc/linear.h
BLOCK = 128  # inputs that a kernel takes at a time
SMALLEST_GROUP = 32  # of 4 bits; of 8 bits, a block
# Whether this processor has vectors that the kernels know: plain C++ is for few rows.
HAS_VECTORS = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
# Most weights that are widened at once for the library's product. A GPU has room for the largest
# matrix of a block of the 6B, and takes less time for it than Python for its parts.
WIDENED, WIDENED_ON_GPU = 1 << 24, 1 << 27


class Weight(NamedTuple):
    """The matrix (N, K) of a linear layer, as stored.

    Attributes:
        values: the weights themselves; or int8 (N, K); or 4 bits, int32 (N, K / 8), eight to a
            word from its low end, each stored as q + 8; or bfloat16 in 12 bits, uint8, rows of
            `kogpt.kernels.packing`.
        scale: what the integers count, (N, G): of int8 and 4 bits, a weight is q scale - offset.
        offset: zero point times scale, (N, G); None for zero.
    """

    values: Tensor
    scale: Tensor | None = None
    offset: Tensor | None = None

    @property
    def bits(self) -> int:
        """Bits of a weight."""
        narrow = {torch.int32: 4, torch.uint8: 12}
        return narrow.get(self.values.dtype, 8 * self.values.dtype.itemsize)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        N, size = self.values.shape
        if self.bits == 12:
            return N, packed_inputs(size)
        return N, size * (8 if self.bits == 4 else 1)

    @property
    def group_size(self) -> int:
        """Inputs that share a scale; all of them where there is none."""
        return self.shape[1] // (1 if self.scale is None else self.scale.size(1))

    @property
    def format(self) -> tuple[torch.dtype | None | int, ...]:
        """What matrices have in common that a kernel can take as one: dtypes and group size."""
        return *(None if part is None else part.dtype for part in self), self.group_size

    def rows(self, rows: slice) -> "Weight":
        """Some of the outputs."""
        return self.with_values(self.values[rows], lambda part: part[rows])

    def with_values(self, values: Tensor, change: Callable[[Tensor], Tensor]) -> "Weight":
        """Other values, and scale and offset, where there are such, changed."""
        scale, offset = (part if part is None else change(part) for part in self[1:])
        return Weight(values, scale, offset)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weights (N, K), at least float32 in the making."""
        if self.scale is None:
            return (unpack(self.values) if self.bits == 12 else self.values).to(dtype)
        q = unpack_int4(self.values) if self.bits == 4 else self.values
        grouped = q.unflatten(1, (self.scale.size(1), -1)) * self.scale.float()[..., None]
        if self.offset is not None:
            grouped -= self.offset.float()[..., None]
        return grouped.flatten(1).to(dtype)


def unpack_int4(words: Tensor) -> Tensor:
    """The numbers -8 to 7, int8 (N, K), that are packed in int32 (N, K / 8)."""
    pairs = words.flatten().view(torch.uint8)  # the low end first, as on every machine torch has
    numbers = torch.stack((pairs & 15, pairs >> 4), -1).to(torch.int8) - 8
    return numbers.view(*words.shape[:-1], 8 * words.size(-1))


def pack_int4(q: Tensor) -> Tensor:
    """Packs the numbers -8 to 7, (N, K), into int32 (N, K / 8)."""
    nibbles = (q.to(torch.int32) + 8).unflatten(1, (-1, 8))
    shifts = torch.arange(0, 32, 4, device=q.device, dtype=torch.int32)
    return (nibbles << shifts).sum(-1, dtype=torch.int32)  # the bits are apart: adding is or


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + bias.

    Args:
        x: (..., K).
        weight: W, (N, K).
        bias: (N,).

    Returns:
        (..., N) in the dtype of `x`.

    Raises:
        ValueError: `x` wants a gradient, which kernels do not give; `FrozenLinear` does.
    """
    rows = x.reshape(-1, x.size(-1))
    if has_kernel(rows, weight) and extension_available(x.device):
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError("linear has no gradient here; call it under torch.no_grad()")
        y = torch.ops.kogpt.linear(rows, *weight, bias)
    else:
        y = linear_by_blocks(rows, weight, bias)
    return y.view(*x.shape[:-1], y.size(1))


def has_kernel(x: Tensor, weight: Weight) -> bool:
    """Whether kernels take so many rows of `x` (M, K), and these weights."""
    few = len(x) <= MAX_ROWS
    return (few or has_kernel_for_many(x, weight)) and obstacle(x, weight) is None


def has_kernel_for_many(x: Tensor, weight: Weight) -> bool:
    """Whether kernels serve more than `MAX_ROWS` rows of `x`, if they take these weights."""
    if x.device.type != "cpu":
        return False
    if weight.bits == 16:
        differs = weight.values.dtype != x.dtype
        return HAS_VECTORS and (differs or x.dtype in slow_dtypes())
    return weight.bits < 16


def packs(K: int) -> bool:
    """Whether a CPU's kernels take packed rows of K for bfloat16, and are faster for it.

    They are where many rows are hardly slower: PyTorch's product would have to have them unpacked.
    """
    suits = K % packing.BLOCK == 0 and LEAST_INPUTS <= K <= MOST_INPUTS
    fast = HAS_VECTORS and (torch.bfloat16 in slow_dtypes() or multiplies_pairs())
    return suits and fast and extension_available(torch.device("cpu"))


@functools.cache
def slow_dtypes() -> frozenset[torch.dtype]:
    """Those of 16 bits that PyTorch multiplies slower than the kernels do on this processor."""
    if torch.backends.cpu.get_cpu_capability() == "AVX2":
        return frozenset((torch.bfloat16, torch.float16))
    fast = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return frozenset() if fast else frozenset((torch.float16,))


@functools.cache
def multiplies_pairs() -> bool:
    """Whether kernels have this processor's products of bfloat16, and PyTorch none of tiles (AMX).

    With tiles neither packing nor the kernels have been compared with PyTorch.
    """
    return torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()


def obstacle(x: Tensor, weight: Weight) -> str | None:
    """What keeps the kernels from taking these on any device; None if nothing."""
    K = x.size(-1)
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return str(x.dtype).removeprefix("torch.")
    if on_gpu(x) and x.dtype == torch.float32:
        return "float32 on a GPU"
    if on_gpu(x) and (weight.scale is None) and weight.values.dtype != x.dtype:
        return "weights of another dtype"
    if K % BLOCK:
        return f"{K} inputs, no multiple of {BLOCK}"
    smallest = SMALLEST_GROUP if weight.bits == 4 else BLOCK
    if weight.group_size % smallest:
        return f"groups of {weight.group_size}, no multiple of {smallest}"
    return None


def linear_by_blocks(x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
    """`linear` of rows (M, K) by PyTorch's own product, the weights widened some at a time."""
    N, _ = weight.shape
    bias = None if bias is None else bias.to(x.dtype)
    if weight.values.dtype == x.dtype:
        return F.linear(x, weight.values, bias)
    blocks = row_blocks(x, weight)
    if len(blocks) == 1:
        return F.linear(x, widened(x, weight), bias)
    y = x.new_empty(len(x), N)
    for some in blocks:
        y[:, some] = x @ widened(x, weight.rows(some)).T
    return y if bias is None else y.add_(bias)


def row_blocks(x: Tensor, weight: Weight) -> list[slice]:
    """Outputs whose weights are widened at once, where `x` is."""
    N, K = weight.shape
    step = max(1, (WIDENED_ON_GPU if on_gpu(x) else WIDENED) // K)
    return [slice(first, min(first + step, N)) for first in range(0, N, step)]


def widened(x: Tensor, weight: Weight) -> Tensor:
    """Weights (N, K) that are kept in another dtype, in that of `x` (M, K)."""
    suits = on_gpu(x) and weight.scale is not None and weight.scale.dtype == x.dtype
    if suits and obstacle(x, weight) is None and extension_available(x.device):
        return torch.ops.kogpt.widen(*weight)
    return weight.dequantize(x.dtype)


def widen_reference(weight: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    """The definition: integers times their scale less the offset, rounded once to its dtype."""
    return Weight(weight, scale, offset).dequantize(scale.dtype)


def linear_reference(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """The definition: x (M, K) times the widened weights, (M, N) in the dtype of `x`."""
    return F.linear(x, Weight(weight, scale, offset).dequantize(x.dtype), bias)


torch.library.define(
    "kogpt::linear",
    "(Tensor x, Tensor weight, Tensor? scale, Tensor? offset, Tensor? bias) -> Tensor",
)
torch.library.define("kogpt::widen", "(Tensor weight, Tensor scale, Tensor? offset) -> Tensor")
torch.library.impl("kogpt::linear", "default", linear_reference)
torch.library.impl("kogpt::widen", "default", widen_reference)


@torch.library.register_fake("kogpt::linear")
def _product_shape(x: Tensor, weight: Tensor, *others: Tensor | None) -> Tensor:
    return x.new_empty(x.size(0), weight.size(0))


@torch.library.register_fake("kogpt::widen")
def _weight_shape(weight: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    return scale.new_empty(Weight(weight, scale).shape)
