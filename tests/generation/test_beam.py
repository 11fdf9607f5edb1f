"""Beam search against trying everything, and against transformers."""

import itertools
import math

import pytest
import torch

import kogpt
from kogpt.errors import NotFiniteError
from kogpt.generation import SamplingParams, generate
from kogpt.generation.api import batch_maker
from kogpt.generation.beam import Beam, BeamSearch
from kogpt.generation.requests import make_requests
from kogpt.model import KoGPT, KoGPTConfig
from tests.scale import scaled

PROMPT = "한국어 영화"


def test_the_search_is_exhaustive_where_all_continuations_fit(model, tokenizer):
    """Five ids allowed, one of them eos, three steps: 4 + 16 + 64 + ... texts at most."""
    letters, steps = [tokenizer.eos_id, 60, 61, 62, 63], 3
    ban = {id: -math.inf for id in range(model.config.vocab_size) if id not in letters}
    prompt = tokenizer.encode(PROMPT)
    for length_penalty in (0.0, 1.0, 2.0, -1.0):
        params = SamplingParams(
            num_beams=150, n=20, max_new_tokens=steps, logit_bias=ban,
            length_penalty=length_penalty, early_stopping="never",
        )  # fmt: skip
        found = generate(model, tokenizer, [prompt], params)
        every = [
            text
            for count in range(1, steps + 1)
            for text in itertools.product(letters, repeat=count)
            if tokenizer.eos_id not in text[:-1] and (count == steps or text[-1] == letters[0])
        ]
        likelihood = {text: log_likelihood(model, prompt, list(text)) for text in every}
        rank = {text: likelihood[text] / len(text) ** length_penalty for text in every}
        best = sorted(every, key=rank.__getitem__, reverse=True)[:20]
        assert [tuple(result.token_ids) for result in found] == best
        assert [result.sample_index for result in found] == list(range(20))
        for text, result in zip(best, found, strict=True):
            assert result.score == pytest.approx(rank[text], abs=1e-4)
            assert result.finish_reason == ("eos" if text[-1] == letters[0] else "length")


def log_likelihood(model: KoGPT, prompt: list[int], text: list[int]) -> float:
    logprobs = model(torch.tensor([prompt + text]))[0].double().log_softmax(-1)
    return logprobs[range(len(prompt) - 1, len(prompt) + len(text) - 1), text].sum().item()


@pytest.fixture(scope="module")
def twins(tokenizer):
    """One random network, ours and as transformers'; every row has a piece."""
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
    config = KoGPTConfig(
        vocab_size=tokenizer.vocab_size, n_positions=64, n_embd=32, n_layer=2, n_head=2,
        rotary_dim=8, initializer_range=0.3, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(1)
    ours = KoGPT(config).requires_grad_(False).eval()
    theirs = transformers.GPTJForCausalLM(transformers.GPTJConfig(**config.to_dict())).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.0])
@pytest.mark.parametrize(
    "extra",
    [{}, {"no_repeat_ngram_size": 2}, {"repetition_penalty": 1.3}, {"min_new_tokens": 5}],
    ids=lambda extra: "".join(extra) or "plain",
)
def test_the_search_finds_what_transformers_finds(
    twins, tokenizer, early_stopping, length_penalty, extra
):
    ours, theirs = twins
    eager = {tokenizer.eos_id: 8.0}  # so that texts end at many lengths
    for case in range(scaled(2, 20)):
        prompt = torch.randint(
            4, tokenizer.vocab_size, (1, 1 + case), generator=torch.Generator().manual_seed(case)
        )
        shared = {"num_beams": 2 + case % 4, "length_penalty": length_penalty, **extra}
        params = SamplingParams(
            n=2, max_new_tokens=12, early_stopping=early_stopping, logit_bias=eager, **shared
        )
        found = generate(ours, tokenizer, prompt.tolist(), params)
        output = theirs.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
            num_return_sequences=2, max_new_tokens=12, early_stopping=early_stopping,
            sequence_bias={(tokenizer.eos_id,): 8.0}, pad_token_id=3, output_scores=True,
            return_dict_in_generate=True, **shared,
        )  # fmt: skip
        for result, ids, score in zip(
            found, output.sequences, output.sequences_scores, strict=True
        ):
            generated = ids[prompt.size(1) :].tolist()
            assert result.token_ids == generated[: len(result.token_ids)]
            assert set(generated[len(result.token_ids) :]) <= {3}
            assert result.score == pytest.approx(score.item(), rel=1e-6, abs=1e-5)


def settled(model, tokenizer, scores: list[float], total: float, **asked) -> bool:
    """Whether a search of two beams is, having finished `scores`, with a beam of one id left."""
    params = SamplingParams(num_beams=2, max_new_tokens=10, **asked)
    (request,) = make_requests(model, tokenizer, [PROMPT], params)
    search = BeamSearch(request, tokenizer)
    search._finished = [(score, search._sample(Beam([60]))) for score in scores]
    return search._is_settled(Beam([60], total))


def test_a_search_ends_once_nothing_better_can_come(model, tokenizer):
    """With a negative penalty a text only becomes worse as it grows: its length now is its best."""
    for penalty, still_better in ((-1.0, -3.9), (0.0, -3.9), (1.0, -39.0)):
        asked = {"early_stopping": "never", "length_penalty": penalty}
        assert not settled(model, tokenizer, [-3.0, -4.0], still_better, **asked)
        assert settled(model, tokenizer, [-3.0, -4.0], 1.1 * still_better, **asked)
    assert not settled(model, tokenizer, [-3.0], -9.0, early_stopping=True)
    assert settled(model, tokenizer, [-3.0, -4.0], -1.0, early_stopping=True)


def test_a_stop_string_ends_a_beam(model, tokenizer, no_end):
    asked = {"num_beams": 4, "n": 4, "max_new_tokens": 10, "logit_bias": no_end}
    free = generate(model, tokenizer, [PROMPT], SamplingParams(**asked))
    stop = free[0].text[2:4]
    stopped = generate(model, tokenizer, [PROMPT], SamplingParams(**asked, stop=[stop]))
    assert any(result.stop_reason == stop for result in stopped)
    for result in stopped:
        assert stop not in result.text
        assert (result.finish_reason == "stop") == (result.stop_reason == stop)


def test_a_search_with_logprobs_reports_the_models_own(model, tokenizer, no_end):
    params = SamplingParams(num_beams=3, max_new_tokens=8, logit_bias=no_end, logprobs=2)
    (result,) = generate(model, tokenizer, [PROMPT], params)
    assert sum(result.logprobs) == pytest.approx(
        log_likelihood(model, result.prompt_token_ids, result.token_ids), abs=1e-4
    )
    assert result.score == pytest.approx(sum(result.logprobs) / 8, abs=1e-5)
    assert [len(top) for top in result.top_logprobs] == [2] * 8


def test_a_beam_that_nothing_may_follow_is_scored_by_its_own_length(model, tokenizer):
    first, second = 100, 101
    others = {id: -math.inf for id in range(model.config.vocab_size) if id not in (first, second)}
    asked = {"num_beams": 2, "n": 2, "max_new_tokens": 9, "logprobs": 0}
    params = SamplingParams(**asked, logit_bias=others, no_repeat_ngram_size=1)
    results = generate(model, tokenizer, [PROMPT], params)
    assert {tuple(result.token_ids) for result in results} == {(first, second), (second, first)}
    for result in results:
        assert result.finish_reason == "exhausted"
        assert result.score == pytest.approx(sum(result.logprobs) / 2)


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0])
def test_where_nothing_is_allowed_at_all_the_prompt_alone_is_found(
    model, tokenizer, length_penalty
):
    nothing = dict.fromkeys(range(model.config.vocab_size), -math.inf)
    params = SamplingParams(num_beams=2, logit_bias=nothing, length_penalty=length_penalty)
    (result,) = generate(model, tokenizer, [PROMPT], params)
    assert (result.token_ids, result.finish_reason, result.score) == ([], "exhausted", 0.0)


def test_a_wider_search_is_at_least_as_good_as_greedy(model, tokenizer, no_end):
    asked = {"max_new_tokens": 10, "logit_bias": no_end, "temperature": 0, "logprobs": 0}
    (greedy,) = generate(model, tokenizer, [PROMPT], SamplingParams(**asked))
    (beam,) = generate(model, tokenizer, [PROMPT], SamplingParams(**asked, num_beams=8))
    assert sum(beam.logprobs) >= sum(greedy.logprobs)


def test_as_many_beams_go_on_however_many_ids_end_a_text(model, tokenizer):
    ends = [10, 11, 12, 13, tokenizer.eos_id]
    params = SamplingParams(num_beams=3, stop_ids=ends, logit_bias=dict.fromkeys(ends, 50.0))
    (request,) = make_requests(model, tokenizer, [PROMPT], params)
    search, batch = BeamSearch(request, tokenizer), batch_maker(model, 512, True)([request])
    ended = [search._ends(beam) for beam in search._extensions([Beam()], batch)]
    assert ended[:5] == [True] * 5 and ended.count(False) >= 3


def test_beams_go_on_behind_those_that_stop_strings_end_where_no_id_does(model, tokenizer):
    first, second = map(tokenizer.piece_to_id, ("<0x41>", "<0x42>"))
    params = SamplingParams(num_beams=2, stop=["A", "B"], logit_bias={first: 60.0, second: 50.0})
    (request,) = make_requests(model, tokenizer, [PROMPT], params)
    request.processor.end_ids.clear()  # as of a tokenizer without eos
    search, batch = BeamSearch(request, tokenizer), batch_maker(model, 512, True)([request])
    ended = [search._ends(beam) for beam in search._extensions([Beam()], batch)]
    assert ended == [True, True, False, False]


def test_an_end_behind_the_first_beams_is_not_among_the_results(model, tokenizer):
    """As in transformers: the third best of two beams is not finished, however it would score."""
    bias = {10: 3000.0, 11: 2900.0, tokenizer.eos_id: 2800.0}
    params = SamplingParams(
        num_beams=2, n=2, max_new_tokens=2, logit_bias=bias, length_penalty=10.0
    )
    results = generate(model, tokenizer, [PROMPT], params)
    assert [result.token_ids[0] for result in results] == [10, 11]


def test_a_large_total_takes_in_the_smallest_log_probability(model, tokenizer):
    """Totals are float64: float32 would round these to multiples of 64."""
    params, before = SamplingParams(num_beams=8), -(2.0**30)
    (request,) = make_requests(model, tokenizer, [PROMPT], params)
    search = BeamSearch(request, tokenizer)
    totals = []
    for beam in (Beam(), Beam(total=before)):
        batch = batch_maker(model, 512, True)([request])
        totals.append([found.total - beam.total for found in search._extensions([beam], batch)])
    assert totals[1] == pytest.approx(totals[0], abs=1e-6)


def test_no_beams_are_found_by_a_model_whose_logits_are_nan(tokenizer):
    model = kogpt.load_model()
    with torch.no_grad():
        model.lm_head.bias[3] = math.nan
    with pytest.raises(NotFiniteError):
        generate(model, tokenizer, [PROMPT], SamplingParams(num_beams=2, max_new_tokens=2))
