"""`kogpt benchmark`: how fast a model reads and writes here, and how much of that is possible."""

import argparse
from pathlib import Path
from typing import Any

import torch

from kogpt.benchmarking import (
    Bench,
    Plan,
    Report,
    cache_bytes,
    describe_machine,
    generate,
    peak_memory,
    process_age,
    streamed,
    streamed_bytes,
)
from kogpt.benchmarking.plot import draw
from kogpt.box import BOX
from kogpt.checkpoint.dtypes import dtype_name
from kogpt.checkpoint.resources import require_memory
from kogpt.commands.common import check_plot, load, memory_errors, print_report, refuse_below
from kogpt.errors import UsageError
from kogpt.fast import FastKoGPT
from kogpt.model import KVCache

MOST_THREADS = 1024


def run(args: argparse.Namespace) -> None:
    check_values(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    plan = Plan(args.batch, args.prompt_tokens, args.new_tokens, args.rounds)
    with memory_errors():
        bench = Bench(load(args, fast=not args.reference)[0])
        check_context(bench, plan)
        report = measure(bench, plan, args)
    print_report(report, args.json)
    if args.plot:
        draw(report, Path(args.plot))


def check_values(args: argparse.Namespace) -> None:
    """Refuses what can be seen to be wrong before the model is loaded."""
    refuse_below(args, batch=1, prompt_tokens=1, new_tokens=2, rounds=1, threads=1)
    if args.threads is not None and args.threads > MOST_THREADS:
        raise UsageError(f"argument --threads: must be at most {MOST_THREADS}, is {args.threads}")
    if args.plot:
        check_plot(Path(args.plot))


def check_context(bench: Bench, plan: Plan) -> None:
    """Refuses a prompt that exceeds the context with what is written after it.

    Raises:
        UsageError: names both numbers.
    """
    tokens, most = longest(plan), bench.model.config.n_positions
    if tokens > most:
        raise UsageError(
            f"arguments --prompt-tokens and --new-tokens: {tokens} tokens exceed the model's"
            f" context of {most}"
        )


def check_memory(bench: Bench, plan: Plan) -> None:
    """Refuses a batch whose cache the memory does not hold.

    Raises:
        NotEnoughResourcesError: says how much it is.
    """
    batch = max(plan.batches)
    needed = batch * longest(plan) * cache_bytes(bench.model)
    require_memory(bench.device, needed, f"the cache of a batch of {batch}")


def longest(plan: Plan) -> int:
    """Tokens of the longest text."""
    return max(plan.prompts) + plan.new_tokens


def measure(bench: Bench, plan: Plan, args: argparse.Namespace) -> Report:
    """The first token, then everything else."""
    shortest = min(plan.prompts)
    generate(bench.model, bench.prompts(1, shortest), 1, KVCache(shortest))
    start = {"seconds": process_age(), "peak_memory": peak_memory(bench.device)}
    check_memory(bench, plan)  # which may ask the model, and the start is not to wait for that
    machine = describe_machine(bench.device)
    figures = bench.measure(plan)
    return Report(about_model(bench, args), machine, start, bench.bandwidth, figures)


def about_model(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    model, config = bench.model, bench.model.config
    if isinstance(model, FastKoGPT):  # whose weights may be integers, several in one
        parameters, weights = config.num_parameters, model.num_streamed
    else:
        parameters = sum(parameter.numel() for parameter in model.parameters())
        weights = sum(weight.numel() for weight in streamed(model))
    return {
        "path": str(Path(args.model or BOX)),
        "parameters": parameters,
        "dtype": dtype_name(bench.dtype),
        "decoding": "fast" if isinstance(model, FastKoGPT) else "reference",
        "streamed_bytes": streamed_bytes(model),
        "bits_per_weight": 8 * streamed_bytes(model) / weights,
    }
