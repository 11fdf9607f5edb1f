"""Draws against exact probabilities, and the stream of random numbers."""

import math
from collections.abc import Iterator
from itertools import islice

import pytest
import torch
from torch import Tensor

from kogpt.generation.params import SamplingParams
from kogpt.generation.processors import History, LogitsProcessor
from kogpt.generation.sampling import draw, split_mix, step_words
from kogpt.generation.vocabulary import Vocabulary
from tests.scale import scaled

DRAWS = scaled(200_000, 1_000_000)
BATCH = 50_000
FIRST = [0x02F4BA6408E4D89B, 0x3DD62B0B9CA8C5B2, 0x1C8667A55D902E79]
LAST = [0x0E2FB87B070C03E6, 0x831B405C123365C0]


def exact(logits: list[float], params: SamplingParams) -> list[float]:
    """The distribution `params` ask for, from their definitions, in Python's own floats."""
    weights = [math.exp(x / params.temperature) for x in logits]
    probs = [w / sum(weights) for w in weights]
    ids = range(len(probs))
    if params.top_k:
        probs = keep(probs, sorted(ids, key=lambda i: -probs[i])[: params.top_k])
    if params.top_p < 1:
        probs = keep(probs, until_mass(probs, sorted(ids, key=lambda i: -probs[i]), params.top_p))
    if params.min_p:
        probs = keep(probs, [i for i in ids if probs[i] >= params.min_p * max(probs)])
    if params.typical_p < 1:
        entropy = -sum(p * math.log(p) for p in probs if p)
        rank = {i: abs(-math.log(probs[i]) - entropy) if probs[i] else math.inf for i in ids}
        probs = keep(probs, until_mass(probs, sorted(ids, key=rank.__getitem__), params.typical_p))
    return probs


def keep(probs: list[float], ids: list[int]) -> list[float]:
    mass = sum(probs[i] for i in ids)
    return [p / mass if i in ids else 0.0 for i, p in enumerate(probs)]


def until_mass(probs: list[float], order: list[int], mass: float) -> list[int]:
    kept: list[int] = []
    for i in order:
        if sum(probs[j] for j in kept) >= mass:
            break
        kept.append(i)
    return kept


def chi_square_p(counts: Tensor, probs: list[float]) -> float:
    """Probability of a fit at least this bad, if the draws have these probabilities."""
    expected = torch.tensor(probs, dtype=torch.float64) * counts.sum()
    possible = expected > 0
    assert not counts[~possible].any(), "a token of probability 0 was drawn"
    statistic = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    freedom = possible.sum() - 1
    return torch.special.gammaincc(freedom / 2, statistic / 2).item()


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 1.8},
        {"top_k": 5},
        {"top_p": 0.7},
        {"min_p": 0.15},
        {"typical_p": 0.6},
        {"temperature": 1.3, "top_k": 12, "top_p": 0.95, "min_p": 0.02, "typical_p": 0.9},
    ],
    ids=lambda asked: "-".join(asked) or "plain",
)
def test_draws_have_the_exact_probabilities(asked):
    params = SamplingParams(**asked)
    V = 20
    row = torch.randn(V, generator=torch.Generator().manual_seed(5)) * 1.2
    processor = LogitsProcessor(params, Vocabulary([b"a"] * V), V, (), row.device)
    counts = torch.zeros(V, dtype=torch.float64)
    for words in step_words(7, 0, DRAWS).split(BATCH):
        history = History(torch.zeros(len(words), 1, dtype=torch.long), None, 0)
        logits = row.expand(len(words), V)
        ids = draw(processor.warp(processor.constrain(logits, history)), words)
        counts += torch.bincount(ids, minlength=V)
    assert chi_square_p(counts, exact(row.tolist(), params)) > 0.001


def test_draws_from_a_vocabulary_of_the_release_have_the_exact_probabilities():
    logits = torch.randn(1, 64512, generator=torch.Generator().manual_seed(1)) * 3
    probs = logits.double().softmax(-1)[0]
    words = step_words(3, 0, scaled(1_000, 50_000))
    ids = torch.cat([draw(logits.expand(len(part), -1), part) for part in words.split(50)])
    # Cells of about equal mass, for 64,512 would be too few draws each.
    cells = (probs.cumsum(0) * 50).long().clamp(max=49)
    masses = torch.zeros(50, dtype=torch.float64).scatter_add_(0, cells, probs)
    counts = torch.bincount(cells[ids], minlength=50).double()
    assert chi_square_p(counts, masses.tolist()) > 0.001


def test_the_token_drawn_is_that_of_the_race_in_whole_numbers_and_pythons_own_floats():
    logits = torch.randn(200, 30, generator=torch.Generator().manual_seed(2)) * 2
    words = step_words(5, 0, 200)
    for row, word, id in zip(logits.tolist(), words.tolist(), draw(logits, words), strict=True):
        outputs = islice(split_mix_of_the_paper(word % 2**64), len(row))
        luck = [-math.log(((output >> 12) + 0.5) / 2**52) for output in outputs]
        quotients = [e / math.exp(x) for e, x in zip(luck, row, strict=True)]
        assert id == quotients.index(min(quotients))


def test_banned_tokens_change_nothing_of_the_race_of_the_others():
    """Alone or beside rows that allow others, and where a row has no numbers at all."""
    logits = torch.randn(200, 500, generator=torch.Generator().manual_seed(3)) * 3
    logits[torch.rand(logits.shape, generator=torch.Generator().manual_seed(4)) < 0.99] = -math.inf
    logits[:, 7] = 0
    logits[3] = math.nan
    words = step_words(6, 0, 200)
    bits = split_mix(words, torch.arange(500)) >> 12 & (1 << 52) - 1
    luck = -((bits.double() + 0.5) / 2**52).log()
    expected = (luck / logits.softmax(-1)).argmin(-1)
    assert draw(logits, words).equal(expected)
    alone = [draw(logits[i : i + 1], words[i : i + 1]) for i in range(200)]
    assert torch.cat(alone).equal(expected)


def test_a_banned_token_is_not_drawn_even_beside_one_that_is_nearly_impossible():
    logits = torch.tensor([[-math.inf, -80.0, -math.inf, 0.0, -math.inf]])
    words = step_words(8, 0, 10_000)
    assert set(draw(logits.expand(len(words), -1), words).tolist()) == {3}
    logits[0, 3] = -math.inf
    assert set(draw(logits.expand(len(words), -1), words).tolist()) == {1}


def test_close_distributions_draw_the_same_token_as_often_as_the_paper_proves():
    """At least (1 - d) / (1 + d) of the time, d being their total variation distance."""
    generator = torch.Generator().manual_seed(4)
    words = step_words(4, 0, scaled(2_000, 50_000))
    for noise in (0.01, 0.1, 0.5, 2.0):
        p = torch.randn(1, 300, generator=generator) * 2
        q = p + noise * torch.randn(1, 300, generator=generator)
        distance = (p.softmax(-1) - q.softmax(-1)).abs().sum().item() / 2
        same = draw(p.expand(len(words), -1), words) == draw(q.expand(len(words), -1), words)
        deviation = 0.5 / math.sqrt(len(words))  # of a mean of so many zeros and ones, at most
        assert same.double().mean() > (1 - distance) / (1 + distance) - 3 * deviation


def test_the_numbers_of_a_seed_never_change():
    assert [word % 2**64 for word in step_words(0, 0, 3).tolist()] == FIRST
    assert [word % 2**64 for word in step_words(2**64 - 1, 5, 2).tolist()] == LAST
    outputs = [
        output % 2**64 for output in split_mix(torch.tensor([0]), torch.arange(2))[0].tolist()
    ]
    assert outputs == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]  # as Java's SplittableRandom gives


def test_split_mix_is_that_of_the_paper_for_every_seed():
    words = step_words(6, 0, 100)
    for word, outputs in zip(words.tolist(), split_mix(words, torch.arange(50)), strict=True):
        expected = list(islice(split_mix_of_the_paper(word % 2**64), 50))
        assert [output % 2**64 for output in outputs.tolist()] == expected


def split_mix_of_the_paper(state: int) -> Iterator[int]:
    while True:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        yield z ^ z >> 31


def test_streams_differ_by_seed_and_by_sample_and_do_not_depend_on_the_count():
    streams = {
        tuple(step_words(seed, sample, 4).tolist()) for seed in range(50) for sample in range(50)
    }
    assert len(streams) == 2500
    assert torch.equal(step_words(9, 1, 100)[:10], step_words(9, 1, 10))


def test_the_draws_of_one_step_and_of_the_next_are_independent():
    logits = torch.zeros(DRAWS, 4)
    first, second = draw(logits, step_words(11, 3, DRAWS)).view(-1, 2).T
    pairs = torch.bincount(4 * first + second, minlength=16).double()
    assert chi_square_p(pairs, [1 / 16] * 16) > 0.001
