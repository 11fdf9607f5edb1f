"""A task of a few made-up reviews, written as its publisher would."""

from collections.abc import Sequence
from pathlib import Path

TASK = """\
title = "Reviews"
about = "Is a review good?"
source = "nobody"
labels = ["bad", "good"]
metrics = ["accuracy"]

[scored]
file = "reviews/scored.tsv"

[[shots]]
file = "reviews/shots.tsv"

[fields]
document = "document"
label = { column = "label", values = { 0 = 0, 1 = 1 } }

[prompts.short]
source = "nobody"
context = "{document} 한마디로"
targets = [" 최악", " 최고"]

[prompts.long]
source = "nobody"
context = "다음은 영화평이다.\\n{document}\\n평가:"
targets = [" (나쁨)", " (좋음)"]
shot_targets = ["  나쁨", "  좋음"]
"""

SCORED = [
    ("정말 재미있는 영화!", 1),
    ("10점 만점에 2점도 아깝다 ㅋㅋㅋㅋ", 0),
    ("", 1),
    ("음악이 참 좋아서 두 번 봤어요~", 1),
    ("이야기가 너무 뻔해서 아쉽네요..", 0),
]

SHOTS = [
    ("눈을 뗄 수 없었다", 1),
    ("시간 낭비 ㅠㅠ", 0),
    ("정말 재미있는 영화!", 1),  # is scored
    ("배우들 연기가 좋았다", 1),
    ("돈이 아깝다", 0),
    ("다시 보고 싶다", 1),
    ("졸다가 나왔다", 0),
    ("", 0),  # is scored, too
    ("최고의 작품", 1),
]


def write_table(path: Path, rows: Sequence[tuple[object, ...]]) -> Path:
    """Writes tab-separated rows, the header among them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows), encoding="utf-8")
    return path


def write_task(folder: Path, text: str = TASK) -> Path:
    """Writes the task's file and its data in a folder; returns the path of the former."""
    for name, rows in (("scored", SCORED), ("shots", SHOTS)):
        numbered = [(index, *row) for index, row in enumerate(rows)]
        write_table(folder / "reviews" / f"{name}.tsv", [("id", "document", "label"), *numbered])
    path = folder / "reviews.toml"
    path.write_text(text, encoding="utf-8")
    return path
