"""The operators of a chain, called from Python, on a CPU with kernels."""

import itertools

import pytest
import torch

from kogpt.kernels import (
    DecodeStep,
    Layers,
    Weight,
    decode_attention,
    step_attention,
    step_block,
    step_linear,
    step_norm,
    step_obstacle,
)
from kogpt.kernels.extension import load
from kogpt.kernels.step import step_block_reference
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


@pytest.mark.parametrize("offset", [False, True], ids=["symmetric", "offset"])
@on_every_dtype
def test_rows_of_a_product_may_lie_apart(dtype, offset):
    weight, wide = random_weight(4, 96, 256, 128, offset=offset), random_rows(4, 512, dtype)
    x, residual = wide[:, 256:], wide[:, :96]
    out = step_linear(x, weight, gelu_from=96, residual=residual)
    check_product(out, x.contiguous(), weight, after=lambda y: residual + y)
    assert step_linear(x, weight, residual=residual).equal(out)


C, F = 256, 384  # of the block: width, of 4 heads, and inner width
APART = {True: ([C, C, C, F], [C, F]), False: ([3 * C + F], [C + F])}


BLOCKS = {
    "bfloat16": (torch.bfloat16, False),
    "float16": (torch.float16, False),
    "12 bits": (12, False),
    "int8": (8, False),
    "int4": (4, False),
    "int4 with zero points": (4, True),
}


def block(name: str, dtype: torch.dtype, M: int, apart: bool, padded: bool):
    """The arguments of `step_block`: one text of M tokens, or two of half as many."""
    B, (format, offset) = 1 if M == 1 else 2, BLOCKS[name]
    group = 128 if format == 4 else 0
    generator = torch.Generator().manual_seed(M)
    heights, widths = APART[apart]
    bias = torch.linspace(-1, 1, F if apart else 3 * C + F).to(dtype)
    enter = [random_weight(format, N, C, group, offset=offset) for N in heights]
    leave = [random_weight(format, C, K, group, offset=offset) for K in widths]
    norm = torch.randn(2, C, generator=generator).to(dtype)
    cache = torch.randn(2, B, 16, 4, 64, generator=generator).to(dtype)
    return {
        "x": random_rows(M, C, dtype),
        "norm": (*norm, 1e-5),
        "enter": as_layers(enter, bias),
        "leave": as_layers(leave, bias[:C].clone()),
        "cache": tuple(cache),
        "lengths": torch.tensor([9, 2][:B]),
        "angles": tuple(RotaryEmbedding(32, 16).table),
        "starts": torch.tensor([4, 0][:B]) if padded else None,
    }


def as_layers(weights: list[Weight], bias: torch.Tensor) -> Layers:
    columns = zip(*weights, strict=True)
    return Layers(*([part for part in parts if part is not None] for parts in columns), bias)


def flat(given: dict) -> tuple:
    """The arguments of the op, copies of what it writes."""
    cache = [part.clone() for part in given["cache"]]
    others = given["lengths"], *given["angles"], given["starts"]
    return given["x"], *given["norm"], *given["enter"], *given["leave"], *cache, *others


def chain(x, norm, enter, leave, cache, lengths, angles, starts):
    """A block by the other ops, a product for each matrix."""
    normed, B = step_norm(x, *norm), len(lengths)
    parts = []
    for i, weight in enumerate(weights_of(enter)):
        last = i == len(enter.weights) - 1
        start = (0 if len(enter.weights) > 1 else 3 * C) if last else None
        bias = enter.bias if last else None
        parts.append(step_linear(normed, weight, bias, gelu_from=start))
    y = torch.cat(parts, dim=1)
    q, k, v = (part.view(B, -1, 4, 64) for part in y[:, : 3 * C].split(C, dim=1))
    counters = torch.zeros(B, 4, dtype=torch.int32)
    step = DecodeStep(q, k, v, *cache, lengths, *angles, starts, counters)
    step_attention(step, torch.zeros(1, dtype=torch.int32))
    inputs = y[:, 2 * C :]
    for i, weight in enumerate(weights_of(leave)):
        bias = leave.bias if i == len(leave.weights) - 1 else None
        read, inputs = inputs.tensor_split((weight.shape[1],), dim=1)
        x = step_linear(read, weight, bias, residual=x)
    return x


def weights_of(layers: Layers) -> list[Weight]:
    nothing = [None] * len(layers.weights)
    columns = layers.weights, layers.scales or nothing, layers.offsets or nothing
    return [Weight(*each) for each in zip(*columns, strict=True)]


on_every_block = pytest.mark.parametrize("name", BLOCKS)


@on_every_dtype
@on_every_block
@pytest.mark.parametrize("apart", [True, False], ids=["apart", "joined"])
@pytest.mark.parametrize("M", [1, 2, 8])
def test_a_block_is_the_same_as_the_ops_of_a_chain(M, apart, name, dtype):
    for padded in (False, True):
        given = block(name, dtype, M, apart, padded)
        copy = {**given, "cache": tuple(part.clone() for part in given["cache"])}
        assert step_block(**given).equal(chain(**copy))
        for part, other in zip(given["cache"], copy["cache"], strict=True):
            assert part.equal(other)


@on_every_block
@pytest.mark.parametrize("M", [1, 8])
def test_a_block_is_what_its_definition_says(M, name):
    """In float32: floats to its rounding, integers to that of x, 8 bits beside weights of 4."""
    for apart in (True, False):
        given = block(name, torch.float32, M, apart, padded=True)
        cache = [part.clone() for part in given["cache"]]
        arguments = flat(given)
        expected = step_block_reference(*arguments)
        out, tolerance = step_block(**given), 2e-2 if name.startswith("int4") else 1e-4
        assert (out - expected).norm() <= tolerance * expected.norm()
        for part, other, before in zip(given["cache"], arguments[12:14], cache, strict=True):
            assert (part - other).norm() <= tolerance * other.norm()
            assert not part.equal(before)


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
    given = (x, *weight, bias, 40, residual, 0, None)
    torch.library.opcheck(torch.ops.kogpt.step_linear.default, given)
    for name, apart in itertools.product(("int8", "int4 with zero points"), (True, False)):
        arguments = flat(block(name, dtype, 2, apart, padded=True))
        torch.library.opcheck(torch.ops.kogpt.step_block.default, arguments)
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
    assert step_obstacle(x, Weight(torch.zeros(4, 200))) == "200 inputs, no multiple of 128"


def test_sizes_that_do_not_fit_are_refused():
    x, weight = random_rows(9, 256, torch.bfloat16), random_weight(8, 96, 256)
    with pytest.raises(RuntimeError, match="9 rows"):
        step_linear(x, weight)
    with pytest.raises(RuntimeError, match="bias of another size"):
        step_linear(x[:1], weight, x[0, :95])
    for residual in (x[:1, :95], x[:2, :96]):
        with pytest.raises(RuntimeError, match="residual of another size"):
            step_linear(x[:1], weight, residual=residual)
    with pytest.raises(RuntimeError, match="weights of another size"):
        step_norm(x, x[0], x[0, :255], 1e-5)


def test_attention_writes_nothing_beyond_its_cache():
    step = attention_step(torch.bfloat16)
    before = step.keys.clone()
    for length in (step.keys.size(1) - step.q.size(1) + 1, -1):
        beyond = step._replace(lengths=torch.full_like(step.lengths, length))
        with pytest.raises(RuntimeError, match=f"tokens behind {length} in a cache"):
            step_attention(beyond, torch.zeros(1, dtype=torch.int32))
    assert step.keys.equal(before)


def test_blocks_that_do_not_fit_are_refused():
    given = block("int8", torch.bfloat16, 2, apart=True, padded=False)
    enter, leave = given["enter"], given["leave"]
    q, *others = enter.weights
    other = random_weight(4, C, C, 128)
    refusals = {
        "9 rows": {"x": random_rows(9, C, torch.bfloat16)},
        "3 rows and a cache of 2": {"x": random_rows(3, C, torch.bfloat16)},
        "scales go with integers": {"enter": enter._replace(scales=enter.scales[1:])},
        "offsets go with scales": {"enter": enter._replace(offsets=enter.scales[1:])},
        "offset of another size": {"leave": leave._replace(offsets=enter.scales[2:])},
        "weights of other formats": {
            "enter": enter._replace(
                weights=[*others[:2], other.values, others[2]],
                scales=[*enter.scales[:2], other.scale, enter.scales[3]],
            )
        },
        "250 outputs before others": {
            "enter": enter._replace(
                weights=[q[:250], *others], scales=[enter.scales[0][:250], *enter.scales[1:]]
            )
        },
        "1152 outputs for 896 inputs": {
            "leave": leave._replace(
                weights=[*leave.weights, leave.weights[0]], scales=[*leave.scales, leave.scales[0]]
            )
        },
        "1 tokens behind 16 in a cache of 16": {"lengths": torch.tensor([16, 2])},
        "1 tokens behind -1 in a cache": {"lengths": torch.tensor([9, -1])},
        "a text that starts at -3": {"starts": torch.tensor([0, -3])},
        "for another batch than 2": {"lengths": torch.tensor([9])},
        "a cache of 16 tokens and 12 positions": {"angles": tuple(RotaryEmbedding(32, 12).table)},
        "bias of another size": {"leave": leave._replace(bias=leave.bias[1:])},
        "128 outputs for 256": {
            "leave": leave._replace(
                weights=[weight[:128] for weight in leave.weights],
                scales=[scale[:128] for scale in leave.scales],
                bias=leave.bias[:128],
            )
        },
    }
    for told, changed in refusals.items():
        with pytest.raises(RuntimeError, match=told):
            step_block(**given | changed)
