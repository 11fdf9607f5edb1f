"""`kogpt inspect`: describe a checkpoint."""

import argparse

from kogpt.box import BOX
from kogpt.checkpoint import inspect
from kogpt.commands.common import print_report


def run(args: argparse.Namespace) -> None:
    print_report(inspect(args.path or BOX), args.json)
