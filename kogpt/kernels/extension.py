"""The compiled kernels: where they are found, when they are compiled, whether a device has them.

A library comes from an install (`KOGPT_BUILD_KERNELS=1 pip install --no-build-isolation .`) or is
compiled on first use and kept in the user's cache. Either is used only while its sources are those
of this package. Where there can be none, one line on standard error says why and PyTorch's
operators serve; a library that is there and does not load is an error.
"""

import errno
import fcntl
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from kogpt.kernels import building
from kogpt.kernels.building import CannotBuildError, Record
from kogpt.kernels.targets import Cpu, Gpu, Target
from kogpt.notes import say


@dataclass(frozen=True)
class Library:
    """A compiled library and what is known of it."""

    path: Path
    record: Record


def extension_available(device: torch.device | None = None) -> bool:
    """Whether compiled kernels serve a device (default: the current CUDA device).

    The first call for a kind of device may compile them, once for all processes, which it says
    on standard error. In a graph of `torch.compile` the answer is a constant.

    Raises:
        OSError: the library is there and cannot be loaded.
    """
    if _supposed_gpu:
        return True
    return _available("cuda", None) if device is None else _available(device.type, device.index)


_supposed_gpu = False


@contextmanager
def suppose_gpu() -> Iterator[None]:
    """Has tensors take the ways of those on a GPU that has kernels, wherever they are.

    For tensors without data, by which one finds out on any machine what a GPU would need.
    """
    global _supposed_gpu
    _supposed_gpu = True
    try:
        yield
    finally:
        _supposed_gpu = False


def on_gpu(x: torch.Tensor) -> bool:
    """Whether a tensor is on a GPU, or supposed to be."""
    return x.is_cuda or _supposed_gpu


def _available(kind: str, index: int | None) -> bool:
    if kind == "cuda" and index is None and torch.cuda.is_available():
        index = torch.cuda.current_device()
    return serves_device(kind, index)


# What `torch.compiler.assume_constant_result` does, but that imports the compiler, in 1.7 s.
setattr(_available, "_dynamo_marked_constant", True)  # noqa: B010  mypy knows no such attribute


@functools.cache
def serves_device(kind: str, index: int | None) -> bool:
    """Whether there are kernels for one device; asked at every call, looked up once."""
    if kind == "cpu":
        return load(Cpu())
    if kind != "cuda" or torch.version.cuda is None or not torch.cuda.is_available():
        return False
    return load(Gpu(torch.cuda.get_device_capability(index)))


@functools.cache
def load(target: Target) -> bool:
    """Loads the library for a target, compiling it if need be; False where there is none."""
    try:
        library = obtain(target)
    except CannotBuildError as reason:
        say(f"kogpt: no {target.name} kernels, using PyTorch's slower operators: {reason}")
        return False
    try:
        torch.ops.load_library(library.path)
    except OSError as error:
        cause = error.__cause__ or error  # torch's own error says only which file it was
        if re.search(FORBIDDEN, str(cause)):  # nothing is wrong with the library
            why = f"{cause}; is its folder mounted noexec? XDG_CACHE_HOME can name another"
            if not os.access(library.path, os.R_OK):
                why = f"{library.path}: no permission to read it"
            say(f"kogpt: no {target.name} kernels, using PyTorch's slower operators: {why}")
            return False
        raise broken(library.path, f"cannot be loaded: {cause}") from error
    return True


FORBIDDEN = "failed to map segment|Permission denied"  # says the loader where nothing may run


def obtain(target: Target) -> Library:
    """The library for a target: found, or else compiled.

    Raises:
        CannotBuildError: there is none and there can be none.
    """
    if library := find(target):
        return library
    architectures = wanted(target)
    folder = folder_for(target, architectures)
    try:
        with _locked(folder.with_name(f"{folder.name}.lock")) as lock:
            # Another process may have compiled it while this one waited.
            if find(target) is None:
                compile_library(target, folder, architectures, lock)
    except OSError as error:
        raise CannotBuildError(f"{error.filename or folder}: {error.strerror}") from error
    library = find(target)
    assert library is not None
    return library


def wanted(target: Target) -> str:
    """The architectures to compile for, where there is what compiling takes.

    Raises:
        CannotBuildError: there is not.
    """
    architectures = target.architectures()
    building.compiler_of(target.kind)
    return architectures


def status(kind: str) -> tuple[Library | None, str | None]:
    """A library that is there, and what keeps the current device from using one; compiles nothing.

    Returns:
        The library that the device would load, or else any; None where there is none. The reason
        is None where the device would load it.
    """
    try:
        target = Cpu() if kind == "cpu" else Gpu.current()
        if library := find(target):
            return library, None
        refuse_failed(target, folder_for(target, wanted(target)))
        raise CannotBuildError("not compiled yet; the first use does it")
    except CannotBuildError as reason:
        return next(libraries(kind), None), str(reason)


def find(target: Target) -> Library | None:
    """The first library that serves a target."""
    found = libraries(target.kind)
    return next((library for library in found if target.served_by(library.record)), None)


def libraries(kind: str) -> Iterator[Library]:
    """All that were compiled from the present sources: the installed one, then those cached.

    Raises:
        OSError: one of them is damaged.
    """
    record_name, sources = f"{building.library_name(kind)}.json", building.source_hash(kind)
    try:
        cached = sorted(cache_folder().glob(f"{sources}-*/{record_name}"))
    except (CannotBuildError, PermissionError):  # there is no place for a cache
        cached = []
    for path in [building.HERE / record_name, *cached]:
        try:
            record = read_record(path, sources) if path.exists() else None
        except PermissionError:  # of another user
            continue
        if record:
            library = Library(path.with_suffix(".so"), record)
            refuse_cut(library)
            yield library


def read_record(path: Path, sources: str) -> Record | None:
    """What is known of a library; None of one of other sources, whose record may be another too.

    Raises:
        OSError: the file is damaged.
    """
    try:
        values = json.loads(path.read_text())
        return Record(**values) if values["sources"] == sources else None
    except (ValueError, TypeError, KeyError) as error:
        raise broken(path, f"is no record of a library ({error})") from None


def refuse_cut(library: Library) -> None:
    """Refuses a library that is not as it was compiled: loading one would end the process."""
    size = library.path.stat().st_size if library.path.exists() else 0
    if size != library.record.size:
        raise broken(library.path, f"has {size} bytes instead of {library.record.size}")


def broken(path: Path, why: str) -> OSError:
    """The error of a library that is there and cannot be used, with the remedy."""
    folder = path.parent
    remedy = f"remove {folder} to compile it anew"
    remedy = "install KoGPT again" if folder == building.HERE else remedy
    return OSError(errno.ELIBBAD, f"{why}; {remedy}", str(path))


def cache_folder() -> Path:
    """Where libraries compiled on first use are kept.

    Raises:
        CannotBuildError: there is no such place.
    """
    # Only absolute paths count, says the XDG Base Directory Specification.
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (chosen if chosen.is_absolute() else Path.home() / ".cache") / "kogpt/kernels"
    except RuntimeError as error:
        raise CannotBuildError(f"no XDG_CACHE_HOME, and: {error}") from None


def folder_for(target: Target, architectures: str) -> Path:
    """Where a library for a target is compiled to."""
    name = f"{building.source_hash(target.kind)}-{target.runtime}-{architectures}"
    return cache_folder() / re.sub(r"[^\w-]", "_", name)


def log_of(folder: Path) -> Path:
    """What a compilation leaves that failed."""
    return folder.with_name(f"{folder.name}.log")


def compiled_by(target: Target) -> str:
    """The compilers as the first line of a log has them."""
    return f"{building.compiler_of(target.kind)}, {building.find_compiler()}"


def refuse_failed(target: Target, folder: Path) -> None:
    """Raises CannotBuildError if the same compilers failed in an earlier process."""
    log = log_of(folder)
    if log.exists() and log.read_text("utf-8", "surrogateescape").startswith(
        f"{compiled_by(target)}\n"
    ):
        raise CannotBuildError(f"compiling it failed before; remove {log} to try again")


def compile_library(target: Target, folder: Path, architectures: str, lock: int) -> None:
    """Compiles into a folder that appears complete or not at all; the caller holds its lock.

    Raises:
        CannotBuildError: the compiler failed, now or in an earlier process, or the folder's parent
            was removed.
    """
    refuse_failed(target, folder)
    for leftover in folder.parent.glob(f"partial-{folder.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)  # of a process that was killed
    what = f"the {target.name} kernels for {architectures}"
    say(f"kogpt: compiling {what}, once; this takes about {target.patience}")
    # By a name that `libraries` does not look at.
    partial = folder.with_name(f"partial-{folder.name}-{os.getpid()}")
    partial.mkdir()
    try:
        run_compiler(target, partial, architectures, log_of(folder), lock)
        if folder.exists():
            shutil.rmtree(folder)  # without a record, or it would have been found
        for path in partial.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        partial.rename(folder)
    except FileNotFoundError:
        if partial.exists():
            raise
        raise CannotBuildError(f"{folder.parent} was removed while they were compiled") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


# What a compiler says where it would have worked on another day.
PASSING = (
    *("No space left on device", "Disk quota exceeded", "Read-only file system"),
    *("out of memory", "Cannot allocate memory", "Resource temporarily unavailable", "Killed"),
    *("Too many open files", "File too large", "File size limit exceeded", "CPU time limit"),
)


def run_compiler(target: Target, partial: Path, architectures: str, log: Path, lock: int) -> None:
    """Runs `building.py` in a process of its own, which leaves this one's modules as they are.

    It may outlive this one, whose lock it holds on to until then.

    Raises:
        CannotBuildError: it failed. The log is kept, unless the failure will pass.
    """
    program = [sys.executable, "-P", building.__file__, target.kind]
    command = [*program, str(partial), "--architectures", architectures]
    output = partial / "log"
    with output.open("w", encoding="utf-8", errors="surrogateescape") as file:
        print(compiled_by(target), file=file, flush=True)
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            cwd=building.HERE,
            env={**os.environ, "PYTHONUTF8": "1"},  # for folders of any name, in any locale
            pass_fds=[lock],
        )
    if done.returncode < 0:
        raise CannotBuildError(f"signal {-done.returncode} ended the compiler")
    if done.returncode:
        said = output.read_text(errors="replace")
        if passing := next(filter(said.__contains__, PASSING), None):
            raise CannotBuildError(f"compiling it failed: {passing}")
        output.rename(log)
        raise CannotBuildError(f"compiling it failed; see {log}")


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Waits for a lock that ends with the processes that have its descriptor, however they end."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("kogpt: waiting for another process that compiles kernels")
                fcntl.flock(file, fcntl.LOCK_EX)
            # The cache may have been removed before this process got the lock.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                yield file.fileno()
                return
