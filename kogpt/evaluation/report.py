"""What an evaluation found: one object with everything, and tables for people.

The object is what the JSON file holds, every row's log-likelihoods included, so tables, pictures
and comparisons are made of it whether it was just computed or read again.
"""

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from kogpt.errors import InputRefusedError
from kogpt.evaluation.data import Rows
from kogpt.evaluation.metrics import F1, METRICS, SPEARMAN, Outcome, interval, measure
from kogpt.evaluation.running import Answers, Run
from kogpt.jsonfiles import read_json
from kogpt.textfiles import markdown_row

FORMAT = "kogpt-evaluation-1"
UNTOLD = "untold"
# What comparing takes of a run.
RUN_KEYS = {
    *("task", "title", "labels", "metrics", "prompt", "protocol", "scored", "examples"),
    *("rows", "gold", "degrees", "sets"),
}

Json = dict[str, Any]


def make_report(runs: Sequence[Run], about: Json) -> Json:
    """The object of some runs.

    Args:
        runs: of one model.
        about: what else decides a number: `model`, of which tables need `name`, `preset` or None,
            and whatever is worth telling.
    """
    return {"format": FORMAT, **about, "runs": list(map(_run, runs))}


def read_report(path: Path) -> Json:
    """The object that was written to a file.

    Raises:
        InputRefusedError: the file is none of these.
    """
    report = read_json(path)
    if not isinstance(report, dict) or report.get("format") != FORMAT or not report.get("runs"):
        raise InputRefusedError(f"{path}: no report of kogpt evaluate ({FORMAT})")
    if not isinstance(report["runs"], list):
        raise InputRefusedError(f"{path}: damaged: runs are no list")
    for run in report["runs"]:
        missing = RUN_KEYS - set(run if isinstance(run, dict) else ())
        if missing:
            raise InputRefusedError(f"{path}: damaged: a run has no {', '.join(sorted(missing))}")
    model = report.get("model")
    adapters = model.get("adapters", []) if isinstance(model, dict) else None
    if not isinstance(adapters, list) or not _has_names([model, *adapters]):
        raise InputRefusedError(f"{path}: damaged: no name of the model")
    for run in report["runs"]:
        _refuse_damaged(run, path)
    return report


def _has_names(parts: Sequence[Any]) -> bool:
    return all(isinstance(part, dict) and isinstance(part.get("name"), str) for part in parts)


def _refuse_damaged(run: Json, path: Path) -> None:
    """Takes all of a run that comparing will."""
    try:
        protocol, examples = run["protocol"], run["examples"]
        usable = all(_is_whole(run, outcome_of(run, rule)) for rule in protocol["scoring"])
        usable &= all(metric in METRICS for metric in run["metrics"])
        texts = [run["task"], run["title"], run["prompt"]["name"], run["prompt"]["sha256"]]
        texts += [run["scored"]["sha256"], run["scored"]["file"]]
        usable &= all(isinstance(text, str) for text in texts)
        usable &= isinstance(protocol["shots"], int) and isinstance(examples, dict | None)
    except (KeyError, TypeError, ValueError):
        usable = False
    if not usable:
        raise InputRefusedError(f"{path}: damaged: what a run found cannot be read")


def _is_whole(run: Json, outcome: Outcome) -> bool:
    """Whether there is a right label, and a finite score for each answer, for every row."""
    rows, labels = len(run["rows"]), len(run["labels"])
    whole = outcome.scores.shape == (len(run["sets"]), rows, labels)
    fitted = [count for answers in run["sets"] for count in answers["fitted"]]
    whole &= all(len(answers["fitted"]) == rows for answers in run["sets"])
    whole &= all(type(count) is int for count in fitted)
    whole &= F1 not in run["metrics"] or labels == 2
    whole &= outcome.gold.shape == (rows,) and set(run["gold"]) <= set(range(labels))
    if SPEARMAN in run["metrics"]:
        degrees = outcome.degrees
        whole &= degrees is not None and degrees.shape == (rows,) and np.isfinite(degrees).all()
    return bool(whole and np.isfinite(outcome.scores).all())


def name_of(report: Json) -> str:
    """The model's name, with those of its adapters."""
    model = report["model"]
    return " + ".join([model["name"], *(each["name"] for each in model.get("adapters", ()))])


def outcome_of(run: Json, rule: str) -> Outcome:
    """What a run's rows were taken for by a rule of scoring."""
    scores = [Answers(**answers).scores(rule) for answers in run["sets"]]
    return Outcome.of(run["labels"], run["gold"], run["degrees"], scores)


def _run(run: Run) -> Json:
    task, data = run.task, run.data
    result: Json = {
        "task": task.name,
        "title": task.title,
        "labels": task.labels,
        "metrics": task.metrics,
        "task_sha256": task.sha256,
        "prompt": {**asdict(run.prompt), "sha256": run.prompt.sha256},
        "protocol": {**asdict(run.protocol), "shots": run.shots, "scoring": run.rules},
        "scored": _file(data.scored),
        "examples": _file(data.shots) if data.shots and run.shots else None,
        "published": [asdict(published) for published in task.published],
        "too_long": run.too_long,
        "equal_answers": run.equal_answers,
        "rows": [row.index for row in run.rows],
        "gold": [row.label for row in run.rows],
        "degrees": [row.degree for row in run.rows if row.degree is not None],
        "sets": [asdict(answers) for answers in run.sets],
    }
    result = json.loads(json.dumps(result))  # as it will be read again
    result["results"] = [_result(result, rule, name) for rule in run.rules for name in task.metrics]
    return result


def _file(rows: Rows) -> Json:
    return {
        "file": rows.path.name,
        "sha256": rows.sha256,
        "rows": len(rows.rows),
        "counts": rows.counts,
        "notes": rows.notes,
    }


def _result(run: Json, rule: str, metric: str) -> Json:
    outcome = outcome_of(run, rule)
    sets = measure(metric, outcome)
    return {
        "scoring": rule,
        "metric": metric,
        "mean": statistics.fmean(sets),
        "deviation": statistics.stdev(sets) if len(sets) > 1 else None,
        "interval": interval(metric, outcome),
        "sets": sets,
    }


def tables(report: Json) -> str:
    """Markdown: a table for each task, measured rows first, then those that were published."""
    preset = ["\n".join(_preset(report["preset"]))] if report["preset"] else []
    return "\n\n".join([*preset, *("\n".join(_task(runs, report)) for runs in _by_task(report))])


def _preset(preset: Json) -> Iterator[str]:
    yield f"{preset['title']} (preset {preset['name']})."
    yield ""
    yield from (f"- known: {fact}" for fact in preset["known"])
    yield from (f"- assumed: {fact}" for fact in preset["assumed"])


def _by_task(report: Json) -> Iterator[list[Json]]:
    for _, runs in groupby(report["runs"], key=lambda run: run["task"]):
        yield list(runs)


def _task(runs: list[Json], report: Json) -> Iterator[str]:
    first = runs[0]
    metrics = first["metrics"]
    sources: list[str] = []
    yield f"### {first['title']}"
    yield ""
    yield from _notes(runs)
    yield ""
    headings = ("model", "prompt", "shots", "scored by", *(METRICS[name] for name in metrics))
    yield markdown_row((*headings, f"{METRICS[metrics[0]]}, 95 %", "every set", "origin"))
    yield markdown_row((*["---"] * 4, *["---:"] * (len(metrics) + 1), "---", "---"))
    for run in runs:
        for rule in run["protocol"]["scoring"]:
            yield markdown_row(_measured(run, rule, name_of(report)))
    for published in first["published"]:
        if published["source"] not in sources:
            sources.append(published["source"])
        mark = sources.index(published["source"]) + 1
        yield from map(markdown_row, _published(published, metrics, mark))
    yield ""
    yield from (f"[{mark}] {source}." for mark, source in enumerate(sources, start=1))


def _notes(runs: list[Json]) -> Iterator[str]:
    """What a reader must know before the figures."""
    first = runs[0]
    scored, rows = first["scored"], len(first["rows"]) + len(first["too_long"])
    yield f"- {rows:,} of {scored['rows']:,} rows of {scored['file']}"
    yield from dict.fromkeys(f"- {note}" for run in runs for note in _notes_of(run))


def _notes_of(run: Json) -> Iterator[str]:
    yield from run["scored"]["notes"]
    yield from (run["examples"] or {}).get("notes", ())
    prompt, shots, too_long = run["prompt"], run["protocol"]["shots"], len(run["too_long"])
    if prompt["note"]:
        yield f"prompt {prompt['name']}: {prompt['note']}"
    if too_long:
        yield f"prompt {prompt['name']}: left out {too_long} rows that alone exceed the context"
    if equal := len(run.get("equal_answers", ())):  # older reports do not tell
        yield f"prompt {prompt['name']}: {equal} rows have equal answers, the first of which counts"
    fitted = [count for answers in run["sets"] for count in answers["fitted"]]
    fewer = sum(count < shots for count in fitted)
    if fewer:
        yield (
            f"of {shots} shots with prompt {prompt['name']}, {min(fitted)} to {max(fitted)} fit"
            f" the context, {statistics.fmean(fitted):.1f} in the mean; fewer than asked before"
            f" {fewer / len(fitted):.0%} of the rows"
        )


def _measured(run: Json, rule: str, model: str) -> list[str]:
    results = [result for result in run["results"] if result["scoring"] == rule]
    low, high = results[0]["interval"]
    cells = [f"**{model}**", run["prompt"]["name"], str(run["protocol"]["shots"]), rule]
    cells += map(_value, results)
    sets = results[0]["sets"]
    every = " ".join(f"{value:.1f}" for value in sets) if len(sets) > 1 else ""
    return [*cells, f"{low:.1f}-{high:.1f}", every, "measured"]


def _value(result: Json) -> str:
    deviation = result["deviation"]
    return f"{result['mean']:.1f}" + ("" if deviation is None else f" ± {deviation:.1f}")


def _published(published: Json, metrics: Sequence[str], mark: int) -> Iterator[list[str]]:
    shots = UNTOLD if published["shots"] is None else str(published["shots"])
    for model, value in published["values"].items():
        cells = [f"{float(value)}" if name == published["metric"] else "" for name in metrics]
        yield [model, "", shots, "", *cells, "", "", f"{published['mark']} [{mark}]"]
