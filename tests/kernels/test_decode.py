"""Decode attention at the level of the op: the model's own steps, row by row, are its oracle."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from kogpt.kernels import attention_reference, building, decode_attention
from kogpt.kernels.decode import MAX_TOKENS, DecodeStep
from kogpt.model.cache import KVCache
from kogpt.model.rotary import RotaryEmbedding

from .budget import FLOAT32, check_decode, on_own_cache

CAPACITY = 24
NAN = float("nan")


def make_step(
    T: int = 2,
    lengths: tuple[int, ...] = (3, 9),
    starts: tuple[int, ...] | None = None,
    *,
    D: int = 64,
    R: int = 64,
    dtype: torch.dtype = torch.float64,
) -> DecodeStep:
    """A random step. The cache is NaN where nobody may look: behind lengths and before starts."""
    generator = torch.Generator().manual_seed(T)
    B, H = len(lengths), 2
    q, k, v = torch.randn(3, B, T, H, D, generator=generator, dtype=dtype)
    cache = torch.randn(2, B, H, CAPACITY, D, generator=generator, dtype=dtype)
    for b, length in enumerate(lengths):
        cache[:, b, :, length:] = NAN
        if starts is not None:
            cache[:, b, :, : starts[b]] = NAN
    return DecodeStep(
        *(q, k, v, *cache.transpose(2, 3), torch.tensor(lengths)),
        *RotaryEmbedding(R, CAPACITY).table,
        None if starts is None else torch.tensor(starts),
        torch.zeros(B, H, dtype=torch.int32),
    )


def by_hand(step: DecodeStep, b: int) -> tuple[Tensor, Tensor, Tensor]:
    """One row by the model's parts: (1, T, H, D), and the keys and values that it then holds."""
    row, length, T = slice(b, b + 1), int(step.lengths[b]), step.q.size(1)
    start = torch.zeros(1, dtype=torch.int64) if step.starts is None else step.starts[row]
    cache = KVCache(CAPACITY)
    cache.append(0, step.keys[row, :length], step.values[row, :length])
    cache.advance(length)
    rotary = RotaryEmbedding(2 * step.cos.size(1), CAPACITY)
    rotate = rotary((torch.arange(length, length + T)[None] - start[:, None]).clamp(min=0))
    keys, values = cache.append(0, rotate(step.k[row]), step.v[row])
    # Padding is NaN in these steps, and to the reference 0 * NaN is NaN.
    out, _ = attention_reference(rotate(step.q[row]), keys, values.nan_to_num(), start)
    return out, keys, values


def assert_equal(found: Tensor, expected: Tensor) -> None:
    """To the last bit; NaN equals NaN."""
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def assert_as_by_hand(step: DecodeStep) -> None:
    """The result, the new tokens in the cache, and that nothing else of it changed."""
    before = on_own_cache(step)
    out = decode_attention(step)
    for b, length in enumerate(step.lengths.tolist()):
        expected, keys, values = by_hand(before, b)
        end = length + step.q.size(1)
        torch.testing.assert_close(out[b : b + 1], expected)  # NaN would not be close
        torch.testing.assert_close(step.keys[b, length:end], keys[0, length:])
        assert_equal(step.values[b, length:end], values[0, length:])
        for cache, old in ((step.keys, before.keys), (step.values, before.values)):
            assert_equal(cache[b, :length], old[b, :length])
            assert_equal(cache[b, end:], old[b, end:])


@pytest.mark.parametrize("T", range(1, MAX_TOKENS + 1))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_any_length_are_rotated_appended_and_attended(T, dtype):
    assert_as_by_hand(make_step(T, (0, 1, 7, CAPACITY - T), dtype=dtype))


@pytest.mark.parametrize("T", range(1, MAX_TOKENS + 1))
def test_positions_count_from_the_start_of_a_row_and_padding_is_not_seen(T):
    """Starts before the new tokens, at the first, among them and behind them all."""
    assert_as_by_hand(make_step(T, (9, 9, 9, 9, 0), (0, 4, 9, 9 + T // 2, T)))


@pytest.mark.parametrize("R", [0, 64, 128])
def test_any_part_of_a_head_may_be_rotated(R):
    assert_as_by_hand(make_step(3, (2, 11), (1, 0), D=128, R=R))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_nothing_beyond_a_row_comes_through(dtype):
    planted, clean = (make_step(2, (0, 5), (0, 2), dtype=dtype) for _ in range(2))
    for cache in (clean.keys, clean.values):
        cache.nan_to_num_()
    out = decode_attention(planted)
    assert out.dtype == dtype and out.isfinite().all() and torch.equal(out, decode_attention(clean))


LENGTHS = (0, 1, 2, 3, 5, 7, 8, 9, 11, 13, 15, 16)


@pytest.mark.parametrize("starts", [None, (0, 1, 0, 2, 5, 6, 20, 8, 10, 1, 15, 3)])
@pytest.mark.parametrize(("D", "R"), [(8, 8), (24, 16), (64, 0), (64, 32), (256, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_and_head_is_within_the_error_budget(dtype, D, R, starts):
    """On a CPU, compiled kernels take these; what nobody may look at is not looked at."""
    for T in range(1, MAX_TOKENS + 1):
        step = make_step(T, LENGTHS, starts, D=D, R=R, dtype=dtype)
        before = on_own_cache(step)
        least = 8 * FLOAT32 if dtype == torch.float32 else 0.0  # of few numbers, luck decides
        check_decode(decode_attention(step), before, least=least)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_that_no_kernel_takes_are_attended_all_the_same(dtype):
    step = make_step(3, (2, 11), D=12, R=8, dtype=dtype)
    before = on_own_cache(step)
    check_decode(decode_attention(step), before)


def test_views_of_a_fused_product_are_read_in_place():
    """q, k and v as a joint projection gives them, and a result as from tensors of their own."""
    step = make_step(4, (3, 9), dtype=torch.float32)
    joint = torch.stack((step.q, step.k, step.v), dim=2).unbind(dim=2)
    views = on_own_cache(step)._replace(q=joint[0], k=joint[1], v=joint[2])
    assert_equal(decode_attention(views), decode_attention(step))
    assert_equal(views.keys, step.keys)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_that_lie_apart_are_read_as_what_they_are(dtype):
    step = make_step(2, (3, 9), (1, 4), dtype=dtype)
    alone = on_own_cache(step)
    columns = {
        name: torch.stack((part, torch.full_like(part, -1)), dim=-1)[..., 0]
        for name in ("q", "k", "v", "lengths", "cos", "sin", "starts")
        for part in (getattr(step, name),)
    }
    assert_equal(decode_attention(step._replace(**columns)), decode_attention(alone))
    assert_equal(step.keys, alone.keys)
    same = torch.tensor(5).expand(2)
    by_value = alone._replace(lengths=same.clone(), starts=same.clone())
    expected = decode_attention(by_value)
    assert_equal(decode_attention(by_value._replace(lengths=same, starts=same)), expected)


def test_counters_are_made_where_none_are_given():
    step = make_step()
    without = on_own_cache(step)._replace(counters=None)
    assert torch.equal(decode_attention(without), decode_attention(step))


def changed(**arguments: object) -> DecodeStep:
    return make_step()._replace(**arguments)


INT64, FLOAT64 = torch.int64, torch.float64
TABLE = torch.zeros(CAPACITY, 32)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (changed(k=torch.zeros(2, 3, 2, 64, dtype=FLOAT64)), "k is (2, 3, 2, 64), torch.float64"),
        (changed(v=torch.zeros(2, 2, 2, 64)), "v is (2, 2, 2, 64), torch.float32"),
        (changed(keys=torch.zeros(1, 24, 2, 64, dtype=FLOAT64)), "keys is (1, 24, 2, 64)"),
        (changed(values=torch.zeros(2, 23, 2, 64, dtype=FLOAT64)), "values is (2, 23, 2, 64)"),
        (changed(lengths=torch.zeros(3, dtype=INT64)), "lengths is (3,)"),
        (changed(lengths=torch.zeros(2, dtype=torch.int32)), "lengths is (2,), torch.int32"),
        (changed(starts=torch.zeros(1, dtype=INT64)), "starts is (1,)"),
        (changed(cos=TABLE.double()), "cos is (24, 32), torch.float64"),
        (changed(cos=TABLE.to("meta")), "cos is (24, 32), torch.float32, meta"),
        (changed(sin=TABLE[:, :31]), "sin is (24, 31)"),
        (changed(counters=torch.zeros(2, 2)), "counters is (2, 2), torch.float32"),
        (changed(counters=torch.zeros(2, 2, dtype=torch.int32).T), "counters must be contiguous"),
        (changed(starts=torch.tensor([0, -1])), "starts are [0, -1], they must be at least 0"),
        (changed(cos=TABLE[:23], sin=TABLE[:23]), "holds 24 tokens, cos and sin 23 positions"),
        (changed(lengths=torch.tensor([3, 23])), "2 tokens behind [3, 23] do not fit 24 places"),
        (changed(lengths=torch.tensor([-1, 3])), "2 tokens behind [-1, 3] do not fit"),
        (make_step(0), "0 new tokens"),
        (make_step(MAX_TOKENS + 1), "9 new tokens; decode_attention takes 1 to 8"),
        (make_step(R=12), "rotary dim 12 is no multiple of 8"),
        (make_step(R=72), "rotary dim 72 is no multiple of 8 up to head dim 64"),
        (changed(q=torch.zeros(2, 2, 2, 64, dtype=FLOAT64, requires_grad=True)), "no gradient"),
    ],
)
def test_a_mistake_is_told_with_its_values_and_leaves_the_cache_alone(step, words):
    before = on_own_cache(step)
    with pytest.raises(ValueError, match=re.escape(words)):
        decode_attention(step)
    assert_equal(step.keys, before.keys)
    assert_equal(step.values, before.values)


def test_without_gradients_a_tensor_that_could_have_one_is_taken():
    step = make_step()
    step.q.requires_grad_()
    with torch.no_grad():
        assert not decode_attention(step).requires_grad


@pytest.mark.parametrize("starts", [None, (0, 3)])
def test_the_op_passes_opcheck(starts):
    step = make_step(starts=starts, dtype=torch.float32)  # which compiled kernels take, too
    opcheck(torch.ops.kogpt.decode_attention, step)


@pytest.mark.parametrize("starts", [None, (0, 3)])
def test_a_step_compiles_without_a_break(starts):
    eager, traced = (make_step(starts=starts) for _ in range(2))
    compiled = torch.compile(decode_attention, fullgraph=True, backend="aot_eager")
    assert_equal(compiled(traced), decode_attention(eager))
    assert_equal(traced.keys, eager.keys)
    assert_equal(traced.values, eager.values)


def test_the_most_tokens_are_those_of_the_kernel():
    header = (Path(building.__file__).parent / "csrc" / "attention.h").read_text()
    assert int(re.search(r"kMaxDecodeTokens = (\d+);", header)[1]) == MAX_TOKENS
