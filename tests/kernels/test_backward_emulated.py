"""The backward kernels' own source, run on the CPU, against its definition and its promises."""

import pytest
import torch
from torch import Tensor

from kogpt.kernels.attention import attention_mask, attention_reference

from .budget import check_backward
from .emulator.harness import backward, forward
from .inputs import (
    LENGTHS,
    beyond_a_row,
    head_major,
    interleaved,
    on_every_kernel,
    on_every_shape,
    on_every_start,
    one_hot,
    packed_starts,
    random_qkv,
)


def gradients(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None = None, **options
) -> tuple[Tensor, Tensor, Tensor]:
    """What the kernels make of the reference's `out` and `lse`."""
    out, lse = attention_reference(q, k, v, starts)
    return backward(grad_out, q, k, v, out, lse, starts, **options)


def assert_same_bits(grads: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for grad, same in zip(grads, expected, strict=True):
        assert grad.equal(same)


# --- results ---


@on_every_shape
def test_starts_beyond_a_row_are_taken_for_its_ends(limit, D):
    q, k, v, grad_out = random_qkv(40, 40, D)
    for given, meant in beyond_a_row(40):
        read = attention_reference(q, k, v, meant)
        found, expected = (
            backward(grad_out, q, k, v, *read, starts, limit=limit) for starts in (given, meant)
        )
        assert_same_bits(found, expected)


@pytest.mark.parametrize(("T", "S"), LENGTHS)
@on_every_kernel
def test_every_length_is_within_the_error_budget(limit, D, dtype, T, S):
    q, k, v, grad_out = random_qkv(T, S, D, dtype)
    check_backward(gradients(grad_out, q, k, v, limit=limit), grad_out, q, k, v)


@pytest.mark.parametrize(("T", "S"), [(2, 2), (66, 193)])
@on_every_start
@on_every_shape
def test_hidden_keys_are_within_the_error_budget(limit, D, T, S, starts_of):
    starts = starts_of(T, S)
    q, k, v, grad_out = random_qkv(T, S, D, B=len(starts))
    grads = gradients(grad_out, q, k, v, starts, limit=limit)
    check_backward(grads, grad_out, q, k, v, starts)


@pytest.mark.parametrize(("T", "S"), [(65, 65), (66, 193)])
@on_every_start
@on_every_shape
def test_each_gradient_sums_over_exactly_what_was_seen(limit, D, T, S, starts_of):
    """Where q or k is zero all weights of a query are alike, and one-hot rows label the terms.

    With values of 1 and -1 in turn and gradients of 1 in their first dim, the gradient of a score
    is (±1 - their mean) / count. Terms that were not seen must leave exact zeros.
    """
    starts = starts_of(T, S)
    B, H = len(starts), 1
    seen = attention_mask(T, S, starts, starts.device)[:, 0].double()  # (B, T, S)
    weights = seen / seen.sum(dim=2, keepdim=True)
    zeros = [torch.zeros(B, n, H, D, dtype=torch.bfloat16) for n in (T, S)]
    queries, keys = one_hot(B, T, H, D), one_hot(B, S, H, D)
    v, grad_out = zeros[1].clone(), zeros[0].clone()
    signs = 1 - 2 * (torch.arange(S) % 2)
    v[..., 0], grad_out[..., 0] = signs[:, None], 1
    scores = weights * (signs - weights @ signs.double()[:, None]) / D**0.5

    grad_q, _, _ = gradients(grad_out, zeros[0], keys, v, starts, limit=limit)
    _, grad_k, _ = gradients(grad_out, queries, zeros[1], v, starts, limit=limit)
    _, _, grad_v = gradients(queries, zeros[0], keys, v, starts, limit=limit)
    eps = torch.finfo(torch.bfloat16).eps  # of rounding the mean, the score's gradient and the sum
    for grad, terms, labels, size in (
        (grad_q, scores, keys, 2 / D**0.5),
        (grad_k, scores.mT, queries, 2 / D**0.5),
        (grad_v, weights.mT, queries, 1),
    ):
        label = labels[:, :, 0].double()
        counted = weights if terms is scores else weights.mT
        error = (grad[:, :, 0].double() - terms @ label).abs()
        assert (error <= 3 * eps * size * (counted @ label)).all()


@on_every_kernel
def test_large_logits_are_within_the_error_budget(limit, D, dtype):
    q, k, v, grad_out = random_qkv(65, 129, D, dtype)
    q = q * 20
    check_backward(gradients(grad_out, q, k, v, limit=limit), grad_out, q, k, v)


@on_every_shape
def test_the_forward_kernel_gives_what_the_backward_kernels_need(limit, D):
    starts = torch.tensor([0, 40])
    q, k, v, grad_out = random_qkv(66, 98, D)
    out, lse = forward(q, k, v, starts, limit=limit)
    grads = backward(grad_out, q, k, v, out, lse, starts, limit=limit)
    check_backward(grads, grad_out, q, k, v, starts)


# --- layouts ---


@on_every_shape
def test_interleaved_projections_give_the_same_bits(limit, D):
    q, k, v, grad_out = random_qkv(65, 65, D)
    expected = gradients(grad_out, q, k, v, limit=limit)
    assert_same_bits(gradients(grad_out, *interleaved(q, k, v), limit=limit), expected)


@on_every_shape
def test_head_major_views_give_the_same_bits(limit, D):
    """NaN lies beyond the tokens, which the tail of the last tile must not let in."""
    q, k, v, grad_out = random_qkv(35, 67, D)
    expected = gradients(grad_out, q, k, v, limit=limit)
    views = [head_major(x, 200) for x in (grad_out, q, k, v)]
    assert_same_bits(gradients(*views, limit=limit), expected)


# --- determinism ---


@on_every_shape
@pytest.mark.parametrize(
    "starts", [torch.tensor([0, 80, 3]), packed_starts(65, 129)[1:4]], ids=["padded", "packed"]
)
def test_no_bit_depends_on_the_order_of_blocks_or_the_rest_of_the_batch(limit, D, starts):
    q, k, v, grad_out = random_qkv(65, 129, D, B=3)
    grads = gradients(grad_out, q, k, v, starts, limit=limit)
    for seed in (0, 1):
        assert_same_bits(gradients(grad_out, q, k, v, starts, limit=limit, seed=seed), grads)
    one = slice(1, 2)
    inputs = [x[one] for x in (grad_out, q, k, v, starts)]
    assert_same_bits(gradients(*inputs, limit=limit), tuple(grad[one] for grad in grads))
