"""Times a conversion against a plain copy of the same bytes, and watches its memory.

    python scripts/benchmark_convert.py SRC WORK [--rounds 2]

SRC is a checkpoint, WORK a folder on the same disk with room for one more of it. Each round
copies the weights and waits until they are on the disk, then converts them, both from a cold
cache of the source. The conversion is a fresh process: its time includes starting Python, its
memory is anonymous memory (RssAnon) above what `import torch` alone takes.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from kogpt.cli import exit_code
from kogpt.commands.common import refuse_below
from kogpt.errors import KoGPTError

CONVERT = """
import sys, torch
print(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1], flush=True)
from kogpt.checkpoint import ConversionOptions, convert
convert(sys.argv[1], sys.argv[2], ConversionOptions(quantize=sys.argv[3] or None, quiet=True))
"""


def weights_of(source: Path) -> list[Path]:
    return [path for path in source.iterdir() if path.suffix in (".bin", ".safetensors")]


def forget(paths: list[Path]) -> None:
    """Takes files out of the page cache."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def time_copy(source: Path, target: Path) -> float:
    start = time.perf_counter()
    target.mkdir()
    for path in weights_of(source):
        subprocess.run(["cp", "--reflink=never", path, target], check=True)
        subprocess.run(["sync", target / path.name], check=True)
    seconds = time.perf_counter() - start
    forget(weights_of(target))
    shutil.rmtree(target)
    return seconds


def time_convert(source: Path, target: Path, quantize: str) -> tuple[float, int]:
    """Seconds, and the peak of anonymous memory above `import torch` in bytes."""
    start = time.perf_counter()
    command = [sys.executable, "-c", CONVERT, str(source), str(target), quantize]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        base, peak = int(child.stdout.readline()), 0
        status = Path(f"/proc/{child.pid}/status")
        while child.poll() is None:
            lines = [line for line in status.read_text().splitlines() if "RssAnon" in line]
            peak = max(peak, *(int(line.split()[1]) for line in lines), 0)
            time.sleep(0.02)
    seconds = time.perf_counter() - start
    if child.returncode:
        raise KoGPTError(f"{source}: the conversion ended with {child.returncode}")
    forget(weights_of(target))
    shutil.rmtree(target)
    return seconds, (peak - base) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--quantize", choices=("int8", "int4"), default="", help="as it converts")
    args = parser.parse_args()
    refuse_below(args, rounds=1)
    size = sum(path.stat().st_size for path in weights_of(args.source))
    copies, conversions, peaks = [], [], []
    for _ in range(args.rounds):
        forget(weights_of(args.source))
        copies.append(time_copy(args.source, args.work / "benchmark-copy"))
        forget(weights_of(args.source))
        seconds, peak = time_convert(args.source, args.work / "benchmark-converted", args.quantize)
        conversions.append(seconds)
        peaks.append(peak)
        print(
            f"copy + sync {copies[-1]:.1f} s, convert {seconds:.1f} s"
            f" ({size / seconds / 1e9:.2f} GB/s), RssAnon +{peak / 1e6:.0f} MB",
            flush=True,
        )
    ratio = statistics.median(conversions) / statistics.median(copies)
    print(f"{size / 1e9:.2f} GB: conversion takes {ratio:.2f}x the copy (medians)")


if __name__ == "__main__":
    sys.exit(exit_code(main, Path(__file__).name))
