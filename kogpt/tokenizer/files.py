"""Reads tokenizer files within limits, and the companions that name the special pieces."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kogpt.errors import InputRefusedError
from kogpt.jsonfiles import parse_json_object
from kogpt.tokenizer.text import SURROGATE

# The released tokenizer.json has 2.4 MB, a tokenizer.model of 256,000 pieces 5 MB, the companions
# a few kB. Parsing can take some twenty times as much memory.
MAX_JSON_BYTES = 16 << 20
MAX_MODEL_BYTES = 8 << 20
MAX_COMPANION_BYTES = 4 << 20

COMPANIONS = ("special_tokens_map.json", "tokenizer_config.json")  # the first has precedence


@dataclass(frozen=True)
class Companions:
    """What lies beside a vocabulary.

    Attributes:
        files: Those of the files that exist.
        names: Special pieces by role: {"bos": "[BOS]", ...}.
        add_bos: Whether the beginning of a text is to be marked (`add_bos_token`).
    """

    files: list[Path]
    names: dict[str, str]
    add_bos: bool


def read_limited(path: Path, limit: int) -> bytes:
    """The bytes of a file; InputRefusedError if it is no file or holds more than `limit` bytes."""
    if not path.is_file():
        raise InputRefusedError(f"{path}: no such file, or not a regular one")
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise InputRefusedError(f"{path}: larger than {limit >> 20} MB, which no tokenizer needs")
    return data


def one_line(error: Exception) -> str:
    """What a library says about a file, which may quote the file at any length."""
    return " ".join(str(error).split())[:200]


def read_companions(directory: Path) -> Companions:
    """Reads the companions that a folder holds."""
    files = [path for path in map(directory.joinpath, COMPANIONS) if path.exists()]
    contents = [parse_json_object(read_limited(path, MAX_COMPANION_BYTES), path) for path in files]
    names: dict[str, str] = {}
    for path, content in reversed(list(zip(files, contents, strict=True))):
        names |= _names(path, content)
    add_bos = any(content.get("add_bos_token") is True for content in contents)
    return Companions(files, names, add_bos)


def _names(path: Path, content: dict[str, Any]) -> dict[str, str]:
    names = {}
    for role in ("bos", "eos", "pad", "unk"):
        entry = content.get(f"{role}_token")
        piece = entry.get("content") if isinstance(entry, dict) else entry
        if isinstance(piece, str):
            if SURROGATE.search(piece):
                raise InputRefusedError(f"{path}: {role}_token holds half a character")
            names[role] = piece
    return names
