"""Reads tokenizer files within limits, and the companions that name the special pieces."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kogpt.errors import InputRefusedError
from kogpt.jsonfiles import parse_json_object
from kogpt.textfiles import read_limited
from kogpt.tokenizer.added import ADDED_TOKENS, Added, read_named, read_stated
from kogpt.tokenizer.text import SURROGATE

# The released tokenizer.json has 2.4 MB, a tokenizer.model of 256,000 pieces 5 MB, the companions
# a few kB. Parsing can take some twenty times as much memory.
MAX_JSON_BYTES = 16 << 20
MAX_MODEL_BYTES = 8 << 20
MAX_COMPANION_BYTES = 4 << 20

# Of each kind of file the first has precedence.
COMPANIONS = ("special_tokens_map.json", "tokenizer_config.json")
MODEL_FILES = ("generation_config.json", "config.json")

# Classes of transformers, of those that GPT-2 and GPT-NeoX come with, that split texts by
# `add_prefix_space` of tokenizer_config.json whatever a tokenizer.json says. The class counts where
# it stands beside it: a config.json does not go along with a tokenizer.
SPLITTING_CLASSES = ("GPT2Tokenizer", "GPTNeoXTokenizer")


@dataclass(frozen=True)
class Companions:
    """What lies beside a vocabulary.

    Attributes:
        files: Those of the files that exist.
        names: Special pieces by role: {"bos": "[BOS]", ...}.
        add_bos: Whether the beginning of a text is to be marked (`add_bos_token`); None if they
            do not tell.
        added: Tokens that are named here, in the vocabulary or not.
        prefix_space: Whether a space goes in front of a text, whatever tokenizer.json says; None
            if that counts.
        rows: How many ids the model in the folder knows; None if there is none.
    """

    files: list[Path]
    names: dict[str, str]
    add_bos: bool | None
    added: list[Added]
    prefix_space: bool | None
    rows: int | None


def read_regular(path: Path, limit: int) -> bytes:
    """The bytes of a file; InputRefusedError if it is no file or holds more than `limit` bytes."""
    if not path.is_file():
        raise InputRefusedError(f"{path}: no such file, or not a regular one")
    return read_limited(path, limit)


def one_line(error: Exception) -> str:
    """What a library says about a file, which may quote the file at any length."""
    return " ".join(str(error).split())[:200]


def read_companions(directory: Path) -> Companions:
    """Reads the companions that a folder holds."""
    contents = [(path, _read(path)) for path in map(directory.joinpath, COMPANIONS)]
    told = [content.get("add_bos_token") for _, content in contents]
    add_bos = next((answer for answer in (True, False) if answer in told), None)
    if has_decoder := any("added_tokens_decoder" in content for _, content in contents):
        contents.reverse()
    names: dict[str, str] = {}
    settings: dict[str, Any] = {}
    for path, content in reversed(contents):
        names |= _names(path, content)
        if not has_decoder or "added_tokens_decoder" in content:  # as transformers reads them
            settings |= {key: value for key, value in content.items() if value is not None}
    files = [*map(directory.joinpath, COMPANIONS), directory / ADDED_TOKENS]
    name = settings.get("tokenizer_class")
    splits = isinstance(name, str) and name.removesuffix("Fast") in SPLITTING_CLASSES
    rows = _read(directory / "config.json").get("vocab_size")
    return Companions(
        files=[path for path in files if path.exists()],
        names=names,
        add_bos=add_bos,
        added=_added(directory, settings),
        prefix_space=settings.get("add_prefix_space") is True if splits else None,
        rows=rows if type(rows) is int and rows > 0 else None,
    )


def _added(directory: Path, settings: dict[str, Any]) -> list[Added]:
    named = read_named(directory, settings)
    if "added_tokens_decoder" in settings:
        path, entries = directory / COMPANIONS[1], settings["added_tokens_decoder"]
        if not isinstance(entries, dict):
            raise InputRefusedError(f"{path}: added_tokens_decoder is no object")
        return read_stated(path, entries.items(), named) + named
    path = directory / ADDED_TOKENS
    ids = [(id, {"content": text}) for text, id in _read(path).items()]
    return read_stated(path, ids, named) + named


def read_ids(directory: Path, vocab_size: int) -> tuple[dict[str, list[int]], list[Path]]:
    """Special ids by role that the files of a model name, {"bos": [0], ...}, and which files did.

    Args:
        directory: Folder of the model; without files about it, it names none.
        vocab_size: Of the tokenizer. Others are no ids of it: many files are careless.

    Returns:
        The ids; and of the files those that go with a tokenizer: every model has its own
        `config.json`.
    """
    ids: dict[str, list[int]] = {}
    files = []
    for path in map(directory.joinpath, MODEL_FILES):
        content = _read(path)
        if path.exists() and path.name != "config.json":
            files.append(path)
        for role in ("bos", "eos", "pad"):
            value = content.get(f"{role}_token_id")
            told = value if isinstance(value, list) else [value]
            usable = [id for id in told if type(id) is int and 0 <= id < vocab_size]
            if usable:
                ids.setdefault(role, usable)
    return ids, files


def _read(path: Path) -> dict[str, Any]:
    """The content of a companion; {} where there is none."""
    if not path.exists():
        return {}
    return parse_json_object(read_regular(path, MAX_COMPANION_BYTES), path)


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
