"""The compile gate: what nvcc made of every kernel, checked without a GPU.

    python scripts/check_kernels.py [--arch 80 86 89 90] [--jobs 2] [--json FILE]

Compiles each kernel source for each architecture and asks of every kernel: nothing spilled and no
local memory, registers and shared memory within what a block may have, the instructions that make
it fast present in the machine code, no warning. Prints what each kernel takes and how many of its
blocks fit one multiprocessor.

Needs nvcc (that of CUDA_HOME, or else of the PATH) and cuobjdump, which comes with the toolkit or
with triton. Exit code 1 when a kernel fails, 2 when there is nothing to check with.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the kernels of this checkout

from kogpt.kernels import building

LAUNCHES = Path(__file__).resolve().with_name("launches.cpp")
SOURCES = building.SOURCES["cuda"]
FLAGS = [*building.NVCC_FLAGS, "-Xptxas", "-v", "-I", str(SOURCES)]

# CUDA C++ Programming Guide, "Technical specifications per compute capability": KB of shared memory
# of a multiprocessor; a block may have all but the KB that the system keeps of each.
SHARED_KB = {80: 164, 86: 100, 89: 100, 90: 228}
REGISTERS = 65536  # of a multiprocessor, and of a block
REGISTER_UNIT = 8  # registers a thread gets at once

# What the machine code must hold, by source file, and how often at least.
COPIES = r"LDGSTS\.(\S+\.)?128\b"
PREFILL = {
    "tensor cores": (r"HMMA\.", 1),
    "ldmatrix": (r"LDSM\.", 1),
    "cp.async of 16 bytes": (COPIES, 1),
}
REQUIRED = {
    "attention_forward": PREFILL,
    "attention_backward": PREFILL,
    "attention_decode": {**PREFILL, "loads of 16 bytes": (r"LDG\.(\S+\.)?128\b", 1)},
    # A stage takes four of a lane's copies; three stages are filled before the loop, and one in it.
    "linear_decode": {**PREFILL, "cp.async of 16 bytes": (COPIES, 16)},
    "widen": {
        "loads of 16 bytes": (r"LDG\.(\S+\.)?128\b", 1),
        "stores": (r"STG\.(\S+\.)?128\b", 2),
    },
    "norm": {"cp.async of 16 bytes": (COPIES, 3)},
}
LOCAL_MEMORY = r"(LDL|STL)\b"

ENTRY = re.compile(
    r"Compiling entry function '(?P<symbol>\w+)'[^\n]*\n[^\n]*Function properties[^\n]*\n"
    r"\s*(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores,"
    r" (?P<loads>\d+) bytes spill loads\n"
    r"[^\n]*Used (?P<registers>\d+) registers(?:[^\n]*?(?P<shared>\d+) bytes smem)?"
)
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(?P<opcode>[A-Z]\S*)", re.M)
SCOPES = re.compile(r"\w+::|\(anonymous namespace\)::|\(int\)|^void |\(kogpt::\w+\)$")
ELEMENT = re.compile(r"\bB?Float16\b")


class CannotCheckError(Exception):
    """The check ends early; the message says why."""

    exit_code = 1


class MissingToolError(CannotCheckError):
    """There is nothing to check with."""

    exit_code = 2


@dataclass(frozen=True)
class Kernel:
    """One kernel compiled for one architecture.

    Attributes:
        shared: bytes of shared memory of a block, the most that any launch asks for; None where no
            launch function starts the kernel on this architecture.
        threads: of a block; None likewise.
        spilled: bytes of registers stored to and loaded from memory.
        stack: bytes of local memory of a thread.
        opcodes: how often the machine code holds each instruction.
    """

    source: str
    name: str
    arch: int
    registers: int
    shared: int | None
    threads: int | None
    spilled: int
    stack: int
    opcodes: dict[str, int]

    def count(self, pattern: str) -> int:
        """Instructions whose name begins like that."""
        return sum(n for opcode, n in self.opcodes.items() if re.match(pattern, opcode))

    @property
    def block_registers(self) -> int:
        return -(-self.registers // REGISTER_UNIT) * REGISTER_UNIT * (self.threads or 0)

    @property
    def blocks(self) -> int | None:
        """Blocks that one multiprocessor holds at once."""
        if self.shared is None:
            return None
        by_shared = (SHARED_KB[self.arch] << 10) // (self.shared + 1024)
        return min(by_shared, REGISTERS // self.block_registers)

    def faults(self) -> Iterator[str]:
        """What is wrong with it."""
        if self.spilled:
            yield f"{self.spilled} bytes of registers spilled"
        if self.stack:
            yield f"{self.stack} bytes of local memory"
        if local := self.count(LOCAL_MEMORY):
            yield f"{local} accesses to local memory"
        if self.block_registers > REGISTERS:
            yield f"{self.block_registers} registers a block, of {REGISTERS}"
        if (self.shared or 0) > block_limit(self.arch):
            yield f"{self.shared} bytes of shared memory a block, of {block_limit(self.arch)}"
        for name, (pattern, least) in REQUIRED.get(self.source, {}).items():
            if (found := self.count(pattern)) < least:
                yield f"{found or 'no'} {name} in the machine code" + f", of {least}" * (least > 1)


def block_limit(arch: int) -> int:
    """Bytes of shared memory that a block may have."""
    return SHARED_KB[arch] - 1 << 10


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


def find_cuobjdump(nvcc: Path) -> Path:
    triton = importlib.util.find_spec("triton")
    inside = triton.submodule_search_locations or [] if triton else []
    folders = [nvcc.parent, *(Path(path) / "backends" / "nvidia" / "bin" for path in inside)]
    found = shutil.which("cuobjdump", path=os.pathsep.join(map(str, folders)))
    if found is None:
        raise MissingToolError(f"no cuobjdump in {' or '.join(map(str, folders))}")
    return Path(found)


class Gate:
    """Compiles and looks.

    Args:
        sources: folder of the kernel files.
        work: folder for objects.
    """

    def __init__(self, sources: Path, work: Path) -> None:
        try:
            self.nvcc = Path(building.find_nvcc())
        except building.CannotBuildError as error:
            raise MissingToolError(str(error)) from None
        self.cuobjdump = find_cuobjdump(self.nvcc)
        self.sources, self.work = sorted(sources.glob("*.cu")), work
        if not self.sources:
            raise CannotCheckError(f"{sources}: no .cu files")
        self.kernels: list[Kernel] = []
        self.faults: list[str] = []

    def check(self, archs: list[int], jobs: int) -> None:
        """Fills `kernels` and `faults`."""
        units = [(source, arch) for arch in archs for source in self.sources]
        with ThreadPoolExecutor(jobs) as pool:
            logs = list(pool.map(self.compile, *zip(*units, strict=True)))
            listings = list(pool.map(self.disassemble, *zip(*units, strict=True)))
        launches = {arch: self.launches(arch) for arch in archs}
        for (source, arch), log, listing in zip(units, logs, listings, strict=True):
            where = f"{source.name}, sm_{arch}"
            warnings = [line for line in log.splitlines() if re.search(r"warning|\(C\d+\)", line)]
            self.faults += [f"{where}: {' '.join(line.split())}" for line in warnings]
            kernels = read_kernels(source.stem, arch, log, listing, launches[arch])
            self.kernels += kernels
            self.faults += [f"{where}: {k.name}: {fault}" for k in kernels for fault in k.faults()]
        if set(archs) == set(SHARED_KB):
            launched = {k.name for k in self.kernels if k.threads}
            idle = sorted({k.name for k in self.kernels} - launched)
            self.faults += [f"{name}: no launch function starts it" for name in idle]

    def object_of(self, source: Path, arch: int) -> Path:
        return self.work / f"{source.stem}_{arch}.o"

    def compile(self, source: Path, arch: int) -> str:
        """Compiles one file and returns what the compiler said."""
        target = self.object_of(source, arch)
        code = f"arch=compute_{arch},code=sm_{arch}"
        done = run(self.nvcc, *FLAGS, "-gencode", code, "-c", source, "-o", target)
        if done.returncode:
            raise CannotCheckError(f"{source} does not compile:\n{done.stderr}")
        return done.stderr + done.stdout

    def disassemble(self, source: Path, arch: int) -> str:
        return run(self.cuobjdump, "-sass", self.object_of(source, arch)).stdout

    def launches(self, arch: int) -> dict[str, tuple[int, int]]:
        """Threads and bytes of dynamic shared memory of each kernel that is started."""
        program = self.work / f"launches_{arch}"
        objects = [self.object_of(source, arch) for source in self.sources]
        done = run(self.nvcc, "-cudart", "none", "-I", SOURCES, LAUNCHES, *objects, "-o", program)
        if done.returncode:
            raise CannotCheckError(f"{LAUNCHES} does not link:\n{done.stderr}")
        done = run(program, str(block_limit(arch)))
        self.faults += [f"sm_{arch}: {line}" for line in done.stderr.splitlines()]
        most: dict[str, tuple[int, int]] = {}
        for line in done.stdout.splitlines():
            symbol, threads, shared = line.split()
            most[symbol] = max(most.get(symbol, (0, 0)), (int(threads), int(shared)))
        return most


def read_kernels(
    source: str, arch: int, log: str, listing: str, launches: dict[str, tuple[int, int]]
) -> list[Kernel]:
    """Puts together what ptxas said, what the machine code holds, and what is launched."""
    codes = dict(re.findall(r"Function : (\w+)\n(.*?)(?=Function : |\Z)", listing, re.S))
    kernels = []
    for entry in ENTRY.finditer(log):
        threads, dynamic = launches.get(entry["symbol"], (None, None))
        opcodes = Counter(INSTRUCTION.findall(codes[entry["symbol"]]))
        kernels.append(
            Kernel(
                source,
                readable(entry["symbol"]),
                arch,
                registers=int(entry["registers"]),
                shared=None if dynamic is None else dynamic + int(entry["shared"] or 0),
                threads=threads,
                spilled=int(entry["stores"]) + int(entry["loads"]),
                stack=int(entry["stack"]),
                opcodes=dict(opcodes),
            )
        )
    return sorted(kernels, key=lambda kernel: kernel.name)


def readable(symbol: str) -> str:
    """A kernel's name without namespaces and arguments."""
    name = run("c++filt", symbol).stdout.strip() if shutil.which("c++filt") else symbol
    return SCOPES.sub("", name).replace(" >", ">")


def table(kernels: list[Kernel]) -> Iterator[str]:
    """Markdown: a row for each kernel that is launched, architectures and element types folded."""
    archs: dict[tuple[str, str], list[int]] = {}
    for k in kernels:
        if k.shared is not None:
            launch = f"{k.threads} | {k.shared / 1024:.1f} KB | {k.blocks}"
            cells = f"{k.registers} | {launch} | {k.spilled} | {k.count('HMMA')}"
            archs.setdefault((k.name, cells), []).append(k.arch)
    elements: dict[tuple[str, str, str], list[str]] = {}
    for (name, cells), found in archs.items():
        where = ", ".join(f"sm_{arch}" for arch in found)
        elements.setdefault((ELEMENT.sub("E", name), where, cells), []).append(name)
    yield "| kernel | architectures | registers | threads | shared | blocks | spilled | HMMA |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|"
    for (name, where, cells), names in sorted(elements.items(), key=in_order):
        yield f"| `{name if len(names) > 1 else names[0]}` | {where} | {cells} |"


def in_order(row: tuple[tuple[str, ...], list[str]]) -> list[tuple[int, str]]:
    """Sorts numbers within a name by their size."""
    return [(int(part or 0), text) for text, part in re.findall(r"(\D+)(\d*)", row[0][0])]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arch", type=int, nargs="+", choices=SHARED_KB, default=list(SHARED_KB))
    parser.add_argument("--sources", type=Path, default=SOURCES, help="folder of the .cu files")
    parser.add_argument("-j", "--jobs", type=int, default=1, help="compilers at once")
    parser.add_argument("--json", type=Path, help="file for all that was found")
    args = parser.parse_args()
    if args.jobs < 1:
        parser.error("--jobs must be at least 1")
    if args.json and not args.json.absolute().parent.is_dir():
        parser.error(f"{args.json}: no such folder")
    try:
        with tempfile.TemporaryDirectory() as work:
            gate = Gate(args.sources, Path(work))
            gate.check(args.arch, args.jobs)
    except CannotCheckError as error:
        print(f"check_kernels: {error}", file=sys.stderr)
        return error.exit_code
    print("\n".join(table(gate.kernels)))
    for fault in gate.faults:
        print(f"check_kernels: {fault}", file=sys.stderr)
    if args.json:
        found = {"kernels": list(map(asdict, gate.kernels)), "faults": gate.faults}
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if gate.faults else 0


if __name__ == "__main__":
    sys.exit(main())
