"""What a trace found: a table of layers for people, every site for programs."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from kogpt.diagnostics.trace_errors import Distance
from kogpt.diagnostics.trace_sites import Site
from kogpt.textfiles import aligned

HEADINGS, SIDES = ("layer", "error", "ulp", "own error", "ulp", "largest at"), "<>>>><"
DETAILS, DETAIL_SIDES = ("tensor", "error", "ulp", "own error", "ulp", "absolute", ""), "<>>>>><"


@dataclass(frozen=True)
class Compared:
    """A tensor that both sides have.

    Attributes:
        module: that computes it, by our names.
        tensor: which of the module's tensors.
        layer: that it lies in; None before the first and after the last.
        propagated: error of a run from the ids on, with all that came before.
        own: error where all that came before was the other side's.
    """

    module: str
    tensor: str
    layer: int | None
    propagated: Distance
    own: Distance

    @property
    def site(self) -> Site:
        """Its name."""
        return Site(self.module, self.tensor)

    @property
    def stage(self) -> str:
        """What it is a part of: its layer, or the module before or after them."""
        return self.module.rpartition(".")[2] if self.layer is None else str(self.layer)

    @property
    def short(self) -> str:
        """Its name within its layer."""
        return _short(self.site)


@dataclass(frozen=True)
class Parting:
    """The first tensor at which two sides part.

    Attributes:
        module: that computes it, by our names.
        tensor: which of the module's tensors.
        layer: that it lies in; None before the first and after the last.
        why: what is wrong with it, in words.
    """

    module: str
    tensor: str
    layer: int | None
    why: str

    @property
    def site(self) -> Site:
        """The tensor's name."""
        return Site(self.module, self.tensor)


@dataclass(frozen=True)
class Trace:
    """Two networks, tensor by tensor.

    Attributes:
        names: of the one looked into and of the reference.
        tokens: that both read.
        tolerance: largest own error that is no fault.
        parting: the first tensor whose own error is beyond that; None if they agree.
        sites: all tensors that both have, in the order of the network.
        alone: tensors that only one of them has, or where only one can be watched.
    """

    names: tuple[str, str]
    tokens: int
    tolerance: float
    parting: Parting | None
    sites: tuple[Compared, ...]
    alone: tuple[Site, ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it, as `--json` prints it; numbers that are not finite are null."""
        return _finite({**asdict(self), "alone": [site._asdict() for site in self.alone]})

    def __str__(self) -> str:
        parts = [self.verdict, *aligned([HEADINGS, *self._layers()], SIDES)]
        if self.parting and (details := list(self._details(self.parting))):
            parts += ["", *aligned([DETAILS, *details], DETAIL_SIDES)]
        return "\n".join([*parts, "", *self._notes()])

    @property
    def verdict(self) -> str:
        """The first line: whether they part, and where."""
        first, second = self.names
        if self.parting is None:
            return f"{first} and {second} agree: no own error is above {self.tolerance:.2g}"
        part = self.parting
        return f"{first} and {second} part at {part.module}, {part.tensor}: {part.why}"

    def _layers(self) -> Iterator[Sequence[str]]:
        for stage, sites in groupby(self.sites, key=lambda site: site.stage):
            *_, last = group = list(sites)
            worst = max(group, key=lambda site: _order(site.own.relative))
            yield stage, *_cells(last.propagated), *_cells(worst.own), worst.short

    def _details(self, parting: Parting) -> Iterator[Sequence[str]]:
        """The tensors of the layer, or of the module outside of layers, at which they part."""
        for site in self.sites:
            here = site.site == parting.site
            if here or site.layer == parting.layer is not None:
                numbers = *_cells(site.propagated), *_cells(site.own), _number(site.own.absolute)
                yield site.short, *numbers, "<- here" if here else ""

    def _notes(self) -> Iterator[str]:
        yield f"{self.tokens} tokens, {len(self.sites)} tensors; errors are relative norms"
        yield "error: with all that came before; own error: from the other side's values"
        if self.alone:
            names = dict.fromkeys(map(_short, self.alone))
            yield f"seen on one side alone: {', '.join(names)}"


def _short(site: Site) -> str:
    """A tensor's name, without that of its layer."""
    inner = re.sub(r"transformer\.h\.\d+\.?", "", site.module)
    return str(Site(inner or "the block", site.tensor))


def _order(error: float) -> float:
    return math.inf if math.isnan(error) else error


def _cells(error: Distance) -> tuple[str, str]:
    return _number(error.relative), _number(error.ulp)


def _number(value: float) -> str:
    """Three digits; large and small ones with a power of ten."""
    if value == 0 or 0.01 <= abs(value) < 1e5:
        return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    return f"{value:.1e}"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
