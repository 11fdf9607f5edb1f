"""`kogpt diff`: what tells two models apart, by headers alone."""

import argparse

from kogpt.architecture import load_architecture
from kogpt.commands.common import print_report
from kogpt.diagnostics.diff import compare, find_model
from kogpt.errors import InputRefusedError
from kogpt.model.variants import CLASSES


def run(args: argparse.Namespace) -> None:
    own = load_architecture(args.architecture)
    second = find_model(args.second, own)
    try:
        first = find_model(args.first)
    except InputRefusedError:
        if second.settings.get("model_type") in CLASSES:
            raise
        first = find_model(args.first, own)  # whose `model_type` is of no class here
    print_report(compare(first, second), args.json)
