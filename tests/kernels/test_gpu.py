"""The fused kernels on a GPU: `pytest -m gpu`. Every test skips, with the reason, where none is.

What a kernel may err is in `tests.kernels.budget`. Outputs and scratch are full of NaN before a
kernel runs, so what it leaves out shows.

Dimension key: `B` batch, `T` queries, `S` keys, `H` heads, `D` head dim.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kogpt.box import BOX
from kogpt.kernels import DecodeStep, attention, building, decode_attention, extension
from kogpt.kernels.attention import sdpa
from kogpt.kernels.targets import Gpu
from kogpt.model import KoGPT, KoGPTConfig, KVCache
from kogpt.model.rotary import RotaryEmbedding, Rotation
from kogpt.model.transformer import Attention, Block
from kogpt.training import TrainingConfig, train
from kogpt.training.loss import next_token_loss
from tests.kernels import budget
from tests.kernels.inputs import packed_starts

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
ROOT = Path(__file__).parents[2]
LENGTHS = (1, 2, 63, 64, 65, 127, 128, 129, 511, 2047, 2048)
PAIRS = [(T, S) for S in LENGTHS for T in LENGTHS if T <= S]
BATCHES = (1, 2, 3, 7, 8, 31, 64, 65)
POSITIONS = 2304
KERNELS = (
    *("attention", "attention_backward", "decode_attention", "linear", "widen"),
    *("step_attention", "step_linear", "step_norm"),
)


def require_kernels() -> None:
    """Skips where no fused kernel can run; fails where one could and does not."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    gpu = Gpu.current()
    try:
        if extension.find(gpu) is None:
            extension.wanted(gpu)
    except building.CannotBuildError as reason:
        pytest.skip(f"no fused kernels here: {reason}")
    assert extension.extension_available(), "the fused kernels cannot be used, see above"
    # Or else the references run.
    for op in KERNELS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"kogpt::{op}", "CUDA"), op


@pytest.fixture(autouse=True)
def kernels() -> None:
    require_kernels()


@pytest.fixture(params=[torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=[64, 128, 256], ids="D{}".format)
def D(request: pytest.FixtureRequest) -> int:
    return request.param


class Draw:
    """Random tensors on the device, the same in every run."""

    def __init__(self, dtype: torch.dtype, seed: int = 0) -> None:
        self.dtype = dtype
        self.generator = torch.Generator(DEVICE).manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        x = torch.randn(shape, generator=self.generator, device=DEVICE)
        return x.to(self.dtype)

    def qkv(self, B: int, T: int, S: int, H: int, D: int) -> tuple[Tensor, Tensor, Tensor]:
        return self(B, T, H, D), self(B, S, H, D), self(B, S, H, D)

    def below(self, end: int, count: int) -> Tensor:
        """`count` whole numbers from 0 up to `end`, which is not one of them."""
        return torch.randint(end, (count,), generator=self.generator, device=DEVICE)


def heads(T: int) -> int:
    """Few tokens have more heads: two errors compare only in a crowd."""
    return 8 if T < 16 else 2


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Within, `torch.empty` and its like give memory full of NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def forward(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    with poisoned_memory():
        return torch.ops.kogpt.attention(q, k, v, starts)


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None = None
) -> tuple[Tensor, ...]:
    out, lse = forward(q, k, v, starts)
    with poisoned_memory():
        return torch.ops.kogpt.attention_backward(grad_out, q, k, v, out, lse, starts)


def check(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, grad_out: Tensor | None = None
) -> None:
    """Asserts the budget of a forward and a backward pass."""
    budget.check_forward(*forward(q, k, v, starts), q, k, v, starts)
    grad_out = (
        torch.randn_like(q, memory_format=torch.contiguous_format) if grad_out is None else grad_out
    )
    budget.check_backward(backward(grad_out, q, k, v, starts), grad_out, q, k, v, starts)


def test_memory_is_poisoned():
    with poisoned_memory():
        assert torch.ones(9, device=DEVICE).new_empty(5, 7).isnan().all()


# --- prefill and training ---


@pytest.mark.parametrize(("T", "S"), PAIRS)
def test_forward_is_within_the_budget(T, S, D, dtype):
    q, k, v = Draw(dtype, T + S).qkv(2, T, S, heads(T), D)
    budget.check_forward(*forward(q, k, v), q, k, v)


@pytest.mark.parametrize(("T", "S"), PAIRS)
def test_gradients_are_within_the_budget(T, S, D, dtype):
    draw = Draw(dtype, T + S)
    q, k, v = draw.qkv(2, T, S, heads(T), D)
    grad_out = draw(2, T, heads(T), D)
    budget.check_backward(backward(grad_out, q, k, v), grad_out, q, k, v)


@pytest.mark.parametrize("B", BATCHES)
@pytest.mark.parametrize(("T", "S"), [(1, 130), (7, 7), (65, 65), (33, 129)])
def test_any_batch_is_within_the_budget(T, S, B, D, dtype):
    check(*Draw(dtype, B).qkv(B, T, S, heads(T), D), None)


@pytest.mark.parametrize(("T", "S"), [(1, 65), (5, 130), (64, 64), (130, 130), (100, 511)])
def test_left_padding_is_within_the_budget(T, S, D, dtype):
    draw = Draw(dtype)
    starts = torch.tensor([0, 1, S // 2, 63 % S, 64 % S, S - 1], device=DEVICE)
    check(*draw.qkv(len(starts), T, S, heads(T), D), starts)


@pytest.mark.parametrize(("T", "S"), [(1, 65), (5, 130), (64, 64), (130, 130), (600, 900)])
def test_several_texts_in_a_row_are_within_the_budget(T, S, D, dtype):
    starts = packed_starts(T, S).to(DEVICE)
    check(*Draw(dtype).qkv(len(starts), T, S, heads(T), D), starts)


@pytest.mark.parametrize("T", [1, 130])
def test_views_of_any_strides_are_read_as_they_are(T, D, dtype):
    B, S, H = 3, 130, heads(T)
    draw = Draw(dtype)
    packed = draw(B, S, H, 3, D).unbind(3)
    cached = draw(B, H, 2 * S, D)[:, :, :S].transpose(1, 2)
    shared_row = draw(1, S, H, D).expand(B, S, H, D)
    off_by_one = draw(B * S * H * D + 1)[1:].view(B, S, H, D)  # not on 16 bytes
    odd_rows = draw(B, S, H, D + 1)[..., :D]
    apart = draw(B, S, H, 2 * D)[..., ::2]  # not even contiguous within a row
    views = [*packed, cached, shared_row, off_by_one, odd_rows, apart]
    for i, k in enumerate(views):
        q, v = views[i - 1][:, S - T :], views[i - 2]
        grad_out = views[i - 3][:, :T]
        expected = backward(*(x.contiguous() for x in (grad_out, q, k, v)))
        for found, same in zip(backward(grad_out, q, k, v), expected, strict=True):
            assert torch.equal(found, same)
        check(q, k, v, None, grad_out)


def test_a_summed_result_has_gradients(D, dtype):
    q, k, v = (x.requires_grad_() for x in Draw(dtype).qkv(2, 65, 65, 2, D))
    out, _ = torch.ops.kogpt.attention(q, k, v, None)
    grads = torch.autograd.grad(out.sum(), (q, k, v))  # the gradient of `out` has strides of 0
    budget.check_backward(grads, torch.ones_like(out), q, k, v)


@pytest.mark.parametrize("T", [1, 200])
def test_large_logits_are_within_the_budget(T, D, dtype):
    q, k, v = Draw(dtype).qkv(2, T, 200, heads(T), D)
    budget.check_forward(*forward(q * 30, k * 30, v), q * 30, k * 30, v)  # up to tens of thousands
    check(q * 3, k * 3, v, None)


@pytest.mark.parametrize("T", [1, 8, 9, 100])
def test_nothing_behind_the_last_key_is_read(T, D, dtype):
    B, S, H = 2, 100, heads(T)
    draw = Draw(dtype)
    q, grad_out = draw(B, T, H, D), draw(B, T, H, D)
    buffers = [draw(B, H, S + 100, D) for _ in range(2)]
    for buffer in buffers:
        buffer[:, :, S:] = float("nan")
    k, v = (buffer[:, :, :S].transpose(1, 2) for buffer in buffers)
    check(q, k, v, None, grad_out)


def test_a_row_does_not_depend_on_its_batch(D, dtype):
    draw = Draw(dtype)
    for T in (4, 130):
        q, k, v = draw.qkv(5, T, 520, 3, D)
        for starts in (draw.below(200, 5), packed_starts(T, 520).to(DEVICE)):
            whole = *forward(q, k, v, starts), *backward(q, q, k, v, starts)
            for b in range(5):
                row = [x[b : b + 1] for x in (q, k, v, starts)]
                alone = *forward(*row), *backward(row[0], *row)
                for found, expected in zip(alone, whole, strict=True):
                    assert torch.equal(found[0], expected[b])


@pytest.mark.parametrize(("T", "S"), [(1, 2047), (511, 511), (129, 1000)])
def test_a_hundred_runs_give_the_same_bits(T, S, D, dtype):
    draw = Draw(dtype)
    q, k, v = draw.qkv(4, T, S, 16, D)
    starts = draw.below(S, 4)
    first = *forward(q, k, v, starts), *backward(q, q, k, v, starts)
    for _ in range(100):
        again = *forward(q, k, v, starts), *backward(q, q, k, v, starts)
        assert all(map(torch.equal, again, first))


# --- decoding ---


def draw_step(
    draw: Draw, lengths: Tensor, T: int, H: int, D: int, capacity: int, R: int = 64
) -> DecodeStep:
    """A step behind `lengths` tokens, in caches laid out as those of `KVCache`."""
    B = len(lengths)
    cos, sin = RotaryEmbedding(R, POSITIONS).to(DEVICE).table
    cache = (draw(B, H, capacity, D).transpose(1, 2) for _ in range(2))
    new = (draw(B, T, H, D) for _ in range(3))
    return DecodeStep(*new, *cache, lengths, cos, sin)


def decode(step: DecodeStep) -> Tensor:
    with poisoned_memory():
        return decode_attention(step)


def check_step(step: DecodeStep) -> None:
    """Asserts the budget, and what became of the caches."""
    before = budget.on_own_cache(step)
    budget.check_decode(decode(step), before)
    check_caches(step, before)


def check_caches(step: DecodeStep, before: DecodeStep) -> None:
    """New tokens are where they belong, to the last bit, and nothing else was touched."""
    row = torch.arange(len(step.lengths), device=DEVICE)[:, None]
    place = step.lengths[:, None] + torch.arange(step.q.size(1), device=DEVICE)
    start = 0 if step.starts is None else step.starts[:, None]
    position = (place - start).clamp(min=0)
    rotate = Rotation(step.cos[position].unsqueeze(2), step.sin[position].unsqueeze(2))
    for cache, old, new in (
        (step.keys, before.keys, rotate(step.k)),
        (step.values, before.values, step.v),
    ):
        expected = old.clone()
        expected[row, place] = new
        # NaN equals NaN here: the bits are compared.
        assert torch.equal(cache.view(torch.int16), expected.view(torch.int16))


@pytest.mark.parametrize("T", [1, 2, 3, 8])
@pytest.mark.parametrize("held", [0, 1, 62, 63, 64, 65, 127, 255, 256, 257, 511, 2039])
def test_decoding_is_within_the_budget(held, T, D, dtype):
    lengths = torch.full((2,), held, device=DEVICE)
    check_step(draw_step(Draw(dtype, held), lengths, T, heads(T), D, capacity=2048))


@pytest.mark.parametrize("B", BATCHES)
@pytest.mark.parametrize("T", [1, 5])
def test_rows_of_any_lengths_decode_together(T, B, D, dtype):
    draw = Draw(dtype, B)
    check_step(draw_step(draw, draw.below(600 - T, B), T, heads(T), D, capacity=600))


@pytest.mark.parametrize("R", [0, 8, 64])
def test_any_share_of_the_head_is_rotated(R, D, dtype):
    draw = Draw(dtype)
    check_step(draw_step(draw, draw.below(300, 4), 2, heads(2), D, capacity=400, R=R))


def test_decoding_behind_padding_is_within_the_budget(D, dtype):
    draw = Draw(dtype)
    lengths = torch.tensor([0, 5, 64, 256, 300, 300, 511], device=DEVICE)
    step = draw_step(draw, lengths, 3, heads(3), D, capacity=520)
    step = step._replace(starts=torch.tensor([0, 5, 63, 255, 0, 257, 511], device=DEVICE))
    check_step(step)


@pytest.mark.parametrize("T", [1, 8])
def test_what_no_query_sees_may_be_anything(T, D, dtype):
    draw = Draw(dtype)
    lengths = torch.tensor([0, 1, 100, 255, 256, 500], device=DEVICE)
    step = draw_step(draw, lengths, T, heads(T), D, capacity=520)
    step = step._replace(starts=torch.tensor([0, 1, 50, 0, 200, 257], device=DEVICE))
    place = torch.arange(520, device=DEVICE)
    unseen = (place >= lengths[:, None]) | (place < step.starts[:, None])
    step.keys[unseen] = step.values[unseen] = float("nan")
    check_step(step)


def test_a_decoded_row_does_not_depend_on_batch_and_capacity(D, dtype):
    draw = Draw(dtype)
    step = draw_step(draw, draw.below(500, 5), 2, 3, D, capacity=520)
    rows = []
    for b in range(5):
        q, k, v, keys, values, lengths = (x[b : b + 1].clone() for x in step[:6])
        longer = (torch.cat((cache, cache), dim=1) for cache in (keys, values))
        rows.append(DecodeStep(q, k, v, *longer, lengths, step.cos, step.sin))
    whole = decode(step)
    for b, row in enumerate(rows):
        assert torch.equal(decode(row)[0], whole[b])


def test_a_hundred_decoded_steps_give_the_same_bits(D, dtype):
    draw = Draw(dtype)
    step = draw_step(draw, draw.below(2000, 8), 1, 16, D, capacity=2048)
    first = decode(step)  # every run writes the same tokens to the same places
    assert all(torch.equal(decode(step), first) for _ in range(100))


def test_a_decode_step_is_captured_in_a_cuda_graph(dtype):
    draw = Draw(dtype)
    step = draw_step(draw, torch.tensor([3, 250], device=DEVICE), 1, 4, 256, capacity=300)
    step = step._replace(counters=torch.zeros(2, 4, dtype=torch.int32, device=DEVICE))
    eager = budget.on_own_cache(step)._replace(lengths=step.lengths.clone())

    def advance(step: DecodeStep) -> Tensor:
        out = decode_attention(step)
        step.lengths.add_(1)
        return out

    before = [x.clone() for x in (step.keys, step.values, step.lengths)]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        advance(step)  # loads the kernel, which capture does not allow
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = advance(step)
    for x, old in zip((step.keys, step.values, step.lengths), before, strict=True):
        x.copy_(old)
    for _ in range(20):  # across the border of a split
        graph.replay()
        assert torch.equal(captured, advance(eager))
    assert torch.equal(step.keys, eager.keys) and torch.equal(step.values, eager.values)


# --- the ops in torch ---


@contextmanager
def ops_called() -> Iterator[set[str]]:
    """Collects the names of the ops that run within, in the backward pass and in graphs too."""
    names: set[str] = set()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        yield names
    names.update(event.name for event in profile.events())


@pytest.mark.parametrize("T", [1, 40])
def test_opcheck_finds_nothing_on_cuda(T, dtype):
    q, k, v = (x.requires_grad_() for x in Draw(dtype).qkv(2, T, 40, 2, 64))
    starts = torch.tensor([0, 7], device=DEVICE)
    for given in (None, starts):
        torch.library.opcheck(torch.ops.kogpt.attention.default, (q, k, v, given))
        tensors = [x.detach() for x in (q, k, v, *forward(q, k, v, given))]
        grad_out = torch.randn_like(tensors[0])
        torch.library.opcheck(
            torch.ops.kogpt.attention_backward.default, (grad_out, *tensors, given)
        )


def test_opcheck_finds_nothing_in_decoding_on_cuda(dtype):
    step = draw_step(Draw(dtype), torch.tensor([3, 30], device=DEVICE), 2, 2, 64, capacity=48)
    counters = torch.zeros(2, 2, dtype=torch.int32, device=DEVICE)
    step = step._replace(counters=counters)
    torch.library.opcheck(torch.ops.kogpt.decode_attention.default, step)


def test_a_compiled_graph_gives_the_same_bits_forward_and_backward(D, dtype):
    compiled = torch.compile(attention, fullgraph=True)
    draw = Draw(dtype)
    grad_out = draw(2, 65, 2, D)
    results = []
    for function in (attention, compiled):
        q, k, v = (x.requires_grad_() for x in Draw(dtype, 1).qkv(2, 65, 65, 2, D))
        out = function(q, k, v)
        results.append((out, *torch.autograd.grad(out, (q, k, v), grad_out)))
    assert all(map(torch.equal, *results))


def test_a_compiled_decode_step_gives_the_same_bits(dtype):
    compiled = torch.compile(decode_attention, fullgraph=True)
    results = []
    for function in (decode_attention, compiled):
        step = draw_step(Draw(dtype), torch.tensor([3, 30], device=DEVICE), 1, 2, 256, capacity=48)
        results.append((function(step), step.keys, step.values))
    assert all(map(torch.equal, *results))


# --- end to end ---


class SdpaAttention(Attention):
    """Attention by PyTorch alone."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None) -> Tensor:
        return sdpa(q, k, v, starts)


class SdpaBlock(Block):
    attention_class = SdpaAttention


class SdpaKoGPT(KoGPT):
    block_class = SdpaBlock


def slice_of(config: KoGPTConfig, dtype: torch.dtype) -> tuple[KoGPT, KoGPT, KoGPT]:
    """One model three times: with the kernels, with SDPA, and the truth in float64."""
    torch.manual_seed(0)
    with torch.device(DEVICE):
        models = KoGPT(config), SdpaKoGPT(config), SdpaKoGPT(config)
    weights = {name: x.to(dtype) for name, x in models[0].state_dict().items()}
    dtypes = (dtype, dtype, torch.float64)
    for model, own in zip(models, dtypes, strict=True):
        model.to(own).load_state_dict(weights)
        model.eval()
    return models


@pytest.fixture(scope="module")
def full_width() -> tuple[KoGPT, KoGPT, KoGPT]:
    """Three layers of the released shape, with a small vocabulary."""
    require_kernels()
    return slice_of(KoGPTConfig(n_layer=3, vocab_size=4096), torch.bfloat16)


@pytest.mark.parametrize(
    "starts",
    [None, torch.tensor([0, 333]), packed_starts(700, 700)[1:3]],
    ids=["whole", "padded", "packed"],
)
@torch.no_grad()
def test_logits_of_a_slice_of_kogpt_are_within_the_budget(full_width, starts):
    ids = torch.randint(4096, (2, 700), device=DEVICE)
    starts = None if starts is None else starts.to(DEVICE)
    with ops_called() as ops:
        fused = full_width[0](ids, starts=starts)
    assert "kogpt::attention" in ops
    plain, truth = (model(ids, starts=starts) for model in full_width[1:])
    budget.check("logits", fused, truth, plain, factor=budget.FORWARD)


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@torch.no_grad()
def test_logits_of_cached_decoding_are_within_the_budget(full_width, padded):
    ids = torch.randint(4096, (2, 300), device=DEVICE)
    starts = torch.tensor([0, 77], device=DEVICE) if padded else None
    chunks = ids.split([200, 70, 8, 7] + [1] * 15, dim=1)
    results = []
    for model in full_width:
        cache = KVCache(300)
        logits = [model(chunk, cache=cache, starts=starts) for chunk in chunks]
        results.append(torch.cat(logits, dim=1))
    fused, plain, truth = results
    budget.check("logits", fused, truth, plain, factor=budget.FORWARD)


def test_gradients_of_a_model_are_within_the_budget():
    config = KoGPTConfig(n_layer=2, n_embd=1024, n_head=4, vocab_size=512, attn_pdrop=0.0)
    models = slice_of(config, torch.bfloat16)
    ids = torch.randint(512, (2, 258), device=DEVICE)
    grads = []
    for model in models:
        with ops_called() as ops:
            next_token_loss(model, ids[:, :-1], ids[:, 1:]).backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
        assert ("kogpt::attention_backward" in ops) == (model is models[0])
    fused, plain, truth = grads
    for name in truth:
        budget.check(name, fused[name], truth[name], plain[name], factor=budget.GRADIENT)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_training_runs_through_the_fused_backward(compiled, tmp_path):
    reviews = tmp_path / "reviews.txt"
    reviews.write_text("배우들의 연기가 참 좋았고 음악도 기억에 남는 영화였어요.\n" * 300)
    config = TrainingConfig(
        data=(reviews,),
        out=tmp_path / "run",
        model="nano",
        tokenizer=BOX,
        steps=2,
        batch_size=2,
        precision="bfloat16",
        compile=compiled,
        device=DEVICE,
        curve=False,
    )
    with ops_called() as ops:
        train(config)
    assert "kogpt::attention_backward" in ops


# --- compute-sanitizer ---

SANITIZED = """
import torch
from kogpt.kernels import step_attention, step_linear, step_norm
from tests.kernels.inputs import packed_starts
from tests.kernels.test_gpu import Draw, backward, decode, draw_step, heads, require_kernels
from tests.kernels.test_linear_gpu import rows_on_gpu, run, weight_on_gpu
from tests.kernels.test_step_gpu import Block
from tests.kernels.weights import FORMATS

require_kernels()
# A kernel of either dtype is the same source.
for dtype, D in ((torch.float16, 64), (torch.bfloat16, 128), (torch.bfloat16, 256)):
    draw = Draw(dtype)
    for T, S in ((1, 70), (9, 9), (65, 65), (20, 130)):
        q, k, v = draw.qkv(2, T, S, heads(T), D)
        for starts in (None, torch.tensor([0, S // 2]), packed_starts(T, S)[1:3]):
            backward(q, q, k, v, starts if starts is None else starts.cuda())
    for T in (1, 8):
        step = draw_step(draw, torch.tensor([0, 260], device="cuda"), T, 2, D, capacity=300)
        decode(step)
        counters = torch.zeros(2, 2, dtype=torch.int32, device="cuda")
        step_attention(step._replace(counters=counters), counters.new_zeros(1))
for bits, group in FORMATS:
    for offset in (False, True) if bits < 16 else (False,):
        weight = weight_on_gpu(bits, group, 45, 2048, dtype=torch.bfloat16, offset=offset)
        for M in (1, 8):
            x = rows_on_gpu(M, 2048, dtype=torch.bfloat16)
            run(x, weight)
            normed = step_norm(x, x[0], x[0], 1e-5)
            step_linear(normed, weight, gelu_from=9, residual=x[:, :45].clone())
        if bits < 16:
            torch.ops.kogpt.widen(*weight)
    block = Block(bits, group, 256, torch.bfloat16, 70)
    block.waiting(rows_on_gpu(1, 256, dtype=torch.bfloat16))
torch.cuda.synchronize()
print("every kernel ran")
"""


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer_finds_nothing(tool):
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    sanitizer = shutil.which("compute-sanitizer") or shutil.which(f"{home}/bin/compute-sanitizer")
    if sanitizer is None:
        pytest.skip("needs compute-sanitizer, which is part of the CUDA toolkit")
    done = subprocess.run(
        [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", SANITIZED],
        cwd=ROOT,
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},  # each tensor has its own bounds
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "every kernel ran" in done.stdout
