"""Times an evaluation beside lm-evaluation-harness: the same model, rows and shots, in one run.

    python scripts/benchmark_evaluation.py DATA [--task nsmc] [--shots 20] [--limit 200]

DATA is the folder of data of `kogpt evaluate`. In each round each contender in turn is a fresh
process on the CPU: the harness with its transformers backend, then our evaluation. Its time is told
twice: of scoring alone, from texts to log-likelihoods, and of the whole process. Of the harness
that is less than its command line takes, which first looks through all the tasks it comes with.

A third process computes every answer by itself, one full sequence after another through the
readable network, and says how far the others' log-likelihoods are from that.
"""

import argparse
import json
import logging
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from kogpt.benchmarking import describe_machine
from kogpt.box import BOX
from kogpt.cli import exit_code
from kogpt.errors import KoGPTError
from kogpt.evaluation import Evaluator, Protocol, load_task, read_data
from kogpt.evaluation.prompting import ask, example
from kogpt.evaluation.running import draw_set
from kogpt.loading import load

Values = list[list[float]]  # of each row, the log-likelihood of each answer
PACKAGES = ("torch", "transformers", "lm_eval")
GOAL_SPEED, GOAL_DIFFERENCE = 10, 1e-5


def harness(args: argparse.Namespace) -> tuple[Values, float]:
    """lm-evaluation-harness with its transformers backend."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from kogpt.evaluation.lm_eval import TASKS

    class Timed(HFLM):
        seconds = 0.0

        def loglikelihood(self, *given: Any, **named: Any) -> list[tuple[float, bool]]:
            start = time.perf_counter()
            found = super().loglikelihood(*given, **named)
            self.seconds += time.perf_counter() - start
            return found

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    make = {"dtype": "float32", "device": "cpu", "add_bos_token": True}
    model = Timed(pretrained=str(args.model), batch_size=args.harness_batch_size, **make)
    name = f"kogpt_{args.task}_{args.prompt}"
    metadata = {"data": str(args.data), "limit": args.limit}
    report = lm_eval.simple_evaluate(
        model=model,
        tasks=[name],
        num_fewshot=args.shots,
        task_manager=TaskManager(
            include_path=str(TASKS), include_defaults=False, metadata=metadata
        ),
        bootstrap_iters=0,
    )
    samples = sorted(report["samples"][name], key=lambda sample: sample["doc_id"])
    values = [[value for value, _ in sample["filtered_resps"]] for sample in samples]
    return values, model.seconds


def ours(args: argparse.Namespace) -> tuple[Values, float]:
    """What `kogpt evaluate` runs."""
    task = load_task(args.task)
    data = read_data(task, args.data, args.protocol)
    model, tokenizer = load(args.model, dtype=torch.float32, fast=True)
    start = time.perf_counter()
    (run,) = Evaluator(model, tokenizer).run(task, task.prompt(args.prompt), args.protocol, data)
    return run.sets[0].log_likelihoods, time.perf_counter() - start


@torch.inference_mode()
def plain(args: argparse.Namespace) -> tuple[Values, float]:
    """Every answer by itself: the whole sequence through the readable network."""
    task = load_task(args.task)
    prompt, data = task.prompt(args.prompt), read_data(task, args.data, args.protocol)
    model, tokenizer = load(args.model, dtype=torch.float32)
    drawn = draw_set(task, prompt, args.protocol, data, 0, tokenizer)
    shots = "".join(example(prompt, row) + "\n\n" for row in drawn)
    start = time.perf_counter()

    def score(context: str, answer: str) -> float:
        ids = torch.tensor(tokenizer.encode(context + answer, bos=tokenizer.add_bos))
        first = len(tokenizer.encode(context, bos=tokenizer.add_bos))
        logprobs = model(ids[None, :-1])[0].double().log_softmax(-1)
        return logprobs.gather(1, ids[1:, None])[first - 1 :].sum().item()

    questions = [ask(prompt, row) for row in data.sample]
    values = [[score(shots + q.context, answer) for answer in q.answers] for q in questions]
    return values, time.perf_counter() - start


CONTENDERS = {"harness": harness, "ours": ours, "plain": plain}


def start(name: str) -> tuple[Values, float, float]:
    """Log-likelihoods, seconds of scoring and seconds of the whole process."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], "--contender", name],
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise KoGPTError(f"contender {name} ended with {done.returncode}")
    seconds = time.perf_counter() - began
    values, scoring = json.loads(done.stdout.splitlines()[-1])
    return values, scoring, seconds


def difference(values: Values, truth: Values) -> float:
    """The largest."""
    return (torch.tensor(values).double() - torch.tensor(truth).double()).abs().max().item()


def report(args: argparse.Namespace) -> None:
    truth, scoring, whole = start("plain")
    times: dict[str, list[tuple[float, float]]] = {"harness": [], "ours": []}
    apart: dict[str, float] = {}
    for _ in range(args.rounds):
        for name in times:
            values, *seconds = start(name)
            times[name].append((seconds[0], seconds[1]))
            apart[name] = max(apart.get(name, 0.0), difference(values, truth))
    print(f"{args.task}, prompt {args.prompt}, {args.shots} shots, {len(truth)} rows")
    found = describe_machine(torch.device("cpu"))
    versions = [f"{name} {version(name)}" for name in PACKAGES]
    print(f"{found['device']}, {found['threads']} threads, load {found['load_average']:.1f}")
    print(f"float32, {', '.join(versions)}\n")
    print("| | scoring, s | whole process, s | largest difference from one by one |")
    print("|---|---|---|---|")
    for name, spent in times.items():
        score, process = (statistics.median(column) for column in zip(*spent, strict=True))
        print(f"| {name} | {score:.2f} | {process:.2f} | {apart[name]:.1e} |")
    print(f"| one by one | {scoring:.2f} | {whole:.2f} | |\n")
    pairs = list(zip(times["harness"], times["ours"], strict=True))
    ratios = [statistics.median(theirs[i] / us[i] for theirs, us in pairs) for i in (0, 1)]
    met = ratios[0] >= GOAL_SPEED and apart["ours"] <= GOAL_DIFFERENCE
    print(f"scoring {ratios[0]:.1f} times as fast as the harness, the process {ratios[1]:.1f}")
    print(
        f"goal of {GOAL_SPEED} times the speed and {GOAL_DIFFERENCE:.0e} of difference: "
        f"{'met' if met else 'missed'}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder of data")
    parser.add_argument("--task", default="nsmc")
    parser.add_argument("--prompt", default="harness-303")
    parser.add_argument("--shots", type=int, default=20)
    parser.add_argument("--limit", type=int, default=200, help="rows")
    parser.add_argument("--model", type=Path, default=BOX, help="folder")
    parser.add_argument("--harness-batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.protocol = Protocol(shots=(args.shots,), sets=1, limit=args.limit, scoring=("sum",))
    torch.set_num_threads(args.threads)
    if args.contender:
        print(json.dumps(CONTENDERS[args.contender](args)))
    else:
        report(args)


if __name__ == "__main__":
    sys.exit(exit_code(main, Path(__file__).name))
