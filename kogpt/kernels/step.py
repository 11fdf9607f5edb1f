"""The operators of a decode step, a chain with as little as possible between two products.

A step of few tokens is a hundred small operators in a row, and between two products the memory lies
idle. So what else there is belongs to the product before: bias, GELU and residual.

On a GPU each op also begins before the last has ended (programmatic dependent launch, from sm_90
on). A kernel fetches what those ahead do not write (weights, the cache), and then waits for them to
end. In GPT-J's block the second product reads what attention gives beside what the MLP's inner
layer holds, and of the latter attention knows nothing. So attention raises a flag when the kernels
ahead of it are done, and the product begins with the inner layer, while attention runs. All of this
holds as long as nothing that is still under way when a chain begins writes weights, tables,
lengths, starts or caches; an ordinary op between, such as the embedding, sees to that.

On a CPU an op ends before the next begins, and the weights that it streamed have driven what
Python needs next from every cache. So there a whole block is one op.

The references here are the definitions, and what runs where there is no kernel.

Dimension key: `B` batch, `T` new tokens, `M` rows, all of their tokens; `N` outputs, `K` inputs;
`C` elements of a row; `H` heads, `D` head dim.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kogpt.kernels.decode import DecodeStep, decode_attention_reference
from kogpt.kernels.extension import extension_available
from kogpt.kernels.linear import MAX_ROWS, Weight, linear_reference, obstacle

NORM_MULTIPLE = 8  # elements that a thread of the norm takes at once


def step_obstacle(x: Tensor, *weights: Weight) -> str | None:
    """What keeps rows `x` (M, C) from a chain with such weights; None if nothing."""
    if not extension_available(x.device):
        return "no kernels"
    if len(x) > MAX_ROWS:
        return f"{len(x)} rows"
    if x.size(1) % NORM_MULTIPLE:
        return f"{x.size(1)} elements, no multiple of {NORM_MULTIPLE}"
    widths = (x.new_empty(0, weight.shape[1]) for weight in weights)
    return next(filter(None, map(obstacle, widths, weights)), None)


def step_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm of rows (M, C)."""
    return torch.ops.kogpt.step_norm(x, weight, bias, eps)


def step_linear(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None = None,
    *,
    gelu_from: int | None = None,
    residual: Tensor | None = None,
    late: int = 0,
    ready: Tensor | None = None,
) -> Tensor:
    """residual + activation(x Wᵀ + bias).

    Args:
        x: (M, K), M <= 8; rows may lie apart.
        weight: W, (N, K).
        bias: (N,).
        gelu_from: first output that goes through the tanh approximation of GELU; None for none.
        residual: (M, N).
        late: how many of the first inputs are written by the kernel right ahead, a multiple of
            `kogpt.kernels.linear.BLOCK`; the others and the residual are there once `ready` is
            raised.
        ready: the flag of `step_attention`; None with no late inputs.

    Returns:
        (M, N), rounded once.
    """
    start = weight.shape[0] if gelu_from is None else gelu_from
    return torch.ops.kogpt.step_linear(x, *weight, bias, start, residual, late, ready)


def step_attention(step: DecodeStep, ready: Tensor) -> Tensor:
    """`decode_attention` whose result takes the place of the new values.

    Args:
        step: as for `decode_attention`, with counters.
        ready: (1,), int32, a flag that is 0 before, and 1 once the kernels ahead are done.

    Returns:
        `step.v`, which holds the result (B, T, H, D).

    Raises:
        RuntimeError: on a CPU, new tokens would not fit the cache, or a text starts below 0.
    """
    torch.ops.kogpt.step_attention(*step, ready)
    return step.v


class Layers(NamedTuple):
    """Linear layers that read one input, or whose results are added, as `step_block` takes them.

    Attributes:
        weights: (N, K) each; all floats or all integers, and of one format where they read one
            input.
        scales: those of integers.
        offsets: theirs, of all or of none.
        bias: of the last layer; the others have none.
    """

    weights: list[Tensor]
    scales: list[Tensor]
    offsets: list[Tensor]
    bias: Tensor


def step_block(
    x: Tensor,
    norm: tuple[Tensor, Tensor, float],
    enter: Layers,
    leave: Layers,
    cache: tuple[Tensor, Tensor],
    lengths: Tensor,
    angles: tuple[Tensor, Tensor],
    starts: Tensor | None,
) -> Tensor:
    """A block of GPT-J with a parallel residual.

    Args:
        x: rows (B T, C), B T <= 8.
        norm: weight, bias and epsilon of LayerNorm.
        enter: give queries, keys and values, H D of each, and the MLP's inner layer.
        leave: read what attention gives, and behind it the inner layer.
        cache: keys and values (B, capacity, H, D), appended to in place.
        lengths: as for `decode_attention`, like all that follows.
        angles: cos and sin.
        starts: (B,), or None.

    Returns:
        (B T, C).

    Raises:
        RuntimeError: sizes do not fit each other, or new tokens the cache.
    """
    return torch.ops.kogpt.step_block(x, *norm, *enter, *leave, *cache, lengths, *angles, starts)


def step_linear_reference(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    bias: Tensor | None,
    gelu_from: int,
    residual: Tensor | None,
    late: int = 0,
    ready: Tensor | None = None,
) -> Tensor:
    """The definition of `step_linear`, in plain operations."""
    y = linear_reference(x, weight, scale, offset, bias)
    if gelu_from < y.size(1):
        y = torch.cat((y[:, :gelu_from], F.gelu(y[:, gelu_from:], approximate="tanh")), dim=1)
    return y if residual is None else residual + y


def step_block_reference(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    enter: list[Tensor],
    enter_scales: list[Tensor],
    enter_offsets: list[Tensor],
    enter_bias: Tensor,
    leave: list[Tensor],
    leave_scales: list[Tensor],
    leave_offsets: list[Tensor],
    leave_bias: Tensor,
    keys: Tensor,
    values: Tensor,
    *others: Tensor,
) -> Tensor:
    """The definition of `step_block`, in plain operations."""
    B, _, H, D = keys.shape
    normed = F.layer_norm(x, x.shape[1:], norm_weight, norm_bias, eps)
    above = sum(map(len, enter[:-1]))
    whole, inner = torch.cat(enter), F.pad(enter_bias, (above, 0))
    scale, offset = (torch.cat(each) if each else None for each in (enter_scales, enter_offsets))
    y = step_linear_reference(normed, whole, scale, offset, inner, 3 * H * D, None)
    q, k, v, hidden = y.tensor_split((H * D, 2 * H * D, 3 * H * D), dim=1)
    q, k, v = (part.reshape(B, -1, H, D) for part in (q, k, v))
    mixed = decode_attention_reference(DecodeStep(q, k, v, keys, values, *others))
    inputs = torch.cat((mixed.flatten(2).flatten(0, 1), hidden), dim=1)
    for i, matrix in enumerate(leave):
        scale, offset = (parts[i] if parts else None for parts in (leave_scales, leave_offsets))
        weight, bias = Weight(matrix, scale, offset), leave_bias if i == len(leave) - 1 else None
        read, inputs = inputs.tensor_split((weight.shape[1],), dim=1)
        x = step_linear_reference(read, *weight, bias, len(matrix), x)
    return x


torch.library.define(
    "kogpt::step_norm", "(Tensor x, Tensor weight, Tensor bias, float eps) -> Tensor"
)
torch.library.define(
    "kogpt::step_linear",
    "(Tensor x, Tensor weight, Tensor? scale, Tensor? offset, Tensor? bias, int gelu_from,"
    " Tensor? residual, int late, Tensor? ready) -> Tensor",
)
torch.library.define(
    "kogpt::step_attention",
    "(Tensor q, Tensor k, Tensor(d!) v, Tensor(a!) keys, Tensor(b!) values, Tensor lengths,"
    " Tensor cos, Tensor sin, Tensor? starts, Tensor(c!) counters, Tensor(e!) ready) -> ()",
)
torch.library.define(
    "kogpt::step_block",
    "(Tensor x, Tensor norm_weight, Tensor norm_bias, float eps, Tensor[] enter,"
    " Tensor[] enter_scales, Tensor[] enter_offsets, Tensor enter_bias, Tensor[] leave,"
    " Tensor[] leave_scales, Tensor[] leave_offsets, Tensor leave_bias, Tensor(a!) keys,"
    " Tensor(b!) values, Tensor lengths, Tensor cos, Tensor sin, Tensor? starts) -> Tensor",
)
torch.library.impl("kogpt::step_linear", "default", step_linear_reference)
torch.library.impl("kogpt::step_block", "default", step_block_reference)


@torch.library.impl("kogpt::step_norm", "default")
def _run_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias, eps)


@torch.library.impl("kogpt::step_attention", "default")
def _run_attention(*arguments: Any) -> None:
    step, ready = DecodeStep(*arguments[:-1]), arguments[-1]
    step.v.copy_(decode_attention_reference(step))
    ready.fill_(1)


@torch.library.register_fake("kogpt::step_norm")
def _norm_shape(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_fake("kogpt::step_linear")
def _product_shape(x: Tensor, weight: Tensor, *others: Any) -> Tensor:
    return x.new_empty(x.size(0), weight.size(0))


@torch.library.register_fake("kogpt::step_block")
def _block_shape(x: Tensor, *others: Any) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_fake("kogpt::step_attention")
def _no_result(*arguments: Any) -> None:
    return None
