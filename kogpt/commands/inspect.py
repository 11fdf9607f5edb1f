"""`kogpt inspect`: describe a checkpoint, or the kernels."""

import argparse

from kogpt.architecture import load_architecture
from kogpt.box import BOX
from kogpt.checkpoint import inspect
from kogpt.cli import UsageError
from kogpt.commands.common import print_report
from kogpt.kernels.report import inspect_kernels


def run(args: argparse.Namespace) -> None:
    if args.kernels and args.path:
        raise UsageError(f"argument --kernels: not allowed with a checkpoint: {args.path}")
    if args.kernels:
        return print_report(inspect_kernels(), args.json)
    own = load_architecture(args.architecture) if args.architecture else None
    print_report(inspect(args.path or BOX, own), args.json)
