"""`kogpt lens`: where a model looks and what its layers would write, as a page and a picture."""

import argparse
from pathlib import Path

from kogpt.box import BOX
from kogpt.commands.common import (
    check_file,
    load,
    memory_errors,
    print_report,
    read_text,
    refuse_below,
)
from kogpt.diagnostics.lens import look
from kogpt.diagnostics.lens_page import write_page
from kogpt.diagnostics.lens_picture import draw_picture
from kogpt.notes import say
from kogpt.pictures import require_matplotlib


def run(args: argparse.Namespace) -> None:
    check_values(args)
    text = read_text(args.prompt)
    model, tokenizer = load(args)
    prompt = tokenizer.encode(text, bos=tokenizer.add_bos, normalize=args.normalize)
    with memory_errors():
        lens = look(model, tokenizer, prompt, top=args.top, last=args.last)
    if lens.skipped:
        say(f"the last {len(lens.tokens)} of {len(lens.tokens) + lens.skipped} tokens are shown")
    name = Path(args.model or BOX).resolve().name
    if args.output:
        write_page(lens, Path(args.output), name)
    if args.png:
        draw_picture(lens, Path(args.png), name)
    print_report(lens, args.json)


def check_values(args: argparse.Namespace) -> None:
    """Refuses what can be seen to be wrong before the model is loaded."""
    refuse_below(args, top=1, last=1)
    for option, kind in (("output", ".html"), ("png", ".png")):
        if (value := getattr(args, option)) is not None:
            check_file(option, Path(value), [kind])
    if args.png:
        require_matplotlib()
