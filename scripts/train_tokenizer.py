"""Trains the vocabulary of the model in the box.

    python scripts/train_tokenizer.py reviews.tsv.xz kogpt/nano --column document --vocab-size 8000

Rows are counted from 0, the header not among them. Row i is held out, from the vocabulary as from
the training of the model, if i is divisible by 100.
"""

import argparse
import lzma
from collections.abc import Iterator
from pathlib import Path

from kogpt.tokenizer import load_tokenizer
from kogpt.tokenizer.training import train_sentencepiece

HOLD_OUT_EVERY = 100


def training_rows(path: Path, column: str) -> Iterator[str]:
    """The texts of one column of a .tsv.xz file, without the rows that are held out."""
    with lzma.open(path, "rt", encoding="utf-8", newline="\n") as lines:
        index = next(lines).rstrip("\n").split("\t").index(column)
        for row, line in enumerate(lines):
            if row % HOLD_OUT_EVERY:
                yield line.rstrip("\n").split("\t")[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("reviews", type=Path, help="a .tsv.xz file with a header line")
    parser.add_argument("out", type=Path, help="folder for tokenizer.model and its companions")
    parser.add_argument("--column", default="document")
    parser.add_argument("--vocab-size", type=int, default=8000)
    args = parser.parse_args()

    train_sentencepiece(training_rows(args.reviews, args.column), args.out, args.vocab_size)

    tokenizer = load_tokenizer(args.out)
    tokens = size = 0
    for text in training_rows(args.reviews, args.column):
        tokens += len(tokenizer.encode(text))
        size += len(text.encode())
    print(f"{tokenizer.vocab_size} pieces, {tokens} tokens, {tokens / size:.4f} tokens per byte")


if __name__ == "__main__":
    main()
