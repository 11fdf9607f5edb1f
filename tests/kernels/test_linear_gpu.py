"""The weight kernel on a GPU: `pytest -m gpu`. Every test skips, with the reason, where none is.

Dimension key: `M` rows, `N` outputs, `K` inputs.
"""

import itertools

import pytest
import torch
from torch import Tensor

from kogpt.kernels import Weight, linear
from kogpt.kernels.linear import MAX_ROWS

from . import test_gpu
from .budget import check_linear
from .test_gpu import DEVICE, ops_called, poisoned_memory
from .weights import (
    bits_of,
    make_rows,
    make_weight,
    on_both_dtypes,
    on_every_format,
    on_every_integer,
    truth,
)

pytestmark = pytest.mark.gpu

RELEASED = [(28672, 4096), (4096, 20480), (64512, 4096)]  # (N, K) of the 6B's fused products


@pytest.fixture(autouse=True)
def kernels() -> None:
    test_gpu.require_kernels()


def weight_on_gpu(bits: int, group: int, *shape: int, dtype: torch.dtype, **options) -> Weight:
    weight = make_weight(bits, group, *shape, dtype, **options)
    return Weight(*(None if part is None else part.to(DEVICE) for part in weight))


def rows_on_gpu(*shape: int, dtype: torch.dtype, **options) -> Tensor:
    return make_rows(*shape, dtype, **options).to(DEVICE)


def run(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    with poisoned_memory():
        return torch.ops.kogpt.linear(x, *weight, bias)


@on_every_format
@pytest.mark.parametrize("M", range(1, MAX_ROWS + 1))
@pytest.mark.parametrize(("N", "K"), [(1, 128), (33, 256), (1000, 4096), (70, 20480)])
@on_both_dtypes
def test_any_shape_is_within_the_error_budget(dtype, N, K, M, bits, group):
    weight, x = weight_on_gpu(bits, group, N, K, dtype=dtype), rows_on_gpu(M, K, dtype=dtype)
    check_linear(run(x, weight), x, weight)


@on_every_format
@pytest.mark.parametrize("M", [1, 3, 8])
@pytest.mark.parametrize(("N", "K"), RELEASED)
def test_the_products_of_the_release_are_within_the_error_budget(N, K, M, bits, group):
    dtype = torch.bfloat16
    weight, x = weight_on_gpu(bits, group, N, K, dtype=dtype), rows_on_gpu(M, K, dtype=dtype)
    bias = rows_on_gpu(1, N, dtype=dtype)[0]
    check_linear(run(x, weight, bias), x, weight, bias)


@pytest.mark.parametrize(
    ("bits", "group"), [(4, 32), (4, 64), (4, 96), (4, 192), *itertools.product([8, 4], [128, 384])]
)
@on_both_dtypes
def test_groups_of_any_size_are_within_the_error_budget(dtype, bits, group):
    weight, x = weight_on_gpu(bits, group, 99, 768, dtype=dtype), rows_on_gpu(2, 768, dtype=dtype)
    check_linear(run(x, weight), x, weight)


@on_every_integer
@pytest.mark.parametrize("M", range(1, MAX_ROWS + 1))
@pytest.mark.parametrize(("N", "K"), [(33, 384), (1000, 4096), (70, 20480)])
@on_both_dtypes
def test_offsets_are_within_the_error_budget(dtype, N, K, M, bits, group):
    weight = weight_on_gpu(bits, group, N, K, dtype=dtype, offset=True)
    x = rows_on_gpu(M, K, dtype=dtype)
    check_linear(run(x, weight), x, weight)


@on_every_integer
@on_both_dtypes
def test_sums_less_offsets_that_float32_holds_are_rounded_once(dtype, bits, group):
    weight = weight_on_gpu(bits, group, 333, 896, dtype=dtype, offset=True, exact=True)
    x = rows_on_gpu(8, 896, dtype=dtype, exact=True)
    assert run(x, weight).equal(truth(x, weight).to(dtype))


@on_every_format
@on_both_dtypes
def test_sums_that_float32_holds_are_rounded_once(dtype, bits, group):
    weight = weight_on_gpu(bits, group, 333, 896, dtype=dtype, exact=True)
    x = rows_on_gpu(8, 896, dtype=dtype, exact=True)
    assert run(x, weight).equal(truth(x, weight).to(dtype))


@on_every_format
@on_both_dtypes
def test_a_row_has_the_same_bits_beside_any_others(dtype, bits, group):
    weight = weight_on_gpu(bits, group, 1000, 4096, dtype=dtype)
    x = rows_on_gpu(8, 4096, dtype=dtype)
    out = run(x, weight)
    for M in range(1, 8):
        assert bits_of(run(x[8 - M :], weight)).equal(bits_of(out[8 - M :]))


@on_every_format
@on_both_dtypes
def test_a_hundred_runs_give_the_same_bits(dtype, bits, group):
    weight = weight_on_gpu(bits, group, 4096, 20480, dtype=dtype)
    x = rows_on_gpu(3, 20480, dtype=dtype)
    first = run(x, weight)
    assert all(torch.equal(run(x, weight), first) for _ in range(100))


@on_every_format
@on_both_dtypes
def test_nothing_beyond_the_ends_is_read(dtype, bits, group):
    """Rows that lie between others which are no numbers have the bits that they have alone."""
    weight, x = weight_on_gpu(bits, group, 45, 384, dtype=dtype), rows_on_gpu(3, 384, dtype=dtype)
    scale = None if weight.scale is None else amid_nan(weight.scale)
    values = amid_nan(weight.values) if bits == 16 else weight.values
    assert run(amid_nan(x), Weight(values, scale)).equal(run(x, weight))


def amid_nan(x: Tensor) -> Tensor:
    """The same rows as a view of a tensor that is NaN before and after; still on 16 bytes."""
    around = x.new_full((len(x) + 16, x.size(1)), float("nan"))
    around[8:-8] = x
    return around[8:-8]


@on_every_format
@on_both_dtypes
def test_views_that_the_kernel_cannot_read_are_copied(dtype, bits, group):
    weight, x = weight_on_gpu(bits, group, 64, 256, dtype=dtype), rows_on_gpu(4, 256, dtype=dtype)
    expected = run(x, weight)
    off_by_one = torch.empty(4 * 256 + 1, dtype=dtype, device=DEVICE)[1:].view(4, 256).copy_(x)
    parts = (part if part is None else part.T.contiguous().T for part in weight)
    for rows, same in ((off_by_one, weight), (x.T.contiguous().T, weight), (x, Weight(*parts))):
        assert run(rows, same).equal(expected)


@pytest.mark.parametrize("offset", [False, True], ids=["symmetric", "zero points"])
@pytest.mark.parametrize(("bits", "group"), [(8, 0), (8, 128), (4, 0), (4, 32), (4, 96)])
@pytest.mark.parametrize(("N", "K"), [(37, 768), (4096, 6144)])
@on_both_dtypes
def test_widened_weights_are_the_definition_to_the_bit(dtype, N, K, bits, group, offset):
    weight = weight_on_gpu(bits, group, N, K, dtype=dtype)
    if offset:
        weight = weight._replace(offset=(weight.scale * 3.3).to(dtype))
    with poisoned_memory():
        assert torch.ops.kogpt.widen(*weight).equal(weight.dequantize(dtype))
    torch.library.opcheck(torch.ops.kogpt.widen.default, tuple(weight))


def test_what_does_not_fit_together_is_refused():
    weight = weight_on_gpu(8, 0, 64, 256, dtype=torch.bfloat16)
    x = rows_on_gpu(2, 256, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="weights for 256 inputs, x with 128"):
        run(x[:, :128].contiguous(), weight)
    with pytest.raises(RuntimeError, match="scales of another dtype than x"):
        run(x.half(), weight)
    with pytest.raises(RuntimeError, match="weights of another dtype than x"):
        run(x, Weight(weight_on_gpu(16, 0, 64, 256, dtype=torch.float16).values))
    offset = weight.scale.expand(-1, 2).contiguous()
    with pytest.raises(RuntimeError, match="offsets of other groups than the scales"):
        run(x, weight._replace(offset=offset))
    with pytest.raises(RuntimeError, match="a bias of another size than the outputs"):
        run(x, weight, x[0, :63])


@on_every_format
def test_up_to_8_rows_run_the_kernel_and_more_the_library(bits, group):
    weight = weight_on_gpu(bits, group, 64, 256, dtype=torch.bfloat16)
    for M in (1, MAX_ROWS, MAX_ROWS + 1):
        x = rows_on_gpu(M, 256, dtype=torch.bfloat16)
        with ops_called() as ops:
            out = linear(x, weight)
        assert ("kogpt::linear" in ops) == (M <= MAX_ROWS)
        check_linear(out, x, weight)


@on_every_format
def test_a_product_is_captured_in_a_cuda_graph(bits, group):
    weight = weight_on_gpu(bits, group, 4096, 4096, dtype=torch.bfloat16)
    x = rows_on_gpu(2, 4096, dtype=torch.bfloat16)
    run(x, weight)  # loads the kernel, which capture does not allow
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = torch.ops.kogpt.linear(x, *weight, None)
    for step in range(3):
        x.copy_(rows_on_gpu(2 + step, 4096, dtype=torch.bfloat16)[:2])
        graph.replay()
        assert captured.equal(run(x, weight))


@on_every_format
@on_both_dtypes
def test_opcheck_finds_nothing_on_cuda(dtype, bits, group):
    weight, x = weight_on_gpu(bits, group, 65, 256, dtype=dtype), rows_on_gpu(3, 256, dtype=dtype)
    for bias in (None, rows_on_gpu(1, 65, dtype=dtype)[0]):
        arguments = (x, *weight, bias)
        torch.library.opcheck(torch.ops.kogpt.linear.default, arguments)


@on_every_format
def test_a_compiled_graph_gives_the_same_bits(bits, group):
    weight = weight_on_gpu(bits, group, 512, 1024, dtype=torch.bfloat16)
    x = rows_on_gpu(1, 1024, dtype=torch.bfloat16)
    compiled = torch.compile(linear, fullgraph=True)
    assert compiled(x, weight).equal(linear(x, weight))
