"""What a product with weights may err on a CPU, and the weights that its tests draw.

The truth is arithmetic in float64 on the very numbers given. The yardstick is the same maths in
PyTorch. A CPU's kernel multiplies integers by integers: it rounds each row of x, 128 inputs at a
time, to 8 bits for weights of 4 bits and to 16 bits for int8. Of many rows it rounds to 8 bits for
int8 too, 256 inputs at a time if a scale serves so many, and without VNNI so that no pair of inputs
comes to more than 128. For float16 and bfloat16 16
bits are no loss that counts, and the plain reference is the yardstick; else it is the reference on
inputs that are rounded so.

Dimension key: `M` rows, `N` outputs, `K` inputs, `G` groups.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from kogpt.kernels import Weight
from kogpt.kernels.linear import BLOCK, MAX_ROWS, pack_int4
from kogpt.kernels.packing import most_rare, pack, row_bytes, unpack

from .budget import FLOAT32, FORWARD, check

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def random_weight(
    format: torch.dtype | int,
    N: int,
    K: int,
    group: int = 0,
    *,
    scales: torch.dtype = torch.float32,
    offset: bool = False,
) -> Weight:
    """Random weights: a dtype, 12 bits, or integers of 8 or 4 bits; `group` 0 is all of K."""
    generator = torch.Generator().manual_seed(N * K + group)
    if format == 12:
        return Weight(packed_with_rare(torch.randn(N, K, generator=generator)))
    if isinstance(format, torch.dtype):
        return Weight(torch.randn(N, K, generator=generator).to(format))
    most = 1 << (format - 1)
    q = torch.randint(-most, most, (N, K), generator=generator, dtype=torch.int8)
    scale = (torch.rand(N, K // (group or K), generator=generator) + 0.1) / most
    shift = torch.randint(-most, most, scale.shape, generator=generator) * scale
    values = pack_int4(q) if format == 4 else q
    return Weight(values, scale.to(scales), shift.to(scales) if offset else None)


def packed_with_rare(values: Tensor) -> Tensor:
    """Floats in 12 bits each; some rows have many numbers without a code."""
    numbers = values.bfloat16()
    rare = most_rare(values.size(1)) // 2
    numbers[::3, -rare:] = (2.0 ** -torch.arange(60, 60 + 4 * rare, 4)).bfloat16()
    numbers[1::7, ::5] = 0
    packed = new_packed(numbers)
    assert pack(numbers, packed)
    return packed


def new_packed(weight: Tensor) -> Tensor:
    """Where weights (N, K) can be packed."""
    N, K = weight.shape
    return torch.full((N, row_bytes(K)), 255, dtype=torch.uint8)


def random_kinds(seed: int) -> Tensor:
    """Weights of few kinds and of many, so that some rows cannot be packed."""
    generator = torch.Generator().manual_seed(seed)
    K = 128 * int(torch.randint(1, 9, (), generator=generator))
    kinds = torch.randint(1, 24, (), generator=generator)
    high = torch.randint(256, (int(kinds),), generator=generator)
    chosen = high[(torch.rand(6, K, generator=generator) ** 3 * kinds).long()]
    low = torch.randint(256, (6, K), generator=generator)
    if seed % 2:  # zeros and numbers so small that their high byte is zero too
        chosen = chosen.masked_fill(torch.rand(6, K, generator=generator) < 0.2, 0)
    return (chosen << 8 | low).to(torch.int16).view(torch.bfloat16)


def random_rows(M: int, K: int, dtype: torch.dtype) -> Tensor:
    """Rows whose blocks are of very different sizes, as those of a network are."""
    generator = torch.Generator().manual_seed(M + K)
    sizes = torch.logspace(-1, 1, K // BLOCK or 1).repeat_interleave(BLOCK)[:K]
    return (torch.randn(M, K, generator=generator) * sizes).to(dtype)


def exact(weight: Weight) -> Tensor:
    """The weights in float64, by plain arithmetic on each."""
    if weight.scale is None:
        return (unpack(weight.values) if weight.bits == 12 else weight.values).double()
    q = weight.values.double()
    if weight.values.dtype == torch.int32:
        words = weight.values.long() & 0xFFFFFFFF
        q = torch.stack([words // 16**i % 16 - 8.0 for i in range(8)], dim=-1).flatten(1).double()
    size = q.size(1) // weight.scale.size(1)
    scale = weight.scale.double().repeat_interleave(size, dim=1)
    offset = 0 if weight.offset is None else weight.offset.double()
    offset = offset if weight.offset is None else offset.repeat_interleave(size, dim=1)
    return q * scale - offset


def rounded(x: Tensor, weight: Weight, pairs: bool = False) -> Tensor:
    """x in float32, each block of it rounded to integers, as for a product with `weight`.

    Args:
        pairs: round many rows for int8 so that the magnitudes of no pair come to more than 128.
    """
    coarse = len(x) > MAX_ROWS
    bits, block = (8, 2 * BLOCK) if coarse else (8 if weight.bits == 4 else 16, BLOCK)
    block = BLOCK if weight.bits == 4 or weight.group_size % block else block
    blocks = x.double().unflatten(1, (-1, block))
    unit = blocks.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    if pairs and coarse and weight.bits == 8:
        unit = blocks.abs().unflatten(-1, (-1, 2)).sum(-1).amax(-1, keepdim=True) / 127
    return ((blocks / unit).round() * unit).nan_to_num().flatten(1).float()


def truth(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """The product in float64."""
    return F.linear(x.double(), exact(weight), None if bias is None else bias.double())


def check_product(
    out: Tensor,
    x: Tensor,
    weight: Weight,
    bias: Tensor | None = None,
    *,
    rounds: bool = True,
    pairs: bool = False,
    after: Callable[[Tensor], Tensor] = lambda y: y,
) -> float:
    """Asserts the budget of a product.

    Args:
        after: what is done with the product, in the same kernel.
        rounds: whether x may have been rounded to integers: not where PyTorch multiplies.
        pairs: as for `rounded`.

    Returns:
        The part of the budget that is used.
    """
    low_bias = None if bias is None else bias.to(x.dtype)
    lows = [F.linear(x, weight.dequantize(x.dtype), low_bias)]
    loses = x.dtype == torch.float32 or weight.bits == 4 or len(x) > MAX_ROWS
    if rounds and weight.scale is not None and loses:
        wide = None if bias is None else bias.float()
        lows.append(
            F.linear(rounded(x, weight, pairs), weight.dequantize(torch.float32), wide).to(x.dtype)
        )
    # Each of 4 lanes adds K / 4 products; where few outputs are compared, luck decides.
    sums = x.double().abs() @ exact(weight).abs().T
    least = x.size(1) / 4 * FLOAT32 * sums.max().item() if x.dtype == torch.float32 else 0.0
    exactly, *lows = map(after, (truth(x, weight, bias), *lows))
    return check("product", out, exactly, *lows, factor=FORWARD, least=least)
