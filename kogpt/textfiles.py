"""Text files and tables: data, where a fault is told by line, and what a terminal shows."""

import csv
import lzma
import re
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from unicodedata import east_asian_width, normalize

from kogpt.errors import InputRefusedError

SHORT = reprlib.Repr()
SHORT.maxlevel, SHORT.maxstring, SHORT.maxother = 2, 80, 80


def read_limited(path: Path, limit: int) -> bytes:
    """All bytes of a file, which may have grown since anyone has asked for its size.

    Raises:
        InputRefusedError: it cannot be read, or holds more than `limit` bytes.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise InputRefusedError(f"{path}: {error.strerror}") from None
    if len(data) > limit:
        raise InputRefusedError(f"{path}: larger than {limit} bytes")
    return data


def read_lines(path: Path) -> Iterator[str]:
    """Lines without their ends, of a file as it is or as `.xz`.

    Raises:
        InputRefusedError: the file is missing, damaged or not UTF-8; names file and line.
    """
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


def brief(value: object) -> str:
    """A value from a file as it can be shown in one line of a message, however large or deep."""
    return abridged(SHORT.repr(value), 200)


def abridged(text: str, most: int = 100) -> str:
    """Text for a message: what is longer loses its end."""
    return text if len(text) <= most else f"{text[:most]}…"


def aligned(rows: Sequence[Sequence[str]], sides: str) -> list[str]:
    """Lines of a table, two spaces between its columns.

    Args:
        rows: cells, as many in each row as there are columns.
        sides: for each column where its cells are flush: `<` for left, `>` for right.
    """
    widths = [max(map(display_width, cells)) for cells in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for cell, width, side in zip(row, widths, sides, strict=True):
            blank = " " * (width - display_width(cell))
            cells.append(cell + blank if side == "<" else blank + cell)
        lines.append("  ".join(cells).rstrip())
    return lines


def markdown_row(cells: Iterable[str]) -> str:
    """A row of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def display_width(text: str) -> int:
    """Columns of a terminal that a text takes: Hangul and the like take two each."""
    return sum(2 if east_asian_width(each) in "WF" else 1 for each in text)


def read_table(path: Path, columns: list[str], *, quoted: bool = False) -> Iterator[list[str]]:
    """Cells of some columns of a table with a header, row by row.

    Columns are parted by tabs, those of `.csv` by commas. Names of columns are the same however
    their Hangul is composed.

    Args:
        path: of the file.
        columns: names of those to read.
        quoted: whether cells may be quoted as CSV has them (RFC 4180), as those of `.csv` always
            may; else a quotation mark is a character like any other.

    Raises:
        InputRefusedError: as `read_lines`; or the file is empty, there is no such column or more
            than one, a row has other columns than the header, or quotes that end nowhere.
    """
    is_csv = path.suffix == ".csv"
    table = _quoted_rows(path, "," if is_csv else "\t") if quoted or is_csv else _plain_rows(path)
    first = next(table, None)
    if first is None:
        raise InputRefusedError(f"{path}: is empty")
    header = list(map(composed, first[1]))
    parted = "commas" if is_csv else "tabs"
    places = [_place_of(composed(column), header, path, parted) for column in columns]
    for number, cells in table:
        if len(cells) != len(header):
            hint = "" if quoted or is_csv else "; tabs part them, and nothing is quoted"
            raise InputRefusedError(
                f"{path}: line {number} has {len(cells)} columns, the header {len(header)}{hint}"
            )
        yield [cells[place] for place in places]


def _plain_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(read_lines(path), start=1):
        yield number, line.split("\t")


def _quoted_rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Rows with the number of their last line; a cell may hold line breaks."""
    lines = (line + "\n" for line in read_lines(path))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            yield reader.line_num, cells
    except csv.Error as error:
        raise InputRefusedError(f"{path}: line {reader.line_num}: {error}") from None


def _place_of(column: str, header: list[str], path: Path, parted: str) -> int:
    if column not in header:
        there = f"there are {abridged(', '.join(header))}"
        if len(header) == 1 and re.search("[,;\t]", header[0]):
            there = f"{parted} part columns here: {abridged(header[0])}"
        raise InputRefusedError(f"{path}: no column {column!r}; {there}")
    if header.count(column) > 1:
        raise InputRefusedError(f"{path}: several columns {column!r}")
    return header.index(column)


def composed(name: str) -> str:
    """A name as it is compared: Hangul may be stored as letters (NFD), as by macOS."""
    return normalize("NFC", name)
