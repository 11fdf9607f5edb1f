"""`kogpt score`: how likely the model finds a text, or many."""

import argparse
from itertools import islice
from pathlib import Path

from kogpt.cli import UsageError
from kogpt.commands.common import load, memory_errors, print_json, read_text
from kogpt.errors import InputRefusedError
from kogpt.generation import score, total
from kogpt.generation.scoring import Measures


def run(args: argparse.Namespace) -> None:
    refuse_wrong_use(args)
    texts = read_texts(args)
    model, tokenizer = load(args)
    with memory_errors():
        scores = score(model, tokenizer, texts, normalize=args.normalize)
    for text, result in zip(texts, scores, strict=True):
        if args.json:
            pieces = [tokenizer.id_to_piece(id) for id in result.token_ids]
            print_json({"text": text, **result.to_dict(), "pieces": pieces})
        else:
            print(describe(result), text, sep="\t")
    if args.data or args.text == "-":
        corpus = total(scores)
        if args.json:
            print_json(corpus.to_dict())
        else:
            print(describe(corpus), f"[all {corpus.num_texts} texts]", sep="\t")


def refuse_wrong_use(args: argparse.Namespace) -> None:
    if (args.text is None) == (args.data is None):
        raise UsageError("give either TEXT or --data")
    if args.data is None and (args.column is not None or args.limit is not None):
        raise UsageError("arguments --column and --limit: only with --data")
    if args.limit is not None and args.limit < 1:
        raise UsageError(f"argument --limit: must be at least 1, not {args.limit}")


def read_texts(args: argparse.Namespace) -> list[str]:
    """The texts asked for; of lines and rows, those that are not empty."""
    if args.data:
        from kogpt.training.documents import COLUMN, read_documents

        rows = read_documents(map(Path, args.data), args.column or COLUMN)
        texts = list(islice(filter(None, rows), args.limit))
    elif args.text == "-":
        rows = (line.removesuffix("\r") for line in read_text("-").split("\n"))
        texts = list(filter(None, rows))
    else:
        return [args.text]
    if not texts:
        source = "standard input holds" if args.text == "-" else "the files of --data hold"
        raise InputRefusedError(f"{source} no text to score")
    return texts


def describe(result: Measures) -> str:
    """Bits, then tokens, each with what it is over."""
    bits = (
        f"{_shown(result.bits_per_byte, 3)} bits/byte",
        f"{_shown(result.bits_per_syllable)}/syllable",
        f"{_shown(result.bits_per_eojeol)}/eojeol",
    )
    tokens = (
        f"{result.num_tokens} tokens",
        f"{_shown(result.tokens_per_syllable)}/syllable",
        f"{_shown(result.tokens_per_eojeol)}/eojeol",
        f"{result.byte_fallback_share:.1%} broken",
    )
    return f"{', '.join(bits)}\tperplexity {result.perplexity:.2f}\t{', '.join(tokens)}"


def _shown(ratio: float | None, digits: int = 2) -> str:
    return "-" if ratio is None else f"{ratio:.{digits}f}"
