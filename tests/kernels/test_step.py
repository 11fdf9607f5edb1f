"""The operators of a chain, called from Python, on a CPU with kernels."""

import pytest
import torch

from kogpt.kernels import (
    DecodeStep,
    Weight,
    decode_attention,
    step_attention,
    step_linear,
    step_linears,
    step_norm,
    step_obstacle,
)
from kogpt.kernels.extension import load
from kogpt.kernels.step import step_linear_reference, step_linears_reference
from kogpt.kernels.targets import Cpu
from kogpt.model.rotary import RotaryEmbedding

from .products import FLOATS, NAMES, check_product, random_rows, random_weight

on_every_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=NAMES.get)


@pytest.fixture(autouse=True)
def kernels():
    if not load(Cpu()):
        pytest.skip("no kernels for this processor, see above")


def attention_step(dtype: torch.dtype, B: int = 2, T: int = 3) -> DecodeStep:
    """Queries, keys and values that lie in the rows of one matrix, as a chain has them."""
    generator = torch.Generator().manual_seed(B)
    rows = torch.randn(B * T, 5 * 128, generator=generator).to(dtype)
    q, k, v = (part.view(B, T, 2, 64) for part in rows.split(128, dim=1)[:3])
    cache = torch.randn(2, B, 16, 2, 64, generator=generator).to(dtype)
    lengths = torch.tensor([0, 9][:B])
    counters = torch.zeros(B, 2, dtype=torch.int32)
    return DecodeStep(q, k, v, *cache, lengths, *RotaryEmbedding(32, 16).table, None, counters)


@on_every_dtype
def test_rows_of_a_product_may_lie_apart(dtype):
    weight, wide = random_weight(4, 96, 256, 128), random_rows(4, 512, dtype)
    x, residual = wide[:, 256:], wide[:, :96]
    out = step_linear(x, weight, gelu_from=96, residual=residual)
    check_product(out, x.contiguous(), weight, after=lambda y: residual + y)
    assert step_linear(x, weight, residual=residual).equal(out)


HEIGHTS = [96, 64, 1, 130]  # within a panel, to its end, and more than one


@on_every_dtype
@pytest.mark.parametrize("format", [torch.float16, 8, 4])
@pytest.mark.parametrize("M", [1, 2, 8])
def test_weights_that_lie_apart_are_as_one(M, format, dtype):
    x = random_rows(M, 512, dtype)[:, 256:]
    parts = [random_weight(format, N, 256) for N in HEIGHTS]
    bias = torch.linspace(-1, 1, HEIGHTS[-1]).to(dtype)
    y = step_linears(x, parts, bias, gelu_from=sum(HEIGHTS[:-1]) + 7)
    *others, last = y.split(HEIGHTS, dim=1)
    for part, weight in zip(others, parts, strict=False):
        assert part.equal(step_linear(x, weight))
    assert last.equal(step_linear(x, parts[-1], bias, gelu_from=7))
    assert step_linears(x, parts, None, gelu_from=0)[:, :96].equal(
        step_linear(x, parts[0], gelu_from=0)
    )


@pytest.mark.parametrize("format", [torch.float16, 8, 4])
def test_the_definition_of_weights_that_lie_apart(format):
    """In float64, to its rounding."""
    x, bias = random_rows(2, 256, torch.float64), torch.linspace(-1, 1, HEIGHTS[-1]).double()
    values, scales, _ = zip(*(random_weight(format, N, 256) for N in HEIGHTS), strict=True)
    given = [] if format == torch.float16 else scales
    y = step_linears_reference(x, values, given, bias, sum(HEIGHTS[:-1]) + 7)
    for i, part in enumerate(y.split(HEIGHTS, dim=1)):
        last = i == len(HEIGHTS) - 1
        alone = x, values[i], scales[i], bias if last else None, 7 if last else HEIGHTS[i], None
        torch.testing.assert_close(part, step_linear_reference(*alone))


@on_every_dtype
def test_attention_takes_the_place_of_the_values(dtype):
    step = attention_step(dtype)
    alone = step._replace(v=step.v.clone(), keys=step.keys.clone(), values=step.values.clone())
    ready = torch.zeros(1, dtype=torch.int32)
    expected = decode_attention(alone)
    assert step_attention(step, ready).equal(expected) and step.v.equal(expected)
    assert step.keys.equal(alone.keys) and step.values.equal(alone.values)
    assert ready.item() == 1


@on_every_dtype
def test_the_ops_pass_opcheck(dtype):
    x, residual = random_rows(3, 256, dtype), random_rows(3, 96, dtype)
    weight, bias = random_weight(8, 96, 256), residual[0].clone()
    given = (x, weight.values, weight.scale, bias, 40, residual, 0, None)
    torch.library.opcheck(torch.ops.kogpt.step_linear.default, given)
    several = ([weight.values] * 2, [weight.scale] * 2, bias, 40)
    torch.library.opcheck(torch.ops.kogpt.step_linears.default, (x, *several))
    torch.library.opcheck(torch.ops.kogpt.step_norm.default, (x, x[0].clone(), x[1].clone(), 1e-5))
    ready = torch.zeros(1, dtype=torch.int32)
    step = attention_step(dtype)
    apart = [part.contiguous() if part is not None else None for part in step]
    torch.library.opcheck(torch.ops.kogpt.step_attention.default, (*apart, ready))


def test_what_keeps_rows_from_a_chain_is_told():
    x, weight = random_rows(8, 256, torch.bfloat16), random_weight(4, 96, 256, 128)
    assert step_obstacle(x, weight) is None
    assert step_obstacle(torch.cat((x, x[:1])), weight) == "9 rows"
    assert step_obstacle(x[:, :250], weight) == "250 elements, no multiple of 8"
    assert step_obstacle(x, weight._replace(offset=weight.scale)) == "zero points"
    assert step_obstacle(x, Weight(torch.zeros(4, 200))) == "200 inputs, no multiple of 128"


def test_sizes_that_do_not_fit_are_refused():
    x, weight = random_rows(9, 256, torch.bfloat16), random_weight(8, 96, 256)
    with pytest.raises(RuntimeError, match="9 rows"):
        step_linear(x, weight)
    with pytest.raises(RuntimeError, match="bias of another size"):
        step_linear(x[:1], weight, x[0, :95])
    with pytest.raises(RuntimeError, match="9 rows"):
        step_linears(x, [weight, weight], None, gelu_from=0)
    with pytest.raises(RuntimeError, match="weights of other formats"):
        step_linears(x[:1], [weight, random_weight(4, 96, 256, 128)], None, gelu_from=0)
    with pytest.raises(RuntimeError, match="scales go with integers"):
        step_linears(x[:1], [weight, Weight(weight.values)], None, gelu_from=0)
    for residual in (x[:1, :95], x[:2, :96]):
        with pytest.raises(RuntimeError, match="residual of another size"):
            step_linear(x[:1], weight, residual=residual)
    with pytest.raises(RuntimeError, match="weights of another size"):
        step_norm(x, x[0], x[0, :255], 1e-5)
