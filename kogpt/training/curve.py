"""The loss curve of a run as a picture."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from kogpt.errors import KoGPTError

CURVE_NAME = "curve.png"


def require_matplotlib() -> None:
    """Finds out before hours of training whether the picture can be drawn.

    Raises:
        KoGPTError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise KoGPTError(
            "the loss curve needs matplotlib: pip install 'kogpt[train]', or train without a curve"
        )


def draw_curve(log: list[dict[str, Any]], path: Path, title: str = "Loss") -> None:
    """Draws training and held-out loss over tokens; matplotlib must be there.

    Args:
        log: entries of a run's log.
        path: of the PNG file.
        title: above the picture.
    """
    from matplotlib.figure import Figure  # an extra, and slow to import

    tokens, loss = _points(log, "loss")
    held_tokens, held_loss = _points(log, "held_out_loss")
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(tokens, loss, color="tab:blue", alpha=0.25, linewidth=0.8)
    axes.plot(tokens, smoothed(loss), color="tab:blue", linewidth=1.8, label="training, smoothed")
    axes.plot(held_tokens, held_loss, "o-", color="tab:orange", markersize=4, label="held out")
    axes.set(xlabel="tokens seen, millions", ylabel="loss, nats per token", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, format="png")


def smoothed(values: np.ndarray, weight: float = 0.9) -> np.ndarray:
    """Exponential moving average that starts unbiased."""
    result = np.empty_like(values)
    mean = total = 0.0
    for i, value in enumerate(values):
        mean, total = weight * mean + (1 - weight) * value, weight * total + 1 - weight
        result[i] = mean / total
    return result


def _points(log: list[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(entry["tokens"] / 1e6, entry[key]) for entry in log if key in entry]
    return tuple(np.array(points).reshape(-1, 2).T)  # type: ignore[return-value]
