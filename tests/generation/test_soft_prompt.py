"""Texts behind a soft prompt, against embeddings put together by hand and read whole each time."""

import copy

import pytest
import torch
from torch import Tensor

from kogpt.adapters import PromptConfig, attach_prompt, prompt_embeddings
from kogpt.errors import InputRefusedError
from kogpt.generation import (
    DraftModel,
    PromptLookup,
    SamplingParams,
    generate,
    score,
    stream,
)
from kogpt.generation.batch import Batch
from kogpt.model import KoGPT
from tests.adapters.test_prompt import by_hand

PROMPTS = ["한국어 영화", [40, 41, 42, 43, 44] * 3, "10점 만점에", [50], list(range(40, 70))]
TOKENS = 5


@pytest.fixture(scope="module")
def prompted(model: KoGPT) -> KoGPT:
    """In float64, where ways to compute the same logits do not differ by rounding."""
    model = copy.deepcopy(model).double().eval()
    attach_prompt(model, PromptConfig(TOKENS), torch.Generator().manual_seed(3))
    prompt = model.transformer.wte.prompt.embedding.weight
    prompt.data += torch.randn(prompt.shape, generator=torch.Generator().manual_seed(4))
    return model.double()


@torch.inference_mode()
def logits(model: KoGPT, ids: list[int]) -> Tensor:
    """Logits (T, V) after each id."""
    found = by_hand(model, prompt_embeddings(model).double(), torch.tensor([ids]))[0]
    found[:, 440:] = -torch.inf  # rows without a piece are never written
    return found


def greedy(model: KoGPT, ids: list[int], count: int, eos: int, penalty: float = 1) -> list[int]:
    written: list[int] = []
    while len(written) < count and (not written or written[-1] != eos):
        scores = logits(model, ids + written)[-1].clone()
        for id in set(ids + written):
            scores[id] = scores[id] * penalty if scores[id] < 0 else scores[id] / penalty
        written.append(int(scores.argmax()))
    return written


@pytest.mark.parametrize("penalty", [1, 1.3])
@pytest.mark.parametrize("options", [{}, {"batch_size": 1}, {"prefill_chunk": 3}, {"use_cache": 0}])
def test_greedy_texts_are_those_by_hand(prompted, tokenizer, penalty, options):
    params = SamplingParams(temperature=0, max_new_tokens=12, repetition_penalty=penalty)
    for found in generate(prompted, tokenizer, PROMPTS, params, **options):
        wanted = greedy(prompted, found.prompt_token_ids, 12, tokenizer.eos_id, penalty)
        assert found.token_ids == wanted
        assert max(found.prompt_token_ids) < 440  # none of them is virtual


SETTINGS = [
    {"temperature": 0.7, "top_p": 0.9, "logprobs": 2, "echo": True},
    {"presence_penalty": 0.5, "frequency_penalty": 0.4, "no_repeat_ngram_size": 2},
    {"temperature": 0.5, "banned_words": ["영", "화가"], "n": 3},
]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("how", ["streamed", "lookup", "draft", "prompted draft", "alone"])
def test_all_ways_to_write_give_the_same_text(prompted, model, tokenizer, setting, how):
    params = SamplingParams(max_new_tokens=10, seed=7, **setting)
    wanted = generate(prompted, tokenizer, PROMPTS, params)
    if how == "streamed":
        if params.n == 1:
            texts = ["".join(stream(prompted, tokenizer, p, params)) for p in PROMPTS]
            assert texts == [generation.text for generation in wanted]
        return
    drafts = {"draft": model, "prompted draft": prompted}
    speculate = PromptLookup() if how == "lookup" else drafts.get(how)
    if isinstance(speculate, KoGPT):
        speculate = DraftModel(speculate)
    found = generate(prompted, tokenizer, PROMPTS, params, batch_size=1, speculate=speculate)
    for a, b in zip(found, wanted, strict=True):
        assert (a.token_ids, a.text, a.prompt_token_ids) == (
            b.token_ids,
            b.text,
            b.prompt_token_ids,
        )
        if a.logprobs is not None:
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-9)
    if how == "prompted draft":
        assert all(a.accepted == a.drafted for a in found if a.drafted)


def test_beams_are_those_by_hand(prompted, tokenizer):
    params = SamplingParams(num_beams=3, max_new_tokens=6, min_new_tokens=6, logprobs=0, echo=True)
    (best,) = generate(prompted, tokenizer, [PROMPTS[1]], params)
    ids = best.prompt_token_ids + best.token_ids
    full = by_hand(prompted, prompt_embeddings(prompted).double(), torch.tensor([ids]))[0]
    wanted = full.log_softmax(-1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
    assert [*best.prompt_logprobs[1:], *best.logprobs] == pytest.approx(wanted, abs=1e-9)


def test_scores_are_those_by_hand(prompted, tokenizer):
    texts = ["한국어 영화 최고", "10점 만점에 2점도 아깝다", "ㅋㅋ"]
    for found in score(prompted, tokenizer, texts, batch_size=2):
        ids = torch.tensor([found.token_ids])
        full = by_hand(prompted, prompt_embeddings(prompted).double(), ids)[0, :-1]
        wanted = full.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].tolist()
        assert found.logprobs[1:] == pytest.approx(wanted, abs=1e-9)


def test_the_context_counts_virtual_tokens(prompted, tokenizer):
    params = SamplingParams(temperature=0, max_new_tokens=100, logit_bias={tokenizer.eos_id: -1e9})
    full, room = [40] * 59, 64 - TOKENS
    (found,) = generate(prompted, tokenizer, [full[:50]], params)
    # The last token is written, and not read.
    assert (len(found.token_ids), found.finish_reason) == (room - 50, "context")
    assert generate(prompted, tokenizer, [full], params)[0].token_ids == []
    with pytest.raises(InputRefusedError, match="60 tokens, the context of the model holds 64, 5"):
        generate(prompted, tokenizer, [[*full, 40]], params)
    longer = " ".join(["영화"] * 60)
    with pytest.raises(InputRefusedError, match="holds 64, 5 of them for its soft prompt"):
        score(prompted, tokenizer, [longer])


@pytest.mark.parametrize("id", [448, 452, 453])
def test_virtual_ids_are_not_for_users(prompted, tokenizer, id):
    with pytest.raises(InputRefusedError, match=f"the prompt holds id {id}, which has no piece"):
        generate(prompted, tokenizer, [[40, id]])


def test_virtual_ids_are_no_part_of_what_penalties_count(prompted):
    texts = [[40, 41, 42], [43]]
    history = Batch(prompted, texts, room=3, prefill_chunk=8, use_cache=True).history
    rows = zip(history.ids.tolist(), history.starts.tolist(), strict=True)
    assert [row[start:] for row, start in rows] == texts
    assert [set(row) for row in history.ids.tolist()] == [{40, 41, 42}, {43}]
