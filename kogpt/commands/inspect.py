"""`kogpt inspect`: describe a checkpoint, or the kernels."""

import argparse

from kogpt.architecture import load_architecture
from kogpt.box import BOX
from kogpt.checkpoint import inspect
from kogpt.commands.common import print_report
from kogpt.errors import UsageError
from kogpt.kernels.report import inspect_kernels


def run(args: argparse.Namespace) -> None:
    if args.kernels and args.path is not None:
        raise UsageError(f"argument --kernels: not allowed with a checkpoint: {args.path}")
    if args.kernels and args.architecture is not None:
        raise UsageError("argument --kernels: not allowed with --architecture")
    if args.kernels:
        return print_report(inspect_kernels(), args.json)
    own = load_architecture(args.architecture)
    print_report(inspect(BOX if args.path is None else args.path, own), args.json)
