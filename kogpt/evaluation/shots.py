"""Which rows are shown as examples, and which are scored: by hashes, not by a generator.

A row's place in a draw is the SHA-256 of `seed:set:row`. Draws are then the same in any version of
any library, fewer shots are the first of more (of balanced draws: are among more), and a shell can
repeat them.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence

from kogpt.errors import InputRefusedError
from kogpt.evaluation.data import Row


def draw_shots(
    rows: Sequence[Row],
    count: int,
    seed: int,
    set: int,
    num_labels: int | None = None,
    suits: Callable[[Row], bool] = lambda row: True,
) -> list[Row]:
    """Draws examples.

    Args:
        rows: to draw from.
        count: how many.
        seed: of the evaluation.
        set: which of its draws.
        num_labels: for equal numbers of all labels, up to one; None for whatever comes.
        suits: rows that may be drawn.

    Raises:
        InputRefusedError: too few rows suit; tells how many do.
    """
    shots: list[Row] = []
    drawn: Counter[int] = Counter()
    for row in _in_order(rows, f"{seed}:{set}:"):
        if len(shots) == count:
            break
        if suits(row) and (num_labels is None or _has_room(row.label, drawn, count, num_labels)):
            shots.append(row)
            drawn[row.label] += 1
    if len(shots) < count:
        kind = "rows" if num_labels is None else "rows of equally many labels"
        raise InputRefusedError(f"there are {len(shots)} {kind} to draw {count} shots from")
    return shots


def sample_rows(rows: Sequence[Row], limit: int | None) -> list[Row]:
    """At most `limit` rows in their order; the same ones whatever the seed, so that runs pair."""
    if limit is None or limit >= len(rows):
        return list(rows)
    return sorted(_in_order(rows, "rows:")[:limit], key=lambda row: row.index)


def _in_order(rows: Sequence[Row], key: str) -> list[Row]:
    def place(row: Row) -> bytes:
        return hashlib.sha256(f"{key}{row.index}".encode()).digest()

    return sorted(rows, key=place)


def _has_room(label: int, drawn: Counter[int], count: int, num_labels: int) -> bool:
    """Whether another row of the label leaves all labels within one of each other in the end."""
    each, over = divmod(count, num_labels)
    if drawn[label] < each:
        return True
    extras = sum(max(0, number - each) for number in drawn.values())
    return drawn[label] == each and extras < over
