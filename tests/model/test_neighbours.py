"""What is done with KoGPT is done with its neighbours: writing, adapting, measuring, planning."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import kogpt
from kogpt.adapters import LoRAConfig, PromptConfig, attach_lora, attach_prompt
from kogpt.checkpoint import ConversionOptions, convert, load_model
from kogpt.checkpoint.writer import write_checkpoint
from kogpt.cli import main
from kogpt.generation import DraftModel, PromptLookup
from kogpt.model import KoGPT
from kogpt.model.variants import GPT2, GPT2Config, GPTNeoX, GPTNeoXConfig
from kogpt.tokenizer import load_tokenizer
from kogpt.training.loss import next_token_loss

SIZES = {"vocab_size": 8000, "n_positions": 256, "n_embd": 32, "n_layer": 2, "n_head": 2}
NEIGHBOURS = {
    "gpt2": (GPT2, GPT2Config(**SIZES, bos_token_id=0, eos_token_id=1)),
    "gpt_neox": (GPTNeoX, GPTNeoXConfig(**SIZES, rotary_dim=8, eos_token_id=1)),
}


@pytest.fixture(scope="module", params=NEIGHBOURS)
def folder(request, tmp_path_factory) -> Path:
    """A random model with the vocabulary of the model in the box."""
    model_class, config = NEIGHBOURS[request.param]
    torch.manual_seed(0)
    model = model_class(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    folder = tmp_path_factory.mktemp("models") / request.param
    files = {path.name: path.read_bytes() for path in load_tokenizer().files}
    write_checkpoint(folder, config, model.state_dict(), files=files)
    return folder


@pytest.fixture
def model(folder) -> KoGPT:
    return kogpt.load_model(folder)


def test_the_fast_form_writes_what_the_readable_one_does(folder):
    params = kogpt.SamplingParams(max_new_tokens=10, seed=5)
    texts = [
        kogpt.generate(*kogpt.load(folder, fast=fast), "이 영화는", params)[0].text
        for fast in (False, True)
    ]
    assert texts[0] == texts[1] and texts[0]


def test_guessing_ahead_leaves_the_text_as_it_is(folder, model):
    tokenizer = load_tokenizer(folder)
    params = kogpt.SamplingParams(max_new_tokens=16, seed=5, temperature=0.3)
    (plain,) = kogpt.generate(model, tokenizer, "재미있는 영화, 재미있는", params)
    for how in (PromptLookup(), DraftModel(kogpt.load_model(folder))):
        (one,) = kogpt.generate(model, tokenizer, "재미있는 영화, 재미있는", params, speculate=how)
        assert one.token_ids == plain.token_ids


@pytest.mark.parametrize("kind", ["lora", "p-tuning"])
def test_an_adapter_alone_is_trained(model, kind):
    if kind == "lora":
        attach_lora(model, LoRAConfig(targets=("q_proj", "fc_out"), rank=2))
    else:
        attach_prompt(model, PromptConfig(tokens=3, encoder="lstm"))
    ids = torch.randint(8000, (2, 9), generator=torch.Generator().manual_seed(0))
    next_token_loss(model.train(), ids[:, :-1], ids[:, 1:]).backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert with_gradient == trained
    assert trained and all("lora_" in name or "prompt" in name for name in trained)


def examples(folder: Path) -> Path:
    path = folder / "examples.jsonl"
    rows = [{"prompt": f"{i}번 영화는", "completion": " 좋았다"} for i in range(24)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("method", ["full", "lora"])
def test_finetuning_from_the_command_line(folder, method, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["finetune", "--model", str(folder), "--data", str(examples(tmp_path))]
    command += ["--method", method, "--steps", "4", "--batch-size", "4", "--validation-rows", "4"]
    assert main([*command, "--learning-rate", "1e-3", "--output", str(out), "--no-curve"]) == 0
    where = (
        ["--model", str(out)]
        if method == "full"
        else ["--model", str(folder), "--adapter", str(out)]
    )
    capsys.readouterr()
    assert main(["generate", *where, "3번 영화는", "--max-new-tokens", "8", "--seed", "1"]) == 0
    assert capsys.readouterr().out.startswith("3번 영화는")
    if method == "lora":
        assert main(["merge", str(folder), str(out), str(tmp_path / "merged")]) == 0
        assert type(kogpt.load_model(tmp_path / "merged")) is type(kogpt.load_model(folder))


def test_a_classifiers_head_is_trained_with_the_embedding_if_that_is_its_input(folder, tmp_path):
    from kogpt.training.config import FinetuningConfig
    from kogpt.training.methods import attach_method

    model = kogpt.load_model(folder)
    config = FinetuningConfig(data=("nsmc",), out=tmp_path, model=str(folder), method="full")
    attach_method(model, config, ("bad", "good"))
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith("lm_head.")}


def test_quantising_scoring_and_planning_from_the_command_line(folder, tmp_path, capsys):
    narrow = tmp_path / "int8"
    assert main(["convert", str(folder), str(narrow), "--quantize", "int8"]) == 0
    capsys.readouterr()
    figures = []
    for path in (folder, narrow):
        assert main(["score", "--model", str(path), "재미있고 감동적인 영화", "--json"]) == 0
        figures.append(json.loads(capsys.readouterr().out)["log_likelihood"])
    assert figures[0] != figures[1] and figures[1] == pytest.approx(figures[0], rel=0.02)
    assert main(["inspect", str(narrow)]) == 0
    assert "int8" in capsys.readouterr().out
    plan = ["plan", "--model", str(folder), "--method", "lora", "--sequence", "64", "--batch", "2"]
    assert main([*plan, "--memory", "24GB", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)


def test_measuring_from_the_command_line(folder, tmp_path, capsys):
    pytest.importorskip("sklearn")
    for name, film in (("test", "영화"), ("train", "드라마")):
        rows = [f"{i}\t{film}가 {i}번 {('별로', '좋았')[i % 2]}다\t{i % 2}" for i in range(40)]
        table = "\n".join(["id\tdocument\tlabel", *rows])
        (tmp_path / f"ratings_{name}.txt").write_text(table, encoding="utf-8")
    command = ["evaluate", "nsmc", "--model", str(folder), "--data", str(tmp_path)]
    report = tmp_path / "report.json"
    assert main([*command, "--shots", "2", "--limit", "8", "--output", str(report)]) == 0
    (run,) = json.loads(report.read_text(encoding="utf-8"))["runs"]
    assert 0 <= run["results"][0]["mean"] <= 100
    assert "accuracy" in capsys.readouterr().out


def test_another_number_of_heads_leaves_the_weights_as_they_are(folder, tmp_path):
    config = load_model(folder).config
    options = ConversionOptions(config=replace(config, n_head=4))
    convert(folder, tmp_path / "converted", options)
    stored, converted = (
        load_file(next(f.glob("*.safetensors"))) for f in (folder, tmp_path / "converted")
    )
    assert stored.keys() == converted.keys()
    assert all(torch.equal(stored[name], converted[name]) for name in stored)
