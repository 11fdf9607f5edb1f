"""Draws against exact probabilities, and the stream of random numbers."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from kogpt.generation.params import SamplingParams
from kogpt.generation.processors import History, LogitsProcessor
from kogpt.generation.sampling import draw, uniforms
from kogpt.generation.vocabulary import Vocabulary
from tests.scale import scaled

DRAWS = scaled(200_000, 1_000_000)
BATCH = 50_000


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
    processor = LogitsProcessor(params, Vocabulary([b"a"] * V), V, None, row.device)
    counts = torch.zeros(V, dtype=torch.float64)
    for uniform in uniforms(7, 0, DRAWS).split(BATCH):
        history = History(torch.zeros(len(uniform), 1, dtype=torch.long), None, 0)
        logits = row.expand(len(uniform), V)
        ids = draw(processor.warp(processor.constrain(logits, history)), uniform)
        counts += torch.bincount(ids, minlength=V)
    assert chi_square_p(counts, exact(row.tolist(), params)) > 0.001


def test_draws_from_a_vocabulary_of_the_release_have_the_exact_probabilities():
    logits = torch.randn(1, 64512, generator=torch.Generator().manual_seed(1)) * 3
    probs = logits.double().softmax(-1)[0]
    uniform = uniforms(3, 0, scaled(1_000, 50_000))
    ids = torch.cat([draw(logits.expand(len(part), -1), part) for part in uniform.split(50)])
    # Cells of about equal mass, for 64,512 would be too few draws each.
    cells = (probs.cumsum(0) * 50).long().clamp(max=49)
    masses = torch.zeros(50, dtype=torch.float64).scatter_add_(0, cells, probs)
    counts = torch.bincount(cells[ids], minlength=50).double()
    assert chi_square_p(counts, masses.tolist()) > 0.001


def test_a_banned_token_is_not_drawn_even_at_the_ends_of_the_range():
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]]).expand(4, 5)
    uniform = torch.tensor([0.0, 0.5 - 2**-53, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits, uniform).tolist() == [1, 1, 3, 3]


def test_the_stream_of_a_seed_never_changes():
    assert uniforms(0, 0, 3).tolist() == [
        0.011546754286331562,
        0.24154919656271812,
        0.11142585551493822,
    ]
    last = [0.05541565898515444, 0.5121345734389258, 0.31968605748203727]
    assert uniforms(2**64 - 1, 5, 3).tolist() == last


def test_streams_differ_by_seed_and_by_sample_and_do_not_depend_on_the_count():
    streams = {
        tuple(uniforms(seed, sample, 4).tolist()) for seed in range(50) for sample in range(50)
    }
    assert len(streams) == 2500
    assert torch.equal(uniforms(9, 1, 100)[:10], uniforms(9, 1, 10))


def test_the_stream_is_uniform():
    counts = torch.histc(uniforms(11, 3, DRAWS).float(), bins=64, min=0, max=1).double()
    assert chi_square_p(counts, [1 / 64] * 64) > 0.001
    neighbours = uniforms(11, 3, DRAWS).view(-1, 2)
    assert abs(np.corrcoef(neighbours.numpy().T)[0, 1]) < 0.01
