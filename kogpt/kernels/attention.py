"""Causal attention: the op, its definition and gradient written out, and what runs when.

Three implementations. The reference is the definition, the oracle of tests, and what the op does on
a device without a kernel. The fused CUDA kernel, where there is one, never writes the scores to
memory. PyTorch's `scaled_dot_product_attention` (SDPA) serves all the rest.

Dimension key: `B` batch, `T` queries, `S` keys, `H` heads, `D` head dim.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kogpt.kernels.extension import extension_available, on_gpu

DTYPES = (torch.float16, torch.bfloat16)
HEAD_DIMS = (64, 128, 256)


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, starts: Tensor | None = None, dropout_p: float = 0.0
) -> Tensor:
    """Causal attention of T queries that are the last T of S positions.

    Runs the fused kernel on a CUDA device that has it and for tensors that it takes, else SDPA.
    Both keep scores and softmax in float32. The choice reads sizes, dtypes and devices alone, so
    it traces.

    Args:
        q: queries (B, T, H, D).
        k: keys (B, S, H, D), S >= T.
        v: values (B, S, H, D).
        starts: the first position that is seen: by all queries of a row (B,), which then begins
            with padding; or by each query (B, T), where several texts lie in a row one after the
            other: starts then never fall along a row, and none lies behind its query. None for 0.
        dropout_p: probability of dropping an attention weight.

    Returns:
        (B, T, H, D) in the dtype of `v`. Rows of padding hold finite values of no meaning.
    """
    fused = not obstacle(q, k, v, dropout_p)
    if on_gpu(q) and fused and extension_available(q.device):
        if starts is not None:  # one for all rows is one for each
            starts = starts.to(q.device, torch.int64).expand(q.size(0), *starts.shape[1:])
            starts = starts.contiguous()
        return torch.ops.kogpt.attention(q, k, v, starts)[0]
    return sdpa(q, k, v, starts, dropout_p)


def obstacle(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0) -> str | None:
    """What keeps the fused kernels from taking these tensors on any device; None if nothing."""
    if dropout_p > 0:
        return "dropout of attention weights"
    if q.dtype not in DTYPES:
        return str(q.dtype).removeprefix("torch.")
    if not q.device == k.device == v.device:
        return "different devices of q, k and v"
    if not q.dtype == k.dtype == v.dtype:
        return "different dtypes of q, k and v"
    if q.size(3) not in HEAD_DIMS:
        return f"heads of {q.size(3)}"
    if k.shape != v.shape or k.shape[2:] != q.shape[2:]:
        return "different heads of q, k and v"
    if not 0 < q.size(1) <= k.size(1) or q.size(0) == 0:
        return f"{q.size(1)} queries and {k.size(1)} keys"
    return None


def sdpa(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None = None, dropout_p: float = 0.0
) -> Tensor:
    """`attention` by PyTorch's `scaled_dot_product_attention`."""
    T, S = q.size(1), k.size(1)
    # True or False, not what the sizes' comparison gives: they may be symbols, and it one too.
    causal = True if starts is None and T == S and T > 1 else False
    mask = None if causal or (starts is None and T == 1) else attention_mask(T, S, starts, q.device)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, T or S, D)
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout_p, is_causal=causal
    )
    return out.transpose(1, 2)


def attention_mask(T: int, S: int, starts: Tensor | None, device: torch.device) -> Tensor:
    """Which keys each query sees: (1 or B, 1, T, S), True where it does.

    A query always sees its own position. Queries that are padding would else see nothing, their
    softmax would be NaN, and NaN values reach every row of the next layer (0 * NaN is NaN).
    """
    query = torch.arange(S - T, S, device=device)[:, None]
    key = torch.arange(S, device=device)
    mask = (key <= query)[None, None]  # (1, 1, T, S)
    if starts is None:
        return mask
    first = starts.view(starts.size(0), 1, -1, 1)  # (B, 1, 1 or T, 1)
    return mask & ((key >= first) | (key == query))


def scores(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """q kᵀ / √D, (B, H, T, S) in at least float32, minus infinity where `mask` is False."""
    wide = torch.promote_types(q.dtype, torch.float32)
    products = torch.einsum("bthd,bshd->bhts", q.to(wide), k.to(wide))
    return (products / q.size(3) ** 0.5).masked_fill(~mask, float("-inf"))


def mix(scores: Tensor, v: Tensor) -> Tensor:
    """softmax(scores) v, (B, T, H, D); the weights are cast to the dtype of `v`, as released."""
    weights = scores.softmax(dim=3).to(v.dtype)
    return torch.einsum("bhts,bshd->bthd", weights, v).contiguous()


def attention_reference(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The definition of `attention`, in plain operations: softmax(q kᵀ / √D + mask) v.

    Source: Vaswani et al. (arXiv 1706.03762), section 3.2.1.

    Returns:
        The result (B, T, H, D), contiguous, and `lse` (B, H, T), at least float32: the logarithm
        of the sum of exp(q k / √D) over the keys that a query sees.
    """
    masked = scores(q, k, attention_mask(q.size(1), k.size(1), starts, q.device))
    return mix(masked, v), masked.logsumexp(dim=3)


def attention_backward_reference(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    starts: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, by the formulas that the kernels follow.

    The weights come back from `lse` instead of being kept. Source: Dao et al. (arXiv 2205.14135),
    appendix B.2, where P are the weights and dX the gradient of X:
    dV = Pᵀ dO, dP = dO Vᵀ, dS = P (dP - rowsum(dO O)), dQ = dS K / √D, dK = dSᵀ Q / √D.
    """
    mask = attention_mask(q.size(1), k.size(1), starts, q.device)
    weights = (scores(q, k, mask) - lse[..., None]).exp()  # (B, H, T, S)
    wide_q, wide_k, wide_v, wide_out, grad = (x.to(weights.dtype) for x in (q, k, v, out, grad_out))
    grad_weights = torch.einsum("bthd,bshd->bhts", grad, wide_v)
    delta = torch.einsum("bthd,bthd->bht", grad, wide_out)
    grad_scores = weights * (grad_weights - delta[..., None]) / q.size(3) ** 0.5
    grad_q = torch.einsum("bhts,bshd->bthd", grad_scores, wide_k)
    grad_k = torch.einsum("bhts,bthd->bshd", grad_scores, wide_q)
    grad_v = torch.einsum("bhts,bthd->bshd", weights, grad)
    gradients = (grad_q, q), (grad_k, k), (grad_v, v)
    grad_q, grad_k, grad_v = (gradient.to(x.dtype).contiguous() for gradient, x in gradients)
    return grad_q, grad_k, grad_v


torch.library.define(
    "kogpt::attention", "(Tensor q, Tensor k, Tensor v, Tensor? starts) -> (Tensor out, Tensor lse)"
)
torch.library.define(
    "kogpt::attention_backward",
    "(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor? starts)"
    " -> (Tensor grad_q, Tensor grad_k, Tensor grad_v)",
)
torch.library.impl("kogpt::attention", "default", attention_reference)
torch.library.impl("kogpt::attention_backward", "default", attention_backward_reference)


@torch.library.register_fake("kogpt::attention")
def _attention_shapes(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor]:
    B, T, H, _ = q.shape
    wide = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(q.shape), q.new_empty((B, H, T), dtype=wide)


@torch.library.register_fake("kogpt::attention_backward")
def _gradient_shapes(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, starts = inputs
    ctx.save_for_backward(q, k, v, *output, starts)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    return *torch.ops.kogpt.attention_backward(grad_out, *ctx.saved_tensors), None


def _refuse(ctx: Any, *gradients: Tensor) -> None:
    raise NotImplementedError("kogpt::attention can be differentiated once, not twice")


torch.library.register_autograd("kogpt::attention", _differentiate, setup_context=_save)
torch.library.register_autograd("kogpt::attention_backward", _refuse)
