"""`kogpt inspect`: describe a checkpoint, or the kernels."""

import argparse

from kogpt.box import BOX
from kogpt.checkpoint import inspect
from kogpt.cli import UsageError
from kogpt.commands.common import print_report
from kogpt.kernels.report import inspect_kernels


def run(args: argparse.Namespace) -> None:
    if args.kernels and args.path:
        raise UsageError(f"argument --kernels: not allowed with a checkpoint: {args.path}")
    print_report(inspect_kernels() if args.kernels else inspect(args.path or BOX), args.json)
