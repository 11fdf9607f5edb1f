"""`kogpt convert`: turn a released checkpoint into a safe folder."""

import argparse
import re

from kogpt.checkpoint import ConversionOptions, convert
from kogpt.cli import UsageError
from kogpt.commands.common import print_report, usage_errors
from kogpt.model.variants import find_config

UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def run(args: argparse.Namespace) -> None:
    with usage_errors():
        options = ConversionOptions(
            dtype=args.dtype,
            max_shard_size=parse_size(args.max_shard_size),
            on_overflow=args.on_overflow,
            allow_nonfinite=tuple(args.allow_nonfinite or ()),
            allow_extra=tuple(args.allow_extra or ()),
            license_notice=args.license_notice,
            config=find_config(args.config) if args.config else None,
            quantize=args.quantize,
            group_size=args.group_size,
            zero_points=args.zero_points,
            dry_run=args.dry_run,
            quiet=args.json,
        )
    print_report(convert(args.source, args.destination, options), args.json)


def parse_size(text: str) -> int:
    """Bytes of a size such as `500MB` or `5GiB`."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)\s*([kmg]?i?b?)", text.strip().lower())
    unit = match and UNITS.get(match[2])
    if not match or not unit:
        raise UsageError(f"argument --max-shard-size: {text!r} is no size, such as 500MB or 5GB")
    return int(float(match[1]) * unit)
