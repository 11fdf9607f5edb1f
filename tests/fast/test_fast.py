"""The model prepared for decoding computes what the model to read does.

Dimension key: `B` rows, `T` new tokens, `V` vocabulary.
"""

import contextlib
import copy
import dataclasses
import gc
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import kogpt
from kogpt.adapters import TARGETS, LoRAConfig, write_adapter
from kogpt.box import BOX
from kogpt.checkpoint import load_model, open_checkpoint, write_checkpoint
from kogpt.errors import InputRefusedError, NotEnoughResourcesError
from kogpt.fast import FastKoGPT, load_fast
from kogpt.fast.graph import Graphs, Recording, StepInput, _stream
from kogpt.fast.model import Norm
from kogpt.generation import PromptLookup, SamplingParams, generate
from kogpt.kernels import DecodeStep, Weight, building, extension_available
from kogpt.kernels.decode import decode_attention_reference
from kogpt.kernels.step import step_linear_reference
from kogpt.model import KoGPT, KoGPTConfig, KVCache
from tests.adapters.filled import trained_lora
from tests.checkpoint.test_convert import write_hollow
from tests.checkpoint.tiny import tiny_state
from tests.fast.conftest import FORMATS, GPTJS, SHAPES
from tests.kernels import budget
from tests.kernels.products import rounded
from tests.scale import scaled

ROOT = Path(__file__).parents[2]
PROMPTS = [
    "이 영화를 보고",
    "배우들의 연기는 좋았지만 이야기가",
    "음악이 참 좋아서 두 번",
    "10점 만점에",
    "처음부터 끝까지 눈을 뗄 수 없었다. 정말",
    "감독이 누구인지",
    "어릴 때 본 기억이 나서 다시 보았는데",
    "ㅋㅋㅋㅋ",
    "솔직히 말해서 기대하지 않고 보았는데 생각보다",
    "시간이 아깝다",
    "이런 영화는 처음이다. 한국 영화의",
    "마지막 장면에서 눈물이",
    "아이들과 함께",
    "별로",
    "주인공이 왜 그런 선택을 했는지 이해할 수 없었고, 결말도",
    "The movie was",
]

on_every_shape = pytest.mark.parametrize("shape", SHAPES)


def random_ids(B: int, T: int, V: int) -> Tensor:
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(T))


@torch.inference_mode()
def read(
    model: KoGPT, ids: Tensor, sizes: list[int] | None = None, starts: Tensor | None = None
) -> Tensor:
    """Logits of all ids: at once, or with a cache, so many at a time."""
    if sizes is None:
        return model(ids, starts=starts)
    cache = KVCache(ids.size(1))
    parts = [model(part, cache, starts) for part in ids.split(sizes, dim=1)]
    return torch.cat(parts, dim=1)


def assert_same(fast: Tensor, plain: Tensor) -> None:
    """To 1e-5 of the largest, in float32."""
    assert fast.shape == plain.shape and fast.dtype == plain.dtype == torch.float32
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-5 * plain.abs().max().item())


# ---- logits


WAYS = {
    "at once": None,
    "step by step": [1] * 40,
    "in chunks": [17, 3, 1, 8, 9, 2],
    "a prompt, then steps": [30, *[1] * 10],
    "several at a time": [5] * 8,
}


@pytest.mark.parametrize("way", WAYS)
@on_every_shape
def test_logits_are_those_of_the_model_to_read(tiny, shape, way):
    model, fast = tiny(shape)
    for B in (1, 3):
        ids = random_ids(B, 40, model.config.vocab_size)
        assert_same(read(fast, ids, WAYS[way]), read(model, ids))


def test_as_many_tokens_as_the_kernel_takes_are_few(tiny, monkeypatch):
    _, fast = tiny(next(iter(SHAPES)))
    if not fast.transformer.has_kernel:
        pytest.skip("such heads have no decode kernel")
    plain, read = type(fast.transformer).read_few, []

    def read_few(transformer, step, cache):
        read.append(step.input_ids.size(1))
        return plain(transformer, step, cache)

    monkeypatch.setattr(type(fast.transformer), "read_few", read_few)
    cache = KVCache(40)
    for T in (9, 8, 1, 10):
        fast(random_ids(1, T, 40), cache)
    assert read == [8, 1]


def test_no_texts_have_no_logits(tiny):
    model, fast = tiny(next(iter(SHAPES)))
    ids = torch.zeros(0, 12, dtype=torch.int64)
    for sizes in (None, [10, 1, 1]):
        assert read(fast, ids, sizes).shape == read(model, ids, sizes).shape


def norm(x: Tensor, *parameters: Tensor | float) -> Tensor:
    return Norm(*parameters)(x)


def product(x, weight, bias=None, *, gelu_from=None, residual=None, late=0, ready=None):
    start = weight.shape[0] if gelu_from is None else gelu_from
    return step_linear_reference(x, *weight, bias, start, residual)


def attend(step: DecodeStep, ready: Tensor) -> Tensor:
    return step.v.copy_(decode_attention_reference(step))


DEFINITIONS = {"step_norm": norm, "step_linear": product, "step_attention": attend}


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("shape", GPTJS)
def test_a_chain_of_kernels_has_the_same_logits(tiny, shape, padded, monkeypatch):
    """By the definitions of its ops; the kernels of a CPU serve it in all other tests."""
    model, fast = tiny(shape)
    if not fast.transformer.has_kernel:
        pytest.skip("such heads have no decode kernel")
    monkeypatch.setattr(fast.transformer, "has_chain", True)
    monkeypatch.setattr(fast.transformer, "has_block_op", False)
    for name in ("step_norm", "step_linear", "step_attention"):
        monkeypatch.setattr(f"kogpt.fast.model.{name}", DEFINITIONS[name])
    ids = random_ids(2, 40, model.config.vocab_size)
    starts = torch.tensor([0, 11]) if padded else None
    chained = read(fast, ids, [20, 8, 5, 2, *[1] * 5], starts)
    plain = read(model, ids, starts=starts)
    for row, start in enumerate([0, 11] if padded else [0, 0]):
        assert_same(chained[row : row + 1, start:], plain[row : row + 1, start:])


@pytest.mark.parametrize("way", WAYS)
@on_every_shape
def test_padded_rows_have_the_logits_that_they_have_alone(tiny, shape, way):
    model, fast = tiny(shape)
    ids, starts = random_ids(4, 40, model.config.vocab_size), torch.tensor([0, 1, 20, 39])
    logits = read(fast, ids, WAYS[way], starts)
    for row, start in zip(range(4), starts.tolist(), strict=True):
        assert_same(logits[row : row + 1, start:], read(model, ids[row : row + 1, start:]))


@on_every_shape
@torch.inference_mode()
def test_guesses_that_are_taken_back_leave_no_trace(tiny, shape):
    """Five tokens in a pass, of which some are wrong: the cache is cut and others follow."""
    model, fast = tiny(shape)
    ids = random_ids(2, 32, model.config.vocab_size)
    cache = KVCache(40)
    fast(ids[:, :10], cache)
    for first in range(10, 30, 2):
        guesses = torch.cat((ids[:, first : first + 2], ids[:, :3].flip(1)), dim=1)
        fast(guesses, cache)
        cache.truncate(first + 2)
    assert_same(fast(ids[:, 30:], cache), read(model, ids)[:, 30:])


@on_every_shape
@torch.inference_mode()
def test_rows_of_a_cache_may_be_chosen_and_repeated(tiny, shape):
    model, fast = tiny(shape)
    ids, rows = random_ids(3, 20, model.config.vocab_size), torch.tensor([2, 0, 2, 1])
    cache = KVCache(24)
    fast(ids[:, :15], cache)
    chosen = cache.select(rows)
    assert_same(fast(ids[rows, 15:16], chosen), read(model, ids)[rows, 15:16])
    assert_same(fast(ids[:, 15:16], cache), read(model, ids)[:, 15:16])


@on_every_shape
def test_a_cache_is_full_where_that_of_the_model_to_read_is(tiny, shape):
    model, fast = tiny(shape)
    for each in (model, fast):
        cache = KVCache(12)
        read_to = random_ids(1, 12, model.config.vocab_size)
        with torch.inference_mode():
            each(read_to, cache)
            with pytest.raises(ValueError, match="13 tokens do not fit a cache of 12"):
                each(read_to[:, :1], cache)
        with pytest.raises(ValueError, match="49 tokens exceed the model's context of 48"):
            read(each, random_ids(1, 49, model.config.vocab_size))


@pytest.mark.parametrize(
    "starts",
    [
        torch.tensor([[0, 0, 2, 2], [0, 1, 1, 3]]),
        torch.tensor([0, 2], dtype=torch.int32),
        torch.tensor([[0, 9], [2, 9]])[:, 0],
        torch.tensor([1]),
    ],
    ids=["of each token", "of 32 bits", "apart in memory", "one for all rows"],
)
@torch.inference_mode()
def test_starts_of_every_form_are_read_as_the_model_to_read_does(tiny, starts):
    model, fast = tiny("heads of 64")
    ids = random_ids(2, 4, model.config.vocab_size)
    found, expected = (each(ids, KVCache(8), starts) for each in (fast, model))
    # What lies before a row's start has logits of no meaning.
    seen = torch.arange(4) >= starts.view(len(starts), -1).expand(2, 4)
    assert_same(found[seen], expected[seen])


@torch.inference_mode()
def test_starts_below_zero_are_refused(tiny):
    _, fast = tiny("heads of 64")
    with pytest.raises(ValueError, match=r"starts are \[0, -900\], they must be at least 0"):
        fast(random_ids(2, 4, 333), KVCache(8), torch.tensor([0, -900]))


@torch.inference_mode()
def test_a_cache_of_other_rows_or_another_dtype_is_refused(tiny):
    _, fast = tiny("heads of 64")
    cache = KVCache(48)
    fast(random_ids(1, 5, 333), cache)
    with pytest.raises(ValueError, match="are 1 .* torch.float32 cpu and would be 4 "):
        fast(random_ids(4, 1, 333), cache)
    narrow = KVCache(48)
    narrow.buffers(0, *(cache.buffers(0, *[torch.empty(0)] * 2)[0][:, :1].bfloat16(),) * 2)
    with pytest.raises(ValueError, match="torch.bfloat16 cpu and would be 1 .* torch.float32 cpu"):
        fast(random_ids(1, 1, 333), narrow)


def test_a_cache_longer_than_the_context_serves(tiny):
    model, fast = tiny("heads of 64")
    ids, cache = random_ids(1, 48, 333), KVCache(100)
    with torch.inference_mode():
        parts = [fast(part, cache) for part in ids.split(6, dim=1)]
        assert_same(torch.cat(parts, dim=1), read(model, ids))
        with pytest.raises(ValueError, match="49 tokens exceed the model's context of 48"):
            fast(ids[:, :1], cache)


@pytest.mark.parametrize("way", WAYS)
def test_logits_of_the_model_in_the_box_are_those_of_the_model_to_read(nano, way):
    model, fast = nano
    ids = random_ids(2, 40, 8000)
    assert_same(read(fast, ids, WAYS[way]), read(model, ids))
    starts = torch.tensor([0, 13])
    assert_same(read(fast, ids, WAYS[way], starts)[1:, 13:], read(model, ids[1:, 13:]))


# ---- what is generated


@pytest.fixture(scope="module")
def tokenizer():
    return kogpt.load_tokenizer()


def ids_of(model: KoGPT, tokenizer, prompts: list[str], **options) -> list[tuple[int, ...]]:
    how = {
        name: options.pop(name)
        for name in ("batch_size", "use_cache", "speculate")
        if name in options
    }
    params = SamplingParams(**{"temperature": 0, "max_new_tokens": 64, **options})
    return [tuple(one.token_ids) for one in generate(model, tokenizer, prompts, params, **how)]


@pytest.mark.parametrize("batch_size", [1, 8])
def test_greedy_text_is_that_of_the_model_to_read(nano, tokenizer, batch_size):
    """In a batch, prompts of many lengths are padded."""
    prompts = PROMPTS[: scaled(8, 16)] if batch_size == 1 else PROMPTS
    how = {"batch_size": batch_size, "min_new_tokens": 64}
    plain, fast = (ids_of(each, tokenizer, prompts, **how) for each in nano)
    assert fast == plain and set(map(len, plain)) == {64}


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3, "max_new_tokens": 20},
        {"num_beams": 4, "n": 2, "max_new_tokens": 12},
        {"temperature": 0.8, "n": 3, "seed": 1, "max_new_tokens": 20},
        {"use_cache": False, "max_new_tokens": 12},
        {"speculate": PromptLookup()},
        {"logprobs": 2, "echo": True, "max_new_tokens": 12},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
    ],
    ids=str,
)
def test_all_that_generation_does_it_does_with_the_prepared_model(nano, tokenizer, options):
    plain, fast = (ids_of(each, tokenizer, PROMPTS[:3], **options) for each in nano)
    assert fast == plain


@pytest.mark.parametrize("way", [0, 1], ids=["plain", "fast"])
def test_threads_that_share_a_model_get_the_texts_that_each_gets_alone(nano, tokenizer, way):
    def written(prompt: str) -> list[tuple[int, ...]]:
        return ids_of(nano[way], tokenizer, [prompt], seed=1, temperature=0.9, max_new_tokens=24)

    alone = list(map(written, PROMPTS[:8]))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(written, PROMPTS[:8])) == alone


@torch.inference_mode()
def test_in_bfloat16_choices_are_those_that_rounding_leaves_no_doubt_of(box, nano, tokenizer):
    """Where two logits in float32 are nearer than rounding moves them, either token will do."""
    folder, exact = box("bfloat16"), load_model(box("bfloat16"), dtype=torch.float32)
    plain, fast = load_model(folder), load_fast(folder)
    assert fast.dtype == torch.bfloat16
    truths, others, found = [], [], []
    for prompt in PROMPTS:
        (new,) = ids_of(exact, tokenizer, [prompt], batch_size=1)
        ids = torch.tensor([[*tokenizer.encode(prompt), *new]])
        sizes = [ids.size(1) - len(new), *[1] * len(new)]
        truths.append(read(exact, ids)[0])
        others.append(read(plain, ids)[0])
        found.append(read(fast, ids, sizes)[0])
    truth, fast_logits = torch.cat(truths), torch.cat(found)
    off, fast_off = torch.cat(others) - truth, fast_logits - truth
    assert fast_off.square().mean() <= off.square().mean()  # it rounds in fewer places
    noise = off.abs().max()
    assert fast_off.abs().max() <= 1.5 * noise  # the worst of two million logits is luck
    top = truth.topk(2).values
    sure = top[:, 0] - top[:, 1] > 3 * noise  # each of the two may move by 1.5 times the noise
    assert fast_logits.argmax(-1)[sure].equal(truth.argmax(-1)[sure])
    assert sure.sum() > 100


# ---- formats


def rounds_its_inputs(model: KoGPT, fast: FastKoGPT) -> KoGPT:
    """The model with the maths of the kernels: rows of x in integers, block by block."""

    def hook(weight: Weight) -> Callable:
        def round_input(_: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
            rows = given[0].flatten(0, -2)
            return (rounded(rows, weight).view(given[0].shape),)

        return round_input

    for block, prepared in zip(model.transformer.h, fast.transformer.blocks, strict=True):
        attn, mlp = block.attn, block.mlp
        for module in (attn.q_proj, attn.k_proj, attn.v_proj, mlp.fc_in):
            module.register_forward_pre_hook(hook(prepared.enter.linears[0].weight))
        for module in (attn.out_proj, mlp.fc_out):
            module.register_forward_pre_hook(hook(prepared.leave.linears[0].weight))
    if fast.lm_head.weight.scale is not None:
        model.lm_head.register_forward_pre_hook(hook(fast.lm_head.weight))
    return model


QUANTISED = [name for name in FORMATS if name.startswith("int")]


@pytest.mark.parametrize("name", QUANTISED)
@pytest.mark.parametrize("way", ["at once", "step by step", "several at a time"])
def test_logits_of_integers_are_within_the_budget_of_the_kernels(box, name, way):
    """Against the dequantised model in float64; the yardstick rounds inputs as kernels do."""
    model, fast = (load(box(name), dtype=torch.float32) for load in (load_model, load_fast))
    ids = random_ids(8 if way == "at once" else 1, 40, 8000)
    truth = read(copy.deepcopy(model).double(), ids)
    low = read(rounds_its_inputs(model, fast), ids, WAYS[way])
    budget.check(name, read(fast, ids, WAYS[way]), truth, low, factor=budget.FORWARD)


@pytest.mark.parametrize("name", QUANTISED)
def test_integers_stay_in_memory_as_they_are_stored(box, name):
    folder = box(name)
    fast = load_fast(folder)
    with open_checkpoint(folder) as reader:
        stored = {key: reader.stored_as(key) for key in reader.names}
        config = reader.require_config()
    bits = 8 if name == "int8" else 4
    assert stored["transformer.h.0.attn.q_proj.weight"] == f"int{bits}"
    C, F = config.n_embd, config.inner_dim
    for block in fast.transformer.blocks:
        for (product, *_), numbers in (
            (block.enter.linears, (3 * C + F) * C),
            (block.leave.linears, C * (C + F)),
        ):
            assert product.weight.bits == bits
            assert product.weight.values.nbytes == numbers * bits // 8
    head = fast.lm_head.weight
    assert (head.bits == 8) == (stored["lm_head.weight"] == "int8")
    # Beside them: scales, norms and biases, which are a small part, and the head where it is float.
    values = sum(product.weight.values.nbytes for product in list(fast.linears())[:-1])
    others = sum(x.nbytes for x in fast.streamed()) - values - head.values.nbytes
    assert others < 0.2 * (values + head.values.nbytes)


def test_a_float16_folder_is_kept_and_computed_with_in_float32(box):
    if not extension_available(torch.device("cpu")):
        pytest.skip("no kernels for this processor, see above")
    folder = box("float16")
    model, fast = load_model(folder), load_fast(folder)
    for product in fast.linears():
        assert product.weight.values.dtype == torch.float16 and product.bias.dtype == torch.float32
    assert fast.dtype == torch.float32
    cache = KVCache(8)
    ids = random_ids(1, 8, 8000)
    with torch.inference_mode():
        logits = fast(ids, cache)
    assert all(part.dtype == torch.float32 for layer in cache._layers.values() for part in layer)
    assert_same(logits, read(model, ids))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_dtype_that_is_asked_for_is_that_of_weights_and_activations(box, dtype):
    fast = load_fast(box("float16"), dtype=dtype)
    assert {x.dtype for x in fast.streamed()} == {dtype} and fast.dtype == dtype


# ---- what it is


def test_it_is_loaded_with_one_word_and_is_the_model_in_its_calls(nano):
    model, tokenizer = kogpt.load(fast=True)
    assert isinstance(model, FastKoGPT) and not model.training
    assert model.device == torch.device("cpu") and model.config == nano[0].config
    assert tokenizer.decode(tokenizer.encode("영화")) == "영화"
    assert not list(model.parameters())
    for move in (lambda: model.to(torch.bfloat16), model.half, lambda: model.to("meta")):
        with pytest.raises(TypeError, match="stays as it is"):
            move()
    with pytest.raises(TypeError, match="no state to save: use kogpt.load_model"):
        model.state_dict()


def test_what_a_token_reads_is_all_but_the_embedding(nano):
    model, fast = nano
    counted = sum(x.numel() for x in fast.streamed())
    config = model.config
    zeros = config.n_layer * 3 * config.n_embd  # biases of q, k and v, which the fused product has
    assert counted == config.num_parameters - model.transformer.wte.weight.numel() + zeros


def test_a_shortage_of_memory_is_told_before_loading(tmp_path):
    """A checkpoint of terabytes, all of it a hole in its file."""
    write_hollow(tmp_path, KoGPTConfig(n_embd=8192, n_layer=1000))
    needed = "memory on cpu: {:.2f} GB needed"
    with pytest.raises(NotEnoughResourcesError, match=needed.format(1612.91)):
        load_fast(tmp_path, dtype="float16")
    kept = extension_available(torch.device("cpu"))  # in 16 bits, though computed with in 32
    with pytest.raises(NotEnoughResourcesError, match=needed.format(1612.91 if kept else 3225.75)):
        load_fast(tmp_path)


@pytest.mark.parametrize(("packs", "needed"), [(True, 1227.05), (False, 1612.91)])
def test_weights_that_will_be_packed_need_12_bits(tmp_path, monkeypatch, packs, needed):
    write_hollow(tmp_path, KoGPTConfig(n_embd=8192, n_layer=1000))
    monkeypatch.setattr("kogpt.fast.loading.packs", lambda K: packs)
    with pytest.raises(NotEnoughResourcesError, match=f"memory on cpu: {needed:.2f} GB needed"):
        load_fast(tmp_path, dtype="bfloat16")


WITHOUT_COMPILER = """
import torch
from kogpt.checkpoint import load_model
from kogpt.fast import load_fast
from kogpt.kernels import extension_available
from kogpt.model import KVCache
import sys

ids = torch.arange(100, 112)[None]
for folder in sys.argv[1:]:
    model, fast = load_model(folder, dtype=torch.float32), load_fast(folder)
    assert fast.dtype == torch.float32
    cache = KVCache(12)
    with torch.inference_mode():
        logits = torch.cat([fast(part, cache) for part in ids.split([5, 1, 1, 3, 2], 1)], 1)
        plain = model(ids)
    torch.testing.assert_close(logits, plain, rtol=0, atol=1e-5 * plain.abs().max().item())
assert not extension_available(torch.device("cpu"))
print("the same")
"""


def test_without_a_compiler_it_is_slower_and_says_so_once(box, tmp_path):
    if (building.HERE / "library_cpu.json").exists():
        pytest.skip("this install has its kernels compiled")
    environment = {**os.environ, "CXX": "no-such-compiler", "XDG_CACHE_HOME": str(tmp_path)}
    folders = map(str, (BOX, box("int8"), box("int4")))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_COMPILER, *folders],
        env=environment,
        cwd=ROOT,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0 and done.stdout == "the same\n", done.stderr
    (line,) = done.stderr.splitlines()
    assert "no CPU kernels, using PyTorch's slower operators" in line and "no-such-compiler" in line


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_does_not_reach_into_a_prepared_model(dtype):
    fast, ids = load_fast(dtype=dtype), torch.tensor([list(range(5, 45))])
    expected = []
    for enabled in (False, True):
        cache = KVCache(64)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            expected.append((fast(ids, cache), fast(ids[:, :1], cache)))
    assert all(a.equal(b) for a, b in zip(*expected, strict=True))


def test_a_prepared_model_goes_when_nobody_holds_it():
    model, _ = kogpt.load(fast=True)
    weights = weakref.ref(model.transformer)
    gc.disable()
    try:
        del model
        assert weights() is None
    finally:
        gc.enable()


@pytest.fixture
def entered(monkeypatch):
    """Devices that a recording enters, where there need be none."""
    devices = []

    @contextlib.contextmanager
    def recording(graph: object, stream: SimpleNamespace, **_: str) -> Iterator[None]:
        devices.append(stream.device)
        yield

    @contextlib.contextmanager
    def current(device: torch.device) -> Iterator[None]:
        devices.append(device)
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: SimpleNamespace(device=device))
    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr(torch.cuda, "device", current)
    _stream.cache_clear()
    yield devices
    _stream.cache_clear()


def test_a_graph_is_recorded_on_the_device_of_the_model(monkeypatch, entered):
    """Which need not be the current one, of whose streams torch would take one else."""
    monkeypatch.setattr(Recording, "replay", lambda self, step: self.hidden)
    cache, graphs = KVCache(8), Graphs()
    with FakeTensorMode():
        ids = torch.zeros(1, 1, dtype=torch.int64, device="cuda:1")
        for _ in range(2):  # the second of its kind is recorded
            graphs(lambda step, _: step.input_ids + 1, StepInput(ids, ids[0], None), cache)
    assert entered == [torch.device("cuda:1")] * 2


@pytest.mark.usefixtures("entered")
def test_a_graph_recorded_in_inference_mode_is_replayed_out_of_it():
    cache, graphs = KVCache(8), Graphs()
    step = StepInput(torch.ones(1, 1, dtype=torch.int64), torch.zeros(1), torch.zeros(1))
    with torch.inference_mode():
        for _ in range(2):
            graphs(lambda step, _: step.input_ids.float(), step, cache)
    with torch.no_grad():  # what a caller of the model may well have
        graphs(lambda step, _: step.input_ids.float(), step, cache)


def test_matrices_read_in_pieces_are_those_read_at_once(tmp_path, monkeypatch):
    config = SHAPES["an inner width of its own"]
    write_checkpoint(tmp_path / "model", config, tiny_state(config))
    model = load_model(tmp_path / "model")
    trained_lora(model, LoRAConfig(TARGETS, rank=3), 1)
    write_adapter(tmp_path / "adapter", model, tmp_path / "model")
    for adapters in ([], [str(tmp_path / "adapter")]):
        whole = load_fast(tmp_path / "model", adapters=adapters)
        with monkeypatch.context() as patch:
            patch.setattr("kogpt.fast.loading.PIECE", 10_000)
            sliced = load_fast(tmp_path / "model", adapters=adapters)
        for a, b in zip(sliced.streamed(), whole.streamed(), strict=True):
            assert torch.equal(a, b)


def test_a_checkpoint_of_other_shapes_is_refused(tmp_path):
    config = SHAPES["heads of 8"]
    write_checkpoint(tmp_path / "model", config, tiny_state(config))
    other = dataclasses.replace(config, vocab_size=300)
    (tmp_path / "model" / "config.json").write_text(json.dumps(other.to_dict()))
    with pytest.raises(InputRefusedError, match="transformer.wte.weight"):
        load_fast(tmp_path / "model")
