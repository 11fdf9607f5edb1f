"""What has been computed, so that an interrupted evaluation goes on where it was.

A batch is named by the hash of all ids in it, beside that of the model, so whatever else changes
between two runs of a command, what they share is computed once, and nothing else is taken for it.
"""

import glob
import hashlib
import json
import os
from collections.abc import Sequence
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any

from kogpt.checkpoint.staging import append, locked, writing
from kogpt.evaluation.likelihood import Query

Values = list[list[float]]  # of each query, a log-likelihood of each continuation


class Journal:
    """Finished batches, one JSON object a line; of every process a file of its own.

    The files lie beside the report: `.NAME.journal-0` and so on. Each is locked until `close`, so
    that no two runs write one report.
    """

    def __init__(self, report: Path | None, model: str, rank: int | None = 0) -> None:
        """Reads what is there of any process.

        Args:
            report: the file that is to be written in the end; None keeps nothing.
            model: all that a number depends on but the ids.
            rank: of this process among those that share the work; None keeps nothing new, where
                another process computes the same.

        Raises:
            KoGPTError: another run is writing the report, or nothing can be written there.
        """
        self._model = hashlib.sha256(model.encode()).hexdigest()
        self._found: dict[str, Values] = {}
        self._report = report
        self._own: tuple[Path, FileIO] | None = None
        if report is not None and rank is not None:
            path = report.with_name(f".{report.name}.journal-{rank}")
            with writing(path):
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
                self._own = path, FileIO(locked(path, partial(os.open, path, flags, 0o666)), "a")
        for path in self._files():
            self._found.update(_read(path, self._model))

    @property
    def done(self) -> int:
        """Batches of the model that are known."""
        return len(self._found)

    def name(self, queries: Sequence[Query]) -> str:
        """The name of a batch."""
        digest = hashlib.sha256()
        for query in queries:
            digest.update(repr((query.context, query.continuations)).encode())
        return digest.hexdigest()

    def get(self, name: str) -> Values | None:
        """What is known of a batch."""
        return self._found.get(name)

    def put(self, name: str, values: Values) -> None:
        """Keeps a batch, on the disk as well."""
        self._found[name] = values
        if self._own is None:
            return
        path, file = self._own
        # In a new line always: a crash may have cut the last one short.
        line = "\n" + json.dumps({"model": self._model, "batch": name, "values": values})
        append(path, file, line.encode())

    def remove(self) -> None:
        """Forgets all, once the report holds it."""
        for path in self._files():
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Ends the lock; a file without a batch goes."""
        if self._own is not None:
            path, file = self._own
            if not os.fstat(file.fileno()).st_size:
                path.unlink(missing_ok=True)
            file.close()

    def _files(self) -> list[Path]:
        if self._report is None:
            return []
        return sorted(self._report.parent.glob(f".{glob.escape(self._report.name)}.journal-*"))


def _read(path: Path, model: str) -> dict[str, Values]:
    """All whole lines of a model; one that a crash cut short is left out, whatever follows it."""
    found: dict[str, Values] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        entry = _parse(line)
        if isinstance(entry, dict) and entry.get("model") == model:
            found[entry["batch"]] = entry["values"]
    return found


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
