"""A `Lens` as one HTML page that needs nothing but itself: nothing from a network.

The page is `lens.html` with `lens.css`, `lens.js` and the data in it.
"""

import base64
import html
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kogpt.diagnostics.lens import Lens
from kogpt.diagnostics.lens_labels import Piece, completed
from kogpt.errors import InputRefusedError

HERE = Path(__file__).parent
MAX_BYTES = 64 << 20  # of weights in a page; browsers take seconds to read more

# What could end the script or begin a comment in it; U+2028 and U+2029 end lines in old JavaScript.
UNSAFE = {ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&\u2028\u2029"}


def write_page(lens: Lens, path: Path, name: str) -> None:
    """Writes the page.

    Args:
        lens: what it shows.
        path: of the file.
        name: of the model, as the page calls it.

    Raises:
        InputRefusedError: the weights are too many for a page.
    """
    path.write_text(page(lens, name), encoding="utf-8")


def page(lens: Lens, name: str) -> str:
    """The page as text; see `write_page`."""
    data = json.dumps(page_data(lens, name), ensure_ascii=False, separators=(",", ":"))
    parts = {
        "TITLE": html.escape(f"{lens.prompt[:60]} · KoGPT lens"),
        "STYLE": _read("lens.css"),
        "DATA": data.translate(UNSAFE),
        "SCRIPT": _read("lens.js"),
    }
    # In one pass, so that a prompt that holds such a name is not filled in itself.
    return re.sub("@@([A-Z]+)@@", lambda match: parts[match.group(1)], _read("lens.html"))


def page_data(lens: Lens, name: str) -> dict[str, Any]:
    """What the page draws, as small as it can be drawn from."""
    causal = not lens.attention.triu(1).any()
    rows, columns = lens.layers.entropy.shape
    return {
        "name": name,
        "prompt": lens.prompt,
        "shape": lens.shape,
        "skipped": lens.skipped,
        "tokens": [
            _piece(token.piece)
            | {"id": token.piece.id, "bytes": token.piece.data.hex(" ").upper()}
            | ({"completes": token.completes} if token.completes else {})
            for token in lens.tokens
        ],
        "pieces": {id: _piece(piece) for id, piece in lens.pieces.items()},
        "layers": [[_cell(lens, row, column) for column in range(columns)] for row in range(rows)],
        "causal": causal,
        "attention": packed(lens.attention, causal),
    }


def packed(weights: Tensor, causal: bool) -> str:
    """Weights (L, H, N, N) as little-endian 16 bits, 65535 for 1, in base64.

    Of causal ones only the lower triangle, row by row.

    Raises:
        InputRefusedError: that is longer than `MAX_BYTES`.
    """
    L, H, N, _ = weights.shape
    if causal:
        weights = weights[:, :, *torch.tril_indices(N, N)]
    if 2 * weights.numel() > MAX_BYTES:
        raise InputRefusedError(
            f"{N} tokens, {L} layers and {H} heads are too many for one page: show fewer tokens"
        )
    steps = (weights.clamp(0, 1) * 65535).round().to(torch.int32)
    return base64.b64encode(steps.numpy().astype("<u2").tobytes()).decode()


def _cell(lens: Lens, layer: int, position: int) -> dict[str, Any]:
    """The likeliest tokens [id, probability, what it completes], the entropy, what follows."""
    found = lens.layers
    ids = found.top_ids[layer, position].tolist()
    probabilities = found.top_probabilities[layer, position].tolist()
    pending = lens.tokens[position].pending
    top = [
        [id, round(p, 5), *filter(None, [completed(pending, lens.pieces[id].data)])]
        for id, p in zip(ids, probabilities, strict=True)
    ]
    follows = lens.following(layer, position)
    return {
        "top": top,
        "entropy": round(float(found.entropy[layer, position]), 3),
        "next": follows and [round(follows["probability"], 5), follows["rank"]],
    }


def _piece(piece: Piece) -> dict[str, str]:
    return {"label": piece.label, "kind": piece.kind}


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8").rstrip("\n")
