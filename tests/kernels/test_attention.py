"""Attention against its definition, and the definition against a loop over rows."""

import math

import pytest
import torch

from kogpt.kernels import attention, attention_reference

LENGTHS = [(1, 1), (1, 9), (5, 5), (3, 11), (16, 17)]


def random_qkv(B: int, T: int, S: int, D: int = 8) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(T * 100 + S)

    def draw(length: int) -> torch.Tensor:
        return torch.randn(B, length, 3, D, dtype=torch.float64, generator=generator)

    return draw(T), draw(S), draw(S)


def by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, start: int) -> torch.Tensor:
    """One head of one row, query after query: (T, D), (S, D), (S, D)."""
    T, S = len(q), len(k)
    rows = []
    for t in range(T):
        position = S - T + t
        seen = slice(min(start, position), position + 1)
        weights = (k[seen] @ q[t] / math.sqrt(q.size(-1))).softmax(0)
        rows.append(weights @ v[seen])
    return torch.stack(rows)


@pytest.mark.parametrize(("T", "S"), LENGTHS)
@pytest.mark.parametrize("function", [attention, attention_reference])
def test_attention_is_a_softmax_over_the_past(T, S, function):
    q, k, v = random_qkv(2, T, S)
    out = function(q, k, v)
    for b in range(2):
        for h in range(3):
            expected = by_hand(q[b, :, h], k[b, :, h], v[b, :, h], 0)
            torch.testing.assert_close(out[b, :, h], expected)


@pytest.mark.parametrize(("T", "S"), LENGTHS)
@pytest.mark.parametrize("function", [attention, attention_reference])
def test_keys_before_a_row_starts_are_not_seen(T, S, function):
    q, k, v = random_qkv(3, T, S)
    starts = torch.tensor([0, S // 2, S - 1])
    out = function(q, k, v, starts=starts)
    assert out.isfinite().all()
    for b, start in enumerate(starts.tolist()):
        real = max(0, start - (S - T))
        expected = by_hand(q[b, :, 1], k[b, :, 1], v[b, :, 1], start)
        torch.testing.assert_close(out[b, real:, 1], expected[real:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("function", [attention, attention_reference])
def test_half_precision_scores_do_not_overflow(dtype, function):
    q, k, v = (x.to(dtype) for x in random_qkv(1, 4, 4))
    out = function(q * 100, k * 1000, v)  # scores reach 10^5 and more, float16 ends at 65,504
    assert out.dtype == dtype and out.isfinite().all()


def test_dropout_keeps_the_mean():
    q, k, v = (x.float() for x in random_qkv(1, 1, 6))
    torch.manual_seed(0)
    repeats = [x.expand(20_000, -1, -1, -1) for x in (q, k, v)]
    for function in (attention, attention_reference):
        dropped = function(*repeats, dropout_p=0.3)
        error = (dropped.mean(0) - function(q, k, v)[0]).abs()
        assert (error < 5 * dropped.std(0) / math.sqrt(20_000)).all()
        assert dropped.std(0).min() > 0.01


def test_gradients_equal_those_of_the_definition():
    q, k, v = random_qkv(2, 5, 9)
    starts = torch.tensor([0, 3])
    gradients = []
    for function in (attention, attention_reference):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        function(*leaves, starts=starts).square().sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(gradients[0], gradients[1])
