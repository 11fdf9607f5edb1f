"""JSON in files: written the same way always; from outside, what is damaged, too large, or says two
things at once is refused.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kogpt.errors import InputRefusedError
from kogpt.textfiles import read_limited, read_lines

MAX_CONFIG_SIZE = 1 << 20  # bytes


def to_json(value: object) -> bytes:
    """JSON as it is written to files: the same bytes for the same value."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def parse_json(text: bytes | str) -> Any:
    """The value that JSON holds, as text or in UTF-8.

    Raises:
        ValueError: it is no JSON, nested too deeply, or an object has a key twice. The message is
            one line, to be put behind what it is of.
    """
    try:
        text = text if isinstance(text, str) else text.decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=_unique_keys)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse_json_object(data: bytes, path: Path) -> dict[str, Any]:
    """The object that the bytes of a file hold.

    Raises:
        InputRefusedError: they are not JSON as `parse_json` wants it, or no object.
    """
    value = _parse(data, path)
    if not isinstance(value, dict):
        raise InputRefusedError(f"{path}: holds a JSON {type(value).__name__}, not an object")
    return value


def read_json(path: Path) -> Any:
    """The value that a file holds, however large.

    Raises:
        InputRefusedError: it cannot be read, or is not JSON as `parse_json` wants it.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputRefusedError(f"{path}: {error.strerror}") from None
    return _parse(data, path)


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """The values of a file that holds one a line, each after the number of its line.

    Blank lines are passed over.

    Raises:
        InputRefusedError: as `read_lines`; or a line is not JSON as `parse_json` wants it.
    """
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            try:
                yield number, parse_json(line)
            except ValueError as error:
                raise InputRefusedError(f"{path}: line {number}: not JSON ({error})") from None


def read_config_object(path: Path) -> dict[str, Any]:
    """The object that a small file holds: the configuration of a model or an adapter.

    Raises:
        InputRefusedError: it cannot be read, is too large, or as in `parse_json_object`.
    """
    return parse_json_object(read_limited(path, MAX_CONFIG_SIZE), path)


def _parse(data: bytes, path: Path) -> Any:
    try:
        return parse_json(data)
    except ValueError as error:
        raise InputRefusedError(f"{path}: not JSON ({error})") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{twice[:60]!r} appears twice")
    return result
