"""How an evaluation is done: everything that moves a score besides the model and the prompt."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from kogpt.choices import RULES
from kogpt.errors import InputRefusedError, ParameterError
from kogpt.evaluation.task import read_toml
from kogpt.ranges import AT_LEAST_ONE, AT_LEAST_ZERO, set_number

PRESETS = Path(__file__).with_name("presets")


@dataclass(frozen=True)
class Protocol:
    """How rows are put to a model and its answers judged.

    Attributes:
        shots: examples before a row; several numbers are several runs.
        sets: draws of examples; without examples there is one.
        seed: of the draws.
        balanced: draw equally many examples of each label.
        max_shot_tokens: draw only examples whose texts that are shown have at most so many tokens.
        separator: between examples.
        scoring: how an answer's log-likelihood becomes its score, the main way first: `sum` of its
            tokens; `per-token` and `per-character`, that sum divided; `calibrated`, that sum less
            the log-probability among the answers when nothing is asked (Zhao et al. 2021). None is
            `sum` and `calibrated`, or `sum` and `per-token` where every row has answers of its
            own, for which calibration asks three questions more a row.
        limit: score a sample of so many rows; None for all.
        batch_size: rows read at once.

    Raises:
        ValueError: a value is out of range, or there is no such rule of scoring.
    """

    shots: tuple[int, ...] = (0,)
    sets: int = 5
    seed: int = 0
    balanced: bool = False
    max_shot_tokens: int | None = None
    separator: str = "\n\n"
    scoring: tuple[str, ...] | None = None
    limit: int | None = None
    batch_size: int = 32

    def __post_init__(self) -> None:
        set_number(self, "seed", AT_LEAST_ZERO)
        for name in ("sets", "batch_size", "limit", "max_shot_tokens"):
            if getattr(self, name) is not None or name in ("sets", "batch_size"):
                set_number(self, name, AT_LEAST_ONE)
        for name in ("shots", "scoring"):
            values = getattr(self, name)
            untold = values is None and name == "scoring"
            if not untold and not (isinstance(values, tuple) and values):
                raise ParameterError(f"{name} is {values!r}, it must be a tuple of at least one")
        for number in self.shots:
            AT_LEAST_ZERO.check("shots", number)
        object.__setattr__(self, "shots", tuple(map(int, self.shots)))
        for name in ("shots", "scoring"):
            values = getattr(self, name) or ()
            if len(set(values)) < len(values):
                raise ParameterError(f"{name} must differ, are {', '.join(map(str, values))}")
        unknown = [rule for rule in self.scoring or () if rule not in RULES]
        if unknown:
            raise ParameterError(f"no scoring {unknown[0]!r}; there are {', '.join(RULES)}")


@dataclass(frozen=True)
class Preset:
    """A published protocol, as far as it is known.

    Attributes:
        name: what the command line calls it.
        title: what it is.
        known: what was published.
        assumed: what was not, and is filled in here.
        tasks: for each task, the prompt's name under `prompt`, and values of a `Protocol`.
    """

    name: str
    title: str
    known: tuple[str, ...]
    assumed: tuple[str, ...]
    tasks: Mapping[str, Mapping[str, Any]]


def preset_names() -> list[str]:
    """The presets that come along."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load_preset(name: str) -> Preset:
    """Reads a preset.

    Raises:
        ValueError: there is none of that name.
        InputRefusedError: its file names what no protocol has.
    """
    path = PRESETS / f"{name}.toml"
    if not path.exists():
        raise ParameterError(f"no preset {name!r}; there are {', '.join(preset_names())}")
    table, _ = read_toml(path)
    allowed = {"prompt", *(field.name for field in fields(Protocol))}
    for task, values in table["tasks"].items():
        for key in values.keys() - allowed:
            raise InputRefusedError(f"{path}: tasks.{task}.{key}: no such key")
    tasks = {
        task: {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        for task, values in table["tasks"].items()
    }
    return Preset(name, table["title"], tuple(table["known"]), tuple(table["assumed"]), tasks)
