"""What is compiled, and how: all of `csrc` into one library, by `torch.utils.cpp_extension`.

`setup.py` compiles at install, `kogpt.kernels.extension` on first use by running this file as a
program, `python building.py FOLDER`. So the flags are written down once, and nothing here needs
KoGPT to be installed.
"""

import argparse
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
TORCH_TARGET = "0x020b000000000000"  # the stable ABI of 2.11, the oldest torch that KoGPT allows
RELEASED_ARCHITECTURES = "8.0;8.6;8.9;9.0+PTX"  # what an install compiles for


class CannotBuildError(Exception):
    """Why there can be no fused kernels here. The message is one line."""


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
        architectures: in the words of TORCH_CUDA_ARCH_LIST.
        cuda: release of the toolkit.
        torch: version of the headers, which a library outlives.
        seconds: how long it took.
    """

    sources: str
    architectures: str
    cuda: str
    torch: str
    seconds: float


@functools.cache
def source_hash() -> str:
    """Hash of all that determines the library, architectures and toolkit apart."""
    digest = hashlib.sha256(os.uname().machine.encode())
    for path in [HERE / "building.py", *sorted((HERE / "csrc").glob("*.*"))]:
        digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def find_toolkit() -> Toolkit:
    """The CUDA toolkit to compile with: that of CUDA_HOME or CUDA_PATH, or else of the PATH.

    Raises:
        CannotBuildError: there is none, it does not go with torch, or the C++ compiler is missing.
    """
    if torch.version.cuda is None:
        raise CannotBuildError("this build of torch has no CUDA")
    chosen = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which(f"{chosen}/bin/nvcc" if chosen else "nvcc")
    nvcc = nvcc or shutil.which("/usr/local/cuda/bin/nvcc" if not chosen else "")
    if nvcc is None:
        raise CannotBuildError(f"no CUDA toolkit: no nvcc in {chosen or 'the PATH'}")
    release = re.search(r"release (\d+\.\d+)", _output(nvcc, "--version"))
    # An nvcc on the PATH may be a script that lies outside the toolkit; nvcc itself knows.
    plan = _output(nvcc, "--dryrun", "-x", "cu", "-c", os.devnull)
    top = re.search(r"^#\$ TOP=(.*)$", plan, re.MULTILINE)
    if release is None or top is None:
        raise CannotBuildError(f"no CUDA toolkit: {nvcc} does not work")
    if release[1].split(".")[0] != torch.version.cuda.split(".")[0]:
        versions = f"nvcc is of CUDA {release[1]} and torch of CUDA {torch.version.cuda}"
        raise CannotBuildError(f"{versions}: the major versions must agree")
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        raise CannotBuildError(f"no C++ compiler: {compiler} is not in the PATH")
    return Toolkit(Path(top[1]).resolve(), release[1])


def _output(*command: str) -> str:
    """What a command writes to both streams, "" where it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout + done.stderr


def setup_arguments(name: str, architectures: str) -> dict[str, Any]:
    """The arguments of `setuptools.setup` that compile the library as a module called `name`.

    Raises:
        CannotBuildError: as `find_toolkit` does.
    """
    toolkit = find_toolkit()
    os.environ["CUDA_HOME"] = str(toolkit.home)  # cpp_extension reads it when first imported
    os.environ["TORCH_CUDA_ARCH_LIST"] = architectures
    from torch.utils.cpp_extension import BuildExtension, CUDAExtension

    class BuildKernels(BuildExtension):
        def run(self) -> None:
            started = time.monotonic()
            super().run()
            seconds = round(time.monotonic() - started, 1)
            versions = (toolkit.release, torch.__version__)
            record = Record(source_hash(), architectures, *versions, seconds)
            path = Path(self.get_ext_fullpath(name)).with_suffix(".json")
            path.write_text(json.dumps(asdict(record)) + "\n")

    library = CUDAExtension(
        name,
        sorted(os.path.relpath(path) for path in (HERE / "csrc").glob("*.c*")),
        define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET), ("USE_CUDA", None)],
        extra_compile_args={"cxx": ["-O2", "-Wall"], "nvcc": ["-O3"]},
        py_limited_api=True,  # it is no Python module at all
    )
    command = BuildKernels.with_options(no_python_abi_suffix=True)
    return {"ext_modules": [library], "cmdclass": {"build_ext": command}}


def main() -> None:
    """Compiles into the folder named on the command line."""
    from setuptools import Distribution

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="gets library.so and library.json")
    parser.add_argument("--architectures", default=RELEASED_ARCHITECTURES, metavar="LIST")
    args = parser.parse_args()
    distribution = Distribution(setup_arguments("library", args.architectures))
    command = distribution.get_command_obj("build_ext")
    command.build_lib, command.build_temp = str(args.folder), str(args.folder / "objects")
    command.ensure_finalized()
    command.run()
    shutil.rmtree(args.folder / "objects")


if __name__ == "__main__":
    main()
