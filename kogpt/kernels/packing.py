"""Weights of bfloat16 in 12 bits each, without loss, for a CPU that is limited by its memory.

Sign and exponent of trained weights hardly vary, which others use to make files smaller (DFloat11:
Zhang et al., arXiv 2504.11651). Here a row is made for kernels that unpack it in a few
instructions: the low bytes as they are; of the high bytes, sign and exponent, codes of 4 bits that
tell 15 of them and zero apart; and what few numbers have another high byte once more, whole, in the
row's head. `csrc/cpu/packed.h` has the same layout.

Dimension key: `N` outputs, `K` inputs, `R` numbers of a row that may have no code.
"""

import torch
from torch import Tensor

from kogpt.kernels.extension import extension_available

# As in csrc/cpu/packed.h, which packs to the same bytes; LEAST_INPUTS is of here alone.
CODES = 16  # of high bytes; the first is for zero
BLOCK = 128  # inputs whose codes and low bytes lie together
RARE_SHARE = 256  # inputs of which at least one may have no code
ROW_MULTIPLE = 64  # bytes
KEPT_SHARE = 8  # of the rare numbers there may be: with no more, a row keeps the codes before it
LEAST_INPUTS, MOST_INPUTS = 512, 1 << 16  # with fewer, heads take what codes save


def head_bytes(K: int) -> int:
    """Bytes that a row of K numbers begins with: what the codes stand for, and rare numbers."""
    return -(-(CODES + K // RARE_SHARE * 4) // ROW_MULTIPLE) * ROW_MULTIPLE


def most_rare(K: int) -> int:
    """Numbers of a row of K that may have no code."""
    return (head_bytes(K) - CODES) // 4


def row_bytes(K: int) -> int:
    """Bytes of a packed row."""
    return head_bytes(K) + K * 12 // 8


def packed_inputs(size: int) -> int:
    """K, of a row's bytes: 1.5 of each number, 1/64 for rare ones, and what fills up."""
    return size * 64 // 97 // BLOCK * BLOCK


def pack(weight: Tensor, packed: Tensor) -> bool:
    """Packs weights (N, K) of bfloat16 on a CPU into `packed`, (N, row_bytes(K)), uint8.

    Returns:
        False if some row has too many numbers without a code, as trained weights hardly have.
    """
    extension_available(weight.device)  # compiles the kernel if need be
    done: bool = torch.ops.kogpt.pack(weight, packed)
    return done


def unpack(packed: Tensor) -> Tensor:
    """The weights (N, K), bfloat16."""
    N, size = packed.shape
    K = packed_inputs(size)
    head, blocks = packed.split((head_bytes(K), K * 12 // 8), dim=1)
    codes, low = blocks.reshape(N, -1, BLOCK * 12 // 8).split((BLOCK // 2, BLOCK), dim=2)
    codes = torch.cat((codes & 15, codes >> 4), dim=2).reshape(N, K)
    high = head[:, :CODES].gather(1, codes.long())
    bits = torch.stack((low.reshape(N, K), high), dim=-1).view(torch.int16).squeeze(-1)
    rare = head[:, CODES:].contiguous().view(torch.int16).view(N, -1, 2)  # (N, R, 2)
    n, i = rare[..., 1].nonzero(as_tuple=True)
    inputs, numbers = rare[n, i].unbind(-1)
    bits[n, inputs.long() & (MOST_INPUTS - 1)] = numbers
    return bits.view(torch.bfloat16)


def pack_reference(weight: Tensor, packed: Tensor) -> bool:
    """The definition of `kogpt::pack`."""
    rarest = most_rare(weight.size(1))
    known = torch.zeros(CODES, dtype=torch.long)
    for row, place in zip(weight, packed, strict=True):
        if _pack_row(row, known, rarest // KEPT_SHARE, place):
            continue
        known = _most_frequent(row)
        if not _pack_row(row, known, rarest, place):
            return False
    return True


def _most_frequent(row: Tensor) -> Tensor:
    """The high byte of each code, for a row."""
    counts = (row.view(torch.int16) >> 8 & 255).bincount(minlength=256)
    counts[0] = 0
    # Of equally many the smaller byte is first.
    most, known = (part[: CODES - 1] for part in counts.sort(descending=True, stable=True))
    return torch.cat((known.new_zeros(1), known.where(most > 0, 0)))


def _pack_row(row: Tensor, known: Tensor, rarest: int, packed: Tensor) -> bool:
    """Packs a row; False if more than `rarest` of its numbers have no code."""
    low, high = row.contiguous().view(torch.uint8).view(-1, 2).long().unbind(-1)  # (K,) each
    code_of = torch.zeros(256, dtype=torch.long).scatter_(0, known, torch.arange(CODES))
    code_of[0] = 0
    codes = code_of[high]
    is_rare = (codes == 0) & (high > 0)
    (inputs,) = is_rare.nonzero(as_tuple=True)
    if len(inputs) > rarest:
        return False
    rare = torch.zeros(most_rare(len(row)), 2, dtype=torch.int16)
    rare[: len(inputs)] = torch.stack((inputs, row.view(torch.int16)[inputs]), dim=1)
    first, second = codes.view(-1, 2, BLOCK // 2).unbind(1)
    lows = low.where(~is_rare, 0).view(-1, BLOCK)
    blocks = torch.cat((first | second << 4, lows), dim=1)
    parts = (known, rare.flatten().view(torch.uint8), blocks.flatten())
    torch.cat([part.to(torch.uint8) for part in parts], out=packed)
    return True


torch.library.define("kogpt::pack", "(Tensor weight, Tensor(a!) packed) -> bool")
torch.library.impl("kogpt::pack", "default", pack_reference)
