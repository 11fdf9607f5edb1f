"""What the kernels do in a chain, on the CPU: launched early, and with all that a step adds.

Dimension key: `M` rows, `N` outputs, `K` inputs, `C` elements of a row.
"""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kogpt.kernels import Weight
from kogpt.kernels.step import step_linear_reference

from . import budget, test_decode_emulated
from .emulator.harness import EmulatorError, decode, linear, norm
from .test_decode_emulated import SPLIT, make_step
from .weights import bits_of, make_rows, make_weight, on_both_dtypes, on_every_format, truth

# --- the norm ---


def norm_parameters(C: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weight and bias."""
    weight, bias = make_rows(2, C, dtype)
    return weight, bias


@pytest.mark.parametrize("promised", [False, True], ids=["in its turn", "early"])
@pytest.mark.parametrize(("M", "C"), [(1, 8), (1, 4096), (2, 1024), (3, 4104), (8, 520)])
@on_both_dtypes
def test_a_norm_is_within_the_error_budget(dtype, M, C, promised):
    x, (weight, bias) = make_rows(M, C, dtype) * 3 + 1, norm_parameters(C, dtype)
    inputs = (x, [C], weight, bias, 1e-5)
    truth = F.layer_norm(x.double(), [C], weight.double(), bias.double(), 1e-5)
    out = norm(x, weight, bias, 1e-5, promised=promised)
    budget.check("norm", out, truth, F.layer_norm(*inputs), factor=budget.FORWARD)


@on_both_dtypes
def test_a_norm_of_rows_far_from_zero_loses_nothing(dtype):
    """Sums of squares that do not take the mean off first would have no correct digit."""
    x, (weight, bias) = make_rows(2, 4096, dtype) / 8 + 32, norm_parameters(4096, dtype)
    truth = F.layer_norm(x.double(), [4096], weight.double(), bias.double(), 1e-5)
    low = F.layer_norm(x, [4096], weight, bias, 1e-5)
    out = norm(x, weight, bias, 1e-5)
    budget.check("norm", out, truth, low, factor=budget.FORWARD)


def test_equal_elements_have_the_bias_as_their_norm():
    weight, bias = norm_parameters(256, torch.bfloat16)
    x = torch.full((2, 256), 3.0, dtype=torch.bfloat16)
    assert norm(x, weight, bias, 1e-5).equal(bias.expand(2, -1))


@pytest.mark.parametrize(("M", "C"), [(0, 256), (1, 4), (1, 260)])
def test_norms_that_it_does_not_take_are_refused(M, C):
    weight, bias = norm_parameters(C, torch.bfloat16)
    with pytest.raises(EmulatorError, match="cudaError_t 1"):
        norm(torch.zeros(M, C, dtype=torch.bfloat16), weight, bias, 1e-5)


# --- the products ---


@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("gelu_from", [None, 0, 33, 70])
@on_every_format
@on_both_dtypes
def test_what_a_step_adds_is_within_the_error_budget(dtype, bits, group, gelu_from, residual):
    weight, x = make_weight(bits, group, 70, 256, dtype), make_rows(3, 256, dtype) / 16
    bias, added = make_rows(1, 70, dtype)[0], make_rows(3, 70, dtype) if residual else None
    start = 70 if gelu_from is None else gelu_from
    inputs = (x, *weight, bias)
    wide = budget.doubled((*inputs, added))
    truth = step_linear_reference(*wide[:-1], start, wide[-1])
    out = linear(x, weight, bias, gelu_from=gelu_from, residual=added, promised=True)
    low = step_linear_reference(*inputs, start, added)
    budget.check("out", out, truth, low, factor=budget.FORWARD)


@on_both_dtypes
def test_gelu_is_right_for_every_element_there_is(dtype):
    """Rounded once: to half a unit in the last place, and a little more for what exp2 errs."""
    elements = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
    elements = elements[elements.isfinite()]
    weight = Weight(torch.zeros(len(elements), 128, dtype=dtype))
    zeros = torch.zeros(1, 128, dtype=dtype)
    found = linear(zeros, weight, bias=elements, gelu_from=0)[0].double()
    x = elements.double()
    # 1 + tanh(u) cancels where x is far below zero; 2 sigmoid(2 u) is the same and does not.
    expected = x * torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))
    info = torch.finfo(dtype)
    # Where the sigmoid is below 2^-128, its reciprocal is infinite and the result 0.
    allowed = 0.51 * info.eps * expected.abs() + 4 * info.smallest_normal
    assert ((found - expected).abs() <= allowed).all()
    torch.testing.assert_close(expected, F.gelu(x, approximate="tanh"), rtol=1e-12, atol=1e-12)


@on_every_format
@on_both_dtypes
def test_rows_may_lie_apart(dtype, bits, group):
    weight = make_weight(bits, group, 45, 256, dtype)
    x = make_rows(5, 640, dtype)[:, 128 : 128 + 256]
    x_alone = x.contiguous()
    apart = linear(x, weight, promised=True)
    assert bits_of(apart).equal(bits_of(linear(x_alone, weight)))


@pytest.mark.parametrize(("late", "K"), [(128, 256), (128, 4096), (1024, 4096), (3968, 4096)])
@on_every_format
def test_inputs_that_come_late_are_read_late(bits, group, late, K):
    """The emulator stops at whatever is read before the flag, or before the kernel ahead ends."""
    dtype = torch.bfloat16
    x, ready = make_rows(3, K, dtype, exact=True), torch.ones(1, dtype=torch.int32)
    for offset in {False, bits < 16}:
        weight = make_weight(bits, group, 45, K, dtype, offset=offset, exact=True)
        out = linear(x, weight, late=late, ready=ready, promised=True)
        assert out.equal(truth(x, weight).to(dtype))


def test_a_flag_that_nobody_raises_is_no_end_of_waiting():
    weight, x = make_weight(8, 0, 45, 256, torch.bfloat16), make_rows(3, 256, torch.bfloat16)
    ready = torch.zeros(1, dtype=torch.int32)
    with pytest.raises(EmulatorError, match="await_flag at .*: nobody has raised it"):
        linear(x, weight, late=128, ready=ready, promised=True)


@pytest.mark.parametrize("late", [-128, 64, 256, 384])
def test_late_inputs_that_it_does_not_take_are_refused(late):
    weight, x = make_weight(8, 0, 45, 256, torch.bfloat16), make_rows(3, 256, torch.bfloat16)
    with pytest.raises(EmulatorError, match="cudaError_t 1"):
        linear(x, weight, late=late, ready=torch.ones(1, dtype=torch.int32))


# --- attention ---


@pytest.mark.parametrize("T", [1, 2, 8])
@pytest.mark.parametrize("D", [64, 256])
def test_the_result_in_place_of_the_values_has_the_same_bits(D, T):
    lengths = [0, 100, SPLIT - 1, SPLIT, 2 * SPLIT - T // 2]
    step = make_step(torch.bfloat16, lengths, [0, 7, 0, SPLIT, 0], T=T, H=2, D=D)
    expected, lse = test_decode_emulated.run(budget.on_own_cache(step))
    for seed in (0, 1, 2):
        again = budget.on_own_cache(step)._replace(v=step.v.clone())
        tensors, ready = again[:8], torch.zeros(1, dtype=torch.int32)
        out, own_lse = decode(*tensors, starts=step.starts, promised=True, ready=ready, seed=seed)
        assert out is again.v and bits_of(out).equal(bits_of(expected)) and own_lse.equal(lse)
        assert ready.item() == 1
