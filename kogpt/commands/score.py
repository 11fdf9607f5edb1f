"""`kogpt score`: how likely the model finds a text, or many."""

import argparse
from collections.abc import Iterable, Iterator
from itertools import islice
from operator import itemgetter
from pathlib import Path

from kogpt.commands.common import load, memory_errors, print_json, read_text, refuse_below
from kogpt.errors import InputRefusedError, UsageError
from kogpt.generation import CorpusScore, Score
from kogpt.generation.scoring import Measures, stream_scores
from kogpt.tokenizer import Tokenizer


def run(args: argparse.Namespace) -> None:
    refuse_wrong_use(args)
    names, texts = zip(*read_texts(args), strict=True)
    model, tokenizer = load(args, fast=not args.reference)
    with memory_errors():
        how = {"normalize": args.normalize, "names": names, "stride": args.stride}
        scores = stream_scores(model, tokenizer, texts, **how)
        corpus = CorpusScore.of(shown(scores, texts, tokenizer, args))
    if args.data or args.text == "-":
        if args.json:
            print_json(corpus.to_dict())
        else:
            print(describe(corpus), f"[all {corpus.num_texts} texts]", sep="\t")


def shown(
    scores: Iterable[Score], texts: Iterable[str], tokenizer: Tokenizer, args: argparse.Namespace
) -> Iterator[Score]:
    """Prints each score as it comes, and passes it on."""
    for text, result in zip(texts, scores, strict=True):
        if args.json:
            pieces = [tokenizer.id_to_piece(id) for id in result.token_ids]
            print_json({"text": text, **result.to_dict(), "pieces": pieces})
        else:
            print(describe(result), text, sep="\t", flush=True)
        yield result


def refuse_wrong_use(args: argparse.Namespace) -> None:
    if (args.text is None) == (args.data is None):
        raise UsageError("give either TEXT or --data")
    if args.data is None and (args.column is not None or args.limit is not None):
        raise UsageError("arguments --column and --limit: only with --data")
    refuse_below(args, limit=1)


def read_texts(args: argparse.Namespace) -> list[tuple[str, str]]:
    """The texts asked for, each with what an error calls it; no empty lines and rows."""
    if args.data:
        texts = list(islice(filter(itemgetter(1), read_rows(args)), args.limit))
    elif args.text == "-":
        lines = enumerate(read_text("-").split("\n"), start=1)
        named = ((f"line {number}", line.removesuffix("\r")) for number, line in lines)
        texts = list(filter(itemgetter(1), named))
    else:
        return [("the text", args.text)]
    if not texts:
        source = "standard input holds" if args.text == "-" else "the files of --data hold"
        raise InputRefusedError(f"{source} no text to score")
    return texts


def read_rows(args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """All rows of the files of `--data`, empty ones too, by file and number."""
    from kogpt.training.documents import COLUMN, read_documents

    for path in map(Path, args.data):
        rows = read_documents([path], args.column or COLUMN)
        yield from ((f"{path}: row {number}", row) for number, row in enumerate(rows, start=1))


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
