"""Attention against its definition, and the definition against a loop over rows."""

import math
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.library import opcheck

from kogpt.kernels import attention, attention_reference
from kogpt.kernels.attention import attention_backward_reference, obstacle, sdpa
from kogpt.model import KoGPT, KoGPTConfig

LENGTHS = [(1, 1), (1, 9), (5, 5), (3, 11), (16, 17)]
OPS = torch.ops.kogpt


def by_op(q, k, v, *, starts=None):
    return OPS.attention(q, k, v, starts)[0]


IMPLEMENTATIONS = [attention, by_op]


def random_qkv(B: int, T: int, S: int, D: int = 8) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(T * 100 + S)

    def draw(length: int) -> torch.Tensor:
        return torch.randn(B, length, 3, D, dtype=torch.float64, generator=generator)

    return draw(T), draw(S), draw(S)


def by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, start: int) -> torch.Tensor:
    """One head of one row, query after query: (T, D), (S, D), (S, D)."""
    T, S = len(q), len(k)
    rows = []
    for t in range(T):
        position = S - T + t
        seen = slice(min(start, position), position + 1)
        weights = (k[seen] @ q[t] / math.sqrt(q.size(-1))).softmax(0)
        rows.append(weights @ v[seen])
    return torch.stack(rows)


@pytest.mark.parametrize(("T", "S"), LENGTHS)
@pytest.mark.parametrize("function", IMPLEMENTATIONS)
def test_attention_is_a_softmax_over_the_past(T, S, function):
    q, k, v = random_qkv(2, T, S)
    out = function(q, k, v)
    for b in range(2):
        for h in range(3):
            expected = by_hand(q[b, :, h], k[b, :, h], v[b, :, h], 0)
            torch.testing.assert_close(out[b, :, h], expected)


@pytest.mark.parametrize(("T", "S"), LENGTHS)
@pytest.mark.parametrize("function", IMPLEMENTATIONS)
def test_keys_before_a_row_starts_are_not_seen(T, S, function):
    q, k, v = random_qkv(3, T, S)
    starts = torch.tensor([0, S // 2, S - 1])
    out = function(q, k, v, starts=starts)
    assert out.isfinite().all()
    for b, start in enumerate(starts.tolist()):
        real = max(0, start - (S - T))
        expected = by_hand(q[b, :, 1], k[b, :, 1], v[b, :, 1], start)
        torch.testing.assert_close(out[b, real:, 1], expected[real:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("function", IMPLEMENTATIONS)
def test_half_precision_scores_do_not_overflow(dtype, function):
    q, k, v = (x.to(dtype) for x in random_qkv(1, 4, 4))
    out = function(q * 100, k * 1000, v)  # scores reach 10^5 and more, float16 ends at 65,504
    assert out.dtype == dtype and out.isfinite().all()


def test_dropout_keeps_the_mean():
    q, k, v = (x.float() for x in random_qkv(1, 1, 6))
    torch.manual_seed(0)
    repeats = [x.expand(20_000, -1, -1, -1) for x in (q, k, v)]
    dropped = attention(*repeats, dropout_p=0.3)
    error = (dropped.mean(0) - attention(q, k, v)[0]).abs()
    assert (error < 5 * dropped.std(0) / math.sqrt(20_000)).all()
    assert dropped.std(0).min() > 0.01


@pytest.mark.parametrize(("T", "S"), LENGTHS)
def test_lse_is_the_logarithm_of_the_softmax_denominator(T, S):
    q, k, v = random_qkv(2, T, S)
    lse = attention_reference(q, k, v)[1]
    for t in range(T):
        seen = slice(S - T + t + 1)
        products = torch.einsum("bhd,bshd->bhs", q[:, t], k[:, seen]) / math.sqrt(q.size(3))
        torch.testing.assert_close(lse[:, :, t], products.exp().sum(-1).log())


def test_lse_is_float32_in_half_precision():
    q, k, v = (x.bfloat16() for x in random_qkv(1, 3, 5))
    assert attention_reference(q, k, v)[1].dtype == torch.float32


# Of T = 4 queries and S = 6 keys: no padding, some, and several texts in a row.
STARTS = [None, [0, 3], [[0, 3, 3, 5], [2, 3, 4, 5]]]


def leaves(T: int = 4, S: int = 6) -> tuple[torch.Tensor, ...]:
    return tuple(x.requires_grad_() for x in random_qkv(2, T, S, D=4))


@pytest.mark.parametrize("first", STARTS)
def test_gradients_equal_finite_differences(first):
    starts = None if first is None else torch.tensor(first)
    assert torch.autograd.gradcheck(lambda *qkv: by_op(*qkv, starts=starts), leaves())


@pytest.mark.parametrize("first", STARTS)
def test_the_gradient_formulas_equal_those_of_autograd(first):
    starts = None if first is None else torch.tensor(first)
    q, k, v = leaves()
    out, lse = attention_reference(q, k, v, starts)
    grad_out = random_qkv(2, 4, 4, D=4)[1]
    expected = torch.autograd.grad(out, (q, k, v), grad_out)
    with torch.no_grad():
        found = attention_backward_reference(grad_out, q, k, v, out, lse, starts)
    torch.testing.assert_close(found, expected)


def test_the_op_differentiates_once():
    q, k, v = leaves()
    out, lse = OPS.attention(q, k, v, None)
    (grad_q,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="once"):
        grad_q.sum().backward()
    assert not lse.requires_grad  # rather than a gradient that leaves it out


def strided(B: int, T: int, D: int = 4) -> torch.Tensor:
    """Rows as a cache holds them, (B, H, T, D) in memory, with room behind each head."""
    return torch.randn(B, 3, T + 2, D)[:, :, :T].transpose(1, 2)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("first", STARTS)
def test_the_op_passes_opcheck(first, grad):
    starts = None if first is None else torch.tensor(first)
    for qkv in (random_qkv(2, 4, 6), (strided(2, 4), strided(2, 6), strided(2, 6))):
        opcheck(OPS.attention, (*(x.detach().requires_grad_(grad) for x in qkv), starts))


@pytest.mark.parametrize("first", STARTS)
def test_the_op_of_the_gradient_passes_opcheck(first):
    starts = None if first is None else torch.tensor(first)
    q, k, v = strided(2, 4), strided(2, 6), strided(2, 6)
    out, lse = OPS.attention(q, k, v, starts)
    no_strides = torch.ones(()).expand(out.shape)  # the gradient of a sum
    for grad_out in (torch.randn_like(out), no_strides):
        opcheck(OPS.attention_backward, (grad_out, q, k, v, out, lse, starts))


def test_sizes_on_fake_cuda_tensors_are_those_of_real_ones():
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        q = torch.empty(2, 4, 3, 64, dtype=torch.bfloat16, device="cuda")
        k = torch.empty(2, 6, 3, 64, dtype=torch.bfloat16, device="cuda")
        out, lse = OPS.attention(q, k, k, None)
        gradients = OPS.attention_backward(out, q, k, k, out, lse, None)
    assert (lse.shape, lse.dtype) == ((2, 3, 4), torch.float32)
    for found, like in zip((out, *gradients), (q, q, k, k), strict=True):
        assert (found.shape, found.dtype, found.device) == (like.shape, like.dtype, like.device)


@pytest.mark.parametrize("first", STARTS)
def test_both_ways_of_attention_compile_without_a_break(first):
    starts = None if first is None else torch.tensor(first)
    for function in (attention, by_op):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        results = []
        for run in (function, compiled):
            qkv = leaves()
            out = run(*qkv, starts=starts)
            out.square().sum().backward()
            results.append((out, *(x.grad for x in qkv)))
        torch.testing.assert_close(*results)


class OpAttention(KoGPT.block_class.attention_class):
    """The model's attention by the op on every device, as it runs where there are kernels."""

    def attend(self, q, k, v, starts):
        return by_op(q, k, v, starts=starts)


class OpBlock(KoGPT.block_class):
    attention_class = OpAttention


class OpKoGPT(KoGPT):
    block_class = OpBlock


def test_a_model_compiles_whole_and_trains_through_the_op():
    shape = dict(vocab_size=17, n_positions=16, n_embd=16, n_layer=1, n_head=2, rotary_dim=4)
    config = KoGPTConfig(**shape, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
    ids = torch.arange(12).reshape(2, 6)
    outcomes = []
    for kind, compiled in ((KoGPT, False), (KoGPT, True), (OpKoGPT, False), (OpKoGPT, True)):
        torch.manual_seed(0)
        model = kind(config)
        run = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
        logits = run(ids)
        logits.square().mean().backward()
        outcomes.append((logits, model.transformer.h[0].attn.q_proj.weight.grad))
    for outcome in outcomes[1:]:
        torch.testing.assert_close(outcome, outcomes[0])


def shaped(T=16, S=16, H=4, D=64, kv_heads=4, dtype=torch.bfloat16, kv_dtype=None, B=2):
    """What the dispatch rule reads of q, k and v: tensors without memory."""
    q = torch.empty(B, T, H, D, dtype=dtype, device="meta")
    k = torch.empty(B, S, kv_heads, D, dtype=kv_dtype or dtype, device="meta")
    return q, k, k


@pytest.mark.parametrize("D", [64, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_kernels_take_what_they_are_made_for(D, dtype):
    for T, S in ((1, 2048), (2048, 2048), (8, 9)):
        assert obstacle(*shaped(T, S, D=D, dtype=dtype)) is None


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        (shaped(dtype=torch.float32), "float32"),
        (shaped(D=96), "heads of 96"),
        (shaped(kv_heads=2), "different heads"),
        (shaped(kv_dtype=torch.float16), "different dtypes"),
        (shaped(T=17), "17 queries and 16 keys"),
        (shaped(T=0), "0 queries"),
        (shaped(B=0), "16 queries and 16 keys"),
    ],
)
def test_what_the_kernels_do_not_take_has_a_reason(tensors, reason):
    assert reason in obstacle(*tensors)


def test_dropout_keeps_the_kernels_away():
    assert "dropout" in obstacle(*shaped(), dropout_p=0.1)


def test_tensors_on_several_devices_keep_the_kernels_away():
    q, k, v = shaped()
    assert "different devices" in obstacle(q, torch.empty(k.shape, dtype=k.dtype), v)


@pytest.mark.parametrize("shape", [(1,), (3,), (1, 5), (3, 5)])
def test_the_kernels_are_given_a_start_for_every_row(shape, monkeypatch):
    """Those of rows that have none they would read behind the tensor."""
    given, kernel = [], attention_reference
    rule = sys.modules[obstacle.__module__]  # the package has the function by its name
    monkeypatch.setattr(rule, "on_gpu", lambda q: True)
    monkeypatch.setattr(rule, "extension_available", lambda device: True)
    packet = SimpleNamespace(attention=lambda *args: given.append(args[3]) or kernel(*args))
    monkeypatch.setattr(torch.ops, "kogpt", packet)
    q, k, v = (x.half() for x in random_qkv(3, 5, 5, 64))
    starts = torch.arange(math.prod(shape), dtype=torch.int32).view(shape) % 2
    out = attention(q, k, v, starts=starts)
    (read,) = given
    assert read.size(0) == 3 and read.is_contiguous() and read.dtype == torch.int64
    torch.testing.assert_close(out, sdpa(q, k, v, starts), rtol=2e-3, atol=2e-3)


def test_attention_on_a_cpu_is_that_of_pytorch():
    q, k, v = random_qkv(2, 5, 5)
    assert torch.equal(attention(q, k, v), sdpa(q, k, v))
