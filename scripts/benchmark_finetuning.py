"""Times finetuning beside transformers + peft: the same weights, rows and settings, in one run.

    python scripts/benchmark_finetuning.py [--model DIR | --shape kogpt-6b] [--device cuda]

Each contender is a process of its own that stays. In each round each takes a turn, every other
round in reverse: a step to warm up, then `--steps` steps with a clock. Ours are those of `kogpt
finetune`. All methods, batches and both ways to treat activations (kept, or recomputed in the
backward pass) are measured one after the other. Rows are random ids of one length, and each token
is a target, or the last ones (`--learnt`).

Losses must agree: of the first step within 1e-4 in float32, unless weights are of 4 bits, which
peers round their own way, or `--dropout` is given.

Prints Markdown, the goals among it. Figures are medians over rounds, ratios medians of the ratios
within a round. On a GPU the clock counts and memory is the most that torch allocated, weights
included. On a CPU the processor's time counts, which other programs spoil less, and memory is what
the process grew by after it held weights and optimizer; the clock's ratio stands beside.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from finetuners import Case, contenders
from goals import Goal, last_words, versions

from kogpt.adapters import TARGETS
from kogpt.benchmarking import describe_machine
from kogpt.box import BOX
from kogpt.choices import FULL, LORA, PRECISIONS, QLORA
from kogpt.cli import FAILED, exit_code
from kogpt.commands.common import check_file, refuse_below
from kogpt.errors import InputRefusedError
from kogpt.model.config import PRESETS
from kogpt.textfiles import markdown_row

WORKER = Path(__file__).with_name("finetuners.py")
PACKAGES = ("transformers", "peft", "bitsandbytes")
GOAL_SHAPE, GOAL_SEQUENCE = "kogpt-6b", 2048
GOAL_DIFFERENCE = 1e-4  # of the first losses, in float32


@dataclass
class Result:
    """What one contender took, a value for each round.

    Attributes:
        name: of the contender.
        seconds: of the timed steps.
        cpu_seconds: of the processor, all threads together.
        memory: most bytes, over all rounds; None where that cannot be told.
        losses: of its steps, in their order.
        refused: why it does not take part.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    memory: int | None = None
    losses: list[float] = field(default_factory=list)
    refused: str | None = None


class Process:
    """A contender at work; what goes wrong with it is noted as its refusal."""

    def __init__(self, name: str, case: Case, log: Path) -> None:
        self.result, self.log = Result(name), log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, WORKER, name, json.dumps(asdict(case))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": str(case.threads),
                    "HF_HUB_OFFLINE": "1",
                    # Peers look for dependencies of things that nobody asked for.
                    "TRANSFORMERS_VERBOSITY": "error",
                },
            )

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        for stream in (self.process.stdin, self.process.stdout):
            with suppress(BrokenPipeError):  # of words that it did not live to read
                stream.close()
        self.process.wait()

    def listen(self) -> dict[str, Any]:
        """The next line that it writes; nothing if it is gone."""
        line = self.process.stdout.readline()
        if not line.endswith("\n"):
            self.result.refused = last_words(self.log)
            return {}
        return json.loads(line)

    def take_turn(self, steps: int) -> None:
        """Adds a round to the result."""
        with suppress(BrokenPipeError):  # it is gone, which is heard next
            self.process.stdin.write(f"{steps}\n")
            self.process.stdin.flush()
        if told := self.listen():
            self.result.seconds.append(told["seconds"])
            self.result.cpu_seconds.append(told["cpu_seconds"])
            self.result.losses += told["losses"]
            self.result.memory = told["memory"]


@dataclass
class Board:
    """All contenders of a case, and what they amount to.

    Attributes:
        case: what was timed.
        steps: of a turn.
        results: ours first.
    """

    case: Case
    steps: int
    results: list[Result]

    @property
    def measured(self) -> list[Result]:
        return [result for result in self.results if not result.refused]

    @property
    def on_gpu(self) -> bool:
        return torch.device(self.case.device).type == "cuda"

    def rate(self, result: Result) -> float:
        """Tokens a second, by the clock."""
        tokens = self.steps * self.case.batch * self.case.sequence
        return tokens / statistics.median(result.seconds)

    def ratios(self, peer: Result, clock: str) -> list[float]:
        """How many times as fast we are as a peer, in each round; `clock` names the times."""
        pair = zip(getattr(peer, clock), getattr(self.results[0], clock), strict=True)
        return [theirs / ours for theirs, ours in pair]

    @property
    def counted(self) -> str:
        """The clock that counts here."""
        return "seconds" if self.on_gpu else "cpu_seconds"

    def advantage(self) -> float | None:
        """How many times as fast we are as the fastest peer: the median over rounds."""
        ours, *peers = self.results
        if ours.refused:  # its rounds may be fewer than theirs
            return None
        found = [statistics.median(self.ratios(p, self.counted)) for p in peers if not p.refused]
        return min(found, default=None)

    def apart(self) -> float | None:
        """The largest difference of first losses from ours."""
        ours, *peers = self.measured or [None]
        if not peers or ours is not self.results[0]:
            return None
        return max(abs(peer.losses[0] - ours.losses[0]) for peer in peers)

    @property
    def comparable(self) -> bool:
        """Whether losses must agree."""
        case = self.case
        return case.precision == "float32" and case.method != QLORA and not case.dropout

    def disagree(self) -> bool:
        return self.comparable and (self.apart() or 0.0) > GOAL_DIFFERENCE

    def title(self) -> str:
        case = self.case
        how = "activations recomputed" if case.recompute else "activations kept"
        learnt = f", the last {case.learnt} learnt" if case.learnt else ""
        return f"{case.method}, {case.batch} x {case.sequence} tokens{learnt}, {how}"

    def lines(self) -> Iterator[str]:
        """All of it as Markdown."""
        memory = "peak memory" if self.on_gpu else "memory growth"
        yield from ("", f"**{self.title()}**", "")
        yield f"| | tokens/s | {memory} | ours x, by the clock | by processor time | loss |"
        yield "|---|---:|---:|---|---|---:|"
        yield from map(self.row, self.results)
        if self.disagree():
            yield f"\n**The losses differ by {self.apart():.1e}: this is not the same work.**"

    def row(self, result: Result) -> str:
        if result.refused:
            return f"| {result.name} | {result.refused} | | | | |"
        ratios = ["", ""]
        if result is not self.results[0] and not self.results[0].refused:
            ratios = [told(self.ratios(result, clock)) for clock in ("seconds", "cpu_seconds")]
        memory = "unknown" if result.memory is None else f"{result.memory / 1e9:.2f} GB"
        cells = f"{self.rate(result):,.0f}", memory, *ratios, f"{result.losses[0]:.6f}"
        return markdown_row([result.name, *cells])

    def goals(self) -> Iterator[Goal]:
        """What is to be reached in this case."""
        case, ours = self.case, self.results[0]
        if case.method == LORA:
            least = 1.1 if self.on_gpu else 1.0
            yield Goal(f"{self.title()}: x transformers + peft", least, self.advantage())
        whole = case.shape == GOAL_SHAPE and case.sequence == GOAL_SEQUENCE and self.on_gpu
        if not whole or case.precision != "bfloat16" or case.method == FULL:
            return
        if case.method == LORA:
            least = 11_500 if case.recompute else 17_000
            rate = None if ours.refused else self.rate(ours)
            yield Goal(f"{self.title()}: tokens/s", least, rate)
        if case.batch == 1 and case.recompute:
            most = 14.5 if case.method == LORA else 6.5
            memory = None if ours.refused or ours.memory is None else ours.memory / 1e9
            yield Goal(f"{self.title()}: GB", most, memory, at_most=True)

    def to_dict(self) -> dict[str, Any]:
        ours, *peers = self.results
        found = [
            {**asdict(result), "tokens_per_second": None if result.refused else self.rate(result)}
            for result in self.results
        ]
        ratios = {
            peer.name: {clock: self.ratios(peer, clock) for clock in ("seconds", "cpu_seconds")}
            for peer in peers
            if not (peer.refused or ours.refused)
        }
        about = {"case": asdict(self.case), "steps": self.steps, "first_losses_apart": self.apart()}
        return {**about, "results": found, "ratios": ratios}


def row(goal: Goal) -> str:
    found = "" if goal.found is None else f"{goal.found:,.2f}"
    bound = f"at {'most' if goal.at_most else 'least'} {goal.goal:,}"
    return f"| {goal.text} | {bound} | {found} | {goal.verdict} |"


def told(ratios: Sequence[float]) -> str:
    """The median, and each round's."""
    return f"{statistics.median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})"


def measure(case: Case, rounds: int, steps: int) -> Board:
    """Lets all contenders of a case take turns."""
    names = contenders(case.method, case.precision)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        processes = [
            stack.enter_context(Process(name, case, Path(folder) / f"{i}.log"))
            for i, name in enumerate(names)
        ]
        board = Board(case, steps, [process.result for process in processes])
        for process in processes:
            process.listen()
        for turn in range(rounds):
            print(f"{board.title()}: round {turn + 1}", file=sys.stderr, flush=True)
            for process in processes[:: -1 if turn % 2 else 1]:
                if not process.result.refused:
                    process.take_turn(steps)
        return board


def describe(args: argparse.Namespace) -> dict[str, Any]:
    """The machine and what is installed on it."""
    found = describe_machine(torch.device(args.device))
    found["threads"] = args.threads
    found |= versions(PACKAGES)
    weights = f"random, shape {args.shape}" if args.shape else str(args.model)
    settings = (
        f"{args.precision}, {', '.join(args.targets)}, rank {args.rank}, alpha {args.alpha:g}"
    )
    command = shlex.join(["python", *sys.argv])
    return {**found, "weights": weights, "settings": settings, "command": command}


def cases(args: argparse.Namespace) -> list[Case]:
    """Everything that is to be measured, in its order."""
    first = Case(
        model=None if args.shape else str(args.model),
        shape=args.shape,
        method=LORA,
        batch=1,
        sequence=args.sequence,
        learnt=args.learnt,
        recompute=False,
        precision=args.precision,
        targets=tuple(args.targets),
        rank=args.rank,
        alpha=args.alpha,
        dropout=args.dropout,
        device=args.device,
        threads=args.threads,
    )
    ways = [args.recompute == "yes"] if args.recompute else [False, True]
    return [
        replace(first, method=method, batch=batch, recompute=recompute)
        for method, batch, recompute in product(args.method, args.batch, ways)
    ]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=BOX, metavar="DIR", help="folder of weights")
    parser.add_argument("--shape", choices=PRESETS, help="random weights of a preset instead")
    parser.add_argument("--method", nargs="+", choices=(FULL, LORA, QLORA), default=[LORA])
    parser.add_argument("--batch", nargs="+", type=int, default=[8], help="rows in a step")
    parser.add_argument("--sequence", type=int, default=128, help="tokens in a row")
    parser.add_argument("--learnt", type=int, help="targets in a row, its last tokens; else all")
    parser.add_argument("--recompute", choices=("yes", "no"), help="activations; else both")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=["q_proj", "v_proj"])
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--alpha", type=float, default=16.0)
    parser.add_argument("--dropout", type=float, default=0.0, help="of the network")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="that a turn counts")
    parser.add_argument("--json", type=Path, help="file for everything that was measured")
    args = parser.parse_args()
    refuse_below(args, rounds=1, steps=1, threads=1, sequence=1)
    if args.json:
        check_file("json", args.json)
    if args.learnt is not None and not 1 <= args.learnt <= args.sequence:
        parser.error(f"argument --learnt: must be 1 to {args.sequence}")
    return args


def main() -> int:
    args = parse_arguments()
    if not (args.shape or (args.model / "config.json").is_file()):
        raise InputRefusedError(f"{args.model}: not a checkpoint folder")
    about = describe(args)
    print("\n".join(f"- {key}: {value}" for key, value in about.items()), flush=True)
    boards = []
    for case in cases(args):
        boards.append(measure(case, args.rounds, args.steps))
        print("\n".join(boards[-1].lines()), flush=True)
    goals = [goal for board in boards for goal in board.goals()]
    if goals:
        print("\n| goal | | measured | |\n|---|---:|---:|---|")
        print("\n".join(map(row, goals)))
    if args.json:
        told_goals = [{**asdict(goal), "verdict": goal.verdict} for goal in goals]
        runs = [board.to_dict() for board in boards]
        found = {"machine": about, "runs": runs, "goals": told_goals}
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return FAILED if any(board.disagree() for board in boards) else 0


if __name__ == "__main__":
    sys.exit(exit_code(main, Path(__file__).name))
