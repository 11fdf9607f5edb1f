"""The SHA-256 of the files a conversion reads, computed beside it."""

import hashlib
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kogpt.errors import InputRefusedError

CHUNK = 4 << 20  # bytes
LEAD = 256 << 20  # bytes


class SourceHash:
    """Hashes files in a thread of its own. Use as a context manager.

    The hash keeps a little ahead of the conversion: far enough to have read from the disk, in
    order and in large pieces, what the conversion needs next; not so far that the system's cache
    has dropped it again by then.
    """

    def __init__(self, folder: Path, files: Iterable[Path]) -> None:
        self._files = {printable(os.path.relpath(path, folder)): path for path in files}
        self._size = sum(path.stat().st_size for path in self._files.values())
        self._allowed, self._done = LEAD, 0
        self._changed = threading.Condition()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="source-hash")
        self._result = self._thread.submit(self._hash_all)

    def __enter__(self) -> "SourceHash":
        return self

    def __exit__(self, *_: object) -> None:
        self._allow(-1)
        self._thread.shutdown(wait=True)

    def follow(self, share: float) -> None:
        """Lets the hash go on, now that `share` of the conversion (0 to 1) is done."""
        self._allow(int(share * self._size) + LEAD)

    def result(self) -> dict[str, Any]:
        """Waits for the hashes.

        Returns:
            The manifest's entry: each file's size and SHA-256, and one `sha256` for all: that of
            the only file, or of the lines that `sha256sum` prints for several.

        Raises:
            InputRefusedError: a file cannot be read.
        """
        self._allow(self._size)
        try:
            files = self._result.result()
        except OSError as error:
            raise InputRefusedError(f"{error.filename}: {error.strerror}") from error
        if len(files) == 1:
            (only,) = files.values()
            return {"sha256": only["sha256"], "files": files}
        lines = "".join(f"{entry['sha256']}  {name}\n" for name, entry in sorted(files.items()))
        return {"sha256": hashlib.sha256(lines.encode()).hexdigest(), "files": files}

    def _hash_all(self) -> dict[str, dict[str, Any]]:
        return {name: hash_file(path, self._wait) for name, path in self._files.items()}

    def _allow(self, size: int) -> None:
        with self._changed:
            self._allowed = size
            self._changed.notify()

    def _wait(self, count: int) -> None:
        with self._changed:
            self._done += count
            self._changed.wait_for(lambda: self._allowed < 0 or self._done <= self._allowed)
            if self._allowed < 0:
                raise CancelledError


def printable(path: str | Path) -> str:
    """A path in UTF-8, which it need not be and JSON is."""
    return os.fsencode(path).decode(errors="backslashreplace")


def hash_file(path: Path, wait: Callable[[int], None] = lambda count: None) -> dict[str, Any]:
    """Size and SHA-256 of a file; `wait` is told the size of each piece."""
    digest, size = hashlib.sha256(), 0
    buffer = memoryview(bytearray(CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            size += count
            wait(count)
    return {"size": size, "sha256": digest.hexdigest()}
