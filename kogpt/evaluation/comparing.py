"""Two reports side by side: is one model better on the same rows?"""

from collections.abc import Iterator
from statistics import fmean

from kogpt.errors import InputRefusedError
from kogpt.evaluation.metrics import METRICS, Comparison, compare
from kogpt.evaluation.report import Json, name_of, outcome_of
from kogpt.textfiles import markdown_row

RUN, FIGURES = ("task", "prompt", "shots", "scored by", "metric"), ("difference", "95 %", "p")


def compare_reports(first: Json, second: Json) -> list[tuple[Json, str, Comparison]]:
    """Compares all runs that both reports hold.

    Returns:
        The run of the first report, the rule of scoring, and what came of it.

    Raises:
        InputRefusedError: the reports have no run or no rule of scoring in common, or runs of one
            name are of other rows or unequally many sets of shots.
    """
    pairs = _pairs(first, second)
    if not pairs:
        raise InputRefusedError("the reports have no task, prompt and number of shots in common")
    results = [(run, rule, result) for run, other in pairs for rule, result in _compare(run, other)]
    if not results:
        raise InputRefusedError("the reports have no rule of scoring in common")
    return results


def _pairs(first: Json, second: Json) -> list[tuple[Json, Json]]:
    """Runs of one task, prompt and number of shots."""
    others = {_key(run): run for run in second["runs"]}
    return [(run, others[_key(run)]) for run in first["runs"] if _key(run) in others]


def _compare(run: Json, other: Json) -> Iterator[tuple[str, Comparison]]:
    same = run["scored"]["sha256"] == other["scored"]["sha256"]
    parts = ["rows", "gold", "labels"]
    if run["degrees"] and other["degrees"]:
        parts.append("degrees")
    if not same or any(run[name] != other[name] for name in parts):
        counts = [f"{len(each['rows'])} of {each['scored']['file']}" for each in (run, other)]
        raise InputRefusedError(
            f"{run['task']}: the reports were not scored on the same rows: {' and '.join(counts)}"
        )
    sets = len(run["sets"]), len(other["sets"])
    if sets[0] != sets[1]:
        raise InputRefusedError(
            f"{run['task']}: rows change sides between equally many sets of shots,"
            f" not {sets[0]} and {sets[1]}"
        )
    for rule in run["protocol"]["scoring"]:
        if rule in other["protocol"]["scoring"]:
            outcomes = outcome_of(run, rule), outcome_of(other, rule)
            metrics = [metric for metric in run["metrics"] if metric in other["metrics"]]
            yield from ((rule, compare(metric, *outcomes)) for metric in metrics)


def comparison_table(first: Json, second: Json) -> str:
    """Markdown of `compare_reports`, and what the reports differ in besides the model."""
    names = (name_of(first), name_of(second))
    if names[0] == names[1]:
        names = (f"{names[0]} (A)", f"{names[1]} (B)")
    headings = [*RUN, *names, *FIGURES]
    lines = [headings, ["---"] * 5 + ["---:"] * 5]
    for run, rule, result in compare_reports(first, second):
        lines.append([*_name(run, rule, result), *_figures(result)])
    notes = [f"- {note}" for run, other in _pairs(first, second) for note in _notes(run, other)]
    return "\n".join([*map(markdown_row, lines), *([""] if notes else []), *notes])


def _notes(run: Json, other: Json) -> Iterator[str]:
    """What moves a score of one and not of the other besides the model."""
    where = f"{run['title']}, prompt {run['prompt']['name']}, {run['protocol']['shots']} shots"
    for name in ("seed", "balanced", "max_shot_tokens", "separator") if run["examples"] else ():
        values = [each["protocol"].get(name) for each in (run, other)]
        if values[0] != values[1]:
            yield f"{where}: {name} is {values[0]!r} in the first and {values[1]!r} in the second"
    if (run["examples"] or {}).get("sha256") != (other["examples"] or {}).get("sha256"):
        yield f"{where}: the examples are of different files"
    fits = [
        [count for answers in each["sets"] for count in answers["fitted"]] for each in (run, other)
    ]
    if fits[0] != fits[1]:
        means = [f"{fmean(fitted):.1f}" for fitted in fits]
        yield f"{where}: in the mean {means[0]} fit in the first and {means[1]} in the second"


def _name(run: Json, rule: str, result: Comparison) -> list[str]:
    shots = str(run["protocol"]["shots"])
    return [run["title"], run["prompt"]["name"], shots, rule, METRICS[result.metric]]


def _figures(result: Comparison) -> list[str]:
    low, high = result.interval
    means = f"{result.first:.1f}", f"{result.second:.1f}"
    return [*means, f"{result.difference:+.1f}", f"{low:+.1f} to {high:+.1f}", _p(result.p_value)]


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def _key(run: Json) -> tuple[str, str, int]:
    return run["task"], run["prompt"]["sha256"], run["protocol"]["shots"]
