"""Documents out of text files and table columns, and which of them are held out."""

import lzma
from collections.abc import Iterable, Iterator
from pathlib import Path

from kogpt.errors import InputRefusedError

HOLD_OUT_EVERY = 100


def is_held_out(index: int) -> bool:
    """Whether a row (counted from 0 over all files, headers left out) is kept from training."""
    return index % HOLD_OUT_EVERY == 0


def read_documents(paths: Iterable[Path], column: str) -> Iterator[str]:
    """All rows in order, empty ones too, so that a row keeps its index.

    Args:
        paths: `.txt` files, one document a line, or `.tsv` files with a header; also `.xz`.
        column: of `.tsv` files.

    Raises:
        InputRefusedError: a file is missing, damaged, of another kind, not UTF-8, has no such
            column or rows of unequal length; names file and line.
    """
    for path in paths:
        kind = Path(path.name.removesuffix(".xz")).suffix
        if kind not in (".txt", ".tsv"):
            raise InputRefusedError(f"{path}: must be .txt or .tsv, or either with .xz")
        lines = _read_lines(path)
        yield from _read_column(lines, column, path) if kind == ".tsv" else lines


def _read_column(lines: Iterator[str], column: str, path: Path) -> Iterator[str]:
    # No quoting: a quotation mark is a character like any other.
    header = next(lines, "").split("\t")
    if column not in header:
        raise InputRefusedError(f"{path}: no column {column!r}; there are {', '.join(header)}")
    at = header.index(column)
    for number, line in enumerate(lines, start=2):
        cells = line.split("\t")
        if len(cells) != len(header):
            raise InputRefusedError(
                f"{path}: line {number} has {len(cells)} columns, the header {len(header)}"
            )
        yield cells[at]


def _read_lines(path: Path) -> Iterator[str]:
    number = 0
    try:
        with lzma.open(path) if path.suffix == ".xz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                yield text.rstrip("\r\n")
    except OSError as error:
        raise InputRefusedError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputRefusedError(f"{path}: line {number} is not UTF-8 ({error.reason})") from None
    except (lzma.LZMAError, EOFError) as error:
        raise InputRefusedError(f"{path}: damaged after line {number} ({error})") from None
