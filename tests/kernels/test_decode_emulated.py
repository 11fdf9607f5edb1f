"""The decode kernel's own source, run on the CPU, against its definition and its promises."""

import pytest
import torch
from torch import Tensor

from kogpt.kernels import DecodeStep, attention_reference
from kogpt.model.rotary import RotaryEmbedding, Rotation

from .budget import check_decode, check_forward, on_own_cache
from .emulator.harness import SHARED_LIMITS, decode

DTYPES = [torch.float16, torch.bfloat16]
SPLIT, TILE = 256, 16  # keys of a block and of a warp's tile, in csrc/attention_decode.cu
CAPACITY = 2 * SPLIT + 40
NAN = float("nan")
BATCHED = ("q", "k", "v", "keys", "values", "lengths")


def run(step: DecodeStep, **options: int) -> tuple[Tensor, Tensor]:
    """out and lse; appends to the step's cache."""
    *tensors, starts, counters = step
    return decode(*tensors, starts=starts, counters=counters, **options)


def one_row(step: DecodeStep, b: int) -> DecodeStep:
    """The same step for one row of the batch alone, on a cache of its own."""
    alone = {name: x[b : b + 1].clone() for name, x in step._asdict().items() if name in BATCHED}
    return step._replace(**alone, starts=None if step.starts is None else step.starts[b : b + 1])


def places(step: DecodeStep) -> Tensor:
    """Where in the cache the new tokens belong, (B, T)."""
    return step.lengths[:, None] + torch.arange(step.q.size(1))


def make_step(
    dtype: torch.dtype,
    lengths: list[int],
    starts: list[int] | None = None,
    *,
    T: int = 1,
    H: int = 1,
    D: int = 64,
    R: int = 64,
    capacity: int = CAPACITY,
    scale: float = 1.0,
) -> DecodeStep:
    """A random step. The cache is NaN where nobody may look: before starts and after lengths."""
    generator = torch.Generator().manual_seed(T)
    B = len(lengths)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    q, k, v = draw(B, T, H, D) * scale, draw(B, T, H, D), draw(B, T, H, D)
    cache = draw(2, B, H, capacity, D)
    for b, length in enumerate(lengths):
        cache[:, b, :, length:] = NAN
        if starts is not None:
            cache[:, b, :, : starts[b]] = NAN
    keys, values = cache.transpose(2, 3)
    cos, sin = RotaryEmbedding(R, capacity).table.clone()
    return DecodeStep(
        *(q, k, v, keys, values, torch.tensor(lengths), cos.contiguous(), sin.contiguous()),
        starts=None if starts is None else torch.tensor(starts),
    )


def bits(x: Tensor) -> Tensor:
    """16-bit elements as integers: NaN equals itself, and 0 differs from -0."""
    return x.view(torch.int16)


def assert_budget(step: DecodeStep) -> None:
    before = on_own_cache(step)
    out, _ = run(step)
    check_decode(out, before)


# Around the borders of tiles and splits; the last row fills the cache to its end.
def lengths_of_interest(T: int) -> list[int]:
    borders = [TILE, SPLIT - T, SPLIT - 1, SPLIT, SPLIT + TILE + 1, 2 * SPLIT - T // 2]
    return [0, 1, *borders, CAPACITY - T]


# --- results ---


@pytest.mark.parametrize("T", range(1, 9))
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_any_length_are_within_the_error_budget(dtype, T):
    assert_budget(make_step(dtype, lengths_of_interest(T), T=T))


@pytest.mark.parametrize("T", [1, 3, 8])
@pytest.mark.parametrize("D", [128, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_heads_of_any_width_are_within_the_error_budget(dtype, D, T):
    assert_budget(make_step(dtype, [7, SPLIT + 90], T=T, H=2, D=D))


@pytest.mark.parametrize(("D", "R"), [(64, 0), (64, 8), (128, 128), (256, 0), (256, 256)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_part_of_a_head_may_be_rotated(dtype, D, R):
    assert_budget(make_step(dtype, [3, 70], T=2, D=D, R=R))


@pytest.mark.parametrize("T", [1, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_before_a_row_starts_are_neither_seen_nor_read(dtype, T):
    """Starts within a tile, at the borders of splits, at the length and beyond it."""
    lengths = [40, 300, 300, 300, 520, 520, 50, 50, 0]
    starts = [5, 255, 256, 271, 500, 513, 50, 52, 9]
    assert_budget(make_step(dtype, lengths, starts, T=T))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_maximum_that_moves_from_key_to_key_is_within_the_error_budget(dtype):
    """Logits of some hundreds: nearly all weight is on one key, and earlier sums vanish."""
    assert_budget(make_step(dtype, [2 * SPLIT + 9, 90], T=4, D=128, scale=40.0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_are_the_truth_rounded_once(dtype):
    """Weights, too, keep the precision of float32: only ties in the last rounding may fall out."""
    step = make_step(dtype, [SPLIT + 90], T=8, D=128, R=0)
    out, _ = run(step)
    held = SPLIT + 98
    q, keys, values = (x.double() for x in (step.q, step.keys[:, :held], step.values[:, :held]))
    truth, _ = attention_reference(q, keys, values, None)
    assert (out == truth.to(dtype)).double().mean() > 0.98


@pytest.mark.parametrize("dtype", DTYPES)
def test_lse_is_the_logarithm_of_the_sum_over_keys_seen(dtype):
    step = make_step(dtype, [5, 2 * SPLIT + 20], [2, 200], T=3, H=2)
    _, lse = run(step)
    turn = rotation(step)
    for b in range(2):
        scores = torch.einsum(
            "thd,shd->hts", turn(step.q)[b].double(), step.keys[b].double() / 64**0.5
        )
        key, position = torch.arange(CAPACITY), places(step)[b, :, None]
        seen = (key >= step.starts[b]) & (key <= position)
        expected = scores.masked_fill(~seen, -float("inf")).logsumexp(-1)
        # Sums of 64 products and of up to 500 exponentials in float32.
        torch.testing.assert_close(lse[b].double(), expected, rtol=1e-6, atol=1e-6)


def rotation(step: DecodeStep) -> Rotation:
    """The model's own rotation of the new tokens."""
    starts = torch.zeros_like(step.lengths) if step.starts is None else step.starts
    angle = (places(step) - starts[:, None]).clamp(min=0)
    return Rotation(step.cos[angle].unsqueeze(2), step.sin[angle].unsqueeze(2))


# --- the cache ---


@pytest.mark.parametrize("D", [64, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_cache_gets_the_bits_that_the_model_would_write_and_no_others(dtype, D):
    lengths = [0, SPLIT - 2, 2 * SPLIT + 3, 30]
    step = make_step(dtype, lengths, [0, 3, 300, 33], T=4, H=2, D=D)
    expected = on_own_cache(step)
    row = torch.arange(len(lengths))[:, None]
    expected.keys[row, places(step)] = rotation(step)(step.k)
    expected.values[row, places(step)] = step.v
    run(step)
    assert bits(step.keys).equal(bits(expected.keys))
    assert bits(step.values).equal(bits(expected.values))


@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_that_do_not_fit_the_cache_are_not_written(dtype):
    """The emulator traps what leaves a tensor; rows that do fit are not touched by the others."""
    step = make_step(dtype, [CAPACITY - 2, CAPACITY, CAPACITY + 1000, 20], T=4)
    alone = one_row(step, 3)
    out, _ = run(step)
    assert bits(step.keys[0, -2:]).equal(bits(rotation(fitting(step))(step.k)[0, :2]))
    assert bits(out[3:]).equal(bits(run(alone)[0]))


def fitting(step: DecodeStep) -> DecodeStep:
    """The first row, with angles for the tokens beyond the cache repeated from the last within."""
    table = torch.arange(CAPACITY + 4).clamp(max=CAPACITY - 1)
    return step._replace(
        **{name: getattr(step, name)[:1] for name in ("q", "k", "v", "lengths")},
        cos=step.cos[table],
        sin=step.sin[table],
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_order_of_dims_in_memory_does_not_matter(dtype):
    step = make_step(dtype, [19, 290], T=2, H=3)
    other = step._replace(
        **{name: getattr(step, name).contiguous() for name in ("keys", "values")},
        **{name: heads_first(getattr(step, name)) for name in ("q", "k", "v")},
    )
    for name in ("q", "k", "v", "keys", "values"):
        assert getattr(other, name).stride() != getattr(step, name).stride()
    for result, expected in zip(run(other), run(step), strict=True):
        assert result.equal(expected)
    assert bits(other.keys).equal(bits(step.keys.contiguous()))


def heads_first(x: Tensor) -> Tensor:
    """`x` (B, T, H, D), in memory (B, H, T, D)."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


# --- what results do not depend on ---


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_in_any_batch_and_capacity(dtype):
    step = make_step(dtype, [10, 2 * SPLIT + 5, SPLIT + 1, 0], [0, 250, 7, 0], T=2, H=2)
    rows = [one_row(step, b) for b in range(4)]
    out, lse = run(step)
    for b, row in enumerate(rows):
        length = int(row.lengths) + 2
        less = row._replace(keys=row.keys[:, :length], values=row.values[:, :length])
        for alone in (on_own_cache(less), row):
            row_out, row_lse = run(alone)
            assert bits(row_out).equal(bits(out[b : b + 1])) and row_lse.equal(lse[b : b + 1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_order_of_blocks_changes_no_bit(dtype):
    step = make_step(dtype, [2 * SPLIT + 5, SPLIT + 1], T=2, H=2)
    steps = [on_own_cache(step) for _ in range(5)]
    results = [run(each, seed=seed)[0] for seed, each in enumerate(steps)]
    for result, each in zip(results, steps, strict=True):
        assert bits(result).equal(bits(results[0])) and bits(each.keys).equal(bits(steps[0].keys))


def test_every_architecture_has_room_for_a_block():
    for D in (64, 128, 256):
        run(make_step(torch.float16, [3], T=8, D=D), limit=min(SHARED_LIMITS.values()))


# --- attention without a cache to write to ---


@pytest.mark.parametrize(("T", "S"), [(1, 1), (1, 300), (5, 5), (8, 2 * SPLIT + 3), (3, SPLIT + 1)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_that_are_given_whole_are_within_the_error_budget(dtype, T, S):
    step = make_step(dtype, [S, S, S], T=T, H=2, D=128, capacity=S)
    starts = torch.tensor([0, S // 2, S - 1])
    out, lse = decode(step.q, None, None, step.keys, step.values, S - T, starts=starts)
    check_forward(out, lse, step.q, step.keys, step.values, starts)
