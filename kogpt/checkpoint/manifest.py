"""The manifest of a checkpoint folder; `verifying.py` holds the folder against it.

`manifest.json` is the last file written. It covers every byte of the folder: small files and
shard headers by their SHA-256, weights tensor by tensor.
"""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from kogpt.checkpoint.dtypes import dtype_name
from kogpt.checkpoint.statistics import Statistics

MANIFEST_FORMATS = "kogpt-manifest-"  # what they all begin with
FORMAT = f"{MANIFEST_FORMATS}1"
MANIFEST_NAME = "manifest.json"
INDEX_NAME = "model.safetensors.index.json"

# Files that go with weights, and are copied with them.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
)
# Files that nobody loads, and that go along.
NOTICES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt", "NOTICE.md")


@dataclass(frozen=True)
class TensorRecord:
    """What the manifest knows of one tensor.

    Attributes:
        file: the shard that holds it.
        dtype: name of the format, such as `float16`.
        shape: sizes.
        sha256: of its bytes, row-major and little-endian.
        min: smallest finite value; None where there is none.
        max: largest finite value; None where there is none.
        nan: count of NaNs.
        inf: count of infinities.
    """

    file: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str
    min: float | None
    max: float | None
    nan: int
    inf: int

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "shape": list(self.shape)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TensorRecord":
        return cls(**{**values, "shape": tuple(values["shape"])})

    @classmethod
    def of(
        cls, file: str, dtype: torch.dtype, shape: tuple[int, ...], sha256: str, seen: Statistics
    ) -> "TensorRecord":
        """The record of a tensor whose bytes have been hashed and measured."""
        low = seen.min if math.isfinite(seen.min) else None
        high = seen.max if math.isfinite(seen.max) else None
        return cls(file, dtype_name(dtype), shape, sha256, low, high, seen.nan, seen.inf)


def file_record(parts: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """The manifest's entry for a file, or for the header of a shard, given as parts."""
    digest, size = hashlib.sha256(), 0
    for part in parts:
        digest.update(part)
        size += len(part)
    return {"size": size, "sha256": digest.hexdigest()}


def shown(notice: str) -> str:
    """A notice for a terminal, which what a stranger wrote there must not command."""
    lines = notice.splitlines() or [""]
    return "\n  ".join(
        "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line) for line in lines
    )


def is_text(words: str) -> bool:
    """Whether words, of a command line or of JSON, can be written in UTF-8."""
    try:
        words.encode()
    except UnicodeEncodeError:
        return False
    return True
