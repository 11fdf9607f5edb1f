"""Documents out of text files and table columns, and which of them are held out."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from kogpt.errors import InputRefusedError
from kogpt.textfiles import composed, read_lines, read_table

HOLD_OUT_EVERY = 100
COLUMN = "document"  # of tables, unless another is named


def is_held_out(index: int) -> bool:
    """Whether a row (counted from 0 over all files, headers left out) is kept from training."""
    return index % HOLD_OUT_EVERY == 0


def read_documents(paths: Iterable[Path], column: str) -> Iterator[str]:
    """All rows in order, empty ones too, so that a row keeps its index.

    Args:
        paths: `.txt` files, one document a line, or tables with a header: `.tsv` files, and
            `.txt` files whose first line names several columns and this among them, as NSMC's;
            also `.xz`.
        column: of tables; if it is not `document`, all files must be tables.

    Raises:
        InputRefusedError: a file is missing, damaged, of another kind, not UTF-8, has no such
            column or rows of unequal length; names file and line.
    """
    for path in paths:
        kind = Path(path.name.removesuffix(".xz")).suffix
        if kind not in (".txt", ".tsv"):
            wrong = "must be .txt or .tsv, or either with .xz" if path.exists() else "no such file"
            raise InputRefusedError(f"{path}: {'name its files' if path.is_dir() else wrong}")
        if kind == ".tsv" or _is_table(path, column):
            yield from (cell for (cell,) in read_table(path, [column]))
        else:
            yield from read_lines(path)


def _is_table(path: Path, column: str) -> bool:
    """Whether the first line of a file is a header: it names the column, or should."""
    header = [composed(name) for name in next(read_lines(path), "").split("\t")]
    return column != COLUMN or (len(header) > 1 and composed(column) in header)
