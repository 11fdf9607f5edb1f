"""Every change of the README's "Changing the architecture" trains, decodes, saves and loads."""

import inspect
import re
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kogpt import SamplingParams, generate
from kogpt.checkpoint import load_model
from kogpt.checkpoint.writer import write_checkpoint
from kogpt.errors import InputRefusedError
from kogpt.kernels.attention import attention_mask
from kogpt.model import KoGPT, KoGPTConfig, KVCache, transformer
from kogpt.model.variants import gpt2, gpt_neox, parts
from kogpt.tokenizer import load_tokenizer
from kogpt.training.loss import next_token_loss
from tests.model import swaps

CONFIG = KoGPTConfig(
    vocab_size=53,
    n_positions=48,
    n_embd=32,
    n_layer=2,
    n_head=4,
    rotary_dim=8,
    n_inner=40,
    attn_pdrop=0.0,
    embd_pdrop=0.0,
)
UNROTATED = replace(CONFIG, rotary_dim=0)


class ShortWindow(swaps.SlidingWindow):
    window = 7  # of 48 positions, so that it matters


class ShortWindowBlock(swaps.SlidingWindowBlock):
    attention_class = ShortWindow


class WithShortWindow(swaps.WithSlidingWindow):
    block_class = ShortWindowBlock


# Class, config, and the tensor that a checkpoint of KoGPT is refused for; None where it fits.
SWAPS: dict[str, tuple[type[KoGPT], KoGPTConfig, str | None]] = {
    "SwiGLU": (swaps.WithSwiGLU, CONFIG, "transformer.h.0.mlp.fc_gate.weight is missing"),
    "RMSNorm": (swaps.WithRMSNorm, CONFIG, "transformer.h.0.ln_1.bias is no part of a WithRMSNorm"),
    "sliding window": (WithShortWindow, CONFIG, None),
    "grouped queries": (
        swaps.WithGroupedQueries,
        CONFIG,
        r"transformer.h.0.attn.k_proj.weight has shape \[32, 32\], the config asks for \[16, 32\]",
    ),
    "sequential": (swaps.WithSequentialResidual, CONFIG, "transformer.h.0.ln_2.weight is missing"),
    "learned positions": (
        swaps.WithLearnedPositions,
        UNROTATED,
        "transformer.wpe.weight is missing",
    ),
    "ALiBi": (swaps.WithALiBi, UNROTATED, None),
    "NTK scaling": (swaps.WithNTKScaling, CONFIG, None),
    "half rotation": (swaps.WithHalfRotation, CONFIG, None),
    "tied head": (swaps.WithTiedHead, CONFIG, "lm_head.weight is no part of a WithTiedHead"),
}


@pytest.fixture(params=SWAPS)
def swap(request) -> tuple[type[KoGPT], KoGPTConfig, str | None]:
    return SWAPS[request.param]


@pytest.fixture
def model(swap) -> KoGPT:
    return filled(swap[0], swap[1])


def filled(model_class: type[KoGPT], config: KoGPTConfig) -> KoGPT:
    """A model whose parameters are all random, so that none can be left out unseen."""
    torch.manual_seed(0)
    model = model_class(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def draw(batch: int, length: int, below: int = 53) -> torch.Tensor:
    return torch.randint(below, (batch, length), generator=torch.Generator().manual_seed(1))


def write(model: KoGPT, folder: Path) -> Path:
    write_checkpoint(folder, model.config, model.state_dict(), model_class=type(model))
    return folder


def test_it_is_another_function_than_kogpt(swap, model):
    ids = draw(2, 48)
    torch.manual_seed(0)
    plain = filled(KoGPT, CONFIG)
    own = dict(plain.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in own and own[name].shape == parameter.shape:
                parameter.copy_(own[name])
        assert (model(ids) - plain(ids)).abs().max() > 1e-3


def test_it_learns_a_text_by_heart_and_every_parameter_has_a_gradient(swap):
    model_class, config, _ = swap
    torch.manual_seed(0)
    model = model_class(config).train()
    ids = draw(2, 24)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        for name, parameter in model.named_parameters():
            used = parameter.grad[:23] if name.endswith("wpe.weight") else parameter.grad
            assert used is not None and used.abs().sum() > 0, name
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_training_takes_the_loss_and_the_gradients_of_its_logits(model):
    ids = draw(2, 25)
    taken = next_token_loss(model, ids[:, :-1], ids[:, 1:])
    logits = model(ids[:, :-1]).flatten(0, 1)
    loss = F.cross_entropy(logits, ids[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(taken, loss)
    parameters = list(model.parameters())
    gradients, expected = (torch.autograd.grad(each, parameters) for each in (taken, loss))
    torch.testing.assert_close(gradients, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("chunk", [1, 5, 47])
@torch.no_grad()
def test_it_decodes_with_the_cache_as_without(model, chunk):
    ids = draw(2, 48)
    cache = KVCache(48)
    pieces = [model(part, cache) for part in ids.split(chunk, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), model(ids), atol=2e-5, rtol=0)


@torch.no_grad()
def test_rows_padded_on_the_left_equal_single_runs(model):
    ids, starts = draw(2, 30), torch.tensor([0, 9])
    padded = ids.clone()
    padded[1, 9:] = ids[1, :21]
    cache = KVCache(30)
    parts = [model(part, cache, starts) for part in padded.split([20, 1, 9], dim=1)]
    alone = model(ids[1:, :21])
    torch.testing.assert_close(torch.cat(parts, 1)[1:, 9:], alone, atol=2e-5, rtol=0)


@torch.no_grad()
def test_it_saves_and_loads_to_the_same_logits(swap, model, tmp_path):
    folder = write(model, tmp_path / "model")
    loaded = swap[0].from_pretrained(folder)
    assert type(loaded) is swap[0]
    assert torch.equal(loaded(draw(2, 40)), model(draw(2, 40)))


def test_a_checkpoint_that_does_not_fit_is_refused_by_name(swap, model, tmp_path):
    message = swap[2]
    plain = write(filled(KoGPT, swap[1]), tmp_path / "plain")
    if message is None:
        assert type(swap[0].from_pretrained(plain)) is swap[0]
        return
    with pytest.raises(InputRefusedError, match=message):
        swap[0].from_pretrained(plain)
    with pytest.raises(InputRefusedError, match="transformer|lm_head"):
        load_model(write(model, tmp_path / "model"))


def test_it_writes_korean(swap):
    tokenizer = load_tokenizer()
    config = replace(swap[1], vocab_size=tokenizer.vocab_size)
    params = SamplingParams(max_new_tokens=12, seed=3, temperature=1.0)
    model = filled(swap[0], config)
    (one,) = generate(model, tokenizer, "이 영화는", params)
    several = generate(model, tokenizer, ["이 영화는", "배우들 연기가 정말"], params)
    assert several[0].token_ids == one.token_ids and len(one.token_ids) == 12


@dataclass(frozen=True)
class WindowConfig(KoGPTConfig):
    """What tells checkpoints apart whose names and shapes are the same."""

    model_type: ClassVar[str] = "gptj-window"
    window: int = 7


class Window(WithShortWindow):
    config_class = WindowConfig


def test_a_twin_with_a_model_type_of_its_own_is_not_taken_for_kogpt(tmp_path):
    twin = write(filled(Window, WindowConfig(**{**vars(CONFIG), "window": 9})), tmp_path / "twin")
    with pytest.raises(InputRefusedError, match="model_type is 'gptj-window'; known are gptj"):
        load_model(twin)
    with pytest.raises(InputRefusedError, match="model_type is 'gptj-window', this model's is"):
        KoGPT.from_pretrained(twin)
    loaded = Window.from_pretrained(twin)
    assert loaded.config.window == 9
    plain = write(filled(KoGPT, CONFIG), tmp_path / "plain")
    assert Window.from_pretrained(plain).config.window == 7  # what it was made from


@torch.no_grad()
def test_the_sliding_window_sees_so_many_tokens_and_no_more():
    model = filled(WithShortWindow, replace(CONFIG, n_layer=1))
    ids = draw(1, 30)
    changed = ids.clone()
    changed[0, 10] = (ids[0, 10] + 1) % 53
    moved = (model(ids) - model(changed)).abs().amax(dim=-1)[0] > 1e-6
    assert moved.nonzero().flatten().tolist() == list(range(10, 17))


@torch.no_grad()
def test_alibi_is_the_sum_of_scores_and_distances_by_its_slopes():
    q, k, v = torch.randn(3, 2, 12, 4, 8, generator=torch.Generator().manual_seed(0))
    layer = swaps.ALiBi(UNROTATED, 0)
    slopes = torch.tensor([2**-2, 2**-4, 2**-6, 2**-8])  # Press et al. 2022, section 3
    bias = torch.zeros(4, 12, 12)
    for i in range(12):
        for j in range(12):
            bias[:, i, j] = slopes * (j - i)
    bias.masked_fill_(~attention_mask(12, 12, None, q.device)[0], float("-inf"))
    heads = (x.transpose(1, 2) for x in (q, k, v))
    expected = F.scaled_dot_product_attention(*heads, attn_mask=bias).transpose(1, 2)
    torch.testing.assert_close(layer.attend(q, k, v, None), expected)


def test_grouped_queries_cache_as_many_heads_as_there_are_keys():
    model, cache = filled(swaps.WithGroupedQueries, CONFIG), KVCache(48)
    model(draw(2, 10), cache)
    assert cache.nbytes == 2 * 2 * 48 * 16 * 4 * 2  # keys and values, rows, places, dims, layers


def test_the_readme_shows_this_code_and_counts_its_lines():
    page = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    section = page.partition("## Changing the architecture")[2].partition("\n## ")[0]
    shown = re.findall(r"^```python\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)
    code = inspect.getsource(swaps).partition('"""\n\n')[2]
    assert "\n\n".join(shown) == code
    rows = re.findall(r"^\| ([^|\[]+) \| (\d+) \|", section, flags=re.MULTILINE)
    assert {name: int(lines) for name, lines in rows} == {
        name: sum(map(lines_of, classes)) for name, classes in CLASSES_OF.items()
    }
    neighbours = re.findall(r"^\| \[([\w-]+)\][^|]+\| (\d+) \+ (\d+)\b", section, re.MULTILINE)
    assert {name: (int(lines), int(config)) for name, lines, config in neighbours} == {
        "GPT-2": lines_in(gpt2),
        "GPT-NeoX": lines_in(gpt_neox),
    }


CLASSES_OF = {
    "SwiGLU": [swaps.SwiGLU, swaps.SwiGLUBlock, swaps.WithSwiGLU],
    "RMSNorm": [swaps.RMSNormBlock, swaps.WithRMSNorm],
    "sliding window": [swaps.SlidingWindow, swaps.SlidingWindowBlock, swaps.WithSlidingWindow],
    "grouped queries": [swaps.GroupedQuery, swaps.GroupedQueryBlock, swaps.WithGroupedQueries],
    "sequential residual": [
        parts.TwoNormBlock,
        parts.SequentialBlock,
        swaps.WithSequentialResidual,
    ],
    "learned positions": [parts.LearnedPositions, swaps.WithLearnedPositions],
    "ALiBi": [swaps.ALiBi, swaps.ALiBiBlock, swaps.WithALiBi],
    "NTK-scaled rotation": [swaps.WithNTKScaling],
    "half-rotated positions": [
        parts.HalfRotation,
        parts.HalfRotaryEmbedding,
        swaps.WithHalfRotation,
    ],
    "tied head": [parts.TiedHead, swaps.WithTiedHead],
}


def lines_in(module: ModuleType) -> tuple[int, int]:
    """Lines of the classes of a neighbour's file: of the network, and of its config."""
    own = [
        part for part in vars(module).values() if getattr(part, "__module__", "") == module.__name__
    ]
    networks = [part for part in own if isinstance(part, type) and issubclass(part, nn.Module)]
    configs = [part for part in own if isinstance(part, type) and issubclass(part, KoGPTConfig)]
    return sum(map(lines_of, networks)), sum(map(lines_of, configs))


def lines_of(part: type) -> int:
    """Lines of a class that are neither blank nor comments nor docstrings."""
    source = inspect.getsource(part)
    source = re.sub(r'^ *""".*?"""\n', "", source, flags=re.MULTILINE | re.DOTALL)
    lines = [line.strip() for line in source.splitlines()]
    return sum(1 for line in lines if line and not line.startswith("#"))


def test_the_network_knows_nothing_of_its_variants():
    source = inspect.getsource(transformer)
    assert "variants" not in source and len(source.splitlines()) <= 300
