"""The compiled kernels: where they are found, when they are compiled, whether a device has them.

A library comes from an install (`KOGPT_BUILD_KERNELS=1 pip install --no-build-isolation .`) or is
compiled on first use and kept in the user's cache. Either is used only while its sources are those
of this package. Where there can be none, one line on standard error says why and PyTorch's
attention serves; a library that is there and does not load is an error.
"""

import fcntl
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from kogpt.kernels import building
from kogpt.kernels.building import CannotBuildError, Record

OLDEST_CAPABILITY = (8, 0)  # bfloat16 tensor cores and asynchronous copies

Capability = tuple[int, int]


@dataclass(frozen=True)
class Library:
    """A compiled library and what is known of it."""

    path: Path
    record: Record

    def serves(self, capability: Capability) -> bool:
        """Whether it was compiled for the CUDA of this torch and for such a device."""
        fitting = _major(self.record.cuda) == _major(torch.version.cuda)
        return fitting and covers(self.record.architectures, capability)


def extension_available(device: torch.device | None = None) -> bool:
    """Whether the fused kernels serve a CUDA device (default: the current one).

    The first call for a kind of device may compile them, once for all processes, which it says
    on standard error. In a graph of `torch.compile` the answer is a constant.

    Raises:
        OSError: the library is there and cannot be loaded.
    """
    return _available(None if device is None else device.index)


@torch.compiler.assume_constant_result
def _available(index: int | None) -> bool:
    if index is None and torch.cuda.is_available():
        index = torch.cuda.current_device()
    return serves_device(index)


@functools.cache
def serves_device(index: int | None) -> bool:
    """Whether there are kernels for one CUDA device; asked at every call, looked up once."""
    if torch.version.cuda is None or not torch.cuda.is_available():
        return False
    return load(torch.cuda.get_device_capability(index))


@functools.cache
def load(capability: Capability) -> bool:
    """Loads the library for such a device, compiling it if need be; False where there is none."""
    try:
        library = obtain(capability)
    except CannotBuildError as reason:
        say(f"no fused attention, using PyTorch's: {reason}")
        return False
    torch.ops.load_library(library.path)
    return True


def obtain(capability: Capability) -> Library:
    """The library for such a device: found, or else compiled.

    Raises:
        CannotBuildError: there is none and there can be none.
    """
    refuse_old(capability)
    if library := find(capability):
        return library
    building.find_toolkit()
    architectures = wanted_architectures(capability)
    name = f"{building.source_hash()}-cuda{_major(torch.version.cuda)}-{architectures}"
    folder = cache_folder() / re.sub(r"[^\w-]", "_", name)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f"{folder.name}.lock")):
            # Another process may have compiled it while this one waited.
            if find(capability) is None:
                compile_library(folder, architectures)
    except OSError as error:
        raise CannotBuildError(f"{error.filename}: {error.strerror}") from error
    library = find(capability)
    assert library is not None
    return library


def status() -> tuple[Library | None, str | None]:
    """A library that is there, and what keeps the current device from using one; compiles nothing.

    Returns:
        The library that the device would load, or else any; None where there is none. The reason
        is None where the device would load it.
    """
    try:
        if torch.version.cuda is None:
            raise CannotBuildError("this build of torch has no CUDA")
        if not torch.cuda.is_available():
            raise CannotBuildError("no CUDA device")
        capability = torch.cuda.get_device_capability()
        refuse_old(capability)
        if library := find(capability):
            return library, None
        building.find_toolkit()
        wanted_architectures(capability)
        raise CannotBuildError("not compiled yet; the first use does it")
    except CannotBuildError as reason:
        return next(libraries(), None), str(reason)


def refuse_old(capability: Capability) -> None:
    """Refuses a device that no library could serve.

    Raises:
        CannotBuildError: it is older than the kernels' instructions.
    """
    if capability < OLDEST_CAPABILITY:
        names = "sm_{}{}".format(*capability), "sm_{}{}".format(*OLDEST_CAPABILITY)
        raise CannotBuildError("this GPU is {}, the kernels need {} or later".format(*names))


def find(capability: Capability) -> Library | None:
    """The first library that serves such a device."""
    return next((library for library in libraries() if library.serves(capability)), None)


def libraries() -> Iterator[Library]:
    """All that were compiled from the present sources: the installed one, then those cached."""
    cached = sorted(cache_folder().glob(f"{building.source_hash()}-*/library.json"))
    for path in [building.HERE / "library.json", *cached]:
        if path.exists():
            record = json.loads(path.read_text())
            if record["sources"] == building.source_hash():
                yield Library(path.with_suffix(".so"), Record(**record))


def cache_folder() -> Path:
    """Where libraries compiled on first use are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kogpt" / "kernels"


def wanted_architectures(capability: Capability) -> str:
    """What to compile for: TORCH_CUDA_ARCH_LIST, or else the devices that are here.

    Raises:
        CannotBuildError: TORCH_CUDA_ARCH_LIST leaves this device out.
    """
    chosen = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(" ", ";")
    if not chosen:
        here = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
        able = {device for device in here if device >= OLDEST_CAPABILITY} | {capability}
        return ";".join("{}.{}".format(*device) for device in sorted(able))
    if not covers(chosen, capability):
        raise CannotBuildError(
            "TORCH_CUDA_ARCH_LIST={} leaves out this GPU, an sm_{}{}".format(chosen, *capability)
        )
    return chosen


def covers(architectures: str, capability: Capability) -> bool:
    """Whether code compiled for `architectures` runs on a device.

    Machine code runs on its own major version from its minor version up, PTX on all that is later;
    code for an architecture with a letter, as 9.0a, on that one alone.
    """
    for major, minor, letter, ptx in re.findall(r"(\d+)\.(\d)([a-z]?)(\+PTX)?", architectures):
        compiled = (int(major), int(minor))
        if capability == compiled or (not letter and ptx and capability > compiled):
            return True
        if not letter and capability[0] == compiled[0] and capability > compiled:
            return True
    return False


def compile_library(folder: Path, architectures: str) -> None:
    """Compiles into a folder that appears complete or not at all; the caller holds its lock.

    Raises:
        CannotBuildError: the compiler failed, now or in an earlier process.
    """
    log = folder.with_name(f"{folder.name}.log")
    if log.exists():
        raise CannotBuildError(f"compiling it failed before; remove {log} to try again")
    for leftover in folder.parent.glob(f"{folder.name}.partial-*"):
        shutil.rmtree(leftover, ignore_errors=True)  # of a process that was killed
    say(f"compiling the fused attention for {architectures}, once; this takes about half a minute")
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent))
    try:
        run_compiler(partial, architectures, log)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def run_compiler(partial: Path, architectures: str, log: Path) -> None:
    """Runs `building.py` in a process of its own, which leaves this one's modules as they are."""
    program = [sys.executable, "-P", building.__file__]
    command = [*program, str(partial), "--architectures", architectures]
    with (partial / "log").open("wb") as output:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=building.HERE
        )
    if done.returncode < 0:
        raise CannotBuildError(f"signal {-done.returncode} ended the compiler")
    if done.returncode:
        (partial / "log").rename(log)
        raise CannotBuildError(f"compiling it failed; see {log}")


def say(message: str) -> None:
    """A line for the person, on standard error."""
    print(f"kogpt: {message}", file=sys.stderr, flush=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits for a lock that ends with the process, however it ends."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _major(version: str | None) -> str:
    return (version or "").split(".")[0]
