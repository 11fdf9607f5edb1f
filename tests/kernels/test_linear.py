"""Products with weights of 32, 16, 8 and 4 bits at the level of Python, on a CPU.

The kernels of each instruction set are in `test_cpu_kernels`. Without a compiler these tests run
the reference, and those that ask which of the two ran are skipped.

Dimension key: `M` rows, `N` outputs, `K` inputs, `G` groups.
"""

import math
import re

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from kogpt.kernels import Weight, building, extension_available, linear
from kogpt.kernels.extension import suppose_gpu
from kogpt.kernels.linear import (
    BLOCK,
    MAX_ROWS,
    SMALLEST_GROUP,
    linear_reference,
    obstacle,
    pack_int4,
    slow_dtypes,
    unpack_int4,
)
from kogpt.kernels.packing import pack, unpack

from .products import FLOATS, NAMES, check_product, exact, random_rows, random_weight

CPU = torch.device("cpu")
on_every_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=NAMES.get)
on_every_format = pytest.mark.parametrize(
    "format", [*FLOATS, 12, 8, 4], ids=lambda x: NAMES.get(x, x)
)


@pytest.fixture
def kernels() -> None:
    if not extension_available(CPU):
        pytest.skip("no kernels for this processor, see above")


# --- weights ---


def test_four_bits_come_back_from_packing():
    q = torch.arange(-8, 8, dtype=torch.int8).repeat(3, 4)
    assert unpack_int4(pack_int4(q)).equal(q)
    words = torch.tensor([[0, -1, 0x76543210, -(1 << 31)]], dtype=torch.int32)
    assert pack_int4(unpack_int4(words)).equal(words)


def test_a_word_holds_eight_numbers_from_its_low_end():
    q = torch.tensor([[-8, -7, -6, -5, -4, -3, -2, 7]], dtype=torch.int8)
    assert pack_int4(q).view(torch.int32).tolist() == [[0xF6543210 - (1 << 32)]]


@pytest.mark.parametrize("offset", [False, True], ids=["symmetric", "offset"])
@pytest.mark.parametrize("group", [32, 64, 128, 256, 0])
@pytest.mark.parametrize("bits", [8, 4])
@on_every_dtype
def test_dequantised_weights_are_those_of_plain_arithmetic(dtype, bits, group, offset):
    weight = random_weight(bits, 5, 256, group, scales=dtype, offset=offset)
    assert weight.bits == bits and weight.shape == (5, 256)
    assert weight.group_size == (group or 256)
    # A product and a difference, each rounded once to float32.
    largest = (weight.scale.double().abs().amax() * 128).item()
    error = (weight.dequantize(torch.float64) - exact(weight)).abs().max().item()
    assert error <= 2 * largest * 2.0**-24
    for to in FLOATS:
        assert weight.dequantize(to).equal(weight.dequantize(torch.float32).to(to))


@on_every_format
def test_some_rows_of_a_weight_are_its_rows(format):
    for offset in (False, True):
        weight = random_weight(format, 9, 256, 64, offset=offset)
        some = weight.rows(slice(2, 7))
        assert some.shape == (5, 256)
        assert some.dequantize(torch.float32).equal(weight.dequantize(torch.float32)[2:7])


# --- products ---


@pytest.mark.parametrize("M", [1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 40])
@on_every_format
@on_every_dtype
def test_any_number_of_rows_is_within_the_budget(dtype, format, M):
    weight, x = random_weight(format, 67, 384, scales=dtype), random_rows(M, 384, dtype)
    check_product(linear(x, weight), x, weight)


@pytest.mark.parametrize("scales", FLOATS, ids=NAMES.get)
@pytest.mark.parametrize("group", [32, 64, 128, 256, 0])
@pytest.mark.parametrize("bits", [8, 4])
@on_every_dtype
def test_groups_of_any_size_are_within_the_budget(dtype, bits, group, scales):
    weight = random_weight(bits, 67, 512, group, scales=scales)
    for M in (3, 12):
        x = random_rows(M, 512, dtype)
        check_product(linear(x, weight), x, weight)


@pytest.mark.parametrize("group", [32, 128, 0])
@pytest.mark.parametrize("bits", [8, 4])
@on_every_dtype
def test_zero_points_are_within_the_budget(dtype, bits, group):
    weight = random_weight(bits, 300, 512, group, scales=dtype, offset=True)
    bias = random_rows(1, 384, dtype)[0, :300]
    for M in (1, 3, 8, 12):
        x = random_rows(M, 512, dtype)
        check_product(linear(x, weight, bias), x, weight, bias)


@pytest.mark.parametrize("M", [1, 8])
def test_sums_beyond_float16_are_subtracted_on_a_gpu_too(M):
    q = torch.full((4, 20480), 1, dtype=torch.int8)
    scale, offset = (torch.full((4, 1), value, dtype=torch.float16) for value in (0.125, 0.0625))
    x = torch.full((M, 20480), 4.0, dtype=torch.float16)
    with suppose_gpu():
        y = linear(x, Weight(q, scale, offset))
    assert torch.equal(y, torch.full((M, 4), 20480 * 4 * 0.0625, dtype=torch.float16))


@pytest.mark.parametrize("N", [1, 2, 31, 33, 100])
@on_every_format
def test_any_number_of_outputs_with_a_bias_is_within_the_budget(format, N):
    weight, x = random_weight(format, N, 256), random_rows(4, 256, torch.bfloat16)
    bias = random_rows(1, 128, torch.bfloat16)[0, :N] * 30
    check_product(linear(x, weight, bias), x, weight, bias)


@on_every_format
def test_leading_dims_of_any_number_pass_through(format):
    weight = random_weight(format, 33, 256)
    rows = random_rows(6, 256, torch.float32)
    expected = linear(rows, weight)
    for shape in ((6,), (2, 3), (3, 1, 2)):
        assert linear(rows.view(*shape, 256), weight).equal(expected.view(*shape, 33))


@on_every_format
def test_no_rows_give_no_rows(format):
    weight, bias = random_weight(format, 33, 256), torch.ones(33)
    for shape in ((0,), (2, 0), (0, 5)):
        assert linear(torch.empty(*shape, 256), weight, bias).shape == (*shape, 33)


@pytest.mark.parametrize("M", [3, 12])
@on_every_format
def test_x_and_weights_need_not_be_contiguous(format, M):
    weight, x = random_weight(format, 33, 256, 128), random_rows(M, 256, torch.float32)
    expected = linear(x, weight)
    parts = Weight(*(part if part is None else part.T.contiguous().T for part in weight))
    wide = torch.full((M, 512), math.nan)
    wide[:, ::2] = x
    for rows in (x.T.contiguous().T, wide[:, ::2]):
        # Kernels give equal bits; PyTorch, where there are none, adds in an order of its own.
        torch.testing.assert_close(linear(rows, parts), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("M", [1, 12])
@on_every_format
def test_what_is_no_finite_number_reaches_its_row(format, M):
    weight, x = random_weight(format, 33, 256), random_rows(M, 256, torch.float32)
    for bad in (math.nan, math.inf, -math.inf):
        x[0, 200] = bad
        out = linear(x, weight)
        assert not out[0].isfinite().any() and out[1:].isfinite().all()


@on_every_dtype
@on_every_format
def test_zeros_give_the_bias(format, dtype):
    weight, bias = random_weight(format, 33, 256), random_rows(1, 128, dtype)[0, :33]
    for M in (1, 12):
        assert linear(torch.zeros(M, 256, dtype=dtype), weight, bias).equal(bias.expand(M, -1))


# --- which of them runs ---


def record(monkeypatch) -> list[int]:
    """Numbers of rows with which the op is called from now on."""
    called, op = [], torch.ops.kogpt.linear

    def recorded(x: Tensor, *others: Tensor | None) -> Tensor:
        called.append(len(x))
        return op(x, *others)

    monkeypatch.setattr(torch.ops.kogpt, "linear", recorded)
    return called


@on_every_format
def test_few_rows_run_the_kernel(kernels, format, monkeypatch):
    called = record(monkeypatch)
    for M in range(1, MAX_ROWS + 1):
        linear(random_rows(M, 256, torch.bfloat16), random_weight(format, 33, 256))
    assert called == list(range(1, MAX_ROWS + 1))


@on_every_dtype
@pytest.mark.parametrize("vectors", [False, True])
@pytest.mark.parametrize("slow", [(), (torch.bfloat16, torch.float16)])
@on_every_format
def test_many_rows_run_the_kernel_where_the_library_is_slow(
    kernels, format, slow, vectors, dtype, monkeypatch
):
    monkeypatch.setitem(linear.__globals__, "HAS_VECTORS", vectors)
    monkeypatch.setitem(linear.__globals__, "slow_dtypes", lambda: slow)
    called = record(monkeypatch)
    weight, x = random_weight(format, 33, 256), random_rows(12, 256, dtype)
    check_product(linear(x, weight), x, weight)
    halves = format in (torch.bfloat16, torch.float16)
    expected = format in (12, 8, 4) or (vectors and halves and (dtype != format or dtype in slow))
    assert called == [12] * expected


@pytest.mark.parametrize(
    ("capability", "fast", "slow"),
    [
        ("AVX2", False, {torch.bfloat16, torch.float16}),
        ("AVX512", False, {torch.float16}),
        ("AVX512", True, set()),
    ],
)
def test_what_pytorch_multiplies_slowly_is_told_by_the_processor(
    capability, fast, slow, monkeypatch
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: fast)
    assert slow_dtypes.__wrapped__() == slow


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_with_offsets_run_the_kernel(kernels, bits, monkeypatch):
    called = record(monkeypatch)
    weight = random_weight(bits, 33, 256, offset=True)
    for M in (3, 12):
        x = random_rows(M, 256, torch.bfloat16)
        check_product(linear(x, weight), x, weight)
    assert called == [3, 12]


@pytest.mark.parametrize("format", [torch.float32, 8, 4], ids=str)
def test_a_row_alone_is_a_vector(format):
    weight, x = random_weight(format, 33, 256, 128), random_rows(1, 256, torch.float32)
    assert linear(x[0], weight).equal(linear(x, weight)[0])


def test_a_gradient_that_kernels_do_not_give_is_refused(kernels):
    weight, x = random_weight(8, 33, 256), random_rows(2, 256, torch.float32).requires_grad_()
    with pytest.raises(ValueError, match="no gradient"):
        linear(x, weight)
    with torch.no_grad():
        assert not linear(x, weight).requires_grad


@pytest.mark.parametrize("M", [3, 12])
def test_a_bias_may_be_of_another_dtype(M):
    weight, x = random_weight(torch.float32, 33, 256), random_rows(M, 256, torch.float32)
    bias = random_rows(1, 128, torch.bfloat16)[0, :33]
    torch.testing.assert_close(linear(x, weight, bias), linear(x, weight, bias.float()))


def test_the_op_refuses_what_it_cannot_divide(kernels):
    x, values = torch.ones(12, 256), torch.ones(4, 256, dtype=torch.int8)
    for arguments, told in {
        (x.to(torch.int8), values, torch.ones(4, 1)): "x of integers",
        (x[:, :0], values[:, :0], torch.ones(4, 1)): "0 inputs",
        (x, values, torch.ones(4, 0)): "0 groups of 256 inputs",
    }.items():
        with pytest.raises(RuntimeError, match=told):
            torch.ops.kogpt.linear(*arguments, None, None)


OBSTACLES = [
    (torch.float64, 8, 256, 0, "float64"),
    (torch.float32, 4, 96, 0, "96 inputs, no multiple of 128"),
    (torch.float32, 8, 384, 64, "groups of 64, no multiple of 128"),
    (torch.float32, 4, 384, 8, "groups of 8, no multiple of 32"),
    (torch.float32, torch.float32, 72, 0, "72 inputs"),
]


@pytest.mark.parametrize(("dtype", "format", "K", "group", "words"), OBSTACLES)
def test_what_the_kernels_do_not_take_runs_without_them(
    dtype, format, K, group, words, monkeypatch
):
    called = record(monkeypatch)
    weight = random_weight(format, 33, K, group)
    for M in (1, 12):
        x = random_rows(M, K, torch.float32).to(dtype)
        assert words in obstacle(x, weight)
        check_product(linear(x, weight), x, weight, rounds=False)
    assert not called


def test_the_numbers_of_the_header_are_those_of_python():
    numbers = (MAX_ROWS, BLOCK, SMALLEST_GROUP)
    names = {
        "cpu": ("kFewRows", "kBlock", "kGroup"),
        "cuda": ("kMaxLinearRows", "kLinearBlock", "kSmallestGroup"),
    }
    for kind, constants in names.items():
        header = (building.SOURCES[kind] / "linear.h").read_text()
        found = (int(re.search(rf"{name} = (\d+);", header)[1]) for name in constants)
        assert tuple(found) == numbers, kind


# --- the op in torch ---


def arguments(format: torch.dtype | int, dtype: torch.dtype, bias: bool) -> tuple:
    weight = random_weight(format, 33, 256, 128, scales=dtype, offset=bias)
    given = random_rows(1, 128, dtype)[0, :33] if bias else None
    return random_rows(3, 256, dtype), *weight, given


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@on_every_format
def test_the_op_passes_opcheck(format, bias):
    opcheck(torch.ops.kogpt.linear, arguments(format, torch.bfloat16, bias))


@on_every_format
def test_the_op_is_its_reference_where_numbers_are_small(kernels, format):
    """Inputs and weights of few bits, which every implementation multiplies exactly."""
    x = torch.arange(3 * 256).remainder(5).sub(2).float().view(3, 256)
    x[:, ::128] = (127 if format == 4 else 32767) / 4  # a unit of a quarter
    weight = random_weight(format, 33, 256, scales=torch.float32)
    if format == 12:
        assert pack(unpack(weight.values).round(), weight.values)
    elif weight.scale is None:
        weight = Weight(weight.values.round())
    else:
        weight = weight._replace(scale=torch.full((33, 1), 0.5))
    given = (x, *weight, None)
    assert torch.ops.kogpt.linear(*given).equal(
        linear_reference(
            *(
                part if part is None or not part.is_floating_point() else part.double()
                for part in given
            )
        ).float()
    )


@pytest.mark.parametrize("M", [2, 12])
@on_every_format
def test_a_product_compiles_without_a_break(format, M):
    torch._dynamo.reset()  # each format is a graph of its own, and there is a limit to those
    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
    weight = random_weight(format, 33, 256, 128, offset=True)
    x, bias = random_rows(M, 256, torch.float32), torch.ones(33)
    assert compiled(x, weight, bias).equal(linear(x, weight, bias))


@pytest.mark.parametrize("M", [1, 8])
@on_every_format
def test_threads_change_no_bit(kernels, format, M):
    weight = random_weight(format, 1000, 2048, 128)
    x, before = random_rows(M, 2048, torch.float32), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(linear(x, weight))
    finally:
        torch.set_num_threads(before)
    assert results[0].equal(results[1]) and results[0].equal(results[2])


@on_every_format
def test_a_row_has_the_same_bits_beside_any_others(kernels, format):
    weight, x = random_weight(format, 33, 256), random_rows(8, 256, torch.float32)
    out = linear(x, weight)
    for M in range(1, 8):
        assert linear(x[8 - M :], weight).equal(out[8 - M :])
