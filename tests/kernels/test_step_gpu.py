"""The chain of a decode step on a GPU: `pytest -m gpu`. Every test skips where there is none.

Kernels of a chain begin before the one ahead has ended. Whatever they read too early would be old:
so chains run again and again on new inputs, and must give the bits of ops that wait.

Dimension key: `M` rows, `N` outputs, `K` inputs, `C` elements of a row.
"""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kogpt.kernels import (
    DecodeStep,
    Weight,
    decode_attention,
    step_attention,
    step_linear,
    step_norm,
)
from kogpt.kernels.step import step_linear_reference, step_obstacle

from . import budget, test_gpu
from .test_gpu import DEVICE, Draw, draw_step, poisoned_memory
from .test_linear_gpu import rows_on_gpu, weight_on_gpu
from .weights import bits_of, on_both_dtypes, on_every_format, on_every_integer

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def kernels() -> None:
    test_gpu.require_kernels()


def norm_parameters(C: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weight and bias."""
    weight, bias = rows_on_gpu(2, C, dtype=dtype)
    return weight, bias


@pytest.mark.parametrize(("M", "C"), [(1, 8), (1, 4096), (8, 4096), (3, 520), (2, 16384)])
@on_both_dtypes
def test_a_norm_is_within_the_error_budget(dtype, M, C):
    x, (weight, bias) = rows_on_gpu(M, C, dtype=dtype) * 3 + 1, norm_parameters(C, dtype)
    torch.cuda.synchronize()  # an ordinary op before a chain does it too
    with poisoned_memory():
        out = step_norm(x, weight, bias, 1e-5)
    truth = F.layer_norm(x.double(), [C], weight.double(), bias.double(), 1e-5)
    low = F.layer_norm(x, [C], weight, bias, 1e-5)
    budget.check("norm", out, truth, low, factor=budget.FORWARD)


@pytest.mark.parametrize("gelu_from", [None, 0, 777])
@pytest.mark.parametrize("M", [1, 8])
@on_every_format
@on_both_dtypes
def test_what_a_step_adds_is_within_the_error_budget(dtype, bits, group, M, gelu_from):
    weight, x = (
        weight_on_gpu(bits, group, 1000, 4096, dtype=dtype),
        rows_on_gpu(M, 4096, dtype=dtype),
    )
    x, bias = x / 64, rows_on_gpu(1, 1000, dtype=dtype)[0]
    residual, start = rows_on_gpu(M, 1000, dtype=dtype), 1000 if gelu_from is None else gelu_from
    inputs = (x, *weight, bias)
    torch.cuda.synchronize()
    with poisoned_memory():
        out = step_linear(x, weight, bias, gelu_from=gelu_from, residual=residual)
    truth = step_linear_reference(*budget.doubled(inputs), start, residual.double())
    low = step_linear_reference(*inputs, start, residual)
    budget.check("out", out, truth, low, factor=budget.FORWARD)


@pytest.mark.parametrize("T", [1, 2, 8])
def test_attention_in_place_has_the_bits_of_attention_apart(T):
    draw = Draw(torch.bfloat16)
    lengths = torch.tensor([0, 100, 255, 256, 512 - T // 2], device=DEVICE)
    step = draw_step(draw, lengths, T, 2, 256, capacity=520)
    step = step._replace(counters=torch.zeros(5, 2, dtype=torch.int32, device=DEVICE))
    expected = decode_attention(budget.on_own_cache(step))
    torch.cuda.synchronize()
    ready = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    torch.cuda.synchronize()
    out = step_attention(step, ready)
    assert out is step.v and bits_of(out).equal(bits_of(expected)) and ready.item() == 1


class Block:
    """Weights of a block of width C with heads of 256, and a cache of one row."""

    def __init__(self, bits: int, group: int, C: int, dtype: torch.dtype, capacity: int) -> None:
        draw = Draw(dtype, C + bits)
        self.C, self.enter = C, weight_on_gpu(bits, group, 7 * C, C, dtype=dtype)
        self.leave = weight_on_gpu(bits, group, C, 5 * C, dtype=dtype)
        self.biases = draw(7 * C) / 8, draw(C) / 8
        self.norm = draw(C) / 8 + 1, draw(C) / 8
        lengths = torch.tensor([capacity - 2], device=DEVICE)
        self.step = draw_step(draw, lengths, 1, C // 256, 256, capacity)
        counters = torch.zeros(1, C // 256, dtype=torch.int32, device=DEVICE)
        self.step = self.step._replace(counters=counters)

    def heads(self, y: Tensor) -> DecodeStep:
        q, k, v = (part.view(1, 1, -1, 256) for part in y[:, : 3 * self.C].split(self.C, dim=1))
        return self.step._replace(q=q, k=k, v=v)

    def chained(self, x: Tensor, ready: Tensor) -> Tensor:
        normed = step_norm(x, *self.norm, 1e-5)
        y = step_linear(normed, self.enter, self.biases[0], gelu_from=3 * self.C)
        step_attention(self.heads(y), ready)
        mixed = y[:, 2 * self.C :]
        return step_linear(mixed, self.leave, self.biases[1], residual=x, late=self.C, ready=ready)

    def waiting(self, x: Tensor) -> Tensor:
        """The same kernels, each when the one before has ended."""
        normed = step_norm(x, *self.norm, 1e-5)
        torch.cuda.synchronize()
        y = step_linear(normed, self.enter, self.biases[0], gelu_from=3 * self.C)
        torch.cuda.synchronize()
        step_attention(self.heads(y), torch.zeros(1, dtype=torch.int32, device=DEVICE))
        torch.cuda.synchronize()
        ready = torch.ones(1, dtype=torch.int32, device=DEVICE)
        torch.cuda.synchronize()
        mixed = y[:, 2 * self.C :]
        out = step_linear(mixed, self.leave, self.biases[1], residual=x, late=self.C, ready=ready)
        torch.cuda.synchronize()
        return out


@pytest.mark.parametrize("graph", [False, True], ids=["stream", "graph"])
@pytest.mark.parametrize(("bits", "group"), [(16, 0), (8, 0), (4, 128)])
@pytest.mark.parametrize("C", [256, 2048])
def test_kernels_that_begin_early_give_the_bits_of_kernels_that_wait(C, bits, group, graph):
    """Small kernels, many of which fit the GPU at once, and large ones."""
    dtype = torch.bfloat16
    blocks = [Block(bits, group, C, dtype, capacity) for capacity in (300, 600, 40)]
    x = rows_on_gpu(1, C, dtype=dtype)

    def run(x: Tensor) -> Tensor:
        flags = torch.zeros(4 * len(blocks), 1, dtype=torch.int32, device=DEVICE)
        x = x / x.float().square().mean().sqrt().to(x.dtype)  # ordinary ops, between both
        for block, ready in zip(blocks * 4, flags, strict=True):
            x = block.chained(x, ready)
        return x

    def slowly(x: Tensor) -> Tensor:
        x = x / x.float().square().mean().sqrt().to(x.dtype)
        torch.cuda.synchronize()
        for block in blocks * 4:
            x = block.waiting(x)
        return x

    run(x)
    recorded = torch.cuda.CUDAGraph()
    if graph:
        with torch.cuda.graph(recorded):
            captured = run(x)
    for round in range(20):
        x.copy_(rows_on_gpu(2 + round, C, dtype=dtype)[-1:])
        expected = slowly(x)
        if graph:
            recorded.replay()
            found = captured
        else:
            found = run(x)
        assert bits_of(found).equal(bits_of(expected)), round


@on_every_integer
@on_both_dtypes
def test_a_step_takes_offsets_off(dtype, bits, group):
    weight = weight_on_gpu(bits, group, 1000, 4096, dtype=dtype, offset=True)
    x, bias = rows_on_gpu(3, 4096, dtype=dtype) / 64, rows_on_gpu(1, 1000, dtype=dtype)[0]
    torch.cuda.synchronize()
    with poisoned_memory():
        out = step_linear(x, weight, bias)
    budget.check_linear(out, x, weight, bias)


@on_every_format
def test_opcheck_finds_nothing_on_cuda(bits, group):
    dtype = torch.bfloat16
    weight, x = weight_on_gpu(bits, group, 64, 256, dtype=dtype), rows_on_gpu(3, 256, dtype=dtype)
    bias, residual = rows_on_gpu(1, 64, dtype=dtype)[0], rows_on_gpu(3, 64, dtype=dtype)
    ready = torch.ones(1, dtype=torch.int32, device=DEVICE)
    arguments = (x, *weight, bias, 16, residual, 128, ready)
    torch.library.opcheck(torch.ops.kogpt.step_linear.default, arguments)
    torch.library.opcheck(
        torch.ops.kogpt.step_norm.default, (x, *norm_parameters(256, dtype), 1e-5)
    )


def test_opcheck_finds_nothing_in_attention_on_cuda():
    step = draw_step(
        Draw(torch.bfloat16), torch.tensor([3, 30], device=DEVICE), 2, 2, 64, capacity=48
    )
    step = step._replace(counters=torch.zeros(2, 2, dtype=torch.int32, device=DEVICE))
    ready = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    torch.library.opcheck(torch.ops.kogpt.step_attention.default, (*step, ready))


def test_what_a_chain_cannot_take_is_told():
    x = rows_on_gpu(8, 256, dtype=torch.bfloat16)
    weight = weight_on_gpu(8, 0, 64, 256, dtype=torch.bfloat16)
    assert step_obstacle(x, weight) is None
    assert step_obstacle(torch.cat((x, x[:1])), weight) == "9 rows"
    assert step_obstacle(x.float(), weight) == "float32 on a GPU"
    assert step_obstacle(x.to("meta"), weight) == "no kernels"
    assert step_obstacle(x, Weight(x.half())) == "weights of another dtype"


def test_what_lies_apart_is_refused():
    weight = weight_on_gpu(8, 0, 64, 256, dtype=torch.bfloat16)
    x, bias = rows_on_gpu(2, 256, dtype=torch.bfloat16), rows_on_gpu(1, 65, dtype=torch.bfloat16)[0]
    with pytest.raises(RuntimeError, match="a bias must be contiguous and begin on 16 bytes"):
        step_linear(x, weight, bias[1:])
    with pytest.raises(RuntimeError, match="every row of x must be contiguous and begin on 16"):
        step_linear(rows_on_gpu(2, 257, dtype=torch.bfloat16)[:, :256], weight)
