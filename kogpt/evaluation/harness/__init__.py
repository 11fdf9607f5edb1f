"""Our tasks for lm-evaluation-harness: one YAML file for each prompt of each task.

The prompts are spelled out there in the harness's own terms; rows, and the examples among them, are
those of our evaluation. Where the data lies and which rows are wanted goes through `--metadata`:

    --metadata '{"data": "data", "seed": 1}'
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kogpt.errors import KoGPTError
from kogpt.evaluation.data import Row, find_first, is_there, read_rows
from kogpt.evaluation.prompting import detokenize as without_spaces
from kogpt.evaluation.shots import draw_shots, sample_rows
from kogpt.evaluation.task import load_task

if TYPE_CHECKING:
    from datasets import Dataset

MOST_SHOTS = 100


def rows(
    task: str,
    data: str | None = None,
    detokenize: bool = False,
    limit: int | None = None,
    shots: int | None = None,
    balanced: bool = False,
    seed: int = 0,
    set: int = 0,
    **unused: Any,  # the harness adds the arguments of the model, and more
) -> "dict[str, Dataset]":
    """The rows of a task, with its fields and `label` as columns.

    Args:
        task: its name.
        data: the folder of data.
        detokenize: drop spaces around punctuation, as some published prompts do.
        limit: score a sample of so many rows, the one of `kogpt evaluate --limit`.
        shots: examples to draw, of which `--num_fewshot` takes the first; the draw is that of
            `kogpt evaluate`. None is 100, and none where the file that they come from is missing.
        balanced: draw equally many examples of each label; then `shots` must be `--num_fewshot`.
        seed: of the draw.
        set: which of its draws.

    Returns:
        The splits "scored" and "shots".

    Raises:
        KoGPTError: `data` is not given, or `shots` where `balanced` needs it.
        InputRefusedError: a file cannot be used, or holds too few rows to draw from.
    """
    if data is None:
        raise KoGPTError("""where is the data? --metadata '{"data": "FOLDER"}'""")
    if balanced and shots is None:
        raise KoGPTError("""how many examples are balanced? --metadata '{..., "shots": N}'""")
    spec, folder = load_task(task), Path(data)
    labels = len(spec.labels)
    scored = sample_rows(read_rows(spec.scored, folder, labels).rows, limit)
    clean = without_spaces if detokenize else str
    texts = {tuple(map(clean, row.text)) for row in scored}
    if shots is None:
        shots = MOST_SHOTS if any(is_there(file, folder) for file in spec.shots) else 0
    pool = read_rows(find_first(spec.shots, folder), folder, labels).rows if shots else []
    each = labels if balanced else None

    def suits(row: Row) -> bool:
        return tuple(map(clean, row.text)) not in texts

    examples = draw_shots(pool, shots, seed, set, each, suits)
    return {"scored": _dataset(scored, clean), "shots": _dataset(examples, clean)}


def f1(items: Sequence[tuple[int, int]]) -> float:
    """F1 of label 1, of right labels and predicted ones.

    The harness has it too, and with it draws the rows anew 100,000 times, which takes minutes.
    """
    return _f1(items, average="binary")


def macro_f1(items: Sequence[tuple[int, int]]) -> float:
    """The mean of both labels' F1; a label that no row has counts as 0."""
    return _f1(items, average="macro", labels=range(2))


def macro_f1_of_4(items: Sequence[tuple[int, int]]) -> float:
    """The same of four labels."""
    return _f1(items, average="macro", labels=range(4))


def macro_f1_of_7(items: Sequence[tuple[int, int]]) -> float:
    """The same of seven labels."""
    return _f1(items, average="macro", labels=range(7))


def _f1(items: Sequence[tuple[int, int]], **how: Any) -> float:
    from sklearn.metrics import f1_score  # comes with the harness

    gold, predicted = zip(*items, strict=True)
    return f1_score(gold, predicted, zero_division=0, **how)


def _dataset(rows: Sequence[Row], clean: Callable[[str], str]) -> "Dataset":
    from datasets import Dataset  # comes with the harness

    return Dataset.from_list(
        [
            {**{name: clean(text) for name, text in row.fields.items()}, "label": row.label}
            for row in rows
        ]
    )
