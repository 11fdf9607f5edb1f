"""Each processor against transformers' own on random logits, and what differs on purpose."""

import math

import pytest
import torch
from torch import Tensor

from kogpt.generation import processors
from kogpt.generation.params import SamplingParams
from kogpt.generation.processors import History, LogitsProcessor
from kogpt.generation.vocabulary import Vocabulary
from tests.scale import scaled

transformers = pytest.importorskip("transformers", reason="the oracle is transformers")

ROUNDS = scaled(50, 2000)
B, V = 4, 97


def random_logits(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, V, generator=generator) * (1 + seed % 7)


def random_ids(seed: int, length: int = 40) -> Tensor:
    return torch.randint(7, (B, length), generator=torch.Generator().manual_seed(seed))


def assert_same_distribution(ours: Tensor, theirs: Tensor, atol: float = 1e-6) -> None:
    assert torch.equal(ours.isneginf(), theirs.isneginf())
    torch.testing.assert_close(ours.softmax(-1), theirs.softmax(-1), atol=atol, rtol=0)


@pytest.mark.parametrize("value", [0.01, 0.3, 0.7, 1.5, 10.0])
def test_temperature_is_that_of_transformers(value):
    for seed in range(ROUNDS):
        logits = random_logits(seed)
        theirs = transformers.TemperatureLogitsWarper(value)(None, logits)
        # Theirs reach 2,000 in size, where float32 steps by 1e-4; ours were moved to end at 0.
        atol = 1e-6 / min(value, 1)
        assert_same_distribution(processors.temperature(logits, value), theirs, atol)


@pytest.mark.parametrize("k", [1, 2, 5, 50, 1000])
def test_top_k_is_that_of_transformers(k):
    for seed in range(ROUNDS):
        logits = random_logits(seed)
        theirs = transformers.TopKLogitsWarper(k)(None, logits)
        assert_same_distribution(processors.top_k(logits, k), theirs)


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.999])
def test_top_p_is_that_of_transformers(p):
    for seed in range(ROUNDS):
        logits = random_logits(seed).double()  # float32 sums decide otherwise at the border
        theirs = transformers.TopPLogitsWarper(p)(None, logits)
        assert_same_distribution(processors.top_p(logits, p), theirs)


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("step", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("warp", [processors.top_p, processors.typical_p])
def test_few_tokens_are_those_of_all_sorted(p, step, warp, monkeypatch):
    """With tokens of the same rank, too: every `step`; and with few that are allowed."""
    ranks, found = [], set()

    def keep_few(logits, rank, p):
        ranks.append(rank)
        kept = few(logits, rank, p)
        found.add(kept is None)
        return kept

    few = processors._keep_few
    for seed in range(ROUNDS):
        logits = random_logits(seed)
        if step:
            logits = (logits / step).round() * step
        logits[1, seed % V :: 2] = logits[2, 1:] = -math.inf
        with monkeypatch.context() as patch:
            patch.setattr(processors, "_keep_few", lambda *_: None)
            whole = warp(logits, p)
        monkeypatch.setattr(processors, "_keep_few", keep_few)
        for small in (1, 5, 40, V):
            monkeypatch.setattr(processors, "SMALL", small)
            assert warp(logits, p).equal(whole)
        rank = ranks[-1]
        last = rank.where(whole.isfinite(), math.inf).amin(-1, keepdim=True)
        monkeypatch.setattr(processors, "SMALL", 1 + int((rank >= last).sum(-1).max()))
        assert few(logits, rank, p) is not None
    assert found == {False, True}


@pytest.mark.parametrize("p", [0.01, 0.2, 0.5, 0.9])
def test_of_tokens_of_the_same_rank_those_with_lower_ids_go_first(p, monkeypatch):
    """However probable: one above the entropy can be as typical as another below."""
    found = set()
    for seed in range(ROUNDS):
        logits, rank = random_logits(seed), random_ids(seed, V).float()
        order = rank.argsort(dim=-1, descending=True, stable=True)
        mass_before = processors._mass_before(logits, order)
        for small in (5, V // 4, V // 2, V):
            monkeypatch.setattr(processors, "SMALL", small)
            kept = processors._keep_few(logits, rank, p)
            found.add(kept is None)
            if kept is not None:
                assert kept.isfinite().gather(-1, order).equal(mass_before < p)
    assert found == {False, True}


@pytest.mark.parametrize("p", [1e-6, 0.02, 0.1, 0.5, 1.0])
def test_min_p_is_that_of_transformers(p):
    for seed in range(ROUNDS):
        logits = random_logits(seed)
        theirs = transformers.MinPLogitsWarper(p)(None, logits)
        assert_same_distribution(processors.min_p(logits, p), theirs)


@pytest.mark.parametrize("p", [0.02, 0.2, 0.5, 0.9, 0.99])
def test_typical_p_is_that_of_transformers(p):
    for seed in range(ROUNDS):
        logits = random_logits(seed).double()  # float32 sums decide otherwise at the border
        theirs = transformers.TypicalLogitsWarper(p)(None, logits)
        assert_same_distribution(processors.typical_p(logits, p), theirs)


@pytest.mark.parametrize("penalty", [0.5, 1.2, 5.0])
def test_the_repetition_penalty_is_that_of_transformers(penalty):
    for seed in range(ROUNDS):
        logits, ids = random_logits(seed), random_ids(seed)
        theirs = transformers.RepetitionPenaltyLogitsProcessor(penalty)(ids, logits)
        torch.testing.assert_close(processors.repetition_penalty(logits, ids, penalty), theirs)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [1, 4, 40])
def test_no_repeat_ngram_is_that_of_transformers(size, length):
    for seed in range(ROUNDS):
        logits, ids = random_logits(seed), random_ids(seed, length)
        theirs = transformers.NoRepeatNGramLogitsProcessor(size)(ids, logits.clone())
        assert torch.equal(processors.no_repeat_ngram(logits, ids, None, size), theirs)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_padding_is_no_part_of_an_ngram(size):
    for seed in range(ROUNDS):
        logits, ids = random_logits(seed), random_ids(seed)
        starts = torch.tensor([0, 30, 38, 39])
        for row, start in enumerate(starts.tolist()):
            ids[row, :start] = ids[row, start]
        ours = processors.no_repeat_ngram(logits, ids, starts, size)
        for row, start in enumerate(starts.tolist()):
            alone = processors.no_repeat_ngram(
                logits[row : row + 1], ids[row : row + 1, start:], None, size
            )
            assert torch.equal(ours[row : row + 1], alone)


def test_presence_is_subtracted_once_and_frequency_each_time():
    logits, ids = torch.zeros(1, 5), torch.tensor([[3, 1, 3, 3]])
    presence = processors.presence_penalty(logits, ids, 0.5)
    assert presence.tolist() == [[0, -0.5, 0, -0.5, 0]]
    frequency = processors.frequency_penalty(logits, ids, 0.5)
    assert frequency.tolist() == [[0, -0.5, 0, -1.5, 0]]


def test_tokens_as_probable_as_the_kth_are_all_kept():
    logits = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]])
    assert processors.top_k(logits, 2).isneginf().tolist() == [[True, False, False, False, True]]


def test_of_equal_tokens_the_nucleus_takes_those_with_lower_ids():
    logits = torch.zeros(1, 8)
    assert processors.top_p(logits, 0.3).isneginf().tolist() == [[False] * 3 + [True] * 5]


@pytest.mark.parametrize("value", [5e-324, 1e-30, 1e30])
def test_no_temperature_makes_nan(value):
    warped = processors.temperature(torch.tensor([[3.0, -200.0, 88.0, 88.0]]), value)
    assert warped.softmax(-1)[0, 2] == warped.softmax(-1)[0, 3] >= 0.25


def process(tokenizer, params: SamplingParams, logits: Tensor, history: History) -> Tensor:
    processor = LogitsProcessor(
        params, Vocabulary.of(tokenizer), logits.size(-1), tokenizer.end_ids, logits.device
    )
    return processor.warp(processor.constrain(logits, history))


def test_processors_apply_in_the_documented_order(tokenizer):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, tokenizer.vocab_size, generator=generator)
    ids = torch.tensor([[50, 51, 52, 60, 61, 60]])
    params = SamplingParams(
        logit_bias={50: 2.0, 60: 3.0}, repetition_penalty=1.3, presence_penalty=0.4,
        frequency_penalty=0.3, no_repeat_ngram_size=2, temperature=0.7, top_k=60, top_p=0.8,
        min_p=0.05, typical_p=0.9, min_new_tokens=8, stop_ids=[77],
    )  # fmt: skip
    expected = logits.clone()
    expected[0, 50] += 2.0
    expected[0, 60] += 3.0
    for id in {50, 51, 52, 60, 61}:
        expected[0, id] *= 1.3 if expected[0, id] < 0 else 1 / 1.3
    expected[0, 60] -= 0.4 + 2 * 0.3
    expected[0, 61] -= 0.4 + 0.3
    expected[0, [tokenizer.eos_id, 77, 61]] = -math.inf  # 61 would repeat (60, 61)
    for warp in (
        transformers.TemperatureLogitsWarper(0.7),
        transformers.TopKLogitsWarper(60),
        transformers.TopPLogitsWarper(0.8),
        transformers.MinPLogitsWarper(0.05),
        transformers.TypicalLogitsWarper(0.9),
    ):
        expected = warp(None, expected)
    ours = process(tokenizer, params, logits, History(ids, None, generated=3))
    assert_same_distribution(ours, expected)


def test_neutral_parameters_leave_the_logits_untouched(tokenizer):
    logits = torch.randn(2, tokenizer.vocab_size)
    history = History(torch.tensor([[5, 6], [7, 7]]), None, 1)
    assert process(tokenizer, SamplingParams(), logits, history) is logits


@pytest.mark.parametrize("few", [True, False])
def test_what_reaches_the_mass_exactly_is_all_that_is_kept(few, monkeypatch):
    if not few:
        monkeypatch.setattr(processors, "_keep_few", lambda *_: None)
    kept = processors.top_p(torch.zeros(1, 4), 0.5).isfinite()
    assert kept.tolist() == [[True, True, False, False]]


def test_the_nucleus_is_that_of_the_k_most_probable(tokenizer):
    logits = torch.full((1, tokenizer.vocab_size), -math.inf)
    logits[0, 50:54] = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    history = History(torch.tensor([[60]]), None, generated=0)
    kept = process(tokenizer, SamplingParams(top_k=2, top_p=0.5), logits, history)
    assert kept.isfinite().nonzero()[:, 1].tolist() == [50]  # 4/7 of those two
