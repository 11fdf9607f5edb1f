"""Tasks: what a row means and how it is put to a model, read from one small TOML file each.

A task's file names its data, the fields of a row, and prompts. A prompt is a template of the text
before an answer and one template for each answer, whose `{names}` are fields:

    [scored]                       rows to score; [[shots]]: where examples come from, the first
    file = "nsmc/ratings_test.txt"     file that is there
    [fields]
    document = "document"          a column; in JSON a path of keys, as "labels.real-label"
    label = { column = "label", values = { 0 = 0, 1 = 1 } }
    [prompts.short]
    source = "this project"
    context = "{document} 한마디로"
    targets = [" 최악", " 최고"]

`kogpt/evaluation/tasks/` holds those that come along; any other file is named by its path.
"""

import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from string import Formatter
from typing import Any, TypeVar

from kogpt.errors import InputRefusedError
from kogpt.evaluation.metrics import METRICS

TASKS = Path(__file__).with_name("tasks")

LABEL, DEGREE = "label", "degree"  # fields that no prompt shows


@dataclass(frozen=True)
class Field:
    """How a field is read from a row.

    Attributes:
        column: of a table; of a JSON object a path of keys with dots between.
        values: what the cell's text, without spaces around it, stands for; None for the text.
        at_least: the number from which on a cell stands for 1, and else for 0.
    """

    column: str
    values: Mapping[str, str | int] | None = None
    at_least: float | None = None

    @property
    def is_content(self) -> bool:
        """Whether it is free text, of which nothing can be known beforehand."""
        return self.values is None and self.at_least is None


@dataclass(frozen=True)
class DataFile:
    """A file of rows.

    Attributes:
        file: its path in the folder of data.
        fields: how a row reads.
        official: rows of each label in the publisher's file; None where that is unknown.
        mark: a key of every row of the publisher's JSON, by which substitutes are told; or None.
        note: what a reader of results should know of it.
    """

    file: str
    fields: Mapping[str, Field]
    official: tuple[int, ...] | None = None
    mark: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class Prompt:
    """How a row is put to a model.

    Attributes:
        name: what the command line calls it.
        source: who published it.
        context: template of all before the answer.
        targets: template of each label's answer.
        shot_targets: the same in examples, where they differ.
        detokenize: whether fields go through the harness's `general_detokenize` first.
        note: what is odd about it.
    """

    name: str
    source: str
    context: str
    targets: tuple[str, ...]
    shot_targets: tuple[str, ...]
    detokenize: bool = False
    note: str | None = None

    @property
    def fixed(self) -> bool:
        """Whether all rows have the same answers."""
        return not any(map(template_names, self.targets))

    @property
    def sha256(self) -> str:
        """Of all that decides what a model reads."""
        parts = (self.context, *self.targets, *self.shot_targets, str(self.detokenize))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Published:
    """Figures that others published.

    Attributes:
        source: where.
        metric: of which, in percent.
        values: by model.
        shots: how many; None where it was not told.
    """

    source: str
    metric: str
    values: Mapping[str, float]
    shots: int | None = None


@dataclass(frozen=True)
class Task:
    """A task of the evaluation.

    Attributes:
        name: what the command line calls it.
        title: what tables call it.
        about: the question that it asks.
        source: who published the data, and under which licence.
        labels: names of the labels, for tables and pictures.
        metrics: names of the metrics, the main one first.
        scored: the rows to score.
        shots: where examples come from: the first that is there.
        prompts: by name, the default first.
        published: figures to stand beside.
        sha256: of the file.
    """

    name: str
    title: str
    about: str
    source: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    scored: DataFile
    shots: tuple[DataFile, ...]
    prompts: Mapping[str, Prompt]
    published: tuple[Published, ...]
    sha256: str

    def prompt(self, name: str | None) -> Prompt:
        """The prompt of that name, or the default.

        Raises:
            ValueError: there is none of that name.
        """
        if name is None:
            return next(iter(self.prompts.values()))
        if name not in self.prompts:
            known = ", ".join(self.prompts)
            raise ValueError(f"task {self.name} has no prompt {name!r}; there are {known}")
        return self.prompts[name]


def task_names() -> list[str]:
    """The tasks that come along."""
    return sorted(path.stem for path in TASKS.glob("*.toml"))


def load_task(name: str) -> Task:
    """Reads a task.

    Args:
        name: of one that comes along, or the path of a `.toml` file.

    Raises:
        ValueError: there is none of that name.
        InputRefusedError: the file cannot be read or is none of a task; names the key.
    """
    path = Path(name) if name.endswith(".toml") else TASKS / f"{name}.toml"
    if path.parent == TASKS and not path.exists():
        raise ValueError(f"no task {name!r}; there are {', '.join(task_names())}, or a .toml file")
    table, sha256 = read_toml(path)
    try:
        return _task(path.stem, table, sha256)
    except _FileError as error:
        raise InputRefusedError(f"{path}: {error}") from None


def read_toml(path: Path) -> tuple[dict[str, Any], str]:
    """A TOML file and the SHA-256 of its bytes.

    Raises:
        InputRefusedError: it is missing, not UTF-8 or no TOML.
    """
    try:
        data = path.read_bytes()
        return tomllib.loads(data.decode()), hashlib.sha256(data).hexdigest()
    except OSError as error:
        raise InputRefusedError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise InputRefusedError(f"{path}: {error}") from None


def template_names(template: str) -> set[str]:
    """The fields that a template shows."""
    return {name for _, name, _, _ in Formatter().parse(template) if name is not None}


class _FileError(Exception):
    """What is wrong with a task's file."""


T = TypeVar("T")


def _make(kind: type[T], table: Mapping[str, Any], where: str, **more: Any) -> T:
    """An object of a table's values; lists become tuples."""
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    for key in table:
        if key not in known or key in more:
            raise _FileError(f"{where}{key}: no such key")
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in table.items()}
    try:
        return kind(**values, **more)
    except TypeError as error:
        missing = str(error).rpartition(": ")[2]
        raise _FileError(f"{where.removesuffix('.') or 'the file'}: lacks {missing}") from None


def _task(name: str, table: dict[str, Any], sha256: str) -> Task:
    try:
        common = table.pop("fields")
        scored, shots = table.pop("scored"), table.pop("shots")
        prompts, published = table.pop("prompts"), table.pop("published", [])
        num_labels = len(table["labels"])
    except KeyError as error:
        raise _FileError(f"lacks {error}") from None
    task = _make(
        Task,
        table,
        "",
        name=name,
        scored=_data_file(scored, common, "scored."),
        shots=tuple(_data_file(part, common, "shots.") for part in shots),
        prompts={key: _prompt(key, part, num_labels, common) for key, part in prompts.items()},
        published=tuple(_make(Published, part, "published.") for part in published),
        sha256=sha256,
    )
    _check_metrics(task)
    return task


def _data_file(table: dict[str, Any], common: dict[str, Any], where: str) -> DataFile:
    specs = {**common, **table.pop("fields", {})}
    if LABEL not in specs:
        raise _FileError(f"{where}fields: lacks {LABEL!r}")
    parsed = {
        name: Field(spec) if isinstance(spec, str) else _make(Field, spec, f"fields.{name}.")
        for name, spec in specs.items()
    }
    return _make(DataFile, table, where, fields=parsed)


def _prompt(name: str, table: dict[str, Any], labels: int, shown: Mapping[str, Any]) -> Prompt:
    where = f"prompts.{name}."
    prompt = _make(Prompt, {"shot_targets": table.get("targets"), **table}, where, name=name)
    for key in ("targets", "shot_targets"):
        if len(getattr(prompt, key)) != labels:
            raise _FileError(f"{where}{key}: {len(getattr(prompt, key))} for {labels} labels")
    for template in (prompt.context, *prompt.targets, *prompt.shot_targets):
        try:
            unknown = template_names(template) - (set(shown) - {LABEL, DEGREE})
        except ValueError as error:
            raise _FileError(f"{where.removesuffix('.')}: {error}: {template!r}") from None
        if unknown:
            raise _FileError(f"{where.removesuffix('.')}: no field {min(unknown)!r}")
    return prompt


def _check_metrics(task: Task) -> None:
    named: Sequence[str] = [*task.metrics, *(part.metric for part in task.published)]
    for name in named:
        if name not in METRICS:
            raise _FileError(f"no metric {name!r}; there are {', '.join(METRICS)}")
