"""The losses and metrics of a run as a picture."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kogpt.evaluation.metrics import METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVE_NAME = "curve.png"
SMOOTHING = 0.9  # share that a moving average keeps at each step


def draw_curve(log: list[dict[str, Any]], path: Path) -> None:
    """Draws training and held-out loss over tokens, and metrics below; matplotlib must be there.

    Args:
        log: entries of a run's log.
        path: of the PNG file.
    """
    from matplotlib.figure import Figure  # an extra, and slow to import

    metrics = [name for name in METRICS if any(name in entry for entry in log)]
    figure = Figure(figsize=(8, 7.5 if metrics else 4.5), dpi=150, layout="constrained")
    losses, *others = figure.subplots(2 if metrics else 1, sharex=True, squeeze=False)[:, 0]
    _draw_losses(losses, log)
    losses.set(ylabel="loss, nats per target", title="Loss")
    for axes in others:
        for name in metrics:
            axes.plot(*_points(log, name), "o-", markersize=4, label=METRICS[name])
        axes.set(ylabel="held out, %")
    for axes in (losses, *others):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    (others or [losses])[-1].set(xlabel="tokens read, millions")
    figure.savefig(path, format="png")


def _draw_losses(axes: "Axes", log: list[dict[str, Any]]) -> None:
    tokens, loss = _points(log, "loss")
    axes.plot(tokens, loss, color="tab:blue", alpha=0.25, linewidth=0.8)
    axes.plot(tokens, smoothed(loss), color="tab:blue", linewidth=1.8, label="training, smoothed")
    held_out = _points(log, "held_out_loss")
    axes.plot(*held_out, "o-", color="tab:orange", markersize=4, label="held out")


def smoothed(values: np.ndarray) -> np.ndarray:
    """Exponential moving average that starts unbiased."""
    result = np.empty_like(values)
    mean = total = 0.0
    for i, value in enumerate(values):
        mean, total = SMOOTHING * mean + (1 - SMOOTHING) * value, SMOOTHING * total + 1 - SMOOTHING
        result[i] = mean / total
    return result


def _points(log: list[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(entry["tokens"] / 1e6, entry[key]) for entry in log if key in entry]
    return tuple(np.array(points).reshape(-1, 2).T)  # type: ignore[return-value]
