"""The prepared model on a GPU: `pytest -m gpu`. Every test skips, with the reason, where none is.

The second step of its kind is recorded as a CUDA graph and all later ones replay it, so each test
takes several steps of every kind.

Dimension key: `B` rows, `T` new tokens.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import kogpt
from kogpt.box import BOX
from kogpt.checkpoint import load_model, write_checkpoint
from kogpt.fast import FastKoGPT, load_fast
from kogpt.generation import PromptLookup, SamplingParams, generate
from kogpt.model import KoGPT, KoGPTConfig, KVCache
from kogpt.model.variants import GPT2Config, GPTNeoXConfig
from tests.checkpoint.tiny import tiny_state
from tests.fast.conftest import FORMATS
from tests.fast.test_fast import PROMPTS
from tests.kernels import budget, test_gpu
from tests.kernels.test_gpu import DEVICE, ops_called

pytestmark = pytest.mark.gpu

CONFIG = KoGPTConfig(
    vocab_size=999, n_positions=320, n_embd=512, n_layer=2, n_head=2, rotary_dim=64
)
NEOX = GPTNeoXConfig(
    vocab_size=999, n_positions=320, n_embd=512, n_layer=2, n_head=4, rotary_dim=64
)
GPT2 = GPT2Config(vocab_size=999, n_positions=320, n_embd=512, n_layer=2, n_head=8)
Models = tuple[FastKoGPT, KoGPT, KoGPT]


@pytest.fixture(autouse=True)
def kernels() -> None:
    test_gpu.require_kernels()


@pytest.fixture(scope="module", params=[torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def models(request, tmp_path_factory) -> Models:
    """Prepared; the model to read in the same dtype; the truth in float64."""
    test_gpu.require_kernels()
    return load(CONFIG, request.param, tmp_path_factory.mktemp("gpu") / "model")


def load(config: KoGPTConfig, dtype: torch.dtype, folder: Path) -> Models:
    write_checkpoint(folder, config, tiny_state(config, dtype))
    truth = load_model(folder, dtype=torch.float32, device=DEVICE).double()
    return load_fast(folder, device=DEVICE), load_model(folder, device=DEVICE), truth


def random_ids(B: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(999, (B, count), generator=generator).to(DEVICE)


@torch.inference_mode()
def read(
    model: KoGPT, ids: Tensor, sizes: list[int], starts: Tensor | None = None, capacity: int = 320
) -> Tensor:
    cache = KVCache(capacity)
    return torch.cat([model(part, cache, starts) for part in ids.split(sizes, dim=1)], dim=1)


STEPS = {"one at a time": 1, "two at a time": 2, "five at a time": 5, "eight at a time": 8}


@pytest.mark.parametrize("T", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_replayed_steps_are_within_the_error_budget(models, padded, T):
    ids = random_ids(3, 200 + 40)
    starts = torch.tensor([0, 7, 199], device=DEVICE) if padded else None
    sizes = [200, *[T] * (40 // T)]
    fast, plain, truth = (read(model, ids, sizes, starts) for model in models)
    budget.check("logits", fast, truth, plain, factor=budget.FORWARD)


@pytest.mark.parametrize("T", [1, 5])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("config", [NEOX, GPT2], ids=["GPT-NeoX", "GPT-2"])
def test_so_are_those_of_the_neighbours(config, dtype, padded, T, tmp_path):
    models = load(config, dtype, tmp_path / "model")
    assert models[0].transformer.has_kernel
    test_replayed_steps_are_within_the_error_budget(models, padded, T)


def test_steps_replay_a_graph_of_the_kernels(models):
    fast, ids, cache = models[0], random_ids(1, 30), KVCache(64)
    with torch.inference_mode():
        for part in ids.split(1, dim=1):
            fast(part, cache)
        with ops_called() as ops:
            fast(ids[:, :1], cache)
    assert "cudaGraphLaunch" in ops
    # They are in the graph, and not called again.
    assert not {"kogpt::step_norm", "kogpt::step_linear", "kogpt::step_attention"} & set(ops)


def test_a_model_need_not_be_on_the_current_device(models, tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    write_checkpoint(tmp_path / "model", CONFIG, tiny_state(CONFIG, torch.bfloat16))
    other = load_fast(tmp_path / "model", device=torch.device("cuda", 1))
    here = load_fast(tmp_path / "model", device=torch.device("cuda", 0))
    ids = random_ids(1, 30)
    found = read(other, ids.to(other.device), [10, *[1] * 20])
    assert torch.equal(found.cpu(), read(here, ids.to(here.device), [10, *[1] * 20]).cpu())


def test_the_graphs_of_two_caches_do_not_meet(models):
    """Steps in turns, on caches of different rows, have the bits of steps on one cache alone."""
    fast, ids = models[0], random_ids(2, 60)
    alone = [read(fast, ids[b : b + 1], [20, *[1] * 40], capacity=100 + b) for b in range(2)]
    caches = [KVCache(100), KVCache(101)]
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    with torch.inference_mode():
        for part in ids.split([20, *[1] * 40], dim=1):
            for b, (cache, logits) in enumerate(zip(caches, parts, strict=True)):
                logits.append(fast(part[b : b + 1], cache))
    for logits, expected in zip(parts, alone, strict=True):
        assert torch.cat(logits, dim=1).equal(expected)


def test_a_result_is_not_overwritten_by_the_next_step(models):
    fast, ids, cache = models[0], random_ids(1, 12), KVCache(32)
    with torch.inference_mode():
        hidden = [fast.transformer(part, cache) for part in ids.split(1, dim=1)]
        kept = [part.clone() for part in hidden]
        fast(ids[:, :1], cache)
    assert all(map(torch.equal, hidden, kept))


def test_rows_that_are_chosen_go_on_as_they_would_have(models):
    """A chosen cache is another: it is recorded anew, and the old one replays as before."""
    fast, ids = models[0], random_ids(3, 60)
    rows = torch.tensor([2, 0, 2], device=DEVICE)
    expected = read(fast, ids, [20, *[1] * 40])
    cache = KVCache(320)
    with torch.inference_mode():
        for part in ids[:, :40].split([20, *[1] * 20], dim=1):
            fast(part, cache)
        chosen = cache.select(rows)
        for first in range(40, 60):
            step = ids[:, first : first + 1]
            assert fast(step[rows], chosen).equal(expected[rows, first : first + 1])
            assert fast(step, cache).equal(expected[:, first : first + 1])


def test_guesses_that_are_taken_back_leave_no_trace(models):
    fast, plain, truth = models
    ids, cache = random_ids(1, 120), KVCache(140)
    logits = []
    with torch.inference_mode():
        fast(ids[:, :40], cache)
        for first in range(40, 120, 2):  # five in a pass, of which two are right
            guesses = torch.cat((ids[:, first : first + 2], ids[:, :3]), dim=1)
            logits.append(fast(guesses, cache)[:, :2])
            cache.truncate(first + 2)
        low, exact = plain(ids)[:, 40:], truth(ids)[:, 40:]
    budget.check("logits", torch.cat(logits, 1), exact, low, factor=budget.FORWARD)


def test_a_cache_that_is_let_go_takes_its_graphs_with_it(models):
    fast, ids = models[0], random_ids(1, 30)

    def held() -> int:
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    read(fast, ids, [1] * 30)
    before = held()
    for _ in range(5):
        read(fast, ids, [1] * 30)
    assert held() <= before


# ---- the model in the box


def choices_are_sound(folder, fast: KoGPT, tokenizer) -> int:
    """Asserts greedy text against the float32 logits of its own path; gives the tokens decided.

    Where the two best logits are nearer than rounding moves them, either token will do.
    """
    exact = load_model(folder, dtype=torch.float32, device=DEVICE)
    plain = load_model(folder, dtype=fast.dtype, device=DEVICE)
    params, decided = SamplingParams(temperature=0, max_new_tokens=64), 0
    for prompt in map(tokenizer.encode, PROMPTS):
        (result,) = generate(fast, tokenizer, [prompt], params)
        ids = torch.tensor([[*prompt, *result.token_ids]], device=DEVICE)
        with torch.inference_mode():
            truth, low = exact(ids)[0, :-1], plain(ids)[0, :-1]
        noise = (low - truth).abs().max()
        top = truth.topk(2).values
        new = slice(-len(result.token_ids), None)
        sure = (top[:, 0] - top[:, 1] > 4 * noise)[new]
        assert truth.argmax(-1)[new][sure].equal(ids[0, 1:][new][sure])
        decided += int(sure.sum())
    return decided


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_greedy_text_is_that_of_the_model_to_read_but_for_rounding(dtype):
    fast = load_fast(BOX, dtype=dtype, device=DEVICE)
    assert choices_are_sound(BOX, fast, kogpt.load_tokenizer()) > 30


@pytest.mark.parametrize("name", [name for name in FORMATS if name.startswith("int")])
def test_greedy_text_of_integers_is_that_of_the_dequantised_model(box, name):
    fast = load_fast(box(name), dtype=torch.bfloat16, device=DEVICE)
    assert choices_are_sound(box(name), fast, kogpt.load_tokenizer()) > 30


def test_guessing_ahead_gives_the_text_without_but_for_rounding():
    """Rounding differs between one token a pass and several, so texts may part at a near tie."""
    model, tokenizer = kogpt.load(dtype=torch.bfloat16, device=DEVICE, fast=True)
    params = SamplingParams(temperature=0, max_new_tokens=48)
    plain = generate(model, tokenizer, PROMPTS, params, batch_size=1)
    guessed = generate(model, tokenizer, PROMPTS, params, batch_size=1, speculate=PromptLookup())
    same = [a.token_ids == b.token_ids for a, b in zip(plain, guessed, strict=True)]
    assert sum(same) >= len(PROMPTS) * 3 / 4
