"""The picture of the loss."""

import sys

import numpy as np
import pytest

from kogpt.errors import KoGPTError
from kogpt.pictures import require_matplotlib
from kogpt.training.curve import draw_curve, smoothed

LOG = [{"step": s, "tokens": s * 4096, "loss": 9 / (1 + s / 50)} for s in range(1, 300)]
HELD_OUT = [{"step": s, "tokens": s * 4096, "held_out_loss": 9 / (1 + s / 55)} for s in (100, 200)]


METRICS = [{**entry, "accuracy": 80 + i, "macro_f1": 79 + i} for i, entry in enumerate(HELD_OUT)]


@pytest.mark.parametrize(
    ("log", "height"), [(LOG, 675), (LOG + HELD_OUT, 675), (LOG[:1], 675), (LOG + METRICS, 1125)]
)
def test_the_curve_is_a_png_picture_with_something_in_it(tmp_path, log, height):
    image = pytest.importorskip("matplotlib.image")
    path = tmp_path / "curve.png"
    draw_curve(log, path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = image.imread(path)
    assert pixels.shape[:2] == (height, 1200)
    assert 0.01 < np.mean(pixels[..., :3].min(axis=-1) < 0.9) < 0.5


def test_smoothing_starts_unbiased_and_keeps_a_constant():
    assert smoothed(np.array([7.0])) == pytest.approx([7.0])
    assert smoothed(np.full(50, 3.0)) == pytest.approx(np.full(50, 3.0))
    noise = np.random.default_rng(0).normal(size=2000)
    assert smoothed(noise)[100:].std() < 0.25


def test_a_missing_library_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(KoGPTError, match=r"pip install 'kogpt\[train\]'"):
        require_matplotlib()


def test_losses_lie_over_millions_of_tokens(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure")
    drawn = []
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *args, **kw: drawn.append(self))
    draw_curve(LOG + METRICS, tmp_path / "curve.png")
    losses, metrics = drawn[0].axes
    raw, _, held_out = losses.lines
    assert raw.get_xdata()[0] == pytest.approx(0.004096)
    assert list(raw.get_ydata()) == [entry["loss"] for entry in LOG]
    assert list(held_out.get_xdata()) == pytest.approx([0.4096, 0.8192])
    assert [list(line.get_ydata()) for line in metrics.lines] == [[80, 81], [79, 80]]
