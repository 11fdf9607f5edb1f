"""A made-up task that can be learnt, and a small model to learn it."""

import json
import random
from pathlib import Path

import torch

from kogpt.checkpoint import write_checkpoint
from kogpt.model import KoGPT, KoGPTConfig
from kogpt.tokenizer import Tokenizer
from kogpt.training.loss import next_token_loss

TASK = """\
title = "Reviews"
about = "Is a review good?"
source = "nobody"
labels = ["bad", "good"]
metrics = ["accuracy", "macro_f1"]

[scored]
file = "test.tsv"

[[shots]]
file = "train.tsv"

[fields]
document = "document"
label = { column = "label", values = { 0 = 0, 1 = 1 } }

[prompts.short]
source = "nobody"
context = "{document} ->"
targets = [" 낭비", " 최고"]
"""

PAIRS = """\
title = "Pairs"
about = "How alike are two sentences?"
source = "nobody"
labels = ["different", "similar"]
metrics = ["spearman", "accuracy"]

[scored]
file = "pairs-test.tsv"

[validation]
file = "pairs-dev.tsv"

[[shots]]
file = "pairs-train.tsv"

[fields]
sentence1 = "sentence1"
sentence2 = "sentence2"
label = { column = "score", at_least = 3.0 }
degree = { column = "score" }

[prompts.short]
source = "nobody"
context = "{sentence1} / {sentence2}"
targets = [" 낭비", " 최고"]
"""

GOOD, BAD = (
    ("재미있는 영화", "음악이 좋아서", "한국어 명작"),
    ("시간 낭비", "너무 뻔해서", "아깝다"),
)
WORDS = "최고", "낭비", "영화", "음악", "만점", "시간", "배우들의", "한국어"


def reviews(count: int, first: int) -> list[tuple[str, int]]:
    """Reviews with a number each, so that no two are equal; every other one is good."""
    words = [(GOOD, BAD)[i % 2][i // 2 % 3] for i in range(first, first + count)]
    return [(f"{word} {i}", 1 - i % 2) for i, word in enumerate(words, start=first)]


def write_task(folder: Path, train: list[tuple[str, int]], test: list[tuple[str, int]]) -> Path:
    """The task's file, its data beside it."""
    for name, rows in (("train", train), ("test", test)):
        lines = ["document\tlabel", *(f"{text}\t{label}" for text, label in rows)]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    path = folder / "reviews.toml"
    path.write_text(TASK, encoding="utf-8")
    return path


def write_pairs(folder: Path) -> Path:
    """A task of pairs, whose degree is how many of the two are good."""
    chance = random.Random(0)
    for name, count in {"train": 120, "dev": 20, "test": 40}.items():
        rows = [chance.sample(reviews(100, 0), 2) for _ in range(count)]
        lines = [f"{2 * (x + y)}\t{a} {name}\t{b}" for (a, x), (b, y) in rows]
        text = "\n".join(["score\tsentence1\tsentence2", *lines]) + "\n"
        (folder / f"pairs-{name}.tsv").write_text(text, encoding="utf-8")
    path = folder / "pairs.toml"
    path.write_text(PAIRS, encoding="utf-8")
    return path


def write_jsonl(path: Path, rows: list[tuple[str, str]]) -> Path:
    """Examples, an object a line."""
    lines = [json.dumps({"prompt": p, "completion": c}, ensure_ascii=False) for p, c in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_base(folder: Path, shape: KoGPTConfig, tokenizer: Tokenizer) -> Path:
    """A checkpoint that knows reviews and that some word follows them, and its tokenizer."""
    model = KoGPT(shape)
    model.init_weights(torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    texts = [f"{text} -> {word}" for text, _ in reviews(24, 5000) for word in WORDS]
    rows = [tokenizer.encode(text, bos=True, eos=True) for text in texts]
    batch = torch.tensor([(row + [1] * 40)[:40] for row in rows])
    for step in range(60):
        some = batch[step % 4 :: 4]
        next_token_loss(model, some[:, :-1], some[:, 1:]).div(some.numel()).backward()
        optimizer.step()
        optimizer.zero_grad()
    files = {path.name: path for path in tokenizer.files}
    write_checkpoint(folder, shape, model.state_dict(), files=files, license_notice="CC0")
    return folder
