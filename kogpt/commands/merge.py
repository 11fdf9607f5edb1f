"""`kogpt merge`: fold adapters into a checkpoint."""

import argparse

from kogpt.adapters import merge_checkpoint
from kogpt.commands.common import print_report


def run(args: argparse.Namespace) -> None:
    report = merge_checkpoint(args.source, args.adapters, args.destination, quiet=args.json)
    print_report(report, args.json)
