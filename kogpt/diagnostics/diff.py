"""What tells two models apart: settings, parameters, and whether a checkpoint fits the other."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kogpt.checkpoint.dtypes import dtype_name
from kogpt.checkpoint.headers import read_headers
from kogpt.checkpoint.names import Shapes, count_parameters, expand
from kogpt.model import KoGPT
from kogpt.model.variants import class_of
from kogpt.textfiles import aligned

# Settings that a model's function does not depend on, once it is trained.
WITHOUT_EFFECT = {
    *("attn_pdrop", "embd_pdrop", "resid_pdrop", "initializer_range"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
}
# Settings whose None stands for a value, and where that is.
IMPLIED = {"n_inner": "inner_dim", "rotary_dim": "rotary_width"}
LAYER = re.compile(r"(?<=\.h\.)\d+(?=\.)")


@dataclass(frozen=True)
class Model:
    """A model as far as headers tell of it.

    Attributes:
        name: what it was asked for by.
        model_class: of the network.
        settings: those that `config.json` holds, with the values that None stands for.
        shapes: of the tensors in a checkpoint, in network order.
        parameters: count of the numbers in them, shared ones once and buffers not.
        stored: how a checkpoint keeps its matrices, as float16 or int8; None where there is none.
    """

    name: str
    model_class: type[KoGPT]
    settings: Mapping[str, Any]
    shapes: Shapes
    parameters: int
    stored: str | None


def find_model(name: str | os.PathLike[str], model_class: type[KoGPT] | None = None) -> Model:
    """A model by a preset's name, its `config.json`, or its checkpoint, whose header is checked.

    Args:
        name: preset, file or folder.
        model_class: of the model; None for the one that belongs to its config.

    Raises:
        InputRefusedError: it cannot be read, or a checkpoint is not what its config says.
    """
    config, dtype, quantization = read_headers(name, model_class)
    stored = None if dtype is None else str(quantization or dtype_name(dtype))
    model_class = model_class or class_of(config)
    implied = {name: getattr(config, value) for name, value in IMPLIED.items()}
    settings = {
        name: implied.get(name) if value is None else value
        for name, value in config.to_dict().items()
    }
    shapes, parameters = expand(config, model_class), count_parameters(config, model_class)
    return Model(str(name), model_class, settings, shapes, parameters, stored)


@dataclass(frozen=True)
class Difference:
    """What tells two models apart.

    Attributes:
        first: name of the one.
        second: name of the other.
        classes: of the two.
        settings: those that differ, with both values; None where one has no such setting.
        only_first: shapes of parameters that the second lacks.
        only_second: shapes of parameters that the first lacks.
        reshaped: shapes of parameters that both have, where they differ.
        parameters: counts.
        stored: how their checkpoints keep matrices; None where there is none.
        fits: whether a checkpoint of one is one of the other, by names and shapes.
        obstacle: why not; or, where it fits, what makes it another function all the same. None
            where nothing is known to.
    """

    first: str
    second: str
    classes: tuple[str, str]
    settings: dict[str, tuple[Any, Any]]
    only_first: Shapes
    only_second: Shapes
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    parameters: tuple[int, int]
    stored: tuple[str | None, str | None]
    fits: bool
    obstacle: str | None

    def to_dict(self) -> dict[str, Any]:
        """All of it, as `--json` prints it."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        rows = [("", self.first, self.second), ("class", *self.classes)]
        rows += [(name, _shown(a), _shown(b)) for name, (a, b) in self.settings.items()]
        rows.append(("parameters", f"{self.parameters[0]:,}", f"{self.parameters[1]:,}"))
        if self.stored[0] != self.stored[1] and None not in self.stored:
            rows.append(("stored", f"{self.stored[0]}", f"{self.stored[1]}"))
        yield from aligned(rows, "<<<")
        for name, shape in _by_layers(self.only_first).items():
            yield f"- {name}  {shape}"
        for name, shape in _by_layers(self.only_second).items():
            yield f"+ {name}  {shape}"
        for name, shape in _by_layers(self.reshaped).items():
            yield f"~ {name}  {shape}"
        yield self._verdict()

    def _verdict(self) -> str:
        if not self.fits:
            return f"a checkpoint of one does not fit the other: {self.obstacle}"
        if self.obstacle is None:
            return "a checkpoint of one fits the other"
        return (
            "a checkpoint of one fits the other by names and shapes, but is another function:"
            f" {self.obstacle}"
        )


def compare(first: Model, second: Model) -> Difference:
    """Holds two models against each other."""
    a, b = first.shapes, second.shapes
    settings = {
        name: (first.settings.get(name), second.settings.get(name))
        for name in dict.fromkeys([*first.settings, *second.settings])
        if name != "architectures" and first.settings.get(name) != second.settings.get(name)
    }
    reshaped = {name: (a[name], b[name]) for name in a if name in b and a[name] != b[name]}
    only_first = {name: shape for name, shape in a.items() if name not in b}
    only_second = {name: shape for name, shape in b.items() if name not in a}
    odd = [*reshaped, *only_first, *only_second]
    fits = not odd
    classes = _names(first.model_class, second.model_class)
    return Difference(
        first.name,
        second.name,
        classes,
        settings,
        only_first,
        only_second,
        reshaped,
        (first.parameters, second.parameters),
        (first.stored, second.stored),
        fits,
        _doubt(classes, settings) if fits else _first_obstacle(odd, a, b),
    )


def _names(first: type, second: type) -> tuple[str, str]:
    """Of two classes; with their modules where that alone tells them apart."""
    if first is second or first.__name__ != second.__name__:
        return first.__name__, second.__name__
    a, b = (f"{each.__module__}.{each.__qualname__}" for each in (first, second))
    return a, b


def _first_obstacle(names: Iterable[str], a: Shapes, b: Shapes) -> str:
    odd = set(names)
    name = next(name for name in (*a, *b) if name in odd)
    if name not in a or name not in b:
        return f"only {'the second' if name not in a else 'the first'} has {name}"
    return f"{name} is {_shape(a[name])} and {_shape(b[name])}"


def _doubt(classes: tuple[str, str], settings: Mapping[str, Any]) -> str | None:
    """What may make another function of the same parameters."""
    telling = [name for name in settings if name not in WITHOUT_EFFECT]
    if classes[0] != classes[1]:
        telling.insert(0, f"classes {classes[0]} and {classes[1]}")
    return ", ".join(telling) or None


def _by_layers(entries: Mapping[str, Any]) -> dict[str, str]:
    """Names with their shapes; those alike in several layers as one, `h.{0-27}`."""
    layers: dict[tuple[str, str], list[int]] = {}
    for name, shape in entries.items():
        found = LAYER.search(name)
        kind = LAYER.sub("{}", name, count=1), _shape(shape)
        layers.setdefault(kind, []).extend([int(found[0])] if found else [])
    return {
        name.replace("{}", "{" + _ranges(where) + "}"): shape
        for (name, shape), where in layers.items()
    }


def _ranges(numbers: list[int]) -> str:
    """0, 1, 2, 5 as 0-2,5."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)


def _shape(shape: Any) -> str:
    if shape and isinstance(shape[0], tuple):
        return " -> ".join(map(_shape, shape))
    return " x ".join(map(str, shape))


def _shown(value: Any) -> str:
    return "-" if value is None else str(value)
