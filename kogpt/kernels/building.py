"""What is compiled, and how: one library of CUDA kernels, another of CPU kernels.

`setup.py` compiles at install, `kogpt.kernels.extension` on first use by running this file as a
program, `python building.py KIND FOLDER`. So the flags are written down once, and nothing here
needs KoGPT to be installed.
"""

import argparse
import atexit
import functools
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
SOURCES = {"cuda": HERE / "csrc", "cpu": HERE / "csrc" / "cpu"}  # folders, by kind of library
COMPILERS = ("c++", "g++", "clang++")
NVCC_FLAGS = ("-std=c++17", "-O3")
# The flags of Python itself let sums wrap around: of some loops that takes a sixth of their speed.
CXX_FLAGS = ("-O3", "-Wall", "-fno-wrapv")
TORCH_TARGET = "0x020b000000000000"  # the stable ABI of 2.11, the oldest torch that KoGPT allows
RELEASED_ARCHITECTURES = "8.0;8.6;8.9;9.0+PTX"  # what an install compiles for


class CannotBuildError(Exception):
    """Why there can be no compiled kernels here. The message is one line."""


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit: the folder with `bin/nvcc` and `include`, and its release, as "13.0"."""

    home: Path
    release: str


@dataclass(frozen=True)
class Record:
    """What a library was compiled from and for; kept beside it as JSON.

    Attributes:
        sources: hash of the sources and flags.
        architectures: for CUDA in the words of TORCH_CUDA_ARCH_LIST, else the machine's, as x86_64.
        compiler: its name and release, as "CUDA 13.0".
        torch: version of the headers, which a library outlives.
        seconds: how long it took.
        size: of the library, in bytes.
    """

    sources: str
    architectures: str
    compiler: str
    torch: str
    seconds: float
    size: int


@functools.cache
def source_hash(kind: str) -> str:
    """Hash of all that determines a library, architectures and compiler apart."""
    digest = hashlib.sha256(machine().encode())
    for path in [HERE / "building.py", *sorted(SOURCES[kind].glob("*.*"))]:
        digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def library_name(kind: str) -> str:
    """Of the library's file, less the ending; beside it lies its record."""
    return f"library_{kind}"


def useful_kinds() -> list[str]:
    """The libraries that this build of torch has a use for."""
    return [kind for kind in SOURCES if kind == "cpu" or torch.version.cuda]


def machine() -> str:
    """The architecture of this machine's processor."""
    return os.uname().machine


def find_compiler() -> str:
    """The C++ compiler: CXX, or else the first there is.

    Raises:
        CannotBuildError: there is none.
    """
    chosen = os.environ.get("CXX", "").strip()
    for compiler in [chosen] if chosen else COMPILERS:
        try:
            program, *_ = shlex.split(compiler)
        except ValueError as error:
            raise CannotBuildError(f"no C++ compiler: CXX is {compiler!r}: {error}") from None
        if shutil.which(program):
            return compiler
    raise CannotBuildError(f"no C++ compiler: no {chosen or ', '.join(COMPILERS)} in the PATH")


def find_nvcc() -> str:
    """NVIDIA's compiler: that of CUDA_HOME or CUDA_PATH, or else of the PATH or its usual place.

    Raises:
        CannotBuildError: there is none.
    """
    chosen = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    places = [f"{chosen}/bin/nvcc"] if chosen else ["nvcc", "/usr/local/cuda/bin/nvcc"]
    nvcc = next(filter(None, map(shutil.which, places)), None)
    if nvcc is None:
        raise CannotBuildError(f"no CUDA toolkit: no nvcc in {chosen or 'the PATH'}")
    return nvcc


def find_toolkit() -> Toolkit:
    """The CUDA toolkit to compile with: that of CUDA_HOME or CUDA_PATH, or else of the PATH.

    Raises:
        CannotBuildError: there is none, it does not go with torch, or the C++ compiler is missing.
    """
    if torch.version.cuda is None:
        raise CannotBuildError("this build of torch has no CUDA")
    nvcc = find_nvcc()
    release = re.search(r"release (\d+\.\d+)", _output(nvcc, "--version"))
    # An nvcc on the PATH may be a script that lies outside the toolkit; nvcc itself knows.
    plan = _output(nvcc, "--dryrun", "-x", "cu", "-c", os.devnull)
    top = re.search(r"^#\$ TOP=(.*)$", plan, re.MULTILINE)
    if release is None or top is None:
        raise CannotBuildError(f"no CUDA toolkit: {nvcc} does not work")
    if release[1].split(".")[0] != torch.version.cuda.split(".")[0]:
        versions = f"nvcc is of CUDA {release[1]} and torch of CUDA {torch.version.cuda}"
        raise CannotBuildError(f"{versions}: the major versions must agree")
    find_compiler()
    return Toolkit(Path(top[1]).resolve(), release[1])


def _output(*command: str) -> str:
    """What a command writes to both streams, in any encoding; "" where it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except OSError:
        return ""
    return os.fsdecode(done.stdout + done.stderr)


def compiler_of(kind: str) -> str:
    """Name and release of what compiles a library.

    Raises:
        CannotBuildError: it is not here.
    """
    if kind == "cuda":
        return f"CUDA {find_toolkit().release}"
    return next(iter(_output(*shlex.split(find_compiler()), "--version").splitlines()), "unknown")


def refuse_architectures(given: str) -> None:
    """Refuses names of GPUs ("Hopper"), which torch knows and `targets.covers` does not.

    Raises:
        CannotBuildError: names the first.
    """
    for word in re.split(r"[ ;]+", given):
        if not re.fullmatch(r"\d+\.\d[a-z]?(\+PTX)?", word):
            raise CannotBuildError(
                f"TORCH_CUDA_ARCH_LIST={given}: {word!r} is not of the form 9.0 or 9.0+PTX"
            )


def settle_environment(kinds: Sequence[str], architectures: str) -> None:
    """Leaves compilers what is settled here, and nothing of the user's own flags.

    Those would get into a library whose hash knows nothing of them: `-march=native` into kernels
    that are for any processor.
    """
    for name in ("CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS"):
        os.environ.pop(name, None)
    # Older setuptools compile C++ by CC.
    os.environ["CXX"] = os.environ["CC"] = as_program(shlex.split(find_compiler()))
    if "cuda" in kinds:  # cpp_extension reads these when first imported
        os.environ["CUDA_HOME"] = str(find_toolkit().home)
        os.environ["TORCH_CUDA_ARCH_LIST"] = architectures


def as_program(command: Sequence[str]) -> str:
    """A command as one word: what torch and setuptools make of several differs by release."""
    if len(command) == 1 and shlex.quote(command[0]) == command[0]:
        return command[0]
    program = Path(tempfile.mkdtemp(prefix="kogpt-")) / "c++"
    atexit.register(shutil.rmtree, program.parent, ignore_errors=True)
    program.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n', encoding="utf-8")
    program.chmod(0o700)
    return str(program)


def setup_arguments(package: str, kinds: Sequence[str], architectures: str) -> dict[str, Any]:
    """The arguments of `setuptools.setup` that compile libraries.

    Args:
        package: whose folder they go to, "" for the folder that is built into.
        kinds: of libraries, "cuda" and "cpu".
        architectures: of the GPUs, in the words of TORCH_CUDA_ARCH_LIST.

    Raises:
        CannotBuildError: a compiler is missing or does not go with torch.
    """
    if "cuda" in kinds:
        refuse_architectures(architectures)
    compilers = {kind: compiler_of(kind) for kind in kinds}
    settle_environment(kinds, architectures)
    from torch.utils.cpp_extension import BuildExtension

    class BuildKernels(BuildExtension):
        def finalize_options(self) -> None:
            super().finalize_options()
            self.force = True  # headers, flags and architectures have no date to compare

        def build_extension(self, library: Any) -> None:
            started = time.monotonic()
            super().build_extension(library)
            library.seconds = round(time.monotonic() - started, 1)

        def run(self) -> None:
            super().run()
            for kind, library in zip(kinds, self.extensions, strict=True):
                runs_on = architectures if kind == "cuda" else machine()
                versions = (compilers[kind], torch.__version__)
                path = Path(self.get_ext_fullpath(library.name))
                measured = (library.seconds, path.stat().st_size)
                record = Record(source_hash(kind), runs_on, *versions, *measured)
                path.with_suffix(".json").write_text(json.dumps(asdict(record)) + "\n")

    modules = [
        extension_module(f"{package}.{library_name(kind)}".lstrip("."), kind) for kind in kinds
    ]
    command = BuildKernels.with_options(no_python_abi_suffix=True)
    return {"ext_modules": modules, "cmdclass": {"build_ext": command}}


def extension_module(name: str, kind: str) -> Any:
    """What setuptools is told of one library."""
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    cuda = kind == "cuda"
    return (CUDAExtension if cuda else CppExtension)(
        name,
        sorted(os.path.relpath(path) for path in SOURCES[kind].glob("*.c*")),
        define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET), *([("USE_CUDA", None)] * cuda)],
        extra_compile_args={"cxx": [*CXX_FLAGS], "nvcc": [*NVCC_FLAGS]},
        py_limited_api=True,  # it is no Python module at all
    )


def main() -> None:
    """Compiles as the command line says."""
    from setuptools import Distribution

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=SOURCES)
    parser.add_argument("folder", type=Path, help="gets the library and its record")
    parser.add_argument("--architectures", default=RELEASED_ARCHITECTURES, metavar="LIST")
    args = parser.parse_args()
    distribution = Distribution(setup_arguments("", [args.kind], args.architectures))
    objects = args.folder.absolute() / "objects"
    objects.mkdir(parents=True, exist_ok=True)
    os.environ["TMPDIR"] = str(objects)  # the usual place may be full, or not for this user
    command = distribution.get_command_obj("build_ext")
    command.build_lib, command.build_temp = str(args.folder), str(objects)
    command.ensure_finalized()
    command.run()
    shutil.rmtree(objects)


if __name__ == "__main__":
    main()
