"""A folder that appears complete or not at all.

The new folder `DST` grows in a hidden sibling, `.DST.partial/folder`, and gets its name by one
rename when every byte of it is on the disk. A reader can never see half of it, `DST` itself is
never touched before, and after a crash everything unfinished lies in that one place, where the
next run of the same command resumes it and any other run clears it away. (Temporary names inside
`DST` would show a folder with some files missing, and would need a mark to tell it.)

    .DST.partial/plan.json      what is being written, and from what: resumed only if equal
    .DST.partial/done-*.json    one record for each finished step
    .DST.partial/folder/        the folder to be
"""

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from kogpt.errors import DISK_FULL, InputRefusedError, KoGPTError, NotEnoughResourcesError
from kogpt.jsonfiles import to_json
from kogpt.notes import say

NAME_MAX = 255  # bytes of a name, on all usual file systems
OWN = re.compile(r"folder|(plan|done-.*)\.json(\.tmp)?")  # names of what is in `.DST.partial`


class Staging:
    """The unfinished form of a folder; one process at a time.

    Use as a context manager. Leaving it after `commit` leaves nothing but the folder. Leaving it
    by an error removes the unfinished work; by a signal (KeyboardInterrupt, SystemExit) keeps what
    can be resumed.

    Attributes:
        folder: where to write the files.
    """

    def __init__(self, dst: Path, plan: Mapping[str, Any] | None = None) -> None:
        """Names a folder to be written.

        Args:
            dst: the final name.
            plan: all that determines the folder's content, as JSON. Finished steps of an
                interrupted run with an equal plan are kept. None never resumes.
        """
        self.dst = place_of(dst)
        self.partial = partial_of(dst)
        self.folder = self.partial / "folder"
        self._plan = plan
        self._lock = -1

    def __enter__(self) -> "Staging":
        with writing(self.partial):
            self.dst.parent.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self.partial)
        try:
            refuse_existing(self.dst)
            refuse_strangers(self.partial)
        except InputRefusedError:
            self._close(discard=not any(self.partial.iterdir()))  # other work is not ours
            raise
        try:
            with writing(self.partial):
                self._prepare()
        except BaseException as error:
            self._close(discard=self._is_lost(type(error)))
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        discard = kind is None or self._is_lost(kind)
        self._close(discard)
        if not discard:
            say(f"kogpt: what is done is kept in {self.partial}; the same command goes on from it")

    def _is_lost(self, kind: type[BaseException]) -> bool:
        """Whether nothing can be resumed of what such an error has ended."""
        return self._plan is None or issubclass(kind, Exception)

    def _prepare(self) -> None:
        plan_file = self.partial / "plan.json"
        if self._plan is None or _read_json(plan_file) != self._plan:
            _clear(self.partial)
        self.folder.mkdir(exist_ok=True)
        if self._plan is not None and not plan_file.exists():
            write_atomically(plan_file, to_json(self._plan))

    def done(self, step: str) -> Any:
        """What an earlier run recorded for a finished step; None if it is yet to be done."""
        return _read_json(self.partial / f"done-{step}.json")

    def mark_done(self, step: str, record: object) -> None:
        """Records a step as finished; the files it wrote must be on the disk."""
        with writing(self.partial):
            fsync_path(self.folder)  # and so must be their names
            write_atomically(self.partial / f"done-{step}.json", to_json(record))

    def commit(self) -> None:
        """Gives the folder its final name.

        Raises:
            InputRefusedError: something has taken the name meanwhile.
        """
        with writing(self.dst):
            fsync_path(self.folder)
            if self.dst.is_dir():
                shutil.copymode(self.dst, self.folder)
            try:
                os.rename(self.folder, self.dst)  # replaces an empty folder, nothing else
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTDIR, errno.ENOTEMPTY):
                    raise
                raise InputRefusedError(f"{self.dst}: exists already") from None
            fsync_path(self.dst.parent)

    def _close(self, discard: bool) -> None:
        if discard:
            shutil.rmtree(self.partial, ignore_errors=True)
        os.close(self._lock)


def place_of(dst: Path) -> Path:
    """Where the system would make `dst`: behind the links of all that it lies in."""
    path = Path(dst)
    if path.name in ("", ".."):
        return path.resolve()
    return path.parent.resolve() / path.name


def partial_of(dst: Path) -> Path:
    """Where a folder grows before it gets its name.

    Raises:
        InputRefusedError: nothing there can be renamed to `dst`, which is `/` or a mount point; or
            its name leaves no room for more.
    """
    path = place_of(dst)
    if not path.name:
        raise InputRefusedError(f"{dst}: exists already; choose another name")
    if path.is_dir() and path.is_mount():
        raise InputRefusedError(f"{dst}: a mount point; name a folder inside it")
    partial = path.with_name(f".{path.name}.partial")
    if (much := len(os.fsencode(partial.name)) - NAME_MAX) > 0:
        raise InputRefusedError(f"{dst}: its name is {much} bytes too long")
    return partial


def refuse_strangers(partial: Path) -> None:
    """Refuses a place for unfinished work that holds anything else.

    Raises:
        InputRefusedError: something there was not written by `Staging`.
    """
    for path in sorted(partial.iterdir()):
        if not OWN.fullmatch(path.name) or path.is_symlink():
            raise InputRefusedError(f"{path}: no part of unfinished work; move it away")


def staged_bytes(dst: Path) -> int:
    """Bytes that unfinished work on `dst` holds, to be resumed or cleared away."""
    return sum(path.stat().st_size for path in partial_of(dst).glob("folder/*"))


def sweep(dst: Path) -> None:
    """Removes the rest of a run that was killed when the folder had its name already."""
    partial = partial_of(dst)
    if partial.is_dir() and not (partial / "folder").exists() and dst.exists():
        refuse_strangers(partial)
        with writing(partial):
            descriptor = _lock(partial)
            shutil.rmtree(partial)
            os.close(descriptor)


def refuse_existing(dst: Path) -> None:
    """Refuses a final name behind which there is something already.

    Raises:
        InputRefusedError: it is a file, or a folder that is not empty.
    """
    if dst.is_symlink() or (dst.exists() and not (dst.is_dir() and not any(dst.iterdir()))):
        raise InputRefusedError(f"{dst}: exists already; choose another name or remove it")


def _lock(folder: Path) -> int:
    """Makes the folder if need be and locks it."""

    def make() -> int:
        folder.mkdir(exist_ok=True)
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)

    return locked(folder, make)


def locked(path: Path, make: Callable[[], int]) -> int:
    """What `make` opens, locked until it is closed or the process ends, however it ends.

    Raises:
        KoGPTError: another process has locked it.
    """
    while True:
        descriptor = make()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another process may have finished, and removed it, before we got the lock.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise KoGPTError(f"{path}: locked: another process is writing it") from None
        os.close(descriptor)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns errors of the operating system into errors that name the path.

    Raises:
        NotEnoughResourcesError: the disk or the quota is full.
        KoGPTError: anything else.
    """
    try:
        yield
    except OSError as error:
        message = f"{error.filename or path}: cannot be written: {error.strerror or error}"
        if error.errno in DISK_FULL:
            raise NotEnoughResourcesError(message) from error
        raise KoGPTError(message) from error


def write_file(path: Path, *parts: bytes | memoryview) -> None:
    """Writes a file, given in parts, and waits until it is on the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        offset = 0
        for part in parts:
            write_fully(descriptor, part, offset)
            offset += len(part)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, *parts: bytes | memoryview) -> None:
    """Writes a file, given in parts, so that its name is absent, or as before, or complete."""
    with written_beside(path, *parts) as temporary:
        put_in_place(temporary, path)


@contextmanager
def written_beside(path: Path, *parts: bytes | memoryview) -> Iterator[Path]:
    """What is to be `path`, under another name; nothing is left of it by an error."""
    with beside(path) as temporary:
        write_file(temporary, *parts)
        yield temporary


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """The name under which to write what is to be `path`; an error leaves nothing there."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        yield temporary
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def append(path: Path, file: FileIO, data: bytes) -> None:
    """Appends to a file that is open without a buffer, which would be written again when it closes.

    Raises: as `writing`.
    """
    with writing(path):
        if file.write(data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def put_in_place(temporary: Path, path: Path) -> None:
    """Gives a file its name, and waits until that is on the disk."""
    os.rename(temporary, path)
    fsync_path(path.parent)


def write_fully(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Writes all of `data` at `offset`, however many calls the system needs."""
    view = memoryview(data).cast("B")
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def fsync_path(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_json(path: Path) -> Any:
    """What a file holds; None if there is none, or a damaged one, which then counts as none."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
