"""The model in the box: small, whole, Korean, and better at reviews than a compressor."""

import lzma
import re

import pytest
import torch

import kogpt
from kogpt.box import BOX
from kogpt.training.documents import is_held_out
from tests.shared import shared


@pytest.fixture(scope="module")
def box() -> tuple:
    return kogpt.load()


def test_it_is_small_and_as_its_manifest_says():
    report = kogpt.verify(BOX, quiet=True)
    assert report.license.startswith("CC0")
    assert sum(path.stat().st_size for path in BOX.glob("*.safetensors")) <= 20e6
    found = kogpt.inspect(BOX)
    assert 8e6 <= found.parameters <= 10e6 and set(found.dtypes) == {"float16"}


def test_its_tokenizer_spells_every_syllable(box):
    _, tokenizer = box
    syllables = "".join(map(chr, range(0xAC00, 0xD7A4)))
    assert len(syllables) == 11_172
    for start in range(0, len(syllables), 100):
        text = syllables[start : start + 100]
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_its_texts_follow_bos_as_its_training_texts_did(box):
    params = kogpt.SamplingParams(max_new_tokens=1, seed=0)
    (result,) = kogpt.generate(*box, "이 영화는", params)
    assert result.prompt_token_ids[0] == box[1].bos_id


def test_it_writes_korean_and_ends_its_reviews(box):
    params = kogpt.SamplingParams(temperature=0.8, max_new_tokens=200, n=8, seed=1)
    results = kogpt.generate(*box, "이 영화는", params)
    assert all(result.finish_reason == "eos" for result in results)
    texts = [result.text for result in results]
    assert len(set(texts)) == 8
    letters = re.findall(r"\w", "".join(texts))
    assert sum("가" <= letter <= "힣" for letter in letters) > 0.8 * len(letters)


def test_transformers_opens_it_and_agrees(box):
    transformers = pytest.importorskip("transformers")
    model, tokenizer = box
    theirs = transformers.AutoModelForCausalLM.from_pretrained(BOX, dtype=torch.float32).eval()
    ids = torch.tensor([tokenizer.encode("이 영화는 정말 재미있다", bos=True)])
    with torch.no_grad():
        assert (model(ids) - theirs(ids).logits).abs().max() < 1e-5
    assert transformers.AutoTokenizer.from_pretrained(BOX)("이 영화는")["input_ids"] == (
        tokenizer.encode("이 영화는", bos=tokenizer.add_bos)
    )


def test_it_beats_xz_on_held_out_reviews(box):
    with lzma.open(shared("data", "nsmc", "reviews.tsv.xz"), "rt", encoding="utf-8") as lines:
        next(lines)
        documents = (line.rstrip("\n").split("\t")[2] for line in lines)
        held_out = [text for i, text in enumerate(documents) if is_held_out(i) and text][:300]
    scores = kogpt.score(*box, held_out)
    bits = -sum(score.log_likelihood for score in scores) / 0.6931471805599453
    size = sum(len(text.encode()) for text in held_out)
    packed = len(lzma.compress("\n".join(held_out).encode(), preset=9 | lzma.PRESET_EXTREME))
    assert bits / size < 0.75 * 8 * packed / size
