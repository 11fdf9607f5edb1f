"""`kogpt merge`: fold adapters into a checkpoint."""

import argparse

from kogpt.adapters import merge_checkpoint
from kogpt.architecture import load_architecture
from kogpt.commands.common import print_report


def run(args: argparse.Namespace) -> None:
    own = load_architecture(args.architecture)
    report = merge_checkpoint(
        args.source, args.adapters, args.destination, model_class=own, quiet=args.json
    )
    print_report(report, args.json)
