"""Reads tokenizer files with a limit on their size, and the names of special pieces."""

import json
from pathlib import Path
from typing import Any

from kogpt.errors import InputRefusedError
from kogpt.tokenizer.text import SURROGATE

# The largest vocabularies in use (256,000 pieces) take 35 MB as tokenizer.json and 5 MB as
# tokenizer.model; the JSON companions a few kB.
MAX_VOCABULARY_BYTES = 64 << 20
MAX_COMPANION_BYTES = 4 << 20

COMPANIONS = ("special_tokens_map.json", "tokenizer_config.json")


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


def tokenizer_files(vocabulary: Path) -> list[Path]:
    """The vocabulary file and those of its companions that exist."""
    companions = (vocabulary.with_name(name) for name in COMPANIONS)
    return [vocabulary, *(path for path in companions if path.exists())]


def special_names(directory: Path) -> dict[str, str]:
    """Pieces by role, {"bos": "[BOS]", ...}, as special_tokens_map.json or, for roles that it does
    not name, tokenizer_config.json has them."""
    names: dict[str, str] = {}
    for path in map(directory.joinpath, COMPANIONS):
        if not path.exists():
            continue
        entries = parse_json_object(path, read_limited(path, MAX_COMPANION_BYTES))
        for role in ("bos", "eos", "pad", "unk"):
            entry = entries.get(f"{role}_token")
            piece = entry.get("content") if isinstance(entry, dict) else entry
            if not isinstance(piece, str):
                continue
            if SURROGATE.search(piece):
                raise InputRefusedError(f"{path}: {role}_token holds half a character")
            names.setdefault(role, piece)
    return names


def asks_for_bos(directory: Path) -> bool:
    """Whether tokenizer_config.json wants the beginning of a text marked (`add_bos_token`)."""
    path = directory / "tokenizer_config.json"
    if not path.exists():
        return False
    entries = parse_json_object(path, read_limited(path, MAX_COMPANION_BYTES))
    return entries.get("add_bos_token") is True


def parse_json_object(path: Path, data: bytes) -> dict[str, Any]:
    """The JSON object that a file holds; InputRefusedError if it holds anything else."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputRefusedError(f"{path}: not valid JSON: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise InputRefusedError(f"{path}: holds a JSON {type(content).__name__}, not an object")
    return content
