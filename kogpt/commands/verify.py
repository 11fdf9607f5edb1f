"""`kogpt verify`: check a converted folder against its manifest."""

import argparse

from kogpt.checkpoint import verify
from kogpt.commands.common import print_report


def run(args: argparse.Namespace) -> None:
    print_report(verify(args.path, quiet=args.json), args.json)
