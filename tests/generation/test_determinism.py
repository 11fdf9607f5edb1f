"""The same request gives the same ids, however it is run.

Identical, not close: one number is drawn per step, so ids differ only where it falls into the
last bits by which the logits of two ways of computing them differ.
"""

import copy
import random
from dataclasses import replace

import pytest
import torch

from kogpt.generation import SamplingParams, generate, stream
from kogpt.model import KoGPT
from kogpt.tokenizer import Tokenizer
from tests.scale import scaled

PROMPTS = [
    "한",
    "한국어 영화",
    "배우들의 연기는 좋았는데",
    "10점 만점에",
    "",
    "ㅋㅋㅋㅋ",
    "정말 재미있는",
]
SETTINGS = [{}, {"top_p": 0.9}, {"top_k": 40, "repetition_penalty": 1.2}, {"typical_p": 0.8}]
CASES = scaled(60, 500)


def request(seed: int) -> tuple[str, SamplingParams]:
    return PROMPTS[seed % len(PROMPTS)], SamplingParams(
        seed=seed, max_new_tokens=24, **SETTINGS[seed % len(SETTINGS)]
    )


@pytest.mark.parametrize("way", range(CASES))
def test_a_request_gives_the_same_ids_however_it_is_run(
    model: KoGPT, tokenizer: Tokenizer, way: int
):
    """Alone and plainly, against a random batch of up to 8, caching, chunking or streaming."""
    choose = random.Random(way)
    prompt, params = request(way)
    (alone,) = generate(model, tokenizer, [prompt], params)
    assert alone.token_ids
    how = {"use_cache": choose.random() < 0.5, "prefill_chunk": choose.choice([1, 2, 5, 512])}
    if way % 4 == 0:
        assert "".join(stream(model, tokenizer, prompt, params, **how)) == alone.text
        return
    batch = [request(choose.randrange(10_000)) for _ in range(choose.randint(0, 7))]
    place = choose.randint(0, len(batch))
    batch.insert(place, (prompt, params))
    prompts, settings = zip(*batch, strict=True)
    batch_size = choose.choice([len(batch), 3])
    together = generate(model, tokenizer, prompts, settings, batch_size=batch_size, **how)
    assert together[place].token_ids == alone.token_ids
    assert together[place].text == alone.text


@pytest.mark.usefixtures("read_on")
@pytest.mark.parametrize("way", range(scaled(40, 300)))
def test_a_step_that_is_queued_early_gives_the_same_ids(model, tokenizer, way, monkeypatch):
    """In batches whose rows end at different times, at the end of the context too."""
    choose = random.Random(way)
    batch = [request(choose.randrange(10_000)) for _ in range(choose.randint(1, 6))]
    prompts, settings = zip(*batch, strict=True)
    settings = [replace(s, max_new_tokens=choose.choice([1, 2, 9, 24, 999])) for s in settings]
    how = {"use_cache": choose.random() < 0.7, "prefill_chunk": choose.choice([1, 5, 512])}
    early = generate(model, tokenizer, prompts, settings, **how)
    monkeypatch.undo()
    assert early == generate(model, tokenizer, prompts, settings, **how)


def test_one_of_several_samples_is_the_one_that_fewer_would_give(model, tokenizer):
    prompt, params = request(1)
    for n in (1, 2, 8):
        several = generate(model, tokenizer, [prompt], SamplingParams(seed=1, n=n))
        assert several[0] == generate(model, tokenizer, [prompt], SamplingParams(seed=1))[0]


def test_a_bfloat16_model_gives_the_same_text_again_and_streamed(model, tokenizer):
    half = copy.deepcopy(model).bfloat16()
    prompt, params = request(2)
    first, again = (generate(half, tokenizer, [prompt], params) for _ in range(2))
    assert first == again
    assert "".join(stream(half, tokenizer, prompt, params)) == first[0].text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_ids_as_the_cpu(model, tokenizer):
    prompts, settings = zip(*map(request, range(40)), strict=True)
    on_gpu = generate(copy.deepcopy(model).cuda(), tokenizer, prompts, settings)
    for result, expected in zip(on_gpu, generate(model, tokenizer, prompts, settings), strict=True):
        assert result.token_ids == expected.token_ids
