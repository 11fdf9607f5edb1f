"""What finetuning learns from, chooses by and is measured on: rows of a task, or of files."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from kogpt.errors import InputRefusedError
from kogpt.evaluation.data import DATA, Row, find_first, read_rows
from kogpt.evaluation.shots import sample_rows
from kogpt.evaluation.task import Task
from kogpt.jsonfiles import read_json_lines
from kogpt.tokenizer.text import normalize_text
from kogpt.training.config import FinetuningConfig


class Completion(NamedTuple):
    """An example of a file.

    Attributes:
        prompt: what is read.
        completion: what is learnt.
    """

    prompt: str
    completion: str

    def texts(self) -> tuple[str, ...]:
        """By which examples are taken for the same: as the tokenizer composes them."""
        return tuple(normalize_text(part, "auto") for part in self)


R = TypeVar("R", Row, Completion)
Texts = Callable[[R], tuple[str, ...]]  # what is read of a row: equal, they are taken for the same


@dataclass(frozen=True)
class Splits(Generic[R]):
    """Rows, apart from each other: no text that is learnt is in another split.

    Attributes:
        training: to learn from.
        validation: to choose by.
        test: to measure in the end; empty where there is none.
        notes: what a reader of results should know.
    """

    training: list[R]
    validation: list[R]
    test: list[R]
    notes: tuple[str, ...] = ()


def fingerprint(examples: Sequence[NamedTuple], validation: Sequence[R]) -> str:
    """Hash of what is learnt, as the prompt and the tokenizer make it, and of what chooses."""
    digest = hashlib.sha256()
    for part in (*examples, *validation):
        digest.update(repr(part).encode())
    return digest.hexdigest()


def read_task(task: Task, config: FinetuningConfig, texts: Texts[Row]) -> Splits[Row]:
    """The rows of a task.

    Args:
        task: of which.
        config: of the run.
        texts: what its objective reads of a row.

    Raises:
        InputRefusedError: its files are missing or damaged, or leave nothing to learn from.
    """
    folder, labels = config.data_dir or DATA, len(task.labels)
    test = read_rows(task.scored, folder, labels)
    learnt = read_rows(find_first(task.shots, folder), folder, labels)
    notes = [*learnt.notes, *test.notes]
    training = _without(learnt.rows, test.rows, texts, test.path.name, notes)
    if task.validation is None:
        training, validation = hold_out(training, config.validation_rows, texts)
    else:
        own = read_rows(task.validation, folder, labels)
        validation = own.rows  # whole, as its publisher has it
        same = len(validation) - len(_others(validation, test.rows, texts))
        if same:
            notes.append(f"{same:,} rows choose that are measured too: both files have their text")
        training = _without(training, validation, texts, own.path.name, notes)
        notes += own.notes
    _refuse_empty(training, learnt.path)
    scored = sample_rows(test.rows, config.test_rows) if config.test_rows != 0 else []
    return Splits(training, validation, scored, tuple(notes))


def read_examples(config: FinetuningConfig) -> Splits[Completion]:
    """The examples of the files that a run names.

    Raises:
        InputRefusedError: a file is missing or damaged, or holds no examples; names file and line.
    """
    paths = list(map(Path, config.data))
    rows = [row for path in paths for row in _completions(path)]
    training, validation = hold_out(rows, config.validation_rows, Completion.texts)
    _refuse_empty(training, paths[0])
    return Splits(training, validation, [])


def hold_out(rows: Sequence[R], count: int, texts: Texts[R]) -> tuple[list[R], list[R]]:
    """Parts about `count` rows from the others, at most a tenth, the same whatever the seed.

    Rows of equal texts stay together, so that none is learnt and held out. A text's place is its
    hash: rows that are added later move no other.
    """
    places = [hashlib.sha256("\0".join(texts(row)).encode()).digest() for row in rows]
    last = min(count, len(rows) // 10)
    border = sorted(places)[last] if rows else b""
    training = [row for row, place in zip(rows, places, strict=True) if place >= border]
    return training, [row for row, place in zip(rows, places, strict=True) if place < border]


def _without(
    rows: Sequence[R], others: Sequence[R], texts: Texts[R], where: str, notes: list[str]
) -> list[R]:
    """Rows whose text is none of the others'; notes how many there were."""
    kept = _others(rows, others, texts)
    if len(kept) < len(rows):
        notes.append(f"{len(rows) - len(kept):,} rows are not learnt: {where} has their text")
    return kept


def _others(rows: Sequence[R], known: Sequence[R], texts: Texts[R]) -> list[R]:
    """Rows whose text no known one has."""
    found = set(map(texts, known))
    return [row for row in rows if texts(row) not in found]


def _refuse_empty(training: Sequence[R], path: Path) -> None:
    if not training:
        raise InputRefusedError(f"{path}: leaves no row to learn from")


def _completions(path: Path) -> Iterator[Completion]:
    for number, value in read_json_lines(path):
        try:
            yield _completion(value)
        except ValueError as error:
            raise InputRefusedError(f"{path}: line {number}: {error}") from None


def _completion(value: object) -> Completion:
    """ValueError, if an object of JSON is no example."""
    if not isinstance(value, dict):
        raise ValueError("is no object")
    for key in Completion._fields:
        if not isinstance(value.get(key), str):
            raise ValueError(f"{key!r} is missing or no text")
        value[key].encode()  # half of a surrogate pair is no text either: a UnicodeEncodeError
    if unknown := value.keys() - set(Completion._fields):
        raise ValueError(f"unknown key {min(unknown)!r}; known are prompt and completion")
    return Completion(value["prompt"], value["completion"])
