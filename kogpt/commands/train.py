"""`kogpt train`: train on the next token."""

import argparse
import dataclasses
from pathlib import Path

import torch

from kogpt.commands.common import memory_errors, usage_errors
from kogpt.training import TrainingConfig, train


def run(args: argparse.Namespace) -> None:
    names = {field.name for field in dataclasses.fields(TrainingConfig)}
    given = {name: value for name, value in vars(args).items() if name in names}
    given["data"] = tuple(map(Path, args.data))
    given["out"] = Path(args.out)
    given["tokenizer"] = args.tokenizer and Path(args.tokenizer)
    given["device"] = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    with usage_errors():
        config = TrainingConfig(**{k: value for k, value in given.items() if value is not None})
    with memory_errors():
        train(config)
