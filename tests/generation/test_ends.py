"""Of several ends that a model's files list, the first that is written ends the text.

The oracle is transformers on the same folder.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

import kogpt
from kogpt.box import BOX
from kogpt.checkpoint import ConversionOptions, convert
from kogpt.generation import DraftModel, PromptLookup, SamplingParams, generate, stream

PROMPTS = ["이 영화는", "어릴 때 본 기억이 나서", "음악이 참"]
GREEDY = SamplingParams(temperature=0, max_new_tokens=24)


def with_ends(folder: Path, *ends: int) -> Path:
    """The model in the box, whose config.json lists ends."""
    shutil.copytree(BOX, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": ends}))
    (folder / "manifest.json").unlink()
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model that ends its texts at some of the tokens that it likes to write."""
    model, tokenizer = kogpt.load(dtype="float32")
    written = [result.token_ids for result in generate(model, tokenizer, PROMPTS, GREEDY)]
    ends = written[0][4], written[1][5]
    return with_ends(tmp_path_factory.mktemp("ends") / "model", 1, *ends)


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[list[int]]:
    """What transformers writes, its ends among it."""
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
    theirs = transformers.GPTJForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = kogpt.load_tokenizer(folder)
    found = []
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer.encode(prompt, bos=True)])
        whole = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24
        )
        found.append(whole[0, ids.size(1) :].tolist())
    return found


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("how", [{}, {"batch_size": 1}, {"use_cache": False}, {"speculate": "own"}])
def test_all_ends_that_are_listed_end_a_text(folder, expected, fast, how):
    if fast and "use_cache" in how:
        pytest.skip("the prepared network always has a cache")
    model, tokenizer = kogpt.load(folder, dtype="float32", fast=fast)
    if "speculate" in how:
        how = {"speculate": DraftModel(model) if not fast else PromptLookup(), "batch_size": 1}
    results = generate(model, tokenizer, PROMPTS, GREEDY, **how)
    assert [result.token_ids for result in results] == expected
    assert [result.finish_reason for result in results].count("eos") >= 2
    for prompt, result in zip(PROMPTS, results, strict=True):
        assert "".join(stream(model, tokenizer, prompt, GREEDY)) == result.text
        if result.finish_reason == "eos":
            whole = tokenizer.encode(prompt, bos=True) + result.token_ids[:-1]
            assert prompt + result.text == tokenizer.decode(whole)


def test_no_end_is_written_before_the_minimum(folder):
    model, tokenizer = kogpt.load(folder, dtype="float32")
    params = SamplingParams(temperature=0, max_new_tokens=24, min_new_tokens=20)
    for result in generate(model, tokenizer, PROMPTS, params):
        assert not tokenizer.end_ids & set(result.token_ids[:20])


def test_beams_end_at_all_ends_as_those_of_transformers(folder):
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
    theirs = transformers.GPTJForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model, tokenizer = kogpt.load(folder, dtype="float32")
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer.encode(prompt, bos=True)])
        whole = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16,
            num_beams=3, early_stopping=True, pad_token_id=3,
        )  # fmt: skip
        params = SamplingParams(num_beams=3, max_new_tokens=16, early_stopping=True)
        (result,) = generate(model, tokenizer, [prompt], params)
        assert result.token_ids == whole[0, ids.size(1) :].tolist()


def test_a_conversion_keeps_all_ends(folder, tmp_path):
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
    ends = kogpt.load_tokenizer(folder).end_ids
    for name, options in (("a", {}), ("b", {"quantize": "int8"})):
        convert(folder, tmp_path / name, ConversionOptions(quiet=True, **options))
        assert convert(
            folder, tmp_path / name, ConversionOptions(quiet=True, **options)
        ).already_complete
        assert kogpt.load_tokenizer(tmp_path / name).end_ids == ends
    theirs = transformers.GPTJForCausalLM.from_pretrained(tmp_path / "a")
    assert set(theirs.generation_config.eos_token_id) == ends
