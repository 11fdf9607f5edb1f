"""The forward kernel's own source, run on the CPU, against its definition and its promises."""

import pytest
import torch

from kogpt.kernels.attention import attention_mask

from .budget import check_forward
from .emulator.harness import forward
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

# --- results ---


@pytest.mark.parametrize(("T", "S"), LENGTHS)
@on_every_kernel
def test_every_length_is_within_the_error_budget(limit, D, dtype, T, S):
    q, k, v, _ = random_qkv(T, S, D, dtype)
    check_forward(*forward(q, k, v, limit=limit), q, k, v)


@pytest.mark.parametrize(("T", "S"), [(2, 2), (66, 193)])
@on_every_start
@on_every_shape
def test_hidden_keys_are_within_the_error_budget(limit, D, T, S, starts_of):
    starts = starts_of(T, S)
    q, k, v, _ = random_qkv(T, S, D, B=len(starts))
    check_forward(*forward(q, k, v, starts, limit=limit), q, k, v, starts)


@pytest.mark.parametrize(("T", "S"), [(65, 65), (66, 193)])
@on_every_start
@on_every_shape
def test_each_query_sees_exactly_its_keys(limit, D, T, S, starts_of):
    """Queries of zeros weigh all keys alike, so outputs count the keys that were seen."""
    starts = starts_of(T, S)
    B, H = len(starts), 1
    q = torch.zeros(B, T, H, D, dtype=torch.bfloat16)
    k, v = torch.randn(B, S, H, D).bfloat16(), one_hot(B, S, H, D)
    out, lse = forward(q, k, v, starts, limit=limit)
    seen = attention_mask(T, S, starts, q.device).double().expand(B, H, T, S)
    count = seen.sum(dim=3)
    expected = torch.einsum("bhts,bshd->bthd", seen / count[..., None], v.double())
    one_rounding = torch.finfo(torch.bfloat16).eps
    torch.testing.assert_close(out.double(), expected, rtol=one_rounding, atol=0)
    torch.testing.assert_close(lse, count.log().float(), rtol=0, atol=2e-6)  # of up to log 193 = 5


@on_every_kernel
def test_large_logits_are_within_the_error_budget(limit, D, dtype):
    q, k, v, _ = random_qkv(65, 129, D, dtype)
    q = q * 20
    check_forward(*forward(q, k, v, limit=limit), q, k, v)


@pytest.mark.parametrize("sign", [1, -1])
@on_every_kernel
def test_logits_beyond_the_range_of_float16_leave_the_softmax_intact(limit, D, dtype, sign):
    """All logits are alike, 160,000 or more in size, and differ only for the padded rows."""
    _, _, v, _ = random_qkv(65, 129, D, dtype)
    q, k = torch.full_like(v[:, :65], 100.0), torch.full_like(v, sign * 200.0)
    starts = torch.tensor([0, 70])
    out, lse = forward(q, k, v, starts, limit=limit)
    zero, lse_of_zero = forward(0 * q, k, v, starts, limit=limit)
    assert out.equal(zero)
    logit = sign * 20000.0 * D**0.5
    torch.testing.assert_close(lse - lse_of_zero, torch.full_like(lse, logit), rtol=1e-6, atol=0)


@pytest.mark.parametrize("rise", [-6.0, 3.0, 5.5, 6.0, 50.0])
@on_every_kernel
def test_logits_that_rise_along_the_keys_are_within_the_error_budget(limit, D, dtype, rise):
    """By less than what a maximum may be exceeded by, exp(5.55) = 2^8, or by more."""
    q, k, v, _ = random_qkv(66, 193, D, dtype)
    q[..., 0] = D**0.5
    k[..., 0] = (rise * (torch.arange(193) // 32))[:, None]
    check_forward(*forward(q, k, v, limit=limit), q, k, v)


@on_every_kernel
def test_values_near_the_largest_float16_do_not_overflow(limit, D, dtype):
    q, k, v, _ = random_qkv(65, 129, D, dtype)
    v = torch.full_like(v, 65504.0)
    out, _ = forward(q, k, v, limit=limit)
    torch.testing.assert_close(out.float(), v[:, :65].float(), rtol=torch.finfo(dtype).eps, atol=0)


@on_every_shape
def test_starts_beyond_a_row_are_taken_for_its_ends(limit, D):
    """A caller's mistake must not have a kernel read what is before a row, or behind it."""
    q, k, v, _ = random_qkv(40, 40, D)
    for given, meant in beyond_a_row(40):
        found, expected = (forward(q, k, v, starts, limit=limit) for starts in (given, meant))
        assert found[0].equal(expected[0]) and found[1].equal(expected[1])


# --- layouts ---


@on_every_shape
def test_interleaved_projections_give_the_same_bits(limit, D):
    q, k, v, _ = random_qkv(65, 65, D)
    views = interleaved(q, k, v)
    assert views[0].stride(1) == 3 * q.stride(1)
    expected = forward(q, k, v, limit=limit)
    for result, same in zip(forward(*views, limit=limit), expected, strict=True):
        assert result.equal(same)


@on_every_shape
def test_views_of_a_longer_cache_give_the_same_bits(limit, D):
    """The cache is NaN beyond the keys, which the tail of the last tile must not let in."""
    q, k, v, _ = random_qkv(3, 67, D)
    expected = forward(q, k, v, limit=limit)
    cached = forward(q, head_major(k, 200), head_major(v, 200), limit=limit)
    for result, same in zip(cached, expected, strict=True):
        assert result.equal(same)


# --- determinism ---


@on_every_shape
@pytest.mark.parametrize(
    "starts", [torch.tensor([0, 80, 3]), packed_starts(65, 129)[1:4]], ids=["padded", "packed"]
)
def test_no_bit_depends_on_the_order_of_blocks_or_the_rest_of_the_batch(limit, D, starts):
    q, k, v, _ = random_qkv(65, 129, D, B=3)
    out, lse = forward(q, k, v, starts, limit=limit)
    for seed in (0, 1):
        again = forward(q, k, v, starts, limit=limit, seed=seed)
        assert again[0].equal(out) and again[1].equal(lse)
    one = slice(1, 2)
    alone = forward(q[one], k[one], v[one], starts[one], limit=limit)
    assert alone[0].equal(out[one]) and alone[1].equal(lse[one])
