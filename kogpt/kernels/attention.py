"""Causal attention: one function that the model calls, and its definition written out.

Dimension key: `B` batch, `T` queries, `S` keys, `H` heads, `D` head dim.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, starts: Tensor | None = None, dropout_p: float = 0.0
) -> Tensor:
    """Causal attention of T queries that are the last T of S positions.

    Runs PyTorch's `scaled_dot_product_attention`, which keeps scores and softmax in float32.

    Args:
        q: queries (B, T, H, D).
        k: keys (B, S, H, D), S >= T.
        v: values (B, S, H, D).
        starts: first position of each row that is not padding, (B,); None for no padding.
        dropout_p: probability of dropping an attention weight.

    Returns:
        (B, T, H, D) in the dtype of `v`. Rows of padding hold finite values of no meaning.
    """
    T, S = q.size(1), k.size(1)
    causal = starts is None and T == S and T > 1
    mask = None if causal or (starts is None and T == 1) else attention_mask(T, S, starts, q.device)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, T or S, D)
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout_p, is_causal=causal
    )
    return out.transpose(1, 2)


def attention_reference(
    q: Tensor, k: Tensor, v: Tensor, *, starts: Tensor | None = None, dropout_p: float = 0.0
) -> Tensor:
    """The definition of `attention`, in plain operations: softmax(q kᵀ / √D + mask) v.

    Source: Vaswani et al. (arXiv 1706.03762), section 3.2.1. Scores and softmax are at least
    float32 and the weights are cast to the dtype of `v` before the product, as in the release.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = torch.einsum("bthd,bshd->bhts", q.to(wide), k.to(wide)) / q.size(-1) ** 0.5
    mask = attention_mask(q.size(1), k.size(1), starts, q.device)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1).to(v.dtype)
    weights = F.dropout(weights, dropout_p, training=dropout_p > 0)
    return torch.einsum("bhts,bshd->bthd", weights, v)


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
    return mask & ((key >= starts[:, None, None, None]) | (key == query))
