"""`kogpt diff`: what tells two models apart, by headers alone."""

import argparse

from kogpt.architecture import load_architecture
from kogpt.commands.common import print_report
from kogpt.diagnostics.diff import compare, find_model


def run(args: argparse.Namespace) -> None:
    own = load_architecture(args.architecture)
    print_report(compare(find_model(args.first), find_model(args.second, own)), args.json)
