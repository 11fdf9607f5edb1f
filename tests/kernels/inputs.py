"""What the emulated attention kernels are tested on: kernels, lengths, layouts, one-hot rows.

Dimension key: `B` batch, `T` queries, `S` keys, `H` heads, `D` head dim.
"""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ..scale import scaled
from .emulator.harness import SHARED_LIMITS

EVERYTHING = scaled(0, 1) == 1

# (head dim, architecture whose shared memory decides which kernel runs): kernels for narrower heads
# fit everywhere.
ARCHITECTURES = list(SHARED_LIMITS) if EVERYTHING else ["sm_86"]
KERNELS = [
    *itertools.product([64, 128], ARCHITECTURES),
    *itertools.product([256], SHARED_LIMITS),
]

# (T, S) around the tiles of 16, 32, 64 and 128 rows. At (2, 64) the first query sees all but the
# last key of a tile, at (64, 65) the last query sees one key of the second.
FEW = [(1, 1), (2, 2), (2, 64), (17, 33), (64, 65), (65, 65), (63, 129)]
BORDERS = [1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 257]
MANY = [(T, S) for T, S in itertools.product(BORDERS, repeat=2) if T <= S]
LENGTHS = MANY if EVERYTHING else FEW


def on_every_kernel(test: Callable) -> Callable:
    """Runs a test with both dtypes, and with every kernel of theirs: `D` and `limit`."""
    dtypes = [torch.float16, torch.bfloat16]
    return on_every_shape(
        pytest.mark.parametrize("dtype", dtypes, ids=["float16", "bfloat16"])(test)
    )


def on_every_shape(test: Callable) -> Callable:
    """Runs a test with every kernel of one dtype: what does not round is the same for the other."""
    cases = [pytest.param(D, SHARED_LIMITS[name], id=f"{D}-{name}") for D, name in KERNELS]
    return pytest.mark.parametrize(("D", "limit"), cases)(test)


def beyond_a_row(T: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Starts that no row of so many tokens has, and the nearest that one has."""
    pairs = [([0, first], [0, low]) for first, low in ((-64, 0), (-900, 0), (2**31, T), (2**32, T))]
    found = [(torch.tensor(given), torch.tensor(meant)) for given, meant in pairs]
    several = torch.tensor([[0], [-900]]).repeat(1, T)
    return [*found, (several, torch.zeros_like(several))]


def random_qkv(
    T: int, S: int, D: int, dtype: torch.dtype = torch.bfloat16, *, B: int = 2
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v and a gradient of the output. Few tokens have more heads: errors need a crowd."""
    H = 8 if T < 16 else 2 if B < 4 else 1
    generator = torch.Generator().manual_seed(1000 * T + S)
    lengths = (T, S, S, T)
    q, k, v, grad_out = (torch.randn(B, n, H, D, generator=generator) for n in lengths)
    return q.to(dtype), k.to(dtype), v.to(dtype), grad_out.to(dtype)


def interleaved(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors (B, T, H, D) as views of one (B, T, 3, H, D), as a joint projection gives."""
    return torch.stack(tensors, dim=2).unbind(dim=2)


def head_major(x: Tensor, capacity: int) -> Tensor:
    """`x` (B, S, H, D) as a view of a cache (B, H, capacity, D) that is NaN beyond."""
    B, S, H, D = x.shape
    cache = torch.full((B, H, capacity, D), float("nan"), dtype=x.dtype)
    cache[:, :, :S] = x.transpose(1, 2)
    return cache[:, :, :S].transpose(1, 2)


def one_hot(B: int, length: int, H: int, D: int) -> Tensor:
    """Token i has 1 in dim i % D and 0 elsewhere, so that sums tell which tokens they took."""
    rows = F.one_hot(torch.arange(length) % D, D).bfloat16()
    return rows[None, :, None].repeat(B, 1, H, 1)


def starts_of_interest(S: int) -> Tensor:
    """No padding, some, whole tiles of it, all but the last token, and nothing but padding."""
    starts = [start for start in (0, 1, 64, 127) if start < S - 1]
    return torch.tensor([*starts, S - 1, S])


def packed_starts(T: int, S: int) -> Tensor:
    """Starts (B, T) of several texts in a row, for queries that are the last T of S positions.

    Texts of one token; that end with a tile, and one after or before; of any length; one text. The
    last third of the row before the last is filling, each token of it a text.
    """
    generator = torch.Generator().manual_seed(T + S)
    is_first = torch.zeros(5, S, dtype=torch.bool)
    is_first[:, 0] = True
    is_first[0] = True
    for place in (63, 64, 128, 129):
        is_first[1, place : place + 1] = True
    is_first[2] |= torch.rand(S, generator=generator) < 0.1
    is_first[3] |= torch.rand(S, generator=generator) < 0.02
    is_first[3, S - S // 3 :] = True
    starts = torch.where(is_first, torch.arange(S), 0).cummax(dim=1).values
    return starts[:, S - T :].contiguous()


def on_every_start(test: Callable) -> Callable:
    """Runs a test with padding and with several texts in a row: `starts_of`, a function of T, S."""
    kinds = [
        pytest.param(lambda T, S: starts_of_interest(S), id="padded"),
        pytest.param(packed_starts, id="packed"),
    ]
    return pytest.mark.parametrize("starts_of", kinds)(test)
