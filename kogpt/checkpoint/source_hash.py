"""The SHA-256 of the files a conversion reads, computed beside it."""

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

CHUNK = 4 << 20  # bytes


class SourceHash:
    """Hashes files in a thread of its own. Use as a context manager."""

    def __init__(self, folder: Path, files: Iterable[Path]) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="source-hash")
        self._digests: dict[str, Future[dict[str, Any]]] = {
            os.path.relpath(path, folder): self._thread.submit(hash_file, path) for path in files
        }

    def __enter__(self) -> "SourceHash":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def result(self) -> dict[str, Any]:
        """Waits for the hashes.

        Returns:
            The manifest's entry: each file's size and SHA-256, and one `sha256` for all: that of
            the only file, or of the lines that `sha256sum` prints for several.
        """
        files = {name: future.result() for name, future in self._digests.items()}
        if len(files) == 1:
            (only,) = files.values()
            return {"sha256": only["sha256"], "files": files}
        lines = "".join(f"{entry['sha256']}  {name}\n" for name, entry in sorted(files.items()))
        return {"sha256": hashlib.sha256(lines.encode()).hexdigest(), "files": files}


def hash_file(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    digest, size = hashlib.sha256(), 0
    buffer = memoryview(bytearray(CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            size += count
    return {"size": size, "sha256": digest.hexdigest()}
