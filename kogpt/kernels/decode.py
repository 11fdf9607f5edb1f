"""Attention of a few new tokens over a long cache, with all that surrounds it in decoding.

One op rotates the new queries and keys, appends keys and values to the cache, and attends, row by
row at the row's own length. The reference here is its definition.

Dimension key: `B` batch, `T` new tokens, `H` heads, `D` head dim, `R` rotary dim, `P` positions.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from kogpt.kernels.attention import DTYPES, HEAD_DIMS, mix, scores
from kogpt.kernels.extension import extension_available

MAX_TOKENS = 8  # kMaxDecodeTokens of csrc/attention.h
ROTARY_MULTIPLE = 8  # a thread rotates the 8 dims of one load


class DecodeStep(NamedTuple):
    """The arguments of `decode_attention`, in the order of the op.

    Attributes:
        q: queries (B, T, H, D), not rotated, T <= 8.
        k: keys of the same tokens, (B, T, H, D), not rotated.
        v: their values, (B, T, H, D).
        keys: the cache's rotated keys (B, capacity, H, D), appended to in place.
        values: the cache's values (B, capacity, H, D), appended to in place.
        lengths: tokens each row holds before, (B,), int64.
        cos: cosines of the rotary angles (P, R/2), float32. P >= capacity: lengths on a GPU are not
            looked at, and so none that fits the cache leads beyond the table.
        sin: sines of the same shape.
        starts: first token of each row that is not padding, (B,), int64; None for no padding.
        counters: (B, H), int32, zeros before and after, which the kernel needs to merge its parts.
            Hand in the same ones each time to spare making them.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    keys: Tensor
    values: Tensor
    lengths: Tensor
    cos: Tensor
    sin: Tensor
    starts: Tensor | None = None
    counters: Tensor | None = None


def decode_attention(step: DecodeStep) -> Tensor:
    """Appends T tokens to every row of a cache and attends causally over what the row then holds.

    Token t of row b goes to place lengths[b] + t of the cache, and its rotary position is that
    place less the row's start, at least 0. Nothing beyond the row's last token is read.

    Returns:
        (B, T, H, D) in the dtype of `q`. It has no gradient.

    Raises:
        ValueError: a size, dtype or device does not fit, or, as far as the CPU can tell, the new
            tokens exceed the capacity or a start is below 0. Of `lengths` and `starts` on a GPU
            that is the caller's to know.
    """
    q = step.q
    if step.counters is None:
        counters = torch.zeros(q.size(0), q.size(2), dtype=torch.int32, device=q.device)
        step = step._replace(counters=counters)
    check_decode(step)
    starts = None if step.starts is None else step.starts.contiguous()
    dense = {name: getattr(step, name).contiguous() for name in ("lengths", "cos", "sin")}
    step = step._replace(starts=starts, **dense)
    if decode_obstacle(q.device, q.dtype, q.size(3)) or not extension_available(q.device):
        return decode_attention_reference(step)
    return torch.ops.kogpt.decode_attention(*step)


def decode_obstacle(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """What keeps the kernel of a device from taking such heads; None if nothing."""
    dtypes = DTYPES if device.type == "cuda" else (torch.float32, *DTYPES)
    if dtype not in dtypes:
        return str(dtype).removeprefix("torch.")
    fits = head_dim in HEAD_DIMS if device.type == "cuda" else head_dim % 8 == 0
    if not fits:
        return f"heads of {head_dim}"
    return None


def check_decode(step: DecodeStep) -> None:
    """Refuses what no implementation could take; kernels then need not look.

    Raises:
        ValueError: as `decode_attention` says.
    """
    check_tensors(step)
    (B, T, _, D), R = step.q.shape, 2 * step.cos.size(1)
    capacity, positions, lengths = step.keys.size(1), step.cos.size(0), step.lengths
    if not 1 <= T <= MAX_TOKENS:
        raise ValueError(f"{T} new tokens; decode_attention takes 1 to {MAX_TOKENS}")
    if R > D or R % ROTARY_MULTIPLE:
        raise ValueError(f"rotary dim {R} is no multiple of {ROTARY_MULTIPLE} up to head dim {D}")
    if capacity > positions:
        raise ValueError(f"the cache holds {capacity} tokens, cos and sin {positions} positions")
    if torch.is_grad_enabled() and any(x.requires_grad for x in (step.q, step.k, step.v)):
        raise ValueError("decode_attention has no gradient; call it under torch.no_grad()")
    if B == 0 or lengths.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if not 0 <= int(lengths.min()) <= int(lengths.max()) <= capacity - T:
        raise ValueError(f"{T} tokens behind {lengths.tolist()} do not fit {capacity} places")
    if step.starts is not None and int(step.starts.min()) < 0:
        raise ValueError(f"starts are {step.starts.tolist()}, they must be at least 0")


def check_tensors(step: DecodeStep) -> None:
    """Refuses tensors whose shape, dtype or device does not fit the others."""
    q, (B, T, H, D) = step.q, step.q.shape
    new = (B, T, H, D), q.dtype
    cache = (B, step.keys.size(1), H, D), q.dtype
    row = (B,), torch.int64
    table = (step.cos.size(0), step.cos.size(1)), torch.float32
    counters = (B, H), torch.int32
    expected = (new, new, new, cache, cache, row, table, table, row, counters)
    for name, x, (shape, dtype) in zip(step._fields, step, expected, strict=True):
        if x is not None and (x.shape != shape or x.dtype != dtype or x.device != q.device):
            found = f"{tuple(x.shape)}, {x.dtype}, {x.device}"
            raise ValueError(f"{name} is {found}; expected {shape}, {dtype}, {q.device}")
    if step.counters is not None and not step.counters.is_contiguous():
        raise ValueError("counters must be contiguous")


def decode_attention_reference(step: DecodeStep) -> Tensor:
    """The definition of `decode_attention`, in plain operations."""
    q, keys, values = step.q, step.keys, step.values
    B, T, _, _ = q.shape
    place = step.lengths[:, None] + torch.arange(T, device=q.device)  # (B, T)
    first = torch.zeros_like(step.lengths) if step.starts is None else step.starts
    position = (place - first[:, None]).clamp(min=0)
    cos, sin = step.cos[position], step.sin[position]  # (B, T, R/2)
    row = torch.arange(B, device=q.device)[:, None]
    keys[row, place] = rotate(step.k, cos, sin)
    values[row, place] = step.v
    held = torch.arange(keys.size(1), device=q.device)
    seen = (held <= place[..., None]) & (held >= first[:, None, None])  # (B, T, capacity)
    seen |= held == place[..., None]
    # What no query of the row sees may be anything, and 0 * NaN is NaN.
    clean = values.masked_fill(~seen.any(dim=1)[..., None, None], 0)
    return mix(scores(rotate(q, cos, sin), keys, seen[:, None]), clean)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates neighbouring pairs of the first R dims of `x` (B, T, H, D) by angles (B, T, R/2).

    Source: Su et al. (arXiv 2104.09864), section 3.4, in GPT-J's interleaved form.
    """
    rotary_dim = 2 * cos.size(2)
    wide = x[..., :rotary_dim].to(torch.promote_types(x.dtype, torch.float32))
    turned = torch.view_as_complex(wide.unflatten(3, (-1, 2)).contiguous())
    turned = turned * torch.complex(cos, sin).unsqueeze(2)  # (B, T, H, R/2)
    return torch.cat((torch.view_as_real(turned).flatten(3).to(x.dtype), x[..., rotary_dim:]), 3)


torch.library.define(
    "kogpt::decode_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor(a!) keys, Tensor(b!) values, Tensor lengths, Tensor cos,"
    " Tensor sin, Tensor? starts, Tensor(c!) counters) -> Tensor",
)


@torch.library.impl("kogpt::decode_attention", "default")
def _run_reference(*arguments: Any) -> Tensor:
    return decode_attention_reference(DecodeStep(*arguments))


@torch.library.register_fake("kogpt::decode_attention")
def _result_shape(q: Tensor, *others: Tensor | None) -> Tensor:
    return q.new_empty(q.shape)
