"""`--adapter` of the commands that use a model."""

import json

import pytest
import torch

import kogpt as package
from kogpt.adapters import LoRAConfig, PromptConfig, attach_prompt, write_adapter
from tests.adapters.filled import trained_lora
from tests.cli.test_commands import kogpt, refusal


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("adapters")
    model = package.load_model()
    trained_lora(model, LoRAConfig(rank=2, alpha=0.2))
    write_adapter(folder / "lora", model)
    model = package.load_model()
    attach_prompt(model, PromptConfig(5), torch.Generator().manual_seed(1))
    write_adapter(folder / "prompt", model)
    return ["--adapter", str(folder / "lora"), "--adapter", str(folder / "prompt")]


def test_generate_and_chat_write_with_adapters(adapters):
    ask = ["--temperature", "0", "--max-new-tokens", "8", "--json", "--dtype", "float32"]
    model, tokenizer = package.load(dtype=torch.float32, adapter=adapters[1::2])
    params = package.SamplingParams(temperature=0, max_new_tokens=8)
    (wanted,) = package.generate(model, tokenizer, ["이 영화를"], params)
    for more in ([], ["--reference"]):
        found = json.loads(kogpt("generate", "이 영화를", *ask, *adapters, *more).stdout)
        assert found["text"] == wanted.text
    plain = json.loads(kogpt("generate", "이 영화를", *ask).stdout)
    assert plain["text"] != wanted.text
    written = kogpt("chat", *adapters, "--seed", "1", input="이 영화를\n0\n12\n").stdout
    assert written.startswith("이 영화를")


def test_score_counts_with_adapters(adapters):
    model, tokenizer = package.load(adapter=adapters[1::2])
    (wanted,) = package.score(model, tokenizer, ["이 영화를 보고"])
    found = json.loads(kogpt("score", "이 영화를 보고", "--json", *adapters).stdout)
    assert found["log_likelihood"] == pytest.approx(wanted.log_likelihood, abs=1e-4)


def test_the_prompt_loop_counts_virtual_tokens(adapters):
    done = kogpt("chat", *adapters, input="이 영화를\n\n1024\n1020\n20\n", code=0)
    assert "max_length is 1024; it counts the prompt, so give" in done.stderr
    assert "to 1019" in done.stderr


def test_an_adapter_that_is_none_is_refused_in_one_line(tmp_path):
    line = refusal("generate", "x", "--adapter", str(tmp_path / "none"), code=3)
    assert line == f"kogpt: {tmp_path / 'none' / 'adapter_config.json'}: No such file or directory"


def test_a_draft_model_takes_no_adapter_and_changes_nothing(adapters):
    from kogpt.box import BOX

    ask = ["--seed", "3", "--max-new-tokens", "8", "--json", "--dtype", "float32", *adapters]
    texts = [
        json.loads(kogpt("generate", "이 영화를", *ask, *more).stdout)["text"]
        for more in ([], ["--draft-model", str(BOX)], ["--speculate", "lookup"])
    ]
    assert texts[0] == texts[1] == texts[2]
