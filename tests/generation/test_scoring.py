"""Scores against the full forward."""

import dataclasses
import json
import math
import unicodedata
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import kogpt
from kogpt.errors import InputRefusedError, KoGPTError
from kogpt.generation import CorpusScore, score, scoring
from kogpt.generation.scoring import sequence_logprobs, stream_scores

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


def test_without_bos_syllables_and_words_are_those_of_what_is_scored(model, tokenizer):
    (result,) = score(model, tokenizer, ["뷁 최고"], bos=False)  # the first token is a byte
    assert (result.num_syllables, result.num_eojeols) == (2, 2)


def test_the_last_syllable_there_is_counts_as_one(model, tokenizer):
    assert score(model, tokenizer, ["가힣\ud7a4"])[0].num_syllables == 2


def test_decomposed_hangul_is_read_as_it_is_asked_to_be(model, tokenizer):
    text = unicodedata.normalize("NFD", "한국")
    for normalize in ("nfc", "none"):
        (result,) = score(model, tokenizer, [text], normalize=normalize)
        assert result.num_syllables == (2 if normalize == "nfc" else 0)
        assert result.token_ids == tokenizer.encode(text, bos=True, normalize=normalize)


def test_other_things_than_texts_and_other_names_are_refused(model, tokenizer):
    with pytest.raises(ValueError, match="what is scored must be texts"):
        score(model, tokenizer, [[5, 6]])
    with pytest.raises(ValueError, match="there are 2 texts and 1 names"):
        score(model, tokenizer, ["한국", "가나다"], names=["a.txt"])
    with pytest.raises(ValueError, match="there are 1 texts and 0 names"):
        score(model, tokenizer, ["한국"], names=[])


def test_a_text_is_called_by_its_name_if_it_has_one(model, tokenizer):
    with pytest.raises(InputRefusedError, match="^b.txt is too short"):
        score(model, tokenizer, ["한국", ""], names=["a.txt", "b.txt"])


def test_a_model_in_training_scores_without_dropout_and_goes_on_training(model, tokenizer):
    expected = score(model, tokenizer, TEXTS)
    model.train()
    try:
        assert score(model, tokenizer, TEXTS) == expected and model.training
    finally:
        model.eval()


COUNTED = {  # text: syllables of Hangul, words; counted by hand
    "한국어 영화 최고 😤": (7, 4),
    " 10점  만점에\t2점도\n아깝다 ㅋㅋㅋ ": (9, 5),
    "뷁, B급!": (2, 2),
    "Ending credits 2": (0, 3),
}


def test_syllables_and_words_are_those_counted_by_hand(model, tokenizer):
    for (syllables, words), result in zip(
        COUNTED.values(), score(model, tokenizer, list(COUNTED)), strict=True
    ):
        bits = -result.log_likelihood / math.log(2)
        assert (result.num_syllables, result.num_eojeols) == (syllables, words)
        assert result.bits_per_eojeol == pytest.approx(bits / words)
        assert result.tokens_per_eojeol == result.num_tokens / words
        if syllables:
            assert result.bits_per_syllable == pytest.approx(bits / syllables)
            assert result.tokens_per_syllable == result.num_tokens / syllables
        else:
            assert result.bits_per_syllable is result.tokens_per_syllable is None


def test_broken_tokens_are_the_pieces_of_single_bytes(model, tokenizer):
    (result,) = score(model, tokenizer, ["뷁 영화 😤뷁"])
    pieces = [tokenizer.id_to_piece(id) for id in result.token_ids]
    broken = [piece for piece in pieces if piece.startswith("<0x")]
    assert len(broken) == 6 == result.num_broken  # the emoji has a piece of its own
    assert result.byte_fallback_share == 6 / result.num_tokens


def test_a_total_is_divided_once_and_is_the_score_of_all_the_text(model, tokenizer):
    scores = score(model, tokenizer, list(COUNTED))
    corpus = CorpusScore.of(scores)
    bits = math.fsum(-result.log_likelihood for result in scores) / math.log(2)
    assert corpus.num_texts == 4
    assert (corpus.num_syllables, corpus.num_eojeols) == (18, 14)
    assert corpus.bits_per_syllable == pytest.approx(bits / 18)
    assert corpus.bits_per_byte == pytest.approx(bits / len("".join(COUNTED).encode()))
    assert corpus.perplexity == pytest.approx(2 ** (bits / sum(s.num_tokens for s in scores)))
    means = [result.bits_per_eojeol for result in scores]
    assert corpus.bits_per_eojeol != pytest.approx(sum(means) / 4)
    assert json.loads(json.dumps(corpus.to_dict()))["bits_per_eojeol"] == corpus.bits_per_eojeol


def test_the_model_in_the_box_finds_texts_as_likely_as_transformers_does():
    transformers = pytest.importorskip("transformers")
    folder = Path(kogpt.__file__).parent / "nano"
    theirs = transformers.GPTJForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model, tokenizer = kogpt.load(dtype=torch.float32)
    for text, result in zip(COUNTED, score(model, tokenizer, list(COUNTED)), strict=True):
        ids = torch.tensor([tokenizer.encode(text, bos=True)])
        with torch.no_grad():
            loss = theirs(ids, labels=ids).loss.double().item()
        assert result.log_likelihood == pytest.approx(-loss * (ids.size(1) - 1), rel=1e-5)


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_scores_do_not_depend_on_the_chunks_they_are_computed_in(model, chunk):
    rows = [[5, 6, 7, 8] * 9, [5], [9, 10], list(range(64))]
    whole = sequence_logprobs(model, rows, top=2)
    assert [len(row) for row in whole] == [35, 0, 1, 63]
    for row, other in zip(whole, sequence_logprobs(model, rows, top=2, chunk=chunk), strict=True):
        for item, again in zip(row, other, strict=True):
            assert item.logprob == pytest.approx(again.logprob, abs=1e-5)
            assert list(item.top) == list(again.top)


def likelihood_by_strides(model, ids, stride):
    """As "Perplexity of fixed-length models" of Hugging Face's documentation computes it."""
    total, end_before = 0.0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + model.config.n_positions, len(ids))
        window = torch.tensor(ids[begin:end])
        labels = window.clone()
        labels[: len(window) - (end - end_before)] = -100
        logits = model(window[None])[0].double()
        total -= F.cross_entropy(logits[:-1], labels[1:], reduction="sum").item()
        end_before = end
        if end == len(ids):
            return total
    return total


@pytest.mark.parametrize("stride", [1, 16, 63])
@pytest.mark.parametrize("length", [64, 65, 80, 81, 127, 128, 200])
def test_a_text_longer_than_the_context_is_read_in_windows(model, tokenizer, stride, length):
    rest, text = "".join(COUNTED) * 5, "뷁"
    while len(tokenizer.encode(text, bos=True)) < length:
        text, rest = text + rest[0], rest[1:]
    ids = tokenizer.encode(text, bos=True)
    short, long = score(model, tokenizer, ["한국", text], stride=stride, batch_size=3)
    (alone,) = score(model, tokenizer, ["한국"])
    assert short.log_likelihood == pytest.approx(alone.log_likelihood, rel=1e-5)
    assert long.token_ids == ids
    assert long.num_tokens == len(ids) - 1 == len(list(filter(None, long.logprobs)))
    wanted = likelihood_by_strides(model, ids, stride)
    assert long.log_likelihood == pytest.approx(wanted, rel=1e-5)


def test_a_window_behind_a_soft_prompt_is_shorter(model, tokenizer, monkeypatch):
    monkeypatch.setattr(model, "prefix_ids", (5, 6), raising=False)
    (result,) = score(model, tokenizer, "뷁" * 40, stride=30)
    ids = tokenizer.encode("뷁" * 40, bos=True)
    windows = [(ids[:62], 1), (ids[30:92], 32), (ids[60:], 32)]
    total = 0.0
    for window, given in windows:
        logprobs = model(torch.tensor([[5, 6, *window]]))[0, 2:].double().log_softmax(-1)
        rest = range(given, len(window))
        total += sum(logprobs[index - 1, window[index]].item() for index in rest)
    assert result.log_likelihood == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("stride", [0, 64, 1.5])
def test_a_stride_that_leaves_a_token_nothing_to_stand_behind_is_refused(model, tokenizer, stride):
    with pytest.raises(ValueError, match=f"stride is {stride}, it must be .* and at most 63"):
        score(model, tokenizer, ["한"], stride=stride)


def test_a_text_too_long_or_too_short_to_score_is_refused_by_its_place(model, tokenizer):
    with pytest.raises(InputRefusedError, match="text 1 has 65 tokens.* holds 64; a stride"):
        score(model, tokenizer, ["한", "뷁" * 16 + "뷁" * 5 + "가"])
    with pytest.raises(InputRefusedError, match="text 0 is too short"):
        score(model, tokenizer, [""])
    with pytest.raises(InputRefusedError, match="b.txt: the text holds half characters"):
        score(model, tokenizer, ["한", "\ud800"], names=["a.txt", "b.txt"])


def test_scores_come_as_they_are_known_after_all_texts_were_looked_at(
    model, tokenizer, monkeypatch
):
    expected = score(model, tokenizer, TEXTS)
    read = []
    inner = scoring.sequence_logprobs
    monkeypatch.setattr(scoring, "TEXTS_AT_ONCE", 3)
    monkeypatch.setattr(
        scoring, "sequence_logprobs", lambda m, rows: read.append(len(rows)) or inner(m, rows)
    )
    with pytest.raises(InputRefusedError, match="text 4 is too short"):
        stream_scores(model, tokenizer, [*TEXTS, ""])
    scores = stream_scores(model, tokenizer, TEXTS)
    assert read == []
    first = next(scores)
    assert read == [3] and not model.training
    found = [first, *scores]
    assert read == [3, 1]
    for result, wanted in zip(found, expected, strict=True):
        assert result.token_ids == wanted.token_ids
        assert result.log_likelihood == pytest.approx(wanted.log_likelihood, abs=1e-5)


def test_one_text_counts_as_a_list_of_it_and_so_does_what_gives_texts(model, tokenizer):
    assert score(model, tokenizer, TEXTS[0]) == score(model, tokenizer, TEXTS[:1])
    assert score(model, tokenizer, iter(TEXTS)) == score(model, tokenizer, TEXTS)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_of_nothing_is_refused(model, tokenizer, batch_size):
    with pytest.raises(ValueError, match=f"batch_size is {batch_size}, it must be a whole"):
        score(model, tokenizer, TEXTS, batch_size=batch_size)


def test_a_perplexity_beyond_all_numbers_is_infinite_and_none_in_json(model, tokenizer):
    found = score(model, tokenizer, TEXTS[:1])[0]
    unlikely = dataclasses.replace(found, log_likelihood=-1000.0 * found.num_tokens)
    assert unlikely.perplexity == math.inf and unlikely.to_dict()["perplexity"] is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_model_whose_logits_are_no_numbers_has_no_score(tokenizer, value):
    model = kogpt.load_model()
    with torch.no_grad():
        model.lm_head.bias[3] = value
    with pytest.raises(KoGPTError, match="NaN or infinite"):
        score(model, tokenizer, TEXTS)


def test_of_one_id_nothing_is_read(model):
    """Nothing comes before the first: a model need not bear rows without tokens."""
    called = []
    handle = model.transformer.register_forward_pre_hook(lambda *_: called.append(1))
    try:
        assert sequence_logprobs(model, [[5], [7]]) == [[], []] and not called
    finally:
        handle.remove()
