"""Times generation beside other libraries: the same weights and prompts, in turn, in one run.

    python scripts/benchmark_peers.py DIR WORK [--rounds 3] [--threads 2] [--json FILE]

DIR is a folder that `kogpt convert` wrote. WORK keeps what contenders convert it to, so only the
first run converts, and what they print. Peers are transformers, CTranslate2 and OpenVINO (through
optimum-intel); one that is not installed is a row that says so. In each round each contender in
turn is a fresh process on the CPU: it loads, warms up, continues a prompt of 32 tokens greedily and
reads one of 512, so neither memory nor threads are shared.

Prints Markdown, the goals among it. Figures are medians over rounds, ratios medians of the ratios
within a round. `prefill` is the time until the first token after 512. `of bandwidth` is the bytes a
token needs (of peers the weights alone, of ours scales and cache too) over the time it took, over
the read bandwidth: the better of those measured right before and after, since other machines that
share a memory may double what is left of it, or halve it, within a minute.
"""

import argparse
import json
import os
import random
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from peers import CONTENDERS, missing

from kogpt.benchmarking import describe_machine, read_bandwidth
from kogpt.cli import exit_code
from kogpt.errors import InputRefusedError

CPU = torch.device("cpu")
WORKER = Path(__file__).with_name("peers.py")
PACKAGES = ("transformers", "ctranslate2", "openvino", "nncf", "optimum-intel")
DECODE_PROMPT, PREFILL_PROMPT = 32, 512


@dataclass
class Result:
    """What one contender took, a value for each round.

    Attributes:
        name: of the contender.
        decode: tokens a second, the first not counted.
        bandwidth: bytes a second that the memory gave when it decoded.
        prefill: seconds until the first token of the long prompt.
        load: seconds that loading took.
        memory: most bytes resident, over all rounds.
        step_bytes: that a token needs.
        ids: what it wrote.
        about: what it decided by itself.
        refused: why it does not take part.
    """

    name: str
    decode: list[float] = field(default_factory=list)
    bandwidth: list[float] = field(default_factory=list)
    prefill: list[float] = field(default_factory=list)
    load: list[float] = field(default_factory=list)
    memory: int = 0
    step_bytes: float = 0.0
    ids: list[int] = field(default_factory=list)
    about: dict[str, str] = field(default_factory=dict)
    refused: str | None = None

    @property
    def rate(self) -> float:
        return statistics.median(self.decode)

    @property
    def share(self) -> float:
        """Of the bandwidth, what decoding uses."""
        pair = zip(self.decode, self.bandwidth, strict=True)
        return statistics.median(rate * self.step_bytes / limit for rate, limit in pair)


class Run:
    """The contenders' processes, on one machine with one folder of weights."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.source, self.work, self.threads = args.source, args.work, args.threads
        self.new_tokens = args.new_tokens
        config = json.loads((self.source / "config.json").read_text())
        ids = random.Random(0).choices(range(5, config["vocab_size"]), k=PREFILL_PROMPT)
        self.short, self.long = ids[:DECODE_PROMPT], ids

    def convert(self, result: Result) -> None:
        """Lets a contender write its own format, unless it is there."""
        result.refused = missing(result.name) and f"{missing(result.name)} is not installed"
        if not result.refused and self.start(result, "--convert").wait():
            result.refused = f"conversion failed: {self.last_words(result)}"

    def measure(self, result: Result) -> None:
        """One turn of a contender."""
        with self.process(result) as ask:
            ready = ask(None)
            ask({"prompt": self.long, "count": 2})  # warm up
            before = read_bandwidth(CPU)
            decode = ask({"prompt": self.short, "count": self.new_tokens})
            bandwidth = max(before, read_bandwidth(CPU))
            prefill = ask({"prompt": self.long, "count": 1})
            result.about, result.ids = ready["about"], decode["ids"]
            result.step_bytes = decode["step_bytes"]
            result.memory = max(result.memory, prefill["memory"])
            times = decode["times"]
            result.load.append(ready["load"])
            result.decode.append((len(times) - 1) / (times[-1] - times[0]))
            result.bandwidth.append(bandwidth)
            result.prefill.append(prefill["times"][0])

    @contextmanager
    def process(self, result: Result) -> Iterator[Any]:
        """A contender that answers questions; what goes wrong with it is noted as its refusal."""
        process = self.start(result)

        def ask(question: dict[str, Any] | None) -> dict[str, Any]:
            if question:
                process.stdin.write(json.dumps(question) + "\n")
                process.stdin.flush()
            return json.loads(process.stdout.readline())

        try:
            with process:
                yield ask
        except (ValueError, BrokenPipeError):  # no line came, or only a part of one
            result.refused = self.last_words(result)

    def start(self, result: Result, *options: str) -> subprocess.Popen[str]:
        arguments = [result.name, self.source, self.work, f"--threads={self.threads}", *options]
        streams = {} if options else {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with self.log(result).open("w") as log:
            return subprocess.Popen(
                [sys.executable, WORKER, *arguments],
                **{"stdout": log, **streams},
                stderr=log,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": str(self.threads), "HF_HUB_OFFLINE": "1"},
            )

    def log(self, result: Result) -> Path:
        return self.work / f"{result.name}.log"

    def last_words(self, result: Result) -> str:
        lines = self.log(result).read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it ended silently")


# --- what is printed ---


@dataclass(frozen=True)
class Goal:
    """A figure to reach.

    Attributes:
        text: what it is.
        goal: at least so much.
        found: what was measured; None where somebody did not take part.
    """

    text: str
    goal: float
    found: float | None

    @property
    def verdict(self) -> str:
        if self.found is None:
            return "not measured"
        return "met" if self.found >= self.goal else "missed"


class Board:
    """All results of a run, and what they amount to."""

    def __init__(self, results: list[Result]) -> None:
        self.results = {result.name: result for result in results}
        self.measured = {r.name: r for r in results if not r.refused}

    def faster(self, ours: str, peer: str) -> float | None:
        """How many times as fast we decode: the median over rounds."""
        if not {ours, peer} <= set(self.measured):
            return None
        pair = zip(self.measured[ours].decode, self.measured[peer].decode, strict=True)
        return statistics.median(a / b for a, b in pair)

    def sooner(self, ours: str, peers: list[str]) -> float | None:
        """How many times as fast as the fastest of some peers we read: the median over rounds."""
        theirs = [self.measured[name].prefill for name in peers if name in self.measured]
        if ours not in self.measured or not theirs:
            return None
        fastest = map(min, zip(*theirs, strict=True))
        pair = zip(fastest, self.measured[ours].prefill, strict=True)
        return statistics.median(a / b for a, b in pair)

    def goals(self) -> Iterator[Goal]:
        peers = [name for name in CONTENDERS if not name.startswith("KoGPT")]
        for ours, peer, least in (
            ("KoGPT bf16", "transformers bf16", 2.0),
            ("KoGPT int8", "OpenVINO int8", 1.6),
            ("KoGPT int8", "CTranslate2 int8", 2.5),
            ("KoGPT int4", "OpenVINO int4", 1.6),
        ):
            yield Goal(f"decode, {ours} x {peer}", least, self.faster(ours, peer))
        for ours in ("KoGPT bf16", "KoGPT int8", "KoGPT int4"):
            found = self.measured.get(ours)
            share = found and 100 * found.share
            yield Goal(f"decode, {ours}, % of read bandwidth", 80, share)
        for ours in ("KoGPT bf16", "KoGPT int8", "KoGPT int4"):
            yield Goal(f"prefill, {ours} x the fastest peer", 0.9, self.sooner(ours, peers))
            like = [name for name in peers if name.endswith(ours[-4:])]
            found = self.sooner(ours, like)
            yield Goal(f"prefill, {ours} x the fastest {ours[-4:]} peer", 0.9, found)

    def row(self, result: Result) -> str:
        if result.refused:
            return f"| {result.name} | {result.refused} | | | | | | |"
        prefill = statistics.median(result.prefill)
        low, high = min(result.decode), max(result.decode)
        return (
            f"| {result.name} | {result.rate:.2f} | {low:.2f}-{high:.2f}"
            f" | {result.share:.0%} | {prefill:.2f} s"
            f" | {PREFILL_PROMPT / prefill:.0f} | {result.memory / 1e9:.2f} GB"
            f" | {statistics.median(result.load):.1f} s |"
        )

    def lines(self, about: dict[str, Any]) -> Iterator[str]:
        """All of it as Markdown."""
        yield from (f"- {key}: {value}" for key, value in about.items())
        found = [each / 1e9 for result in self.measured.values() for each in result.bandwidth]
        if found:
            yield f"- read bandwidth: {min(found):.1f} to {max(found):.1f} GB/s"
        for result in self.measured.values():
            told = ", ".join(f"{key} {value}" for key, value in result.about.items())
            if told:
                yield f"- {result.name}: {told}"
        yield ""
        yield (
            "| | decode tok/s | min-max | of bandwidth | prefill 512 | tok/s | peak memory | load |"
        )
        yield "|---|---:|---:|---:|---:|---:|---:|---:|"
        yield from map(self.row, self.results.values())
        yield from ("", "| goal | at least | measured | |", "|---|---:|---:|---|")
        for goal in self.goals():
            found = "" if goal.found is None else f"{goal.found:.2f}"
            yield f"| {goal.text} | {goal.goal} | {found} | {goal.verdict} |"


def describe(args: argparse.Namespace) -> dict[str, Any]:
    """The machine and what is installed on it."""
    found = describe_machine(CPU)
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return {**found, "rounds": args.rounds, "command": shlex.join(["python", *sys.argv])}


def claim(work: Path, source: Path) -> None:
    """Notes of which weights WORK keeps conversions, and refuses those of others."""
    files = [source / "config.json", *sorted(source.glob("*.safetensors"))]
    weights = {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}
    note = work / "source.json"
    if note.exists() and json.loads(note.read_text()) != weights:
        raise InputRefusedError(f"{work}: keeps conversions of other weights than {source} has")
    note.write_text(json.dumps(weights) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path, metavar="DIR")
    parser.add_argument("work", type=Path, metavar="WORK")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--json", type=Path, help="file for everything that was measured")
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    if not (args.source / "config.json").is_file():
        raise InputRefusedError(f"{args.source}: not a checkpoint folder")
    args.work.mkdir(parents=True, exist_ok=True)
    claim(args.work, args.source)
    torch.set_num_threads(args.threads)
    about, run = describe(args), Run(args)
    results = [Result(name) for name in args.only]
    for result in results:
        run.convert(result)
    for turn in range(args.rounds):
        for result in results:
            if not result.refused:
                print(f"round {turn + 1}: {result.name}", file=sys.stderr, flush=True)
                run.measure(result)
    board = Board(results)
    print("\n".join(board.lines(about)))
    if args.json:
        goals = [{**asdict(goal), "verdict": goal.verdict} for goal in board.goals()]
        found = {"machine": about, "goals": goals}
        found["results"] = [asdict(result) for result in results]
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main, Path(__file__).name))
