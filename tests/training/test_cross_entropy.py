"""The loss by chunks, against PyTorch's own over the whole matrix of logits."""

import time
from statistics import median

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from kogpt.model import KoGPT
from kogpt.training.cross_entropy import chunk_rows, chunked_cross_entropy
from kogpt.training.loss import next_token_loss
from tests.scale import scaled
from tests.training.conftest import TINY

N, C, V = 23, 8, 31


def plain(hidden, head, targets):
    logits = head(hidden).to(torch.promote_types(hidden.dtype, torch.float32))
    return F.cross_entropy(logits, targets, reduction="sum", ignore_index=-100)


def make(dtype=torch.float64, share=0.6, width=C, vocabulary=V, tokens=N):
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(width, vocabulary, dtype=dtype)
    hidden = torch.randn(tokens, width, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    targets[torch.rand(tokens, generator=generator) > share] = -100
    return hidden, head, targets


def gradients(loss, hidden, head):
    wanted = [x for x in (hidden, *head.parameters()) if x.requires_grad]
    return torch.autograd.grad(loss, wanted)


@pytest.mark.parametrize("rows", [1, 5, 16, 100])
def test_loss_and_gradients_are_those_of_the_whole_matrix(rows):
    hidden, head, targets = make()
    loss, expected = (
        chunked_cross_entropy(hidden, head, targets, rows),
        plain(hidden, head, targets),
    )
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for ours, theirs in zip(
        gradients(loss / 7, hidden, head), gradients(expected / 7, hidden, head), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_gradients_are_slopes():
    hidden, head, targets = make()

    def loss(hidden, weight, bias):
        return chunked_cross_entropy(hidden, head, targets, 5)

    assert torch.autograd.gradcheck(loss, (hidden, head.weight, head.bias))


def test_a_head_that_is_frozen_or_has_no_bias_or_is_no_plain_layer_will_do():
    hidden, head, targets = make()
    deep = nn.Sequential(nn.Linear(C, C, dtype=torch.float64), nn.Tanh(), head)
    for other in (
        nn.Linear(C, V, bias=False, dtype=torch.float64),
        deep,
        head.requires_grad_(False),
    ):
        ours = gradients(chunked_cross_entropy(hidden, other, targets, 5), hidden, other)
        theirs = gradients(plain(hidden, other, targets), hidden, other)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    assert len(ours) == 1


def test_a_frozen_network_below_a_head_that_is_trained_will_do():
    hidden, head, targets = make()
    hidden = hidden.detach()
    ours = gradients(chunked_cross_entropy(hidden, head, targets, 5), hidden, head)
    theirs = gradients(plain(hidden, head, targets), hidden, head)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_without_a_target_loss_and_gradients_are_zero():
    hidden, head, _ = make()
    loss = chunked_cross_entropy(hidden, head, torch.full((N,), -100), 5)
    assert loss.item() == 0
    assert all(not gradient.any() for gradient in gradients(loss, hidden, head))


def test_nothing_is_differentiated_where_gradients_are_off():
    hidden, head, targets = make()
    with torch.no_grad():
        loss = chunked_cross_entropy(hidden, head, targets, 5)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, plain(hidden, head, targets).detach(), rtol=1e-12, atol=0)


def test_it_is_differentiated_once():
    hidden, head, targets = make()
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)
    loss = factor * chunked_cross_entropy(hidden, head, targets, 5)
    (slope,) = torch.autograd.grad(loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_in_bfloat16_the_error_is_at_most_that_of_the_plain_way(weights):
    hidden, exact, targets = make(vocabulary=1000, width=64, tokens=200)
    head = nn.Linear(64, 1000, dtype=weights)
    head.load_state_dict(exact.state_dict())
    exact.load_state_dict(head.state_dict())  # as rounded
    narrow = hidden.detach().to(weights).requires_grad_()
    wide = narrow.detach().double().requires_grad_()
    truth = gradients(plain(wide, exact, targets), wide, exact)
    results = []
    for way in (plain, lambda *inputs: chunked_cross_entropy(*inputs, 16)):
        with torch.autocast("cpu", torch.bfloat16, enabled=weights == torch.float32):
            loss = way(narrow, head, targets)
        assert loss.dtype == torch.float32
        results.append(gradients(loss, narrow, head))
    for theirs, ours, true in zip(*results, truth, strict=True):
        assert ours.dtype == weights
        # Fifty per cent of room: of so few numbers, errors are luck too.
        assert (ours - true).norm() <= 1.5 * (theirs - true).norm()


class LargestTensor(TorchDispatchMode):
    """Notes the size of the largest result of any operation, in elements."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


def test_no_tensor_is_larger_than_a_chunk_of_logits():
    hidden, head, targets = make(vocabulary=1000, tokens=200, share=1.0)
    with LargestTensor() as seen:
        chunked_cross_entropy(hidden, head, targets, 16).backward()
    assert seen.largest == 16 * 1000


def test_rows_without_a_target_do_not_reach_the_head():
    hidden, head, targets = make()
    rows = 0

    def count(module, inputs):
        nonlocal rows
        rows += len(inputs[0])

    head.register_forward_pre_hook(count)
    chunked_cross_entropy(hidden, head, targets, 5)
    assert rows == (targets != -100).sum() < N


def test_the_loss_of_a_model_is_that_of_its_logits():
    model = KoGPT(TINY)
    ids = torch.randint(TINY.vocab_size, (2, 17), generator=torch.Generator().manual_seed(0))
    targets = ids[:, 1:].clone()
    targets[0, :9] = -100
    expected = plain(model(ids[:, :-1]).flatten(0, 1), nn.Identity(), targets.flatten())
    loss = next_token_loss(model, ids[:, :-1], targets)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


def test_the_logits_of_a_chunk_take_64_mib():
    assert chunk_rows(64512) == 260
    assert chunk_rows(1 << 24) == 16


def test_it_is_no_slower_than_the_whole_matrix():
    hidden, head, targets = make(torch.float32, 1.0, 256, 8000, 2048)
    ways = {"chunked": lambda *x: chunked_cross_entropy(*x, chunk_rows(8000)), "plain": plain}
    seconds = {name: [] for name in ways}
    for _ in range(scaled(3, 15)):
        for name, way in ways.items():
            began = time.perf_counter()
            way(hidden, head, targets).backward()
            seconds[name].append(time.perf_counter() - began)
            hidden.grad, head.weight.grad = None, None
    # A quarter of room for what else the machine does.
    assert median(seconds["chunked"]) <= 1.25 * median(seconds["plain"])


class Sum(nn.Module):
    """Its weight is the sum of two, whose gradients are one tensor; a third is not used."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.unused = (nn.Parameter(torch.randn(V, C)) for _ in range(3))

    def forward(self, x):
        return F.linear(x, self.a + self.b)


def test_a_gradient_that_two_parameters_share_is_added_once_to_each_and_none_is_made_up():
    hidden, _, targets = make(torch.float32)
    head = Sum()
    chunked_cross_entropy(hidden, head, targets, 5).backward()
    a, b = torch.autograd.grad(plain(hidden, head, targets), (head.a, head.b))
    torch.testing.assert_close(head.a.grad, a, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(head.b.grad, b, rtol=1e-5, atol=1e-6)
    assert head.unused.grad is None


def test_the_loss_of_narrow_logits_is_computed_in_float32():
    hidden, head, targets = make(torch.bfloat16, vocabulary=1000, tokens=200)
    wanted = plain(hidden, head, targets)
    loss = chunked_cross_entropy(hidden, head, targets, 16)
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)


def test_no_gradient_is_computed_where_gradients_are_off(monkeypatch):
    hidden, head, targets = make()
    monkeypatch.setattr(torch.autograd, "grad", None)
    with torch.no_grad():
        chunked_cross_entropy(hidden, head, targets, 5)
