"""The weight kernel's own source, run on the CPU, against its definition and its promises."""

import itertools

import pytest
import torch
from torch import Tensor

from kogpt.kernels import Weight

from .budget import check_linear
from .emulator.harness import SHARED_LIMITS, EmulatorError, linear, widen
from .weights import (
    bits_of,
    make_rows,
    make_weight,
    on_both_dtypes,
    on_every_format,
    on_every_integer,
    stored,
    truth,
)

NAN = float("nan")


def run(x: Tensor, weight: Weight, bias: Tensor | None = None, **options: int) -> Tensor:
    return linear(x, weight, bias, **options)


# --- results ---


@on_every_format
@pytest.mark.parametrize("M", range(1, 9))
@on_both_dtypes
def test_any_number_of_rows_is_within_the_error_budget(dtype, M, bits, group):
    weight, x = make_weight(bits, group, 70, 256, dtype), make_rows(M, 256, dtype)
    check_linear(run(x, weight), x, weight)


@on_every_format
@pytest.mark.parametrize("K", [128, 4096, 20480])
@on_both_dtypes
def test_rows_of_any_length_are_within_the_error_budget(dtype, K, bits, group):
    weight, x = make_weight(bits, group, 40, K, dtype), make_rows(3, K, dtype)
    check_linear(run(x, weight), x, weight)


@pytest.mark.parametrize(
    ("bits", "group"), [(4, 32), (4, 64), (4, 96), (4, 192), *itertools.product([8, 4], [128, 384])]
)
@on_both_dtypes
def test_groups_of_any_size_are_within_the_error_budget(dtype, bits, group):
    weight, x = make_weight(bits, group, 33, 768, dtype), make_rows(2, 768, dtype)
    check_linear(run(x, weight), x, weight)


@on_every_integer
@pytest.mark.parametrize(("M", "K"), [(1, 384), (3, 4096), (8, 384)])
@on_both_dtypes
def test_offsets_are_within_the_error_budget(dtype, M, K, bits, group):
    weight, x = make_weight(bits, group, 45, K, dtype, offset=True), make_rows(M, K, dtype)
    bias = make_rows(1, 45, dtype)[0]
    check_linear(run(x, weight, bias), x, weight, bias)


@pytest.mark.parametrize("bits", [8, 4])
@on_both_dtypes
def test_offsets_of_inputs_far_from_zero_lose_nothing(dtype, bits):
    """Sums in 16 bits would have no correct digit: both terms are a hundred times the result."""
    weight = make_weight(bits, 128, 45, 384, dtype, offset=True)
    x = make_rows(3, 384, dtype) / 8 + 32
    check_linear(run(x, weight), x, weight)


@on_every_format
@on_both_dtypes
def test_a_bias_is_added_before_rounding(dtype, bits, group):
    weight, x = make_weight(bits, group, 45, 384, dtype), make_rows(5, 384, dtype)
    bias = make_rows(1, 45, dtype)[0] * 30
    check_linear(run(x, weight, bias), x, weight, bias)


@on_every_format
@pytest.mark.parametrize("N", [1, 7, 16, 31, 32, 33, 65])
@on_both_dtypes
def test_sums_that_float32_holds_are_rounded_once(dtype, N, bits, group):
    """Whatever is summed in which order: not a bit may differ."""
    weight, x = (
        make_weight(bits, group, N, 896, dtype, exact=True),
        make_rows(8, 896, dtype, exact=True),
    )
    bias = make_rows(1, N, dtype, exact=True)[0]
    assert run(x, weight, bias).equal(truth(x, weight, bias).to(dtype))


@on_every_integer
@pytest.mark.parametrize("N", [1, 31, 65])
@on_both_dtypes
def test_sums_less_offsets_that_float32_holds_are_rounded_once(dtype, N, bits, group):
    weight = make_weight(bits, group, N, 896, dtype, offset=True, exact=True)
    x = make_rows(8, 896, dtype, exact=True)
    assert run(x, weight).equal(truth(x, weight).to(dtype))


@on_every_format
@on_both_dtypes
def test_long_sums_are_the_truth_rounded_once(dtype, bits, group):
    """Only ties in the last rounding may fall out differently."""
    weight, x = make_weight(bits, group, 64, 20480, dtype), make_rows(8, 20480, dtype)
    assert (run(x, weight) == truth(x, weight).to(dtype)).double().mean() > 0.98


@pytest.mark.parametrize("bits", [16, 8, 4])
@on_both_dtypes
def test_an_input_alone_gives_the_weights_of_its_column(dtype, bits):
    """Every weight is where it belongs, and every integer there is becomes itself."""
    K = 256
    q = torch.arange(-128, 128).repeat(3, 1) if bits == 8 else torch.arange(K).repeat(3, 1) % 16 - 8
    weight = Weight(stored(q, bits, dtype), None if bits == 16 else torch.ones(3, 1, dtype=dtype))
    columns = [run(x.contiguous(), weight) for x in torch.eye(K, dtype=dtype).split(8)]
    assert torch.cat(columns).T.equal(q.to(dtype))


# --- extremes ---


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        (torch.float16, 32768.0),  # a weight of 2 is beyond float16
        (torch.float16, 2.0**-24),  # the smallest there is
        (torch.bfloat16, 2.0**127),
        (torch.bfloat16, 2.0**-126),
    ],
)
def test_scales_as_large_and_as_small_as_there_are_change_nothing_else(dtype, scale, bits):
    """Scaled back by the inputs, the results are those of a scale of 1."""
    weight, x = make_weight(bits, 0, 33, 256, dtype), make_rows(4, 256, dtype, exact=True)
    plain = weight._replace(scale=torch.ones_like(weight.scale))
    extreme = weight._replace(scale=torch.full_like(weight.scale, scale))
    back = max(min(1 / scale, 2.0**12), 2.0**-12)  # what an input can bear
    expected = truth(x, plain) * (scale * back)
    assert run(x * back, extreme).equal(expected.to(dtype))


@pytest.mark.parametrize("bits", [16, 8, 4])
@on_both_dtypes
def test_weights_that_are_all_equal_sum_up_the_inputs(dtype, bits):
    for q in {16: [1, -3], 8: [-128, 127, 0], 4: [-8, 7, 0]}[bits]:
        weight = make_weight(bits, 0, 34, 384, dtype, exact=True)
        values = stored(torch.full((34, 384), q), bits, dtype)
        scale = None if bits == 16 else torch.ones_like(weight.scale)
        x = make_rows(2, 384, dtype, exact=True)
        expected = q * x.double().sum(1, keepdim=True).expand(-1, 34)
        assert run(x, Weight(values, scale)).equal(expected.to(dtype))


@on_every_format
@on_both_dtypes
def test_what_is_no_number_stays_in_its_row(dtype, bits, group):
    weight, x = make_weight(bits, group, 40, 256, dtype), make_rows(5, 256, dtype)
    expected = run(x, weight)
    x[3, 77] = NAN
    out = run(x, weight)
    assert out[3].isnan().all()
    keep = torch.tensor([0, 1, 2, 4])
    assert bits_of(out[keep]).equal(bits_of(expected[keep]))


@on_every_format
@on_both_dtypes
def test_what_is_no_number_stays_in_its_output(dtype, bits, group):
    weight, x = make_weight(bits, group, 40, 256, dtype), make_rows(2, 256, dtype)
    expected = run(x, weight)
    (weight.values if bits == 16 else weight.scale)[21, -1] = NAN
    out = run(x, weight)
    assert out[:, 21].isnan().all()
    keep = torch.arange(40) != 21
    assert bits_of(out[:, keep].contiguous()).equal(bits_of(expected[:, keep].contiguous()))


@on_every_integer
@on_both_dtypes
def test_an_offset_that_is_no_number_stays_in_its_output(dtype, bits, group):
    weight, x = make_weight(bits, group, 40, 256, dtype, offset=True), make_rows(2, 256, dtype)
    expected = run(x, weight)
    weight.offset[21, -1] = NAN
    out = run(x, weight)
    assert out[:, 21].isnan().all()
    keep = torch.arange(40) != 21
    assert bits_of(out[:, keep].contiguous()).equal(bits_of(expected[:, keep].contiguous()))


# --- what results do not depend on ---


@on_every_format
@on_both_dtypes
def test_a_row_has_the_same_bits_beside_any_others(dtype, bits, group):
    x = make_rows(8, 4096, dtype)
    for offset in {False, bits < 16}:
        weight = make_weight(bits, group, 33, 4096, dtype, offset=offset)
        out = run(x, weight)
        for M in range(1, 8):
            assert bits_of(run(x[8 - M :].clone(), weight)).equal(bits_of(out[8 - M :]))


@on_every_format
@on_both_dtypes
def test_the_order_of_blocks_changes_no_bit(dtype, bits, group):
    weight, x = make_weight(bits, group, 100, 512, dtype), make_rows(3, 512, dtype)
    expected = run(x, weight)
    for seed in (1, 2, 3):
        assert bits_of(run(x, weight, seed=seed)).equal(bits_of(expected))


# --- what it takes ---


@pytest.mark.parametrize("limit", SHARED_LIMITS.values(), ids=SHARED_LIMITS)
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_every_architecture_has_room_for_a_block(bits, limit):
    run(
        make_rows(8, 20480, torch.float16),
        make_weight(bits, 0, 1, 20480, torch.float16),
        limit=limit,
    )


@pytest.mark.parametrize(
    ("bits", "M", "K", "group"),
    [
        *((bits, M, 128, 0) for bits in (16, 8, 4) for M in (0, 9)),
        *((bits, 1, K, 0) for bits in (16, 8, 4) for K in (64, 192)),
        *((8, 1, 128, 64), (8, 1, 384, 192), (4, 1, 128, 16)),
    ],
)
def test_shapes_that_it_does_not_take_are_refused(bits, M, K, group):
    x = torch.zeros(M, K, dtype=torch.float16)
    weight = make_weight(bits, group, 32, K, torch.float16)
    with pytest.raises(EmulatorError, match="cudaError_t 1"):
        run(x, weight)


def test_offsets_of_what_is_no_integer_are_refused():
    x, weight = torch.zeros(1, 128, dtype=torch.float16), torch.zeros(32, 128, dtype=torch.float16)
    with pytest.raises(EmulatorError, match="cudaError_t 1"):
        run(x, Weight(weight, offset=weight[:, :1].clone()))


# --- widening in memory ---


@pytest.mark.parametrize("offset", [False, True], ids=["symmetric", "zero points"])
@pytest.mark.parametrize(("bits", "group"), [(8, 0), (8, 128), (4, 0), (4, 32), (4, 96)])
@on_both_dtypes
def test_widened_weights_are_the_definition_to_the_bit(dtype, bits, group, offset):
    weight = make_weight(bits, group, 37, 768, dtype)
    if offset:
        weight = weight._replace(offset=(weight.scale * 3.3).to(dtype))
    assert widen(*weight).equal(weight.dequantize(dtype))


@pytest.mark.parametrize(("bits", "group"), [(8, 64), (4, 16)])
def test_groups_that_widening_does_not_take_are_refused(bits, group):
    with pytest.raises(EmulatorError, match="cudaError_t 1"):
        widen(*make_weight(bits, group, 4, 256, torch.float16))
