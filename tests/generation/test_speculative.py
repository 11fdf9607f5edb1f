"""Guesses change no result: the ids with them are the ids without, and the distribution is exact.

The models that decide are float64: there the logits of one pass over several tokens and of several
passes differ by 1e-15, so equal ids are a matter of logic and not of luck.
"""

import copy
import itertools
import math
import random

import pytest
import torch

from kogpt.errors import KoGPTError
from kogpt.generation import DraftModel, PromptLookup, SamplingParams, generate, speculative, stream
from kogpt.generation.batch import Batch
from kogpt.generation.sampling import Sampler, draw, step_words
from kogpt.generation.speculative import continuation
from kogpt.kernels.linear import MAX_ROWS
from kogpt.model import KoGPT, KoGPTConfig
from tests.generation.conftest import TINY
from tests.generation.test_sampling import chi_square_p
from tests.scale import scaled

REPETITIVE = [40, 41, 42, 43, 44] * 3
PROMPTS = ["한국어 영화", REPETITIVE, "10점 만점에", "", [50] * 60, "ㅋㅋㅋㅋ", list(range(40, 70))]
SETTINGS = [
    {},
    {"temperature": 0},
    {"temperature": 0.7, "top_p": 0.9, "logprobs": 2, "echo": True},
    {"temperature": 0, "repetition_penalty": 1.3, "presence_penalty": 0.5},
    {"repetition_penalty": 0.7, "frequency_penalty": 0.4, "top_k": 30},
    {"temperature": 0, "no_repeat_ngram_size": 3},
    {"temperature": 0.5, "no_repeat_ngram_size": 2, "min_new_tokens": 15},
    {"temperature": 0.3, "banned_words": ["영", "화가", "a"], "stop_ids": [60, 61, 62, 63]},
    {"temperature": 0.6, "stop": ["가", "영화", "..", "1"], "logprobs": 0},
    {"typical_p": 0.8, "min_p": 0.01, "n": 3},
]


@pytest.fixture(scope="module")
def exact(model: KoGPT) -> KoGPT:
    return copy.deepcopy(model).double()


def noisy(model: KoGPT, noise: float) -> KoGPT:
    """A draft model that agrees with `model` more or less."""
    generator = torch.Generator().manual_seed(1)
    draft = copy.deepcopy(model)
    for weights in draft.parameters():
        weights += noise * weights.std() * torch.randn(weights.shape, generator=generator)
    return draft


@pytest.fixture(scope="module")
def draft(exact: KoGPT) -> KoGPT:
    return noisy(exact, 0.1)


def ways(draft: KoGPT, tokens: int) -> list[PromptLookup | DraftModel]:
    return [PromptLookup(tokens=tokens, ngram=1 + tokens % 3), DraftModel(draft, tokens=tokens)]


def request(seed: int, no_end: dict[int, float]) -> tuple:
    """A prompt and parameters; every second text ends by itself where it likes."""
    settings = SETTINGS[seed % len(SETTINGS)]
    bias = no_end if seed % 2 else {}
    prompt = PROMPTS[seed % len(PROMPTS)]
    return prompt, SamplingParams(seed=seed, max_new_tokens=40, logit_bias=bias, **settings)


# ---- the same ids


@pytest.mark.parametrize("case", range(scaled(30, 700)))
def test_the_result_is_the_one_without_guesses(exact, draft, tokenizer, no_end, case):
    prompt, params = request(case, no_end)
    how = {"prefill_chunk": [1, 3, 512][case % 3], "use_cache": case % 5 > 0}
    plain = generate(exact, tokenizer, [prompt], params)
    for speculate in ways(draft, 1 + case % 9):
        results = generate(
            exact, tokenizer, [prompt], params, speculate=speculate, batch_size=1 + case % 2, **how
        )
        assert [known(result) for result in results] == [known(result) for result in plain]
        if params.n == 1:
            pieces = stream(exact, tokenizer, prompt, params, speculate=speculate, **how)
            assert "".join(pieces) == plain[0].text


def known(result) -> tuple:
    """All that is told of a generation, log-probabilities without their last digits."""
    logprobs = result.logprobs and [round(value, 9) for value in result.logprobs]
    tops = result.top_logprobs and [list(top) for top in result.top_logprobs]
    return (
        result.text, result.token_ids, result.finish_reason, result.stop_reason,
        result.prompt_logprobs, result.sample_index, result.seed, logprobs, tops,
    )  # fmt: skip


def test_a_float32_model_gives_the_same_ids_for_every_seed(model, tokenizer, no_end):
    draft = noisy(model, 0.1)
    for seed in range(scaled(15, 300)):
        params = SamplingParams(seed=seed, max_new_tokens=40, logit_bias=no_end)
        (plain,) = generate(model, tokenizer, "한국어 영화", params)
        for speculate in ways(draft, 7):
            (result,) = generate(model, tokenizer, "한국어 영화", params, speculate=speculate)
            assert result == plain


def test_the_model_in_the_box_gives_the_same_text(nano):
    model, tokenizer = nano
    for seed, temperature in itertools.product(range(scaled(2, 20)), (0, 0.8)):
        params = SamplingParams(seed=seed, temperature=temperature, max_new_tokens=30)
        for prompt in ("배우들 연기가", "이 영화를 보고 이 영화를 보고"):
            (plain,) = generate(model, tokenizer, prompt, params)
            for speculate in (PromptLookup(), DraftModel(model)):
                assert generate(model, tokenizer, prompt, params, speculate=speculate) == [plain]


@pytest.fixture(scope="module")
def nano():
    import kogpt

    return kogpt.load()


def test_requests_of_many_lengths_are_guessed_once_one_row_is_left(exact, draft, tokenizer, no_end):
    choose = random.Random(0)
    for _ in range(scaled(4, 60)):
        requests = [request(choose.randrange(1000), no_end) for _ in range(choose.randint(2, 6))]
        prompts, params = zip(*requests, strict=True)
        batch_size = choose.choice([1, 2, 4])
        plain = generate(exact, tokenizer, prompts, params, batch_size=batch_size)
        for speculate in ways(draft, 5):
            results = generate(
                exact, tokenizer, prompts, params, batch_size=batch_size, speculate=speculate
            )
            assert [known(result) for result in results] == [known(result) for result in plain]


def test_a_draft_model_with_a_shorter_context_goes_on_guessing(exact, tokenizer, no_end):
    for context in (1, 2, 3, 8, 20):
        short = noisy(exact, 0.0)
        short.config = KoGPTConfig(**{**vars(TINY), "n_positions": context})
        short.transformer.n_positions = context
        params = SamplingParams(temperature=0, max_new_tokens=50, logit_bias=no_end)
        (plain,) = generate(exact, tokenizer, [REPETITIVE[:14]], params)
        speculate = DraftModel(short, tokens=4)
        (result,) = generate(exact, tokenizer, [REPETITIVE[:14]], params, speculate=speculate)
        assert known(result) == known(plain)
        assert (result.drafted or 0) > 20 or context < 3


def test_a_batch_gives_the_logits_of_a_full_forward_whatever_it_expects(exact):
    """Random guesses, right, half right or wrong, for rows that come, go and change places."""
    choose = random.Random(5)
    for use_cache in (True, False):
        rows = [[40, 41, 42], [50] * 3, [60, 61, 62]]
        batch = Batch(exact, rows, room=50, prefill_chunk=2, use_cache=use_cache)
        for step in range(40):
            full = exact(torch.tensor(rows))[:, -1]
            torch.testing.assert_close(batch.logits(), full, atol=1e-10, rtol=1e-10)
            if step % 3 == 2:
                kept = [choose.randrange(len(rows)) for _ in range(3)]
                rows = [list(rows[row]) for row in kept]
                batch.select(kept)
            column = [choose.choice([44, 45])] * 3
            rows = [[*row, id] for row, id in zip(rows, column, strict=True)]
            batch.append(torch.tensor(column))
            if not batch.is_ahead:
                batch.expect(torch.randint(44, 46, (1, choose.randint(0, 4))).expand(3, -1))


def test_a_batch_holds_no_more_than_it_needs(exact):
    """Of the context, and of keys and values where rows stay what they are."""
    batch = Batch(exact, [[40, 41], [42]], room=3, prefill_chunk=8, use_cache=True)
    batch.logits()
    cache = batch._cache
    assert cache.capacity == 2 + 3
    batch.select([0, 1])
    assert batch._cache is cache


# ---- the distribution

LETTERS = [40, 41]  # all else is banned
LENGTH = 4
ROUND = LETTERS * 3  # a lookup expects it to go on
DRAWS = scaled(400, 20_000)


def exact_probabilities(model: KoGPT) -> dict[tuple[int, ...], float]:
    """Of all texts of LENGTH letters after ROUND: the chain rule, and a full forward for each."""
    result = {}
    for text in itertools.product(LETTERS, repeat=LENGTH):
        logits = model(torch.tensor([[*ROUND, *text]]))[0, len(ROUND) - 1 : -1, LETTERS]
        chosen = [LETTERS.index(id) for id in text]
        result[text] = math.exp(sum(logits.log_softmax(-1)[range(LENGTH), chosen].tolist()))
    return result


def test_a_draft_model_reads_each_token_once_and_in_pieces(exact, tokenizer, monkeypatch):
    monkeypatch.setattr(speculative, "PREFILL_CHUNK", 8)
    draft, widths, modes = noisy(exact, 0.01), [], []

    def note(module, given, result):
        widths.append(given[0].size(1))
        modes.append(torch.is_inference_mode_enabled())

    draft.transformer.register_forward_hook(note)
    params = SamplingParams(temperature=0, max_new_tokens=20, min_new_tokens=20)
    generate(exact, tokenizer, [list(range(40, 60))], params, speculate=DraftModel(draft, 4))
    assert widths[:3] == [8, 8, 5] and all(modes)  # the prompt and a token after it
    assert max(widths[3:]) <= 2, "the last guess of all that were right, and the token after it"


def test_guesses_and_the_token_before_them_are_few_rows():
    assert PromptLookup().tokens + 1 == MAX_ROWS


def fit(model: KoGPT, tokenizer, speculate: PromptLookup | DraftModel) -> float:
    """Chi-square probability of DRAWS samples, run one at a time so that each is guessed."""
    banned = dict.fromkeys(set(range(TINY.vocab_size)) - set(LETTERS), -math.inf)
    params = SamplingParams(seed=3, n=DRAWS, max_new_tokens=LENGTH, logit_bias=banned)
    results = generate(model, tokenizer, [ROUND], params, batch_size=1, speculate=speculate)
    assert sum(result.drafted for result in results) > DRAWS
    exact = exact_probabilities(model)
    counts = dict.fromkeys(exact, 0)
    for result in results:
        counts[tuple(result.token_ids)] += 1
    return chi_square_p(torch.tensor([*counts.values()]).double(), [*exact.values()])


@pytest.fixture(scope="module")
def calm(exact: KoGPT) -> KoGPT:
    """A model for which none of the letters is nearly certain."""
    model = copy.deepcopy(exact)
    model.lm_head.weight *= 0.3
    return model


@pytest.mark.parametrize("way", [0, 1], ids=["lookup", "draft"])
def test_texts_have_the_exact_probabilities(calm, tokenizer, way):
    assert fit(calm, tokenizer, ways(noisy(calm, 0.5), 2)[way]) > 0.001


@pytest.mark.parametrize("way", [0, 1], ids=["lookup", "draft"])
def test_that_test_sees_guesses_that_are_always_accepted(calm, tokenizer, way, monkeypatch):
    accepted: list[int] = []
    choose, expect = Sampler.__call__, Batch.expect

    def choose_what_was_guessed(sampler, logits, history):
        honest = choose(sampler, logits, history)
        return torch.tensor([accepted.pop(0)]) if accepted else honest

    def expect_and_accept(batch, columns):
        accepted.extend(columns[0].tolist())
        expect(batch, columns)

    monkeypatch.setattr(Sampler, "__call__", choose_what_was_guessed)
    monkeypatch.setattr(Batch, "expect", expect_and_accept)
    assert fit(calm, tokenizer, ways(noisy(calm, 0.5), 2)[way]) < 1e-6


# ---- what it saves


def passes(model: KoGPT, tokenizer, prompt, params, speculate) -> tuple[int, object]:
    """How often the model read while it continued the prompt, and what came of it."""
    widths: list[int] = []
    handle = model.transformer.register_forward_hook(
        lambda _module, args, _output: widths.append(args[0].size(1))
    )
    (result,) = generate(model, tokenizer, [prompt], params, speculate=speculate)
    handle.remove()
    return len(widths), result


def test_a_text_that_repeats_itself_takes_few_passes(exact, tokenizer):
    loop = {id: 60.0 for id in (40,)}
    params = SamplingParams(temperature=0, max_new_tokens=41, logit_bias=loop)
    count, result = passes(exact, tokenizer, [40] * 3, params, PromptLookup(tokens=7))
    # One token by the prompt, then seven guesses and one more by each pass.
    assert (count, result.drafted, result.accepted) == (1 + 5, 35, 35)
    assert result.token_ids == [40] * 41


def test_a_perfect_draft_model_is_always_right(exact, draft, tokenizer, no_end):
    for temperature in (0, 1):
        params = SamplingParams(
            temperature=temperature, seed=1, max_new_tokens=31, logit_bias=no_end
        )
        count, result = passes(exact, tokenizer, "한", params, DraftModel(copy.copy(exact), 5))
        assert (result.drafted, result.accepted) == (25, 25)
        _, other = passes(exact, tokenizer, "한", params, DraftModel(draft, 5))
        assert result == other and 0 < other.accepted < other.drafted


def test_counts_and_passes_add_up(exact, draft, tokenizer, no_end):
    for seed, speculate in itertools.product(range(scaled(5, 50)), ways(draft, 4)):
        params = SamplingParams(seed=seed, temperature=0.7, max_new_tokens=30, logit_bias=no_end)
        count, result = passes(exact, tokenizer, REPETITIVE, params, speculate)
        assert count + result.accepted == 30
        assert 0 <= result.accepted <= result.drafted


def test_draws_of_a_draft_model_agree_nearly_as_often_as_the_best_coupling(exact, tokenizer):
    """The sum of min(p, q) is the most that is possible; the paper's bound is the least."""
    draft = noisy(exact, 0.3)
    ids = torch.randint(0, 440, (8, 40), generator=torch.Generator().manual_seed(0))
    p, q = (model(ids)[..., :440].flatten(0, 1).double() / 2 for model in (exact, draft))
    overlap = torch.minimum(p.softmax(-1), q.softmax(-1)).sum(-1)
    words = step_words(1, 0, len(p))
    agree = (draw(p, words) == draw(q, words)).double().mean()
    assert 0.2 < overlap.mean() < 0.9
    assert (overlap / (2 - overlap)).mean() - 0.08 < agree <= overlap.mean() + 0.08  # 3 deviations


def test_without_guesses_nothing_is_counted(exact, tokenizer):
    (result,) = generate(exact, tokenizer, "한", SamplingParams(seed=1, max_new_tokens=3))
    assert result.drafted is result.accepted is None


# ---- what is guessed


def test_a_lookup_copies_what_followed_the_latest_longest_match():
    assert continuation([1, 2, 3, 9, 1, 2, 4, 8, 7, 1, 2], 3, 2) == [4, 8]
    assert continuation([1, 2, 3, 9, 8, 2, 4, 1, 2], 3, 2) == [3, 9]
    assert continuation([1, 2, 3, 9, 8, 2, 4, 1, 2], 1, 2) == [4, 1]
    assert continuation([5, 1, 2, 1, 2], 2, 5) == [1, 2, 1, 2, 1]
    assert continuation([7, 7], 3, 3) == [7, 7, 7]
    assert continuation([1, 2, 3], 3, 4) == continuation([1], 3, 4) == []


def test_padding_is_no_part_of_what_is_looked_up(exact, tokenizer, no_end):
    params = [
        SamplingParams(temperature=0, max_new_tokens=count, logit_bias=no_end) for count in (1, 9)
    ]
    prompts = [list(range(40, 60)), [60, 61, 60]]
    asked: list[list[int]] = []

    class Listening(PromptLookup):
        def draft(self, history, choose, count):
            asked.append(speculative._text_of(history)[0].tolist())
            return super().draft(history, choose, count)

    _, result = generate(exact, tokenizer, prompts, params, speculate=Listening())
    assert asked and asked[0][:4] == [60, 61, 60, result.token_ids[0]]


# ---- refusals and errors


def test_what_cannot_be_used_is_refused(exact, tokenizer):
    other = KoGPT(KoGPTConfig(**{**vars(TINY), "vocab_size": 440}))
    with pytest.raises(ValueError, match="vocabulary of 440, the model of 448"):
        generate(exact, tokenizer, "한", speculate=DraftModel(other))
    with pytest.raises(ValueError, match="vocabulary of 440, the model of 448"):
        stream(exact, tokenizer, "한", speculate=DraftModel(other))
    with pytest.raises(ValueError, match="speculate cannot be used with num_beams above 1"):
        generate(exact, tokenizer, "한", SamplingParams(num_beams=2), speculate=PromptLookup())
    for wrong in (lambda: PromptLookup(tokens=0), lambda: PromptLookup(ngram=1.5)):
        with pytest.raises(ValueError, match="it must be a whole number of at least 1"):
            wrong()
    with pytest.raises(ValueError, match="tokens is 0, it must be"):
        DraftModel(exact, tokens=0)


def test_a_model_whose_logits_are_nan_is_told_and_a_draft_model_is_forgiven(exact, tokenizer):
    broken = copy.deepcopy(exact)
    broken.transformer.ln_f.weight[0] = math.nan
    params = SamplingParams(seed=1, max_new_tokens=8)
    for speculate in (PromptLookup(), DraftModel(exact)):
        with pytest.raises(KoGPTError, match="NaN or infinite"):
            generate(broken, tokenizer, "한", params, speculate=speculate)
    plain = generate(exact, tokenizer, "한", params)
    assert generate(exact, tokenizer, "한", params, speculate=DraftModel(broken)) == plain


def test_dropout_of_the_draft_model_is_off_while_it_guesses(exact, tokenizer, no_end):
    draft = copy.deepcopy(exact).train()
    params = SamplingParams(seed=1, max_new_tokens=12, logit_bias=no_end)
    (result,) = generate(exact, tokenizer, "한", params, speculate=DraftModel(draft))
    assert result.accepted == result.drafted and draft.training
