"""Rows of a task's files."""

import hashlib
import json
import math
import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kogpt.errors import InputRefusedError
from kogpt.evaluation.task import DEGREE, LABEL, DataFile, Field
from kogpt.jsonfiles import read_json, read_json_lines
from kogpt.textfiles import abridged, composed, read_table
from kogpt.tokenizer.text import normalize_text

QUOTED = re.compile(r'".*"".*"')  # a text that was quoted, and the marks in it doubled
DATA = Path("data")  # where the files of tasks lie, unless told


@dataclass(frozen=True)
class Row:
    """A row, as a prompt shows it.

    Attributes:
        index: in its file, from 0.
        fields: texts by name, their Hangul composed, as it is read.
        content: names of those that are free text, in the order of `fields`.
        label: which answer is right.
        degree: how right, where labels are cut out of a scale.
    """

    index: int
    fields: Mapping[str, str]
    content: tuple[str, ...]
    label: int
    degree: float | None = None

    @property
    def text(self) -> tuple[str, ...]:
        """Its free texts."""
        return self.texts(self.content)

    def texts(self, names: Container[str]) -> tuple[str, ...]:
        """Those of its free texts that are named, in the order of `fields`."""
        read = (name for name in self.fields if name in self.content)
        return tuple(self.fields[name] for name in read if name in names)


@dataclass(frozen=True)
class Rows:
    """All rows of a file.

    Attributes:
        path: of the file.
        sha256: of its bytes.
        rows: in order.
        counts: rows of each label.
        notes: what a reader of results should know.
    """

    path: Path
    sha256: str
    rows: list[Row]
    counts: tuple[int, ...]
    notes: tuple[str, ...]


def read_rows(file: DataFile, folder: Path, num_labels: int) -> Rows:
    """Reads a file of a task.

    Args:
        file: which, and how a row reads.
        folder: of data: holds the file under its path, or under its name alone.
        num_labels: labels of the task.

    Raises:
        InputRefusedError: the file is missing, no UTF-8 or damaged, or a cell holds what the task
            does not know; names file, row, column and cell.
    """
    path = find(file, folder)
    rows = list(_rows(file, path))
    if not rows:
        raise InputRefusedError(f"{path}: there are no rows")
    counts = tuple(sum(row.label == label for row in rows) for label in range(num_labels))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    notes = (*_notes(file, path, counts), *_notes_of_quotes(file, path, rows))
    return Rows(path, sha256, rows, counts, notes)


def _notes_of_quotes(file: DataFile, path: Path, rows: list[Row]) -> Iterator[str]:
    if _is_plain(file, path):
        quoted = sum(any(map(QUOTED.fullmatch, row.text)) for row in rows)
        if quoted:
            yield (
                f"{quoted:,} rows of {path.name} look quoted, as by a program that writes CSV;"
                " their quotation marks are read as they are"
            )


def _notes(file: DataFile, path: Path, counts: tuple[int, ...]) -> Iterator[str]:
    if file.note:
        yield file.note
    if file.official and counts != file.official:
        yield (
            f"{path.name} is not the official file: it has {_list(counts)} rows of each label, "
            f"that one {_list(file.official)}"
        )
    elif file.mark and not all(file.mark in row for row in _json(path)):
        yield (
            f"{path.name} is not the official file: its rows have no {file.mark!r}, and their "
            "labels may be others"
        )


def find(file: DataFile, folder: Path) -> Path:
    """Where the file lies.

    Raises:
        InputRefusedError: nowhere.
    """
    for path in _places(file, folder):
        if path.is_file():
            return path
    raise _missing(file, folder)


def is_there(file: DataFile, folder: Path) -> bool:
    """Whether `find` finds the file."""
    return any(path.is_file() for path in _places(file, folder))


def _places(file: DataFile, folder: Path) -> tuple[Path, Path]:
    return folder / file.file, folder / Path(file.file).name


def find_first(files: tuple[DataFile, ...], folder: Path) -> DataFile:
    """The first of the files that is there.

    Raises:
        InputRefusedError: none is; names the first.
    """
    for file in files:
        if is_there(file, folder):
            return file
    raise _missing(files[0], folder)


def _missing(file: DataFile, folder: Path) -> InputRefusedError:
    where = "evaluate takes its folder by --data, finetune by --data-dir"
    return InputRefusedError(f"{folder / file.file}: no such file; {where}")


def _rows(file: DataFile, path: Path) -> Iterator[Row]:
    content = tuple(
        name
        for name, field in file.fields.items()
        if field.is_content and name not in (LABEL, DEGREE)
    )
    read = _json_cells if _is_json(path) else _table_cells
    for index, cells in enumerate(read(file, path)):
        try:
            values = {name: _value(file.fields[name], cells[name]) for name in file.fields}
            degree = _number(file.fields[DEGREE], cells[DEGREE]) if DEGREE in values else None
        except (ValueError, InputRefusedError) as error:
            # Behind the header.
            where = f"line {index + 2}" if _is_plain(file, path) else f"row {index}"
            raise InputRefusedError(f"{path}: {where}: {error}") from None
        shown = {k: str(v) for k, v in values.items() if k not in (LABEL, DEGREE)}
        yield Row(index, shown, content, int(values[LABEL]), degree)


def _table_cells(file: DataFile, path: Path) -> Iterator[dict[str, str]]:
    columns = [field.column for field in file.fields.values()]
    for cells in read_table(path, columns, quoted=file.quoted):
        yield dict(zip(file.fields, cells, strict=True))


def _json_cells(file: DataFile, path: Path) -> Iterator[dict[str, str]]:
    for index, row in enumerate(_json(path)):
        try:
            yield {name: _at(row, composed(field.column)) for name, field in file.fields.items()}
        except LookupError as error:
            raise InputRefusedError(f"{path}: row {index}: {error.args[0]}") from None


def _is_json(path: Path) -> bool:
    return path.suffix in (".json", ".jsonl")


def _is_plain(file: DataFile, path: Path) -> bool:
    """Whether it is a table with a row a line, nothing quoted."""
    return not (_is_json(path) or file.quoted or path.suffix == ".csv")


def _json(path: Path) -> list[Any]:
    if path.suffix == ".jsonl":
        return [value for _, value in read_json_lines(path)]
    rows = read_json(path)
    if not isinstance(rows, list):
        raise InputRefusedError(f"{path}: must be a list of objects")
    return rows


def _at(row: Any, path: str) -> str:
    """The cell at a key, or at a path of keys; LookupError if there is none."""
    keys, where = path.split("."), row
    if isinstance(row, dict) and path in map(composed, row):
        keys = [path]  # as tables are written that were nested
    for key in keys:
        names = {composed(name): name for name in row} if isinstance(row, dict) else {}
        if key not in names:
            there = f"; there are {abridged(', '.join(where))}" if isinstance(where, dict) else ""
            raise LookupError(f"no key {path!r}{there}")
        row = row[names[key]]
    if row is None or isinstance(row, list | dict):
        raise LookupError(f"{path} is {json.dumps(row, ensure_ascii=False)}, no text")
    return json.dumps(row) if isinstance(row, bool) else str(row)


def _value(field: Field, cell: str) -> str | int:
    """What a cell stands for; ValueError or InputRefusedError if nothing."""
    text = normalize_text(cell, "auto")
    if field.is_content:
        return text
    if field.values is not None:
        if text.strip() not in field.meanings:
            known = ", ".join(field.values)
            raise ValueError(f"{field.column} is {abridged(cell)!r}; known are {known}")
        return field.meanings[text.strip()]
    assert field.at_least is not None, "all else is content"
    return int(_number(field, cell) >= field.at_least)


def _number(field: Field, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{field.column} is {abridged(cell)!r}, no number")
    return value


def _list(counts: tuple[int, ...]) -> str:
    return "/".join(f"{count:,}" for count in counts)
