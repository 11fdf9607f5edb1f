"""A run as a picture: what was taken for what, and whether the model knows when it is right."""

from pathlib import Path
from typing import Any

import numpy as np

from kogpt.evaluation.metrics import METRICS, Outcome
from kogpt.evaluation.report import Json, outcome_of
from kogpt.pictures import families

BINS = 10


def draw(run: Json, model: str, folder: Path) -> Path:
    """Draws a run by its main rule of scoring, all sets together; matplotlib must be there.

    Returns:
        The PNG file.
    """
    from matplotlib import rc_context  # an extra, and slow to import
    from matplotlib.figure import Figure

    rule = run["protocol"]["scoring"][0]
    outcome = outcome_of(run, rule)
    shots, prompt = run["protocol"]["shots"], run["prompt"]["name"]
    result = run["results"][0]
    title = (
        f"{run['title']}, {model}: {METRICS[result['metric']]} {result['mean']:.1f}"
        f" (prompt {prompt}, {shots} shots, scored by {rule})"
    )
    path = folder / f"{run['task']}-{prompt}-{shots}.png"
    fonts = families(title, *run["labels"])
    with rc_context({"text.parse_math": False, "font.family": fonts}):  # "$" is a letter
        figure = Figure(figsize=(10.5, 4.8), dpi=150, layout="constrained")
        left, right = figure.subplots(1, 2)
        draw_confusion(left, outcome, run["labels"])
        draw_calibration(right, outcome)
        figure.suptitle(title)
        figure.savefig(path)
    return path


def draw_confusion(axes: Any, outcome: Outcome, labels: list[str]) -> None:
    """Shares of each right label's rows."""
    from sklearn.metrics import confusion_matrix

    gold = np.tile(outcome.gold, len(outcome.scores))
    known = range(outcome.num_labels)
    matrix = confusion_matrix(gold, outcome.predicted.ravel(), labels=known, normalize="true")
    axes.imshow(matrix, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(matrix):
        share = matrix[row, column]
        color = "white" if share > 0.5 else "black"
        axes.text(column, row, f"{share:.0%}", ha="center", va="center", color=color)
    axes.set_xticks(known, labels, rotation=30, ha="right")
    axes.set_yticks(known, labels)
    axes.set(xlabel="taken for", ylabel="right", title="rows of each label")


def draw_calibration(axes: Any, outcome: Outcome) -> None:
    """How often answers are right, by how probable the model finds them."""
    confidence = outcome.probabilities.max(-1).ravel()
    right = (outcome.predicted == outcome.gold).ravel()
    edges = np.linspace(0, 1, BINS + 1)
    at = np.clip(np.digitize(confidence, edges) - 1, 0, BINS - 1)
    filled = np.unique(at)
    said = [confidence[at == i].mean() for i in filled]
    was = [right[at == i].mean() for i in filled]
    shares = np.bincount(at, minlength=BINS) / len(at)
    error = sum(abs(a - b) * shares[i] for i, a, b in zip(filled, said, was, strict=True))
    bars = {"width": 1 / BINS, "align": "edge", "color": "tab:blue", "alpha": 0.2}
    axes.bar(edges[:-1], shares, label="share of all rows", **bars)
    axes.plot((0, 1), (0, 1), color="gray", linestyle=":", linewidth=1)
    axes.plot(said, was, "o-", color="tab:orange", label="share that is right", clip_on=False)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of the likeliest answer")
    axes.set(ylabel="share", title=f"calibration, expected error {error:.1%}")
    axes.legend(frameon=False, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
