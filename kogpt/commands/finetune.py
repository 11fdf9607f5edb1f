"""`kogpt finetune`: train a model on a task or on examples."""

import argparse

from kogpt.choices import LABEL_WORDS
from kogpt.commands.common import (
    memory_errors,
    option_of,
    print_json,
    refuse_idle,
    run_settings,
)
from kogpt.errors import UsageError
from kogpt.evaluation import load_task
from kogpt.parallel import Parallel
from kogpt.training import FinetuningConfig, finetune


def run(args: argparse.Namespace) -> None:
    refuse_idle(args)
    config = FinetuningConfig(**run_settings(args, FinetuningConfig))
    refuse_idle_objective(args, config)
    with memory_errors():
        results = finetune(config)
    if not Parallel.launched(config.tensor_parallel, config.device).first:
        return
    if args.json:
        print_json(results)
    else:
        print("\n".join(lines(results)))


def refuse_idle_objective(args: argparse.Namespace, config: FinetuningConfig) -> None:
    """Refuses options that say something of tasks or prompts where there are none."""
    for name in ("data_dir", "prompt", "test_rows"):
        if config.task is None and getattr(args, name) is not None:
            raise UsageError(f"argument {option_of(name)}: only with a task as --data")
    if args.validation_rows is not None and config.task is not None:
        if load_task(config.task).validation is not None:
            raise UsageError("argument --validation-rows: the task has a file of them")
    if args.prompt is not None and config.objective not in (None, LABEL_WORDS):
        raise UsageError(f"argument --prompt: only with --objective {LABEL_WORDS}")


def lines(results: dict) -> list[str]:
    """Figures of each split, a line each."""
    told = [f"weights of step {results['step']}"]
    for split in ("validation", "test"):
        if split in results:
            figures = dict(results[split])
            rows = figures.pop("rows")
            parts = [f"{name.replace('_', ' ')} {_figure(x)}" for name, x in figures.items()]
            told.append(f"{split}, {rows:,} rows: {', '.join(parts)}")
    return told


def _figure(value: float | dict) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    low, high = value["interval"]
    return f"{value['value']:.2f} ({low:.2f}-{high:.2f})"
