"""`kogpt score`: how likely the model finds a text."""

import argparse
import dataclasses

from kogpt.commands.common import load, memory_errors, print_json, read_text
from kogpt.errors import InputRefusedError
from kogpt.generation import Score, score
from kogpt.tokenizer import Tokenizer, normalize_text


def run(args: argparse.Namespace) -> None:
    text = read_text(args.text)
    lines = [line for line in text.splitlines() if line] if args.text == "-" else [text]
    if not lines:
        raise InputRefusedError("standard input holds no text to score")
    model, tokenizer = load(args)
    texts = [normalize_text(line, args.normalize) for line in lines]
    with memory_errors():
        for line, result in zip(lines, score(model, tokenizer, texts), strict=True):
            show(line, result, tokenizer, args.json)


def show(text: str, result: Score, tokenizer: Tokenizer, as_json: bool) -> None:
    if as_json:
        pieces = [tokenizer.id_to_piece(id) for id in result.token_ids]
        print_json({"text": text, **dataclasses.asdict(result), "pieces": pieces})
        return
    print(
        f"{result.bits_per_byte:.3f} bits/byte\tperplexity {result.perplexity:.2f}\t"
        f"{result.num_tokens} tokens\t{text}"
    )
