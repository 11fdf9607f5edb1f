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

`kogpt/evaluation/tasks/` holds those that come along; any other file is named by its path. All keys
are told in `docs/tasks.md`.
"""

import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from string import Formatter
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from kogpt.errors import InputRefusedError, ParameterError
from kogpt.evaluation.metrics import F1, METRICS, SPEARMAN
from kogpt.ranges import AT_LEAST_ZERO, check_choice
from kogpt.tokenizer.text import normalize_text

TASKS = Path(__file__).with_name("tasks")

LABEL, DEGREE = "label", "degree"  # fields that no prompt shows

NAME = re.compile(r"[\w.-]+")  # of a prompt

TOML_NAMES = {str: "string", int: "integer", float: "float", bool: "boolean", dict: "table"}

# What a task's file holds besides plain values of a `Task`.
SECTIONS: dict[str, Any] = {
    "fields": Mapping[str, str | dict],
    "scored": dict,
    "shots": tuple[dict, ...],
    "prompts": Mapping[str, dict],
    "published": tuple[dict, ...],
    "finetuned": tuple[dict, ...],
}


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

    @cached_property
    def meanings(self) -> dict[str, str | int]:
        """`values`, by texts whose Hangul is composed."""
        return {normalize_text(text, "auto"): at for text, at in (self.values or {}).items()}


@dataclass(frozen=True)
class DataFile:
    """A file of rows.

    Attributes:
        file: its path in the folder of data.
        fields: how a row reads.
        official: rows of each label in the publisher's file; None where that is unknown.
        mark: a key of every row of the publisher's JSON, by which substitutes are told; or None.
        note: what a reader of results should know of it.
        quoted: whether cells of a table may be quoted as CSV has them; those of `.csv` may.
    """

    file: str
    fields: Mapping[str, Field]
    official: tuple[int, ...] | None = None
    mark: str | None = None
    note: str | None = None
    quoted: bool = False


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

    @cached_property
    def names(self) -> set[str]:
        """The fields that a row is asked with."""
        return set().union(*map(template_names, (self.context, *self.targets)))

    @cached_property
    def in_shots(self) -> "Prompt":
        """How a row is put as an example."""
        return replace(self, targets=self.shot_targets)

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
        mark: "published"; "corrected", if another figure stood there before; or "withdrawn".

    Raises:
        ValueError: `mark` is none of these, or `shots` below 0.
    """

    source: str
    metric: str
    values: Mapping[str, float]
    shots: int | None = None
    mark: str = "published"

    def __post_init__(self) -> None:
        check_choice("mark", self.mark, ("published", "corrected", "withdrawn"))
        if self.shots is not None:
            AT_LEAST_ZERO.check("shots", self.shots)


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
        shots: where examples come from, and what finetuning learns from: the first that is there.
        validation: rows to choose by what finetuning has made; None to hold some of those out.
        prompts: by name, the default first.
        published: few-shot figures to stand beside.
        finetuned: figures of finetuned models to stand beside.
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
    validation: DataFile | None
    prompts: Mapping[str, Prompt]
    published: tuple[Published, ...]
    finetuned: tuple[Published, ...]
    sha256: str

    @cached_property
    def names(self) -> set[str]:
        """The fields that any prompt shows."""
        return set().union(*(prompt.names for prompt in self.prompts.values()))

    def prompt(self, name: str | None) -> Prompt:
        """The prompt of that name, or the default.

        Raises:
            ValueError: there is none of that name.
        """
        if name is None:
            return next(iter(self.prompts.values()))
        if name not in self.prompts:
            known = ", ".join(self.prompts)
            raise ParameterError(f"task {self.name} has no prompt {name!r}; there are {known}")
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
    if not name.endswith(".toml") and (path.parent != TASKS or not path.exists()):
        raise ParameterError(
            f"no task {name!r}; there are {', '.join(task_names())}, or a .toml file"
        )
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
        return tomllib.loads(data.decode("utf-8-sig")), hashlib.sha256(data).hexdigest()
    except OSError as error:
        raise InputRefusedError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise InputRefusedError(f"{path}: {error}") from None


def template_names(template: str) -> set[str]:
    """The fields that a template shows.

    Raises:
        ValueError: its braces are not paired, or hold what is no name.
    """
    names = set()
    for _, name, spec, conversion in Formatter().parse(template):
        if spec or conversion:
            shown = f"{name}!{conversion}" if conversion else f"{name}:{spec}"
            raise ValueError(f"{{{shown}}} is no plain {{{name}}}")
        if name and not name.isidentifier():
            raise ValueError(f"{{{name}}} is no name")
        if name is not None:
            names.add(name)
    return names


class _FileError(Exception):
    """What is wrong with a task's file."""


T = TypeVar("T")


def _make(kind: type[T], table: Mapping[str, Any], where: str, **more: Any) -> T:
    """An object of a table's values; lists become tuples."""
    known = get_type_hints(kind)
    for key, value in table.items():
        if key not in known or key in more:
            raise _FileError(f"{where}{key}: no such key")
        _check_type(value, known[key], f"{where}{key}")
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in table.items()}
    try:
        return kind(**values, **more)
    except TypeError as error:
        missing = str(error).rpartition(": ")[2]
        raise _FileError(f"{where.removesuffix('.') or 'the file'}: lacks {missing}") from None
    except ValueError as error:
        raise _FileError(f"{where}{error}") from None


def _check_type(value: Any, hint: Any, where: str) -> None:
    if not _is(value, hint):
        nested = isinstance(value, dict) and any(isinstance(each, dict) for each in value.values())
        quotes = "; names with dots go in quotes" if nested else ""
        raise _FileError(f"{where}: {value!r} is no {_name(hint)}{quotes}")


def _is(value: Any, hint: Any) -> bool:
    """Whether a value of TOML is of a type; whole numbers are floats, too."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind is UnionType:
        return any(_is(value, part) for part in parts)
    if kind is tuple:
        return isinstance(value, list) and all(_is(item, parts[0]) for item in value)
    if kind is Mapping:
        return isinstance(value, dict) and all(_is(item, parts[1]) for item in value.values())
    return type(value) is hint or (hint is float and type(value) is int)


def _name(hint: Any, plural: str = "") -> str:
    """What TOML calls a type."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind is UnionType:
        return " or ".join(_name(part, plural) for part in parts if part is not NoneType)
    if kind is tuple:
        return f"array{plural} of {_name(parts[0], 's')}"
    if kind is Mapping:
        return f"table{plural} of {_name(parts[1], 's')}"
    return TOML_NAMES[hint] + plural


def _task(name: str, table: dict[str, Any], sha256: str) -> Task:
    table = {"published": [], "finetuned": [], **table}
    for key, hint in SECTIONS.items():
        if key not in table:
            raise _FileError(f"lacks {key!r}")
        _check_type(table[key], hint, key)
    common, scored, shots, prompts, published, finetuned = (table.pop(key) for key in SECTIONS)
    validation = table.pop("validation", None)
    if validation is not None:
        _check_type(validation, dict, "validation")
        validation = _data_file(validation, common, "validation.")
    task = _make(
        Task,
        table,
        "",
        name=name,
        scored=_data_file(scored, common, "scored."),
        shots=tuple(_data_file(part, common, "shots.") for part in shots),
        validation=validation,
        prompts={key: _prompt(key, part, common) for key, part in prompts.items()},
        published=tuple(_make(Published, part, "published.") for part in published),
        finetuned=tuple(_make(Published, part, "finetuned.") for part in finetuned),
        sha256=sha256,
    )
    for key in ("labels", "metrics", "shots", "prompts"):
        if not getattr(task, key):
            raise _FileError(f"{key}: there are none")
    _check_labels(task)
    _check_metrics(task)
    return task


def _data_file(table: dict[str, Any], common: dict[str, Any], where: str) -> DataFile:
    own = table.pop("fields", {})
    _check_type(own, SECTIONS["fields"], f"{where}fields")
    specs = {**common, **own}
    if LABEL not in specs:
        raise _FileError(f"{where}fields: lacks {LABEL!r}")
    parsed = {
        name: Field(spec) if isinstance(spec, str) else _make(Field, spec, f"fields.{name}.")
        for name, spec in specs.items()
    }
    if DEGREE in parsed and not parsed[DEGREE].is_content:
        raise _FileError(f"{where}fields.{DEGREE}: is a number as it stands")
    return _make(DataFile, table, where, fields=parsed)


def _prompt(name: str, table: dict[str, Any], shown: Mapping[str, Any]) -> Prompt:
    where = f"prompts.{name}"
    if not NAME.fullmatch(name):  # pictures are called by it, and tables show it
        raise _FileError(f"{where}: only letters, digits and . _ - make a name")
    if "targets" in table:
        table = {**table, "shot_targets": table.get("shot_targets", table["targets"])}
    prompt = _make(Prompt, table, f"{where}.", name=name)
    for template in (prompt.context, *prompt.targets, *prompt.shot_targets):
        try:
            unknown = template_names(template) - (set(shown) - {LABEL, DEGREE})
        except ValueError as error:
            raise _FileError(f"{where}: {error}: {template!r}") from None
        if unknown:
            raise _FileError(f"{where}: no field {min(unknown)!r}")
    return prompt


def _check_labels(task: Task) -> None:
    """Each answer belongs to a label, and each label that a row can have to an answer."""
    labels = len(task.labels)
    for prompt in task.prompts.values():
        for key in ("targets", "shot_targets"):
            if (count := len(getattr(prompt, key))) != labels:
                raise _FileError(f"prompts.{prompt.name}.{key}: {count} for {labels} labels")
        if prompt.fixed and not all(target.strip() for target in prompt.targets):
            raise _FileError(f"prompts.{prompt.name}.targets: one is blank")
        if len(set(prompt.targets)) < labels:
            raise _FileError(f"prompts.{prompt.name}.targets: two are the same")
    files = [("scored", task.scored), *(("shots", file) for file in task.shots)]
    files += [("validation", task.validation)] if task.validation else []
    for where, file in files:
        field = file.fields[LABEL]
        if field.is_content:
            raise _FileError(f"fields.{LABEL}: lacks values or at_least")
        if field.at_least is not None and labels != 2:
            raise _FileError(f"fields.{LABEL}.at_least: makes two labels, there are {labels}")
        for value in (field.values or {}).values():
            if value not in range(labels):
                raise _FileError(f"fields.{LABEL}.values: {value!r} is none of {labels} labels")
        if file.official and len(file.official) != labels:
            raise _FileError(f"{where}.official: {len(file.official)} for {labels} labels")


def _check_metrics(task: Task) -> None:
    if len(set(task.metrics)) < len(task.metrics):
        raise _FileError(f"metrics: {', '.join(task.metrics)} are not different ones")
    compared = [part.metric for part in (*task.published, *task.finetuned)]
    for name in (*task.metrics, *compared):
        if name not in METRICS:
            raise _FileError(f"no metric {name!r}; there are {', '.join(METRICS)}")
    for part in task.published:
        if part.metric not in task.metrics:
            raise _FileError(f"published.metric: {part.metric!r} is none of the task's metrics")
    if F1 in task.metrics and len(task.labels) != 2:
        raise _FileError(f"metric {F1!r} needs two labels, there are {len(task.labels)}")
    if SPEARMAN in task.metrics and DEGREE not in task.scored.fields:
        raise _FileError(f"metric {SPEARMAN!r} needs a field {DEGREE!r}")
