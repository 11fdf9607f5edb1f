"""The figures as a picture."""

import statistics
from pathlib import Path
from typing import Any

from kogpt.benchmarking.report import Figures, Report
from kogpt.pictures import families

KINDS = (".png", ".svg", ".pdf")


def draw(report: Report, path: Path) -> None:
    """Draws both speeds for each batch and length of prompt; matplotlib must be there.

    Bars are medians, their whiskers reach from the slowest to the fastest round, and a line over
    a bar of decoding is what the read bandwidth would allow.
    """
    from matplotlib.figure import Figure  # an extra, and slow to import

    figure = Figure(figsize=(9, 4), dpi=150, layout="constrained")
    prefill, decode = figure.subplots(1, 2)
    names = [f"{f.batch} x {f.prompt_tokens}" for f in report.figures]
    draw_bars(prefill, names, [f.prefill_rates for f in report.figures], "tab:blue")
    draw_bars(decode, names, [f.decode_rates for f in report.figures], "tab:orange")
    limits = [limit(f, report.bandwidth) for f in report.figures]
    ends = [i - 0.4 for i in range(len(names))], [i + 0.4 for i in range(len(names))]
    decode.hlines(limits, *ends, color="black", label="what the read bandwidth allows")
    figure.legend(frameon=False, loc="outside lower center")
    prefill.set(ylabel="tokens a second", title="reading the prompt")
    decode.set(title="writing")
    name = Path(report.model["path"]).resolve().name
    title = f"{name}, {report.model['dtype']}, {report.machine['device']}"
    figure.suptitle(title, family=families(title), parse_math=False)
    figure.savefig(path)


def draw_bars(axes: Any, names: list[str], rounds: list[list[float]], color: str) -> None:
    medians = [statistics.median(values) for values in rounds]
    below = [median - min(values) for median, values in zip(medians, rounds, strict=True)]
    above = [max(values) - median for median, values in zip(medians, rounds, strict=True)]
    places = range(len(names))  # by which two bars of one name stay apart
    axes.bar(places, medians, yerr=(below, above), capsize=4, color=color, alpha=0.8)
    axes.set_xticks(places, names)
    axes.set(xlabel="batch x tokens of a prompt")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="y", alpha=0.3)


def limit(figures: Figures, bandwidth: float) -> float:
    """New tokens a second if nothing but reading took time."""
    return figures.batch * bandwidth / figures.step_bytes
