"""`kogpt convert`: turn a released checkpoint into a safe folder."""

import argparse

from kogpt.checkpoint import ConversionOptions, convert
from kogpt.commands.common import parse_size, print_report, usage_errors
from kogpt.model.variants import find_config


def run(args: argparse.Namespace) -> None:
    with usage_errors():
        options = ConversionOptions(
            dtype=args.dtype,
            max_shard_size=parse_size(args.max_shard_size, "--max-shard-size"),
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
