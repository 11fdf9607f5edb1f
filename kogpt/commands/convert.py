"""`kogpt convert`: turn a released checkpoint into a safe folder."""

import argparse
from pathlib import Path

from kogpt.checkpoint import ConversionOptions, convert
from kogpt.commands.common import parse_size, print_report
from kogpt.errors import KoGPTError
from kogpt.model.variants import find_config
from kogpt.notes import say
from kogpt.tokenizer import load_tokenizer

TEMPLATES = "additional_chat_templates"  # of transformers; a folder, and what is written has none


def run(args: argparse.Namespace) -> None:
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
    report = convert(args.source, args.destination, options)
    print_report(report, args.json)
    source = Path(args.source)
    folder = source if source.is_dir() else source.parent
    tell_of_tokenizer(folder, report.config["vocab_size"])
    if (folder / TEMPLATES).is_dir():
        say(f"note: {folder / TEMPLATES} stays behind: copy it where it is needed")


def tell_of_tokenizer(folder: Path, vocab_size: int) -> None:
    """Says what will keep the result from reading text."""
    try:
        size = load_tokenizer(folder).vocab_size
    except KoGPTError as error:
        reason = str(error)
    else:
        if size <= vocab_size:
            return
        reason = f"the tokenizer has {size} ids, the model {vocab_size}"
    say(f"note: no text can be read with the result: {reason}")
