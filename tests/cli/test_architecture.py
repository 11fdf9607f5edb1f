"""A class of one's own from the command line: trained, resumed, finetuned, used."""

from pathlib import Path

import pytest

import kogpt
from kogpt.box import BOX
from kogpt.cli import main

SOURCE = """
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from kogpt.model import Block, KoGPT, KoGPTConfig


class RMSNormBlock(Block):
    norm_class = nn.RMSNorm


class RMS(KoGPT):
    block_class = RMSNormBlock


@dataclass(frozen=True)
class OwnConfig(KoGPTConfig):
    model_type: ClassVar[str] = "own"
    strength: float = 0.5


class Own(RMS):
    config_class = OwnConfig
"""
CONFIG = """{"model_type": "gptj", "vocab_size": 8000, "n_positions": 32, "n_embd": 16,
 "n_layer": 2, "n_head": 2, "rotary_dim": 4}"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(SOURCE)
    (tmp_path / "shape.json").write_text(CONFIG)
    rows = "".join(f"{i}번 영화는 정말 재미있다\n" for i in range(60))
    (tmp_path / "texts.txt").write_text(rows, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(*further: str) -> int:
    command = ["train", "texts.txt", "--config", "shape.json", "--tokenizer", str(BOX)]
    command += ["--batch-size", "2", "--validation-documents", "4", "--no-curve", "--out", "run"]
    return main([*command, *further])


@pytest.mark.parametrize("name", ["RMS", "Own"])
def test_a_run_of_an_own_class_leaves_what_that_class_alone_opens(place, name, capsys):
    own = ["--architecture", f"mine.py:{name}"]
    assert train("--steps", "3", *own) == 0
    (folder,) = (place / "run").glob("step-*3")
    assert main(["generate", "--model", str(folder), *own, "3번", "--max-new-tokens", "4"]) == 0
    capsys.readouterr()
    assert main(["generate", "--model", str(folder), "3번"]) == 3
    said = capsys.readouterr().err
    expected = {"RMS": "transformer.h.0.ln_1.bias is missing", "Own": "model_type is 'own'"}
    assert expected[name] in said and said.count("\n") == 1
    assert train("--steps", "5", "--resume", *own) == 0
    model, _ = kogpt.load(folder, model_class=kogpt.architecture.load_architecture(own[1]))
    assert type(model).__name__ == name


def test_it_is_finetuned_with_an_adapter_that_it_takes_back(place, capsys):
    own = ["--architecture", "mine.py:RMS"]
    assert train("--steps", "2", *own) == 0
    (folder,) = (place / "run").glob("step-*2")
    (place / "rows.jsonl").write_text('{"prompt": "영화는", "completion": " 좋다"}\n' * 9)
    command = ["finetune", "--model", str(folder), *own, "--data", "rows.jsonl", "--steps", "2"]
    command += ["--validation-rows", "2", "--batch-size", "2", "--no-curve"]
    assert main([*command, "--method", "lora", "--output", "lora"]) == 0
    use = ["generate", "--model", str(folder), *own, "--adapter", "lora", "영화는"]
    assert main([*use, "--max-new-tokens", "3"]) == 0
    assert main([*command, "--method", "full", "--output", "full"]) == 0
    assert main(["generate", "--model", "full", *own, "영화는", "--max-new-tokens", "3"]) == 0


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("nowhere.py:RMS", "no such file"),
        ("RMS", "no such file; name it as FILE.py:CLASS"),
        ("mine.py:Nobody", "'Nobody' is no subclass of KoGPT"),
        ("mine.py:RMSNormBlock", "'RMSNormBlock' is no subclass of KoGPT"),
        ("broken.py:RMS", "SyntaxError"),
        ("lacking.py:RMS", "No module named 'nonesuch'"),
        ("failing.py:RMS", "failing.py: ZeroDivisionError"),
    ],
)
def test_what_is_no_architecture_is_refused_in_one_line(place, where, message, capsys):
    (place / "broken.py").write_text("class RMS(\n")
    (place / "lacking.py").write_text("import nonesuch\n")
    (place / "failing.py").write_text("1 / 0\n")
    assert main(["generate", "--architecture", where, "영화"]) == 3
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
