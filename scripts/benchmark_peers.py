"""Times generation beside other libraries: the same weights and prompts, in turn, in one run.

    python scripts/benchmark_peers.py DIR WORK [--rounds 3] [--turns 3] [--threads 2] [--json FILE]

DIR is a folder that `kogpt convert` wrote. WORK keeps what contenders convert it to, so only the
first run converts, and what they print. Peers are transformers, CTranslate2 and OpenVINO (through
optimum-intel); one that is not installed is a row that says so. In each round each contender is a
fresh process on the CPU that loads and warms up. Those of one format are there together and take
turns: to continue a prompt of 32 tokens greedily, and to read one of 512. Whoever waits is stopped,
threads and all. So a turn of ours and a peer's are seconds apart: other machines that share a
memory may double what is left of it, or halve it, within a minute.

Prints Markdown, the goals among it. Figures are medians over all turns, ratios medians of the
ratios within a turn. `prefill` is the time until the first token after 512. `of bandwidth` is the
bytes a token needs (of peers the weights alone, of ours scales and cache too) over the time it
took, over the read bandwidth. That is measured right before and after; turns in which it changed by
more than a fifth say nothing of the share, and nothing of a ratio if it changed between both.
"""

import argparse
import json
import os
import random
import shlex
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from goals import Goal, last_words, versions
from peers import CONTENDERS, missing

from kogpt.benchmarking import describe_machine, read_bandwidth
from kogpt.cli import exit_code
from kogpt.commands.common import check_file, refuse_below
from kogpt.errors import InputRefusedError
from kogpt.model.variants import read_config

CPU = torch.device("cpu")
WORKER = Path(__file__).with_name("peers.py")
PACKAGES = ("transformers", "ctranslate2", "openvino", "nncf", "optimum-intel")
DECODE_PROMPT, PREFILL_PROMPT = 32, 512
STEADY = 0.8


def is_steady(*bandwidths: float) -> bool:
    """Whether the memory gave about the same each time."""
    return min(bandwidths) >= STEADY * max(bandwidths)


def format_of(name: str) -> str:
    """The format of a contender's weights, of which it is named."""
    return name.split()[-1]


@dataclass
class Result:
    """What one contender took, a value for each turn, of loading for each round.

    Attributes:
        name: of the contender.
        decode: tokens a second, the first not counted.
        bandwidth: bytes a second that the memory gave, before and after it decoded.
        prefill: seconds until the first token of the long prompt.
        load: seconds that loading took.
        memory: most bytes resident, over all turns.
        step_bytes: that a token needs.
        ids: what it wrote.
        about: what it decided by itself.
        refused: why it does not take part.
    """

    name: str
    decode: list[float] = field(default_factory=list)
    bandwidth: list[tuple[float, float]] = field(default_factory=list)
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
    def shares(self) -> list[float]:
        """Of the bandwidth, what decoding used in the turns in which it held; else in all."""
        turns = list(zip(self.decode, self.bandwidth, strict=True))
        steady = [turn for turn in turns if is_steady(*turn[1])] or turns
        return [rate * self.step_bytes / max(limits) for rate, limits in steady]


class Contestant:
    """The process of a contender, which stands still unless it is asked."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.send_signal(signal.SIGCONT)
        with suppress(BrokenPipeError), self.process:
            pass  # it ends when there is nothing more to answer

    def ask(self, prompt: list[int], count: int) -> dict[str, Any]:
        """Lets it go on after a prompt by so many tokens."""
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write(json.dumps({"prompt": prompt, "count": count}) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next line it writes; ValueError if that is none or not whole."""
        found = json.loads(self.process.stdout.readline())
        self.process.send_signal(signal.SIGSTOP)
        return found


class Run:
    """The contenders' processes, on one machine with one folder of weights."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.source, self.work, self.threads = args.source, args.work, args.threads
        self.new_tokens = args.new_tokens
        config = read_config(self.source / "config.json")
        ids = random.Random(0).choices(range(5, config.vocab_size), k=PREFILL_PROMPT)
        self.short, self.long = ids[:DECODE_PROMPT], ids

    def convert(self, result: Result) -> None:
        """Lets a contender write its own format, unless it is there."""
        result.refused = missing(result.name) and f"{missing(result.name)} is not installed"
        if not result.refused and self.start(result, "--convert").wait():
            result.refused = f"conversion failed: {last_words(self.log(result))}"

    def measure(self, results: list[Result], turns: int) -> None:
        """A round of the contenders of one format."""
        there = {}
        with ExitStack() as processes:
            for result in results:
                with self.refusing(result):
                    there[result.name] = Contestant(self.start(result))
                    contestant = processes.enter_context(there[result.name])
                    ready = contestant.answer()
                    contestant.ask(self.long, 2)  # warm up
                    result.about = ready["about"]
                    result.load.append(ready["load"])
            for _ in range(turns):
                for result in results:
                    if not result.refused:
                        with self.refusing(result):
                            self.turn(result, there[result.name])

    def turn(self, result: Result, contestant: Contestant) -> None:
        """Decodes, and reads a long prompt."""
        before = read_bandwidth(CPU)
        decode = contestant.ask(self.short, self.new_tokens)
        bandwidth = before, read_bandwidth(CPU)
        prefill = contestant.ask(self.long, 1)
        times = decode["times"]
        result.ids, result.step_bytes = decode["ids"], decode["step_bytes"]
        result.memory = max(result.memory, prefill["memory"])
        result.decode.append((len(times) - 1) / (times[-1] - times[0]))
        result.bandwidth.append(bandwidth)
        result.prefill.append(prefill["times"][0])

    @contextmanager
    def refusing(self, result: Result) -> Iterator[None]:
        """What goes wrong with a contender is noted as its refusal."""
        try:
            yield
        except (ValueError, BrokenPipeError):  # no line came, or only a part of one
            result.refused = last_words(self.log(result))

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


# --- what is printed ---


@dataclass(frozen=True)
class MedianGoal(Goal):
    """A goal, and how many turns tell of it."""

    turns: int = 0


def goal(text: str, least: float, turns: list[float]) -> MedianGoal:
    """A goal, with the median of what some turns gave."""
    found = statistics.median(turns) if turns else None
    return MedianGoal(text, least, found, turns=len(turns))


class Board:
    """All results of a run, and what they amount to."""

    def __init__(self, results: list[Result]) -> None:
        self.results = {result.name: result for result in results}
        self.measured = {r.name: r for r in results if not r.refused}

    def faster(self, ours: str, peer: str) -> list[float]:
        """How many times as fast we decode, in turns in which the memory gave both the same."""
        if not {ours, peer} <= set(self.measured):
            return []
        one, other = self.measured[ours], self.measured[peer]
        turns = list(zip(one.decode, other.decode, one.bandwidth, other.bandwidth, strict=True))
        steady = [turn for turn in turns if is_steady(*turn[2], *turn[3])] or turns
        return [a / b for a, b, *_ in steady]

    def sooner(self, ours: str, peers: list[str]) -> list[float]:
        """How many times as fast as the fastest of some peers we read, in every turn."""
        theirs = [self.measured[name].prefill for name in peers if name in self.measured]
        if ours not in self.measured or not theirs:
            return []
        fastest = map(min, zip(*theirs, strict=True))
        pair = zip(fastest, self.measured[ours].prefill, strict=True)
        return [a / b for a, b in pair]

    def goals(self) -> Iterator[MedianGoal]:
        peers = [name for name in CONTENDERS if not name.startswith("KoGPT")]
        for ours, peer, least in (
            ("KoGPT bf16", "transformers bf16", 2.0),
            ("KoGPT int8", "OpenVINO int8", 1.6),
            ("KoGPT int8", "CTranslate2 int8", 2.5),
            ("KoGPT int4", "OpenVINO int4", 1.6),
        ):
            yield goal(f"decode, {ours} x {peer}", least, self.faster(ours, peer))
        for ours in ("KoGPT bf16", "KoGPT int8", "KoGPT int4"):
            found = self.measured.get(ours)
            shares = [100 * share for share in found.shares] if found else []
            yield goal(f"decode, {ours}, % of read bandwidth", 80, shares)
        for ours in ("KoGPT bf16", "KoGPT int8", "KoGPT int4"):
            yield goal(f"prefill, {ours} x the fastest peer", 0.9, self.sooner(ours, peers))
            like = [name for name in peers if format_of(name) == format_of(ours)]
            found = self.sooner(ours, like)
            yield goal(f"prefill, {ours} x the fastest {format_of(ours)} peer", 0.9, found)

    def row(self, result: Result) -> str:
        if result.refused:
            return f"| {result.name} | {result.refused} | | | | | | |"
        prefill = statistics.median(result.prefill)
        low, high = min(result.decode), max(result.decode)
        return (
            f"| {result.name} | {result.rate:.2f} | {low:.2f}-{high:.2f}"
            f" | {statistics.median(result.shares):.0%} | {prefill:.2f} s"
            f" | {PREFILL_PROMPT / prefill:.0f} | {result.memory / 1e9:.2f} GB"
            f" | {statistics.median(result.load):.1f} s |"
        )

    def lines(self, about: dict[str, Any]) -> Iterator[str]:
        """All of it as Markdown."""
        yield from (f"- {key}: {value}" for key, value in about.items())
        limits = [limits for result in self.measured.values() for limits in result.bandwidth]
        found = [each / 1e9 for each in sum(limits, ())]
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
        yield from ("", "| goal | at least | measured | turns | |", "|---|---:|---:|---:|---|")
        for each in self.goals():
            found = "" if each.found is None else f"{each.found:.2f}"
            yield f"| {each.text} | {each.goal} | {found} | {each.turns} | {each.verdict} |"


def describe(args: argparse.Namespace) -> dict[str, Any]:
    """The machine and what is installed on it."""
    found = describe_machine(CPU) | versions(PACKAGES)
    found |= {"rounds": args.rounds, "turns of each": args.turns}
    return {**found, "command": shlex.join(["python", *sys.argv])}


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
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--json", type=Path, help="file for everything that was measured")
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    refuse_below(args, rounds=1, turns=1, threads=1, new_tokens=2)
    if args.json:
        check_file("json", args.json)
    if not (args.source / "config.json").is_file():
        raise InputRefusedError(f"{args.source}: not a checkpoint folder")
    args.work.mkdir(parents=True, exist_ok=True)
    claim(args.work, args.source)
    torch.set_num_threads(args.threads)
    about, run = describe(args), Run(args)
    results = [Result(name) for name in args.only]
    for result in results:
        run.convert(result)
    for i in range(args.rounds):
        for kind in dict.fromkeys(map(format_of, args.only)):
            print(f"round {i + 1}: {kind}", file=sys.stderr, flush=True)
            alike = [each for each in results if format_of(each.name) == kind]
            run.measure([each for each in alike if not each.refused], args.turns)
    board = Board(results)
    print("\n".join(board.lines(about)))
    if args.json:
        goals = [{**asdict(each), "verdict": each.verdict} for each in board.goals()]
        found = {"machine": about, "goals": goals}
        found["results"] = [asdict(result) for result in results]
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main, Path(__file__).name))
