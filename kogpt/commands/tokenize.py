"""`kogpt tokenize`: the tokens of a text, or the text of ids."""

import argparse

from kogpt.commands.common import is_number, print_json, read_text
from kogpt.errors import UsageError
from kogpt.tokenizer import Tokenizer, load_tokenizer


def run(args: argparse.Namespace) -> None:
    if args.decode and (args.special or args.normalize != "auto"):
        raise UsageError("arguments --special and --normalize: not with --decode")
    tokenizer = load_tokenizer(args.model)
    text = read_text(args.text)
    if args.decode:
        show_text(tokenizer, parse_ids(text), args.json)
    else:
        ids = tokenizer.encode(text, allow_special=args.special, normalize=args.normalize)
        show_tokens(tokenizer, ids, args.json)


def parse_ids(text: str) -> list[int]:
    """Ids written in decimal, between spaces or commas, in brackets or not."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    words = text.replace(",", " ").split()
    for word in words:
        if not is_number(word):
            raise UsageError(f"argument TEXT: {word[:50]!r} is not a token id")
    return [int(word) for word in words]


def show_text(tokenizer: Tokenizer, ids: list[int], as_json: bool) -> None:
    text = tokenizer.decode(ids, skip_special=False)
    if as_json:
        print_json({"ids": ids, "text": text})
    else:
        print(text)


def show_tokens(tokenizer: Tokenizer, ids: list[int], as_json: bool) -> None:
    pieces = [tokenizer.id_to_piece(id) for id in ids]
    if as_json:
        print_json({"ids": ids, "pieces": pieces})
    else:
        for id, piece in zip(ids, pieces, strict=True):
            print(f"{id}\t{piece}")
