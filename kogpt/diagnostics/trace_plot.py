"""A trace as a picture: how errors grow from layer to layer, and what each tensor adds."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kogpt.diagnostics.trace_report import Compared, Trace
from kogpt.pictures import families

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PROPAGATED, OWN, FAULT, INK = "#4878a8", "#e08a2c", "#b3202a", "#333333"


def draw(trace: Trace, path: Path) -> None:
    """Draws the errors of all tensors over the layers they lie in; matplotlib must be there.

    The scale of errors is logarithmic: tensors that are equal are not drawn, and an error that is
    not finite lies above all others.
    """
    from matplotlib.figure import Figure  # an extra, and slow to import

    figure = Figure(figsize=(10, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    draw_layers(axes, trace.sites)
    draw_errors(axes, trace)
    title = f"{trace.names[0]} against {trace.names[1]}"
    style: dict[str, Any] = {"family": families(title), "parse_math": False}  # "$" is a letter
    axes.set_title(title, loc="left", pad=28, color=INK, **style)
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=4)
    figure.savefig(path)


def draw_layers(axes: "Axes", sites: Sequence[Compared]) -> None:
    """The horizontal axis: every layer is as wide as another, every second one shaded."""
    stages = [stage for stage, _ in groupby(sites, key=lambda site: site.stage)]
    for start in range(1, len(stages), 2):
        axes.axvspan(start, start + 1, color=INK, alpha=0.045, linewidth=0)
    names = [stage.removeprefix("lm_") for stage in stages]  # as wide as there is room for
    axes.set_xticks(np.arange(len(stages)) + 0.5, names)
    axes.tick_params(axis="x", length=0, labelsize=10 if len(stages) < 20 else 8)
    axes.set(xlim=(0, len(stages)), xlabel="layer", ylabel="relative error", yscale="log")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)


def draw_errors(axes: "Axes", trace: Trace) -> None:
    """Both errors, the tolerance, and the tensor at which the sides part.

    What is propagated is drawn through what each layer gives to the next, and thinly through all.
    """
    places, ends = spread(trace.sites)
    propagated, own = errors = drawable(trace)
    axes.plot(places, propagated, color=PROPAGATED, alpha=0.4, linewidth=0.9)
    axes.plot(places[ends], propagated[ends], color=PROPAGATED, linewidth=2, label="propagated")
    size = 3.5 if len(own) < 150 else 2
    axes.plot(places, own, "o", color=OWN, markersize=size, label="own (0 is not drawn)")
    dashes: dict[str, Any] = {"color": INK, "linestyle": (0, (5, 3)), "linewidth": 1}
    axes.axhline(trace.tolerance, label=f"tolerance {trace.tolerance:.2g}", **dashes)
    shown = np.log10([trace.tolerance, *errors[~np.isnan(errors)]])
    axes.set_ylim(10 ** np.floor(shown.min()), 10 ** np.ceil(shown.max() + 0.1))
    if trace.parting:
        here = np.array([site.site == trace.parting.site for site in trace.sites])
        draw_parting(axes, places[here], own[here], str(trace.parting.site))


def draw_parting(axes: "Axes", place: np.ndarray, error: np.ndarray, name: str) -> None:
    """A ring around the tensor; no more than its name where only one side has it."""
    ring: dict[str, Any] = {"markersize": 12, "markeredgewidth": 1.8, "markerfacecolor": "none"}
    axes.plot(place, error, "o", color=FAULT, label=f"they part: {name}", **ring)
    axes.vlines(place, 0, 1, transform=axes.get_xaxis_transform(), color=FAULT, alpha=0.3)


def spread(sites: Sequence[Compared]) -> tuple[np.ndarray, np.ndarray]:
    """Where each tensor lies on the axis of layers, and which are the last of their layer."""
    places: list[float] = []
    ends: list[int] = []
    for start, (_, group) in enumerate(groupby(sites, key=lambda site: site.stage)):
        count = len(list(group))
        places += [start + (i + 0.5) / count for i in range(count)]
        ends.append(len(places) - 1)
    return np.array(places), np.array(ends)


def drawable(trace: Trace) -> np.ndarray:
    """Propagated and own errors as a logarithmic scale can show them, (2, tensors)."""
    errors = np.array([[s.propagated.relative, s.own.relative] for s in trace.sites]).T
    beyond = 10 * max(trace.tolerance, *errors[np.isfinite(errors)])
    return np.where(errors == 0, np.nan, np.where(np.isfinite(errors), errors, beyond))
