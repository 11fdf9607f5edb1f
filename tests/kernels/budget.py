"""The error budget: what a kernel may err, measured against the same maths in PyTorch.

The truth is the reference in float64, on the very 16-bit inputs of the kernel. The yardstick is the
reference in the kernel's own dtype: scores and softmax in float32, weights rounded to 16 bits, as
in the release. A kernel's error may be twice the yardstick's, and three times for gradients (Dao's
test suite of FlashAttention has the same factors), in two norms: the largest absolute error, and
the root mean square, which compares as the relative Frobenius norm does. Neither has to be below
what rounding the truth itself costs: no 16-bit result is better.

Works on any device, batch row by batch row, for the float64 scores are large.

Dimension key: `B` batch, `T` queries, `S` keys, `H` heads, `D` head dim.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kogpt.kernels.attention import attention_backward_reference, attention_reference
from kogpt.kernels.decode import DecodeStep, decode_attention_reference
from kogpt.kernels.linear import Weight, linear_reference

FORWARD, GRADIENT = 2, 3
FLOAT32 = torch.finfo(torch.float32).eps


def errors(actual: Tensor, truth: Tensor) -> Tensor:
    """The largest absolute error and the root mean square error."""
    difference = actual.double() - truth
    return torch.stack([difference.abs().max(), difference.square().mean().sqrt()])


def check(
    name: str, actual: Tensor, truth: Tensor, *lows: Tensor, factor: float, least: float = 0.0
) -> float:
    """Asserts that `actual` is within the budget.

    Args:
        name: for the message.
        actual: the kernel's result.
        truth: the float64 result.
        lows: results of low-precision PyTorch, of which the worst counts.
        factor: how many times their error is allowed.
        least: error that is allowed in any case.

    Returns:
        The part of the budget that is used, at most 1.
    """
    assert actual.shape == truth.shape and actual.dtype == lows[0].dtype, name
    yardsticks = torch.stack([errors(x, truth) for x in (*lows, truth.to(actual.dtype))])
    allowed = factor * yardsticks.amax(dim=0) + least
    found = errors(actual, truth)
    used = (found / allowed.clamp(min=torch.finfo(torch.float64).tiny)).max().item()
    message = f"{name}: largest and mean error {found.tolist()}, allowed {allowed.tolist()}"
    assert (found <= allowed).all(), message  # not a number is not within it
    return used


def by_row(function: Callable, *tensors: Tensor | None) -> tuple[Tensor, ...]:
    """Results of `function` on one batch row at a time, together again."""
    rows = []
    for b in range(tensors[0].size(0)):
        rows.append(function(*(None if x is None else x[b : b + 1] for x in tensors)))
    return tuple(torch.cat(parts) for parts in zip(*rows, strict=True))


def doubled(tensors: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    """Floating tensors in float64, others as they are."""
    return [x.double() if x is not None and x.is_floating_point() else x for x in tensors]


def summed_products(x: Tensor, y: Tensor) -> float:
    """Largest sum of |x| |y| over the last dim, of any token of x with any token of y."""
    x, y = (z.float().abs().transpose(1, 2) for z in (x, y))
    return max((a @ b.mT).max().item() for a, b in zip(x, y, strict=True))


def dot_error(x: Tensor, y: Tensor) -> float:
    """Bound on the error of dot products that a tensor core sums in float32.

    It adds 8 or 16 products at a time, so at most D / 8 roundings of partial sums (truncations, as
    measured on GPUs by Fasi et al., PeerJ Computer Science 7:e330) of one unit in the last place.
    """
    return x.size(-1) / 8 * FLOAT32 * summed_products(x, y)


def check_forward(
    out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None = None
) -> float:
    """Asserts the budget of a forward pass, and `lse` to the precision of float32.

    Returns:
        The part of the budget of `out` that is used.
    """
    inputs = (q, k, v, starts)
    truth, true_lse = by_row(attention_reference, *doubled(inputs))
    low, _ = by_row(attention_reference, *inputs)
    # Beside the dot products: scaling them, their exponentials and the logarithm.
    score_error = dot_error(q, k) / q.size(3) ** 0.5
    allowed = score_error + 4 * FLOAT32 * (1 + true_lse.abs().max().item())
    assert lse.dtype == torch.float32 and lse.shape == true_lse.shape
    assert (lse - true_lse).abs().max() <= allowed, "lse"
    return check("out", out, truth, low, factor=FORWARD)


def gradients(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None
) -> tuple[Tensor, ...]:
    """Gradients of q, k and v by autograd through the reference."""
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    out, _ = attention_reference(*leaves, starts)
    return torch.autograd.grad(out, leaves, grad_out)


def rebuilt_gradients(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None
) -> tuple[Tensor, ...]:
    """Gradients of q, k and v from what the forward pass keeps: `out`, rounded, and `lse`."""
    out, lse = attention_reference(q, k, v, starts)
    return attention_backward_reference(grad_out, q, k, v, out, lse, starts)


def check_backward(
    grads: tuple[Tensor, ...],
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor | None = None,
) -> float:
    """Asserts the budget of the gradients of q, k and v.

    PyTorch has two ways to them, and a kernel shares the roundings of both: autograd rounds the
    weights to 16 bits, and the formulas that rebuild them need `out`, which is rounded as well.

    Returns:
        The largest part of a budget that is used.
    """
    inputs = (grad_out, q, k, v, starts)
    truth = by_row(gradients, *doubled(inputs))
    lows = by_row(gradients, *inputs), by_row(rebuilt_gradients, *inputs)
    # The gradient of a score is a difference of two sums. Where a query sees one key alone they are
    # equal, autograd subtracts a number from itself, and a kernel two sums in different orders.
    difference = dot_error(grad_out, v) / q.size(3) ** 0.5
    least = [difference * k.abs().max().item(), difference * q.abs().max().item(), 0.0]
    names = ("grad_q", "grad_k", "grad_v")
    rows = zip(names, grads, truth, *lows, least, strict=True)
    return max(check(*row, factor=GRADIENT, least=floor) for *row, floor in rows)


def check_decode(out: Tensor, step: DecodeStep, least: float = 0.0) -> float:
    """Asserts the budget of a decode step, given as it was before it ran.

    Args:
        least: error that is allowed in any case.

    Returns:
        The part of the budget that is used.
    """
    steps = DecodeStep(*doubled(step)), step
    truth, low = (decode_attention_reference(on_own_cache(each)) for each in steps)
    return check("out", out, truth, low, factor=FORWARD, least=least)


def on_own_cache(step: DecodeStep) -> DecodeStep:
    """The same step with a cache that nothing else appends to."""
    return step._replace(keys=step.keys.clone(), values=step.values.clone())


def check_linear(out: Tensor, x: Tensor, weight: Weight, bias: Tensor | None = None) -> float:
    """Asserts the budget of a product with weights.

    Returns:
        The part of the budget that is used.
    """
    inputs = (x, *weight, bias)
    truth, low = linear_reference(*doubled(inputs)), linear_reference(*inputs)
    return check("out", out, truth, low, factor=FORWARD)
