"""The text side of generation with every kind of tokenizer there is."""

import random

import pytest

from kogpt.generation import SamplingParams, generate, score, stream
from kogpt.tokenizer import Tokenizer, load_tokenizer
from tests.scale import scaled
from tests.tokenizer.conftest import SENTENCEPIECE_KINDS, write_byte_level, write_sentencepiece


@pytest.fixture(scope="module", params=["byte-level", *SENTENCEPIECE_KINDS])
def any_tokenizer(request, tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "byte-level":
        return load_tokenizer(write_byte_level(folder))
    return load_tokenizer(write_sentencepiece(folder, **SENTENCEPIECE_KINDS[request.param]))


def test_streamed_joined_and_decoded_text_are_one(model, any_tokenizer):
    for seed in range(scaled(4, 100)):
        prompt = ["", "한국어 영화", " 앞에 빈칸", "ㅋㅋ "][seed % 4]
        params = SamplingParams(seed=seed, max_new_tokens=30, echo=True)
        (result,) = generate(model, any_tokenizer, [prompt], params)
        assert "".join(stream(model, any_tokenizer, prompt, params)) == result.text
        ids = result.prompt_token_ids + result.token_ids
        assert result.text == any_tokenizer.decode(ids)


def test_stop_strings_end_and_banned_words_stay_out(model, any_tokenizer):
    choose = random.Random(0)
    for seed in range(scaled(5, 100)):
        asked = {"seed": seed, "max_new_tokens": 30, "min_new_tokens": 0}
        (free,) = generate(model, any_tokenizer, ["한국어"], SamplingParams(**asked))
        readable = [part for part in free.text.split("\ufffd") if part]
        if not readable:
            continue
        cut = choose.choice(readable)[: 1 + seed % 3]
        (stopped,) = generate(model, any_tokenizer, ["한국어"], SamplingParams(**asked, stop=cut))
        assert stopped.text == free.text[: free.text.index(cut)]
        banned = SamplingParams(**asked, banned_words=cut)
        (clean,) = generate(model, any_tokenizer, ["한국어"], banned)
        assert cut not in clean.text


def test_bytes_are_those_of_the_text(model, any_tokenizer):
    text = "영화가 참 좋았다"
    (result,) = score(model, any_tokenizer, [text])
    if any_tokenizer.bos_id is not None and any_tokenizer.decode(result.token_ids) == text:
        assert result.num_bytes == len(text.encode())
        assert (result.num_syllables, result.num_eojeols) == (7, 3)


def test_broken_tokens_are_those_that_are_no_text_alone(model, any_tokenizer):
    (result,) = score(model, any_tokenizer, ["뷁쉛쮊 영화😤\n"])
    shown = [any_tokenizer.token_bytes(id).decode(errors="replace") for id in result.token_ids[1:]]
    assert result.num_broken == sum("\ufffd" in text for text in shown)
