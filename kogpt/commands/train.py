"""`kogpt train`: train on the next token."""

import argparse

from kogpt.commands.common import memory_errors, run_settings
from kogpt.training import TrainingConfig, train


def run(args: argparse.Namespace) -> None:
    config = TrainingConfig(**run_settings(args, TrainingConfig))
    with memory_errors():
        train(config)
