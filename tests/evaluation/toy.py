"""A small task on disk: real sentences, made-up labels, one TOML file and two tables."""

import random
from pathlib import Path

SUBJECTS = ["배우들의 연기는", "이야기가", "음악이", "결말이", "감독의 연출은", "화면이", "대사가"]
VERDICTS = [
    ("지루하고 뻔했다", 0),
    ("너무 아쉬웠다 ㅠㅠ", 0),
    ("정말 최악이다 .", 0),
    ("참 좋았어요", 1),
    ("감동적이었다!", 1),
    ("최고였습니다", 1),
]

TASK = """\
title = "Toy"
about = "Is it good?"
source = "made up"
labels = ["bad", "good"]
metrics = ["accuracy", "macro_f1"]

[scored]
file = "toy_test.tsv"

[[shots]]
file = "toy_train.tsv"

[fields]
text = "text"
label = { column = "label", values = { 0 = 0, 1 = 1 } }

[prompts.words]
source = "made up"
context = "{text} 한마디로"
targets = [" 최악", " 최고"]

# The same but for some rows: batches of these two are partly the same.
[prompts.tidied]
source = "made up"
context = "{text} 한마디로"
targets = [" 최악", " 최고"]
detokenize = true

[prompts.sentences]
source = "made up"
context = "{text}"
targets = [" 그래서 {text} 별로였다.", " 그래서 좋았다."]

[[published]]
source = "nobody"
metric = "accuracy"
shots = 3
values = { "Somebody 1B" = 77.7 }
"""


def write_task(folder: Path, rows: int = 40, seed: int = 0) -> Path:
    """Writes the task and its tables; returns the task's file."""
    draw = random.Random(seed)
    for name, count in (("test", rows), ("train", 60)):
        lines = ["id\ttext\tlabel"]
        for index in range(count):
            verdict, label = draw.choice(VERDICTS)
            words = " ".join(draw.choice(SUBJECTS) for _ in range(draw.randint(0, 4)))
            lines.append(f"{index}\t{words} {verdict} {name} {index}\t{label}")
        (folder / f"toy_{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    path = folder / "toy.toml"
    path.write_text(TASK, encoding="utf-8")
    return path
