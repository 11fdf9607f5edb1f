"""`--adapter` of the commands that use a model."""

import json

import pytest
import torch

import kogpt as package
from kogpt.adapters import LoRAConfig, PromptConfig, attach_head, attach_prompt, write_adapter
from kogpt.box import BOX
from kogpt.checkpoint import write_checkpoint
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


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> str:
    """A checkpoint with a head; its tokenizer is that of the box."""
    folder = tmp_path_factory.mktemp("classifier") / "c"
    model = package.load_model()
    attach_head(model, 2, torch.Generator().manual_seed(1), ["나쁨", "좋음"])
    files = {path.name: path for path in BOX.glob("*token*")}
    write_checkpoint(
        folder, model.config, model.state_dict(), files=files, labels=model.score.labels
    )
    return str(folder)


def test_classify_asks_the_head_of_a_checkpoint(classifier):
    model, tokenizer = package.load_classifier(classifier), package.load_tokenizer(classifier)
    texts = ["재미있는 영화", ["연기가 좋다", "연기가 나쁘다"]]
    wanted = package.classify(model, tokenizer, texts)
    (line,) = kogpt("classify", texts[0], "--model", classifier).stdout.splitlines()
    label, share, text = line.split("\t")
    assert (label, text) == (wanted[0].label, texts[0])
    assert float(share[:-1]) == pytest.approx(100 * max(wanted[0].probabilities.values()), abs=0.06)
    lines = "재미있는 영화\r\n\n연기가 좋다\t연기가 나쁘다\n"
    for more in ([], ["--reference", "--batch-size", "1"]):
        done = kogpt("classify", "-", "--model", classifier, "--json", *more, input=lines)
        found = list(map(json.loads, done.stdout.splitlines()))
        assert [one["text"] for one in found] == texts
        for one, prediction in zip(found, wanted, strict=True):
            assert one["label"] == prediction.label
            assert one["probabilities"] == pytest.approx(prediction.probabilities, abs=1e-4)


def test_classify_asks_the_head_of_an_adapter_before_that_of_the_checkpoint(classifier, tmp_path):
    model = package.load_model()
    trained_lora(model, LoRAConfig())
    attach_head(model, 3, torch.Generator().manual_seed(2), ["하나", "둘", "셋"])
    write_adapter(tmp_path / "a", model)
    (wanted,) = package.classify(model, package.load_tokenizer(), ["재미있는 영화"])
    asked = ("classify", "재미있는 영화", "--adapter", str(tmp_path / "a"), "--json")
    for more in ([], ["--model", classifier]):
        found = json.loads(kogpt(*asked, *more).stdout)
        assert found["probabilities"] == pytest.approx(wanted.probabilities, abs=1e-3)


def test_classify_says_what_is_missing(classifier):
    line = refusal("classify", "글", code=3)
    assert line.endswith("score.weight is missing: it has no head")
    assert "goes alone" in refusal("classify", "-", "글", "--model", classifier, code=2)
    line = refusal("classify", "-", "--model", classifier, input="\n\n", code=3)
    assert line == "kogpt: standard input holds no text to classify"
    line = refusal("classify", "글", "--batch-size", "0", "--model", classifier, code=2)
    assert line.startswith("kogpt: argument --batch-size: ")


def test_the_prompt_loop_counts_virtual_tokens(adapters):
    done = kogpt("chat", *adapters, input="이 영화를\n\n1024\n1020\n20\n", code=0)
    assert "max_length is 1024; it counts the prompt, so give" in done.stderr
    assert "to 1019" in done.stderr


def test_an_adapter_that_is_none_is_refused_in_one_line(tmp_path):
    line = refusal("generate", "x", "--adapter", str(tmp_path / "none"), code=3)
    assert line == f"kogpt: {tmp_path / 'none' / 'adapter_config.json'}: No such file or directory"


def test_a_draft_model_takes_no_adapter_and_changes_nothing(adapters):
    ask = ["--seed", "3", "--max-new-tokens", "8", "--json", "--dtype", "float32", *adapters]
    texts = [
        json.loads(kogpt("generate", "이 영화를", *ask, *more).stdout)["text"]
        for more in ([], ["--draft-model", str(BOX)], ["--speculate", "lookup"])
    ]
    assert texts[0] == texts[1] == texts[2]
