"""A `Lens` as a picture: heads on the left, predictions on the right, a row for each layer."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kogpt.diagnostics.lens import Lens
from kogpt.pictures import find_font

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

SIDE = 0.92  # of a head's square, in those of the place it has
COLUMNS = 24  # of predictions; of a longer prompt the last ones are drawn
MAX_PROMPT = 90  # characters of the title
LAYER_NAMED = 0.7  # inches of a layer in which "layer 28" has room
HEADS, HEADS_POINTS = "attention by head: row token → column token, shade √weight", 8.5
LABEL_POINTS = 5.0  # the smallest label of a matrix


@dataclass(frozen=True)
class Sizes:
    """Where things are, in inches.

    Attributes:
        row: height of a layer, and width of a head.
        column: width of a position.
        shown: predicted tokens in a cell.
        left, bottom, top, between: margins, and the space between both halves.
    """

    row: float
    column: float
    shown: int
    left: float
    bottom: float
    top: float
    between: float


def draw_picture(lens: Lens, path: Path, name: str) -> None:
    """Draws the picture as a PNG; matplotlib must be there.

    Args:
        lens: what it shows.
        path: of the file.
        name: of the model, as the picture calls it.

    Raises:
        KoGPTError: no installed font has the Hangul in it.
    """
    from matplotlib.figure import Figure  # an extra, and slow to import

    L, H = lens.attention.shape[:2]
    columns = min(len(lens.tokens), COLUMNS)
    texts = _texts(lens, columns)
    font, missing = find_font({*"".join(texts), *_heading(lens)})
    write = Writing(font, missing)
    sizes = _sizes(lens, columns, texts)
    width = sizes.left + H * sizes.row + sizes.between + columns * sizes.column + 0.2
    height = sizes.top + (L + 1) * sizes.row + sizes.bottom
    figure = Figure(figsize=(width, height), dpi=200 if width < 16 else 150)
    _title(figure, lens, name, write)
    _draw_heads(figure, lens, sizes, write)
    _draw_layers(figure, lens, sizes, columns, write)
    figure.savefig(path, format="png")


@dataclass(frozen=True)
class Writing:
    """Text that never shows a box for a glyph that no font has.

    Attributes:
        font: with Hangul.
        missing: characters that no font has; written as "‹U+1F624›".
    """

    font: "FontProperties"
    missing: frozenset[str]

    def text(self, text: str) -> str:
        """The text as it can be drawn."""
        return "".join(f"‹U+{ord(c):04X}›" if c in self.missing else c for c in text)

    def at(self, size: float, **style: Any) -> dict[str, Any]:
        """Arguments for text of that size."""
        font = self.font.copy()
        font.set_size(size)
        return {"fontproperties": font, "parse_math": False, **style}  # "$" is a letter


def _sizes(lens: Lens, columns: int, texts: list[str]) -> Sizes:
    L, H = lens.attention.shape[:2]
    row = min(max(9.0 / (L + 1), 0.4), 1.15)
    longest, points = max(map(_breadth, texts)), _points(row)
    # The likeliest token, or a lesser one with its share beside it.
    text = max(longest * points, (longest + 2.8) * (points - 3))
    column = max(0.62, 3.6 / columns, 0.075 + text / 72)
    labels = max(_breadth(token.piece.label) for token in lens.tokens) * LABEL_POINTS * 1.3 / 72
    ticked = _label_points(lens, row) > 0
    margin = labels if ticked else 0.0
    shown = 1 if row < 0.8 else 3
    heading = _breadth(HEADS) * HEADS_POINTS / 72  # of the left half, which may have few heads
    between = max(1.15, 0.85 + heading - H * row)
    return Sizes(row, column, shown, 0.75 + margin, 0.35 + margin, 1.35, between)


def _points(row: float) -> float:
    """Size of the likeliest token in a cell."""
    return 10.0 if row >= 0.8 else 7.5


def _label_points(lens: Lens, row: float) -> float:
    """Size of the labels of a matrix; 0 where they would be too small to read."""
    points = 0.8 * 72 * SIDE * row / len(lens.tokens)
    return min(points, 7.0) if points >= LABEL_POINTS - 1 else 0.0


def _breadth(text: str) -> float:
    """Breadth in sizes of the font, about: a syllable takes one, other letters two thirds."""
    return sum(1.0 if ord(letter) >= 0x1100 else 0.66 for letter in text)


def _texts(lens: Lens, columns: int) -> list[str]:
    """All pieces in the picture."""
    ids = lens.layers.top_ids[:, -columns:, :3].unique().tolist()
    labels = [token.piece.label for token in lens.tokens]
    return [lens.pieces[id].label for id in ids] + labels


def _heading(lens: Lens) -> str:
    """The prompt in one line."""
    prompt = " ".join(lens.prompt.split())
    return prompt if len(prompt) <= MAX_PROMPT else f"{prompt[:MAX_PROMPT]}…"


def _title(figure: "Figure", lens: Lens, name: str, write: Writing) -> None:
    width, height = figure.get_size_inches()
    shape = lens.shape
    facts = (
        f"{name}: {shape['layers']} layers, {shape['heads']} heads, {shape['parameters']:,}"
        f" parameters, {shape['dtype']}; {len(lens.tokens) + lens.skipped} tokens"
    )
    if lens.skipped:
        facts += f", the last {len(lens.tokens)} shown"
    place = 0.25 / width
    heading = write.text(_heading(lens))
    room = 72 * (width - 0.5)
    size = min(15, width * 1.1, room / max(1, _breadth(heading)))
    figure.text(place, 1 - 0.36 / height, heading, **write.at(size))
    size = min(8.5, room / _breadth(facts))
    figure.text(place, 1 - 0.64 / height, facts, **write.at(size, color="#5a636f"))


def _axes(figure: "Figure", left: float, bottom: float, width: float, height: float) -> "Axes":
    """Axes in inches."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def _draw_heads(figure: "Figure", lens: Lens, sizes: Sizes, write: Writing) -> None:
    """A square of one unit less a gap for each head, all in the same axes."""
    from matplotlib.patches import Rectangle

    L, H, N, _ = lens.attention.shape
    axes = _axes(figure, sizes.left, sizes.bottom, H * sizes.row, L * sizes.row)
    shades = lens.attention.clamp(min=0).sqrt().numpy()  # as on the page: a few per cent show
    style: dict[str, Any] = {"cmap": "Blues", "vmin": 0, "vmax": 1, "aspect": "auto"}
    frame: dict[str, Any] = {"fill": False, "linewidth": 0.5, "edgecolor": "#c3cad3"}
    for layer, head in np.ndindex(L, H):
        extent = (head, head + SIDE, layer + SIDE, layer)
        axes.imshow(shades[layer, head], extent=extent, interpolation="nearest", **style)
        axes.add_patch(Rectangle((head, layer), SIDE, SIDE, **frame))
    axes.set(xlim=(0, H), ylim=(L, 0), xticks=[], yticks=[])
    axes.tick_params(length=0, pad=2)
    axes.spines[:].set_visible(False)
    if points := _label_points(lens, sizes.row):
        labels = [write.text(token.piece.label) for token in lens.tokens]
        places = SIDE * (np.arange(N) + 0.5) / N
        down, across = np.add.outer(np.arange(L), places), np.add.outer(np.arange(H), places)
        axes.set_yticks(down.ravel(), labels * L, **write.at(points))
        axes.set_xticks(across.ravel(), labels * H, rotation=90, **write.at(points))
    _name_layers(figure, L, sizes, write)
    _name_heads(figure, H, sizes, write)


def _name_layers(figure: "Figure", layers: int, sizes: Sizes, write: Writing) -> None:
    """The layers' numbers at the left edge, from the bottom to the top of the page."""
    width, height = figure.get_size_inches()
    style = write.at(7.5, color="#5a636f", ha="center", va="center", rotation=90)
    for layer in range(layers):
        middle = sizes.bottom + (layers - layer - 1 + SIDE / 2 + (1 - SIDE)) * sizes.row
        name = f"layer {layer + 1}" if sizes.row >= LAYER_NAMED else f"{layer + 1}"
        figure.text(0.35 / width, middle / height, name, **style)


def _name_heads(figure: "Figure", heads: int, sizes: Sizes, write: Writing) -> None:
    """The heads' numbers in the embedding's row, where there is no attention."""
    width, height = figure.get_size_inches()
    base = height - sizes.top - sizes.row
    small = write.at(7.5, color="#5a636f", ha="center")
    for head in range(heads):
        middle = sizes.left + (head + SIDE / 2) * sizes.row
        figure.text(middle / width, (base + 0.07) / height, f"{head + 1}", **small)
    figure.text(sizes.left / width, (base + 0.26) / height, HEADS, **write.at(HEADS_POINTS))


def _draw_layers(figure: "Figure", lens: Lens, sizes: Sizes, columns: int, write: Writing) -> None:
    rows, N = lens.layers.entropy.shape
    left = figure.get_size_inches()[0] - 0.2 - columns * sizes.column
    axes = _axes(figure, left, sizes.bottom, columns * sizes.column, rows * sizes.row)
    first = N - columns
    best = lens.layers.top_probabilities[:, first:, 0].numpy()
    extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    axes.imshow(best, cmap="Greens", vmin=0, vmax=1, aspect="auto", extent=extent)
    for row in range(rows):
        for column in range(columns):
            _write_cell(axes, lens, row, column, first, sizes, write)
    names = ["embedding", *(f"layer {n}" for n in range(1, rows))]
    axes.set_yticks(range(rows), names, **write.at(7.5, color="#5a636f"))
    labels = [write.text(token.piece.label) for token in lens.tokens[first:]]
    axes.set_xticks(range(columns), labels, **write.at(_points(sizes.row) - 1))
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.hlines(np.arange(0.5, rows - 1), -0.5, columns - 0.5, color="white", linewidth=1.5)
    axes.vlines(np.arange(0.5, columns - 1), -0.5, rows - 0.5, color="white", linewidth=1.5)
    part = f" (the last {columns} of {N})" if first else ""
    axes.set_title(
        f"likeliest next token behind each token{part}\n"
        "as each layer's state tells it (logit lens); framed: it really follows",
        loc="left",
        pad=5,
        **write.at(8.5 if columns * sizes.column > 5 else 6.8),
    )


def _write_cell(
    axes: "Axes", lens: Lens, row: int, column: int, first: int, sizes: Sizes, write: Writing
) -> None:
    best, *others = lens.predictions(row, first + column)[: sizes.shown]
    points = _points(sizes.row)
    style = {"ha": "center", "va": "center"}
    style["color"] = "white" if best["probability"] > 0.6 else "#15191f"
    top, step = (row - 0.3, 0.2) if sizes.shown > 1 else (row - 0.17, 0.42)
    axes.text(column, top, write.text(best["piece"]), **write.at(points, **style))
    share = _percent(best["probability"])
    axes.text(column, top + step, share, **write.at(points - 3, **style))
    for place, one in enumerate(others, 2):
        text = f"{write.text(one['piece'])} {_percent(one['probability'])}"
        y = top + 0.05 + place * step
        axes.text(column, y, text, **write.at(points - 3, **style, alpha=0.7))
    follows = lens.following(row, first + column)
    if follows and follows["rank"] == 1:
        corners = 0.46 * np.array(((-1, 1, 1, -1, -1), (-1, -1, 1, 1, -1)))
        axes.plot(column + corners[0], row + corners[1], color="#c2410c", linewidth=1.3)


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share >= 0.005 else "<1%"
