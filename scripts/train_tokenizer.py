"""Trains a vocabulary on texts, as that of the model in the box was.

    python scripts/train_tokenizer.py reviews.tsv.xz kogpt/nano --column document --vocab-size 8000

The rows that `kogpt train` holds out are held out here too: every row whose index, counted from 0
without the header, is divisible by 100 (`kogpt.training.documents.is_held_out`).
"""

import argparse
import sys
from pathlib import Path

from kogpt.cli import exit_code
from kogpt.tokenizer import load_tokenizer, train_sentencepiece
from kogpt.training.documents import is_held_out, read_documents


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help=".txt or .tsv, or either with .xz")
    parser.add_argument("out", type=Path, help="folder for tokenizer.model and its companions")
    parser.add_argument("--column", default="document")
    parser.add_argument("--vocab-size", type=int, default=8000)
    args = parser.parse_args()

    rows = enumerate(read_documents([args.data], args.column))
    texts = [text for index, text in rows if not is_held_out(index)]
    train_sentencepiece(texts, args.out, args.vocab_size)

    tokenizer = load_tokenizer(args.out)
    tokens = sum(len(tokenizer.encode(text)) for text in texts)
    size = sum(len(text.encode()) for text in texts)
    print(f"{tokenizer.vocab_size} pieces, {tokens} tokens, {tokens / size:.4f} tokens per byte")


if __name__ == "__main__":
    sys.exit(exit_code(main, Path(__file__).name))
