"""Layers over stored weights against linear layers over the widened ones."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from kogpt.kernels import FrozenLinear, Weight
from kogpt.kernels.linear import WIDENED

from .products import exact, random_weight

FORMATS = {
    "int8": (8, 0, False),
    "int4": (4, 32, False),
    "int4 with zero points": (4, 32, True),
    "float16": (torch.float16, 0, False),
    "float32": (torch.float32, 0, False),
}
on_every_format = pytest.mark.parametrize("name", FORMATS)


def weight_of(name: str, N: int = 24, K: int = 64) -> Weight:
    format, group, offset = FORMATS[name]
    return random_weight(format, N, K, group, offset=offset)


def widened(weight: Weight, bias: torch.Tensor | None) -> nn.Linear:
    """The layer in float64."""
    N, K = weight.shape
    layer = nn.Linear(K, N, bias=bias is not None, dtype=torch.float64)
    layer.weight.data = exact(weight)
    if bias is not None:
        layer.bias.data = bias.double()
    return layer


@on_every_format
@pytest.mark.parametrize("rows", [(), (3,), (2, 5), (40, 1)])
def test_products_and_gradients_are_those_of_the_widened_weights(name, rows):
    weight, bias = weight_of(name), torch.randn(24)
    x = torch.randn(*rows, 64, requires_grad=True)
    truth = x.detach().double().requires_grad_()
    y, wanted = FrozenLinear(weight, bias)(x), widened(weight, bias)(truth)
    assert y.dtype == torch.float32
    assert torch.allclose(
        y.double(), wanted, rtol=0, atol=1e-5 * float(wanted.detach().abs().max())
    )
    grad = torch.randn(*rows, 24)
    y.backward(grad)
    wanted.backward(grad.double())
    atol = 1e-5 * float(truth.grad.abs().max())
    assert torch.allclose(x.grad.double(), truth.grad, rtol=0, atol=atol)


@on_every_format
@pytest.mark.parametrize("has_bias", [True, False])
def test_gradients_are_those_of_finite_differences(name, has_bias):
    layer = FrozenLinear(weight_of(name), torch.randn(24) if has_bias else None)
    x = torch.randn(3, 64, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))


def test_matrices_that_are_widened_in_parts_are_as_exact():
    N, K = WIDENED // 2048 + 3, 2048
    weight = random_weight(8, N, K)
    assert N * K > WIDENED, "there are two parts"
    layer, x = FrozenLinear(weight), torch.randn(2, K, requires_grad=True)
    truth = x.detach().double().requires_grad_()
    y, wanted = layer(x), widened(weight, None)(truth)
    grad = torch.randn(2, N)
    y.backward(grad)
    wanted.backward(grad.double())
    # Sums over 8,195 terms in float32.
    assert torch.allclose(x.grad.double(), truth.grad, rtol=0, atol=2e-6 * N)
    assert torch.allclose(y.double(), wanted, rtol=0, atol=2e-6 * K)


def test_recomputing_in_the_backward_pass_changes_nothing():
    layer = FrozenLinear(weight_of("int4"), torch.randn(24))
    x = torch.randn(4, 64, requires_grad=True)
    layer(x).square().sum().backward()
    wanted, x.grad = x.grad, None
    checkpoint(layer, x, use_reentrant=False).square().sum().backward()
    assert torch.equal(x.grad, wanted)


def test_autocast_computes_in_its_dtype():
    weight = weight_of("int8")
    layer, plain = FrozenLinear(weight, torch.randn(24)), nn.Linear(64, 24)
    plain.weight.data, plain.bias.data = exact(weight).float(), layer.bias.data
    x = torch.randn(4, 64, requires_grad=True)
    same = x.detach().clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y, wanted = layer(x), plain(same)
        y.float().sum().backward()  # within, where the backward pass must not be cast again
    wanted.float().sum().backward()
    assert y.dtype == wanted.dtype == torch.bfloat16
    assert torch.equal(y, wanted) and x.grad.dtype == torch.float32
    assert torch.allclose(x.grad, same.grad, rtol=2**-7, atol=0)  # one rounding to bfloat16


def test_nothing_of_it_is_trained_or_saved():
    layer = FrozenLinear(weight_of("int4 with zero points"), torch.randn(24))
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    assert list(layer.state_dict()) == ["bias"]
    assert not layer(torch.randn(2, 64)).requires_grad


def test_saved_tensors_hold_no_weights():
    layer, kept = FrozenLinear(weight_of("int8")), []
    x = torch.randn(2, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape), lambda _: None):
        layer(x)
    assert kept == []
