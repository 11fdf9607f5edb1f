"""Scores against the full forward."""

import math

import pytest
import torch

from kogpt.errors import InputRefusedError
from kogpt.generation import score
from kogpt.generation.scoring import sequence_logprobs

TEXTS = ["한국어 영화 최고 😤", "한", "배우들의 연기는 좋았는데 뷁", "10점"]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_a_score_is_the_likelihood_under_the_full_forward(model, tokenizer, batch_size):
    scores = score(model, tokenizer, TEXTS, batch_size=batch_size)
    for text, result in zip(TEXTS, scores, strict=True):
        ids = tokenizer.encode(text, bos=True)
        logprobs = model(torch.tensor([ids]))[0].double().log_softmax(-1)
        likelihood = logprobs[range(len(ids) - 1), ids[1:]].sum().item()
        assert result.token_ids == ids and result.logprobs[0] is None
        assert result.log_likelihood == pytest.approx(likelihood, abs=1e-4)
        assert result.num_tokens == len(ids) - 1
        assert result.num_bytes == len(text.encode())
        assert result.perplexity == pytest.approx(math.exp(-likelihood / (len(ids) - 1)), rel=1e-4)
        bits = -likelihood / math.log(2) / len(text.encode())
        assert result.bits_per_byte == pytest.approx(bits, rel=1e-5)


def test_without_bos_the_first_token_is_read_but_not_scored(model, tokenizer):
    for text in (TEXTS[0], "뷁"):  # "뷁" has no piece: its first token is its first byte
        (result,) = score(model, tokenizer, [text], bos=False)
        first = tokenizer.token_bytes(result.token_ids[0])
        assert result.token_ids == tokenizer.encode(text)
        assert result.num_bytes == len(text.encode()) - len(first)


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_scores_do_not_depend_on_the_chunks_they_are_computed_in(model, chunk):
    rows = [[5, 6, 7, 8] * 9, [5], [9, 10], list(range(64))]
    whole = sequence_logprobs(model, rows, top=2)
    assert [len(row) for row in whole] == [35, 0, 1, 63]
    for row, other in zip(whole, sequence_logprobs(model, rows, top=2, chunk=chunk), strict=True):
        for item, again in zip(row, other, strict=True):
            assert item.logprob == pytest.approx(again.logprob, abs=1e-5)
            assert list(item.top) == list(again.top)


def test_a_text_too_long_or_too_short_to_score_is_refused_by_its_place(model, tokenizer):
    with pytest.raises(InputRefusedError, match="text 1 has 65 tokens.* holds 64$"):
        score(model, tokenizer, ["한", "뷁" * 16 + "뷁" * 5 + "가"])
    with pytest.raises(InputRefusedError, match="text 0 is too short"):
        score(model, tokenizer, [""])
