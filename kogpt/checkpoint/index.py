"""The index of a sharded checkpoint: which file holds which tensor.

Its file names are input from strangers, so each is looked at, without opening anything, until it
can only be a plain file of the checkpoint's own folder.
"""

import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from kogpt.checkpoint.files import require_regular
from kogpt.errors import InputRefusedError
from kogpt.jsonfiles import parse_json
from kogpt.textfiles import brief, read_limited

MAX_SIZE = 16 << 20  # bytes
MAX_NAME = 255  # bytes, of most file systems

# Device names of Windows, which stand for no file in any folder and with any extension.
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d|conin\$|conout\$)(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class ShardIndex:
    """A checked index.

    Attributes:
        path: the index file.
        weight_map: tensor name -> file name.
        total_size: bytes of all tensors, where the file states it.
    """

    path: Path
    weight_map: dict[str, str]
    total_size: float | None

    @property
    def files(self) -> list[str]:
        """Names of the files, each once, in the order of their first tensor."""
        return list(dict.fromkeys(self.weight_map.values()))


def read_index(path: Path, extension: str) -> ShardIndex:
    """Reads and checks an index file and the names in it.

    Args:
        path: the index file.
        extension: of the shards: `.safetensors` or `.bin`.

    Raises:
        InputRefusedError: the file is malformed, or names a shard that is no plain file of its
            folder; the message names the key.
    """
    require_regular(path)
    data = read_limited(path, MAX_SIZE)
    try:
        value = parse_json(data)
        index = ShardIndex(path, _weight_map(value), _total_size(value))
        for key, name in index.weight_map.items():
            if problem := name_problem(name, extension):
                raise ValueError(f"{brief(key)} lies in {brief(name)}: {problem}")
        _refuse_twins(index.files)
    except ValueError as error:
        raise InputRefusedError(f"{path}: bad index: {error}") from None
    for name in index.files:
        _require_inside(path, name)
    return index


def _weight_map(value: object) -> dict[str, str]:
    table = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(table, dict) or not table:
        raise ValueError("weight_map is missing or empty")
    for key, name in table.items():
        if not isinstance(name, str):
            raise ValueError(f"{brief(key)} lies in {brief(name)}, which is no file name")
    return table


def _total_size(value: dict[str, object]) -> float | None:
    metadata = value.get("metadata")
    if metadata is None:
        return None
    if not isinstance(metadata, dict):
        raise ValueError("metadata is no table")
    size = metadata.get("total_size")
    if size is not None and (not isinstance(size, int | float) or isinstance(size, bool)):
        raise ValueError(f"total_size is {brief(size)}")
    return size


def name_problem(name: str, extension: str = "") -> str | None:
    """Why a name cannot be that of a file in the folder; None if it can."""
    if not name.isprintable():
        return "the name has unprintable characters"
    if re.search(r"[/\\:]", name) or name in (".", ".."):
        return "the name leaves the folder"
    if not name.endswith(extension) or name == extension:
        return f"the name does not end in {extension}"
    if RESERVED.fullmatch(name):
        return "the name is reserved by Windows"
    if name != name.strip() or re.search(r'[<>"|?*]', name):
        return "the name is not portable"
    if len(os.fsencode(name)) > MAX_NAME:
        return "the name is too long"
    return None


def _refuse_twins(names: list[str]) -> None:
    """Refuses names that are one file on some systems and two on others."""
    seen: dict[str, str] = {}
    for name in names:
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
        if folded in seen:
            raise ValueError(f"{brief(seen[folded])} and {brief(name)} differ only in form")
        seen[folded] = name


def _require_inside(index: Path, name: str) -> None:
    """Refuses a shard that is missing, no regular file, or a link out of the folder."""
    path = index.parent / name
    require_regular(path)
    target, folder = Path(os.path.realpath(path)), Path(os.path.realpath(index.parent))
    if target.parent != folder and not _is_blob(target):
        raise InputRefusedError(
            f"{index}: {name} is a link that leaves the folder; if that is meant, copy the file"
            " here (cp -L)"
        )


def _is_blob(path: Path) -> bool:
    """Whether a file is one of the Hugging Face Hub's cache, to which its folders link."""
    return path.parent.name == "blobs" and path.parent.parent.name.startswith("models--")
