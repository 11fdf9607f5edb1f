"""Bits per UTF-8 byte on the held-out reviews: a model, xz and 5-gram models, as a table.

Everybody codes the same documents and where each of them ends: the models by the id of the end,
xz by a newline. The bytes that are counted are those of the documents alone.

    python scripts/evaluate_nano.py data/nsmc/reviews.tsv.xz
"""

import argparse
import lzma
import math
import platform
import sys
from pathlib import Path

import numpy as np
import torch
from baseline_ngram import UNKNOWN, NGramModel

from kogpt.box import BOX
from kogpt.checkpoint import load_model
from kogpt.cli import exit_code
from kogpt.tokenizer import load_tokenizer, normalize_text
from kogpt.training.data import EncodedDocuments, encode_documents
from kogpt.training.documents import is_held_out, read_documents
from kogpt.training.loss import score_documents

CODE_POINTS = 1_112_064  # what Unicode has, surrogates left out
XZ_WINDOW = 1 << 28  # bytes; more than the training text


def main() -> None:
    args = parse_arguments()
    rows = read_documents([args.data], args.column)
    documents = [normalize_text(text, "auto") for text in rows]  # as everybody shall read them
    tokenizer = load_tokenizer(args.model)
    encoded = encode_documents(documents, tokenizer)
    numbered = [row for row in enumerate(documents) if row[1].strip()]
    training = [text for index, text in numbered if not is_held_out(index)]
    held_out = [text for index, text in numbered if is_held_out(index)]
    size = sum(len(text.encode()) for text in held_out)
    print(f"{len(training):,} training documents; {len(held_out):,} held out, {size:,} bytes")
    print(f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}")
    print("\n| | bits per UTF-8 byte |\n|---|---:|")

    def row(name: str, bits: float) -> None:
        print(f"| {name} | {bits / size:.4f} |", flush=True)

    model = load_model(args.model)
    score = score_documents(model, encoded[1])
    assert score.text_bytes == size
    row(
        f"{args.model.name}, {model.config.num_parameters:,} parameters", score.bits_per_byte * size
    )
    if args.skip_baselines:
        return
    alone, given = xz_bits(training, held_out)
    row("xz -9e", alone)
    row("xz -9e, the training text before it", given)
    for unit, bits in (("bytes", byte_bits), ("characters", character_bits)):
        row(f"5-gram of {unit}", bits(training, held_out))
    row("5-gram of the model's pieces", piece_bits(*encoded, tokenizer.vocab_size))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help=".txt or .tsv, or either with .xz")
    parser.add_argument("--column", default="document")
    parser.add_argument("--model", type=Path, default=BOX, help="checkpoint folder")
    parser.add_argument("--skip-baselines", action="store_true", help="the model alone")
    return parser.parse_args()


def xz_bits(training: list[str], held_out: list[str]) -> tuple[int, int]:
    """Bits of the held-out text alone, and of what it adds to the compressed training text."""
    before, text = ("".join(f"{line}\n" for line in part).encode() for part in (training, held_out))
    together = xz_size(before + text) - xz_size(before)
    return 8 * xz_size(text), 8 * together


def xz_size(data: bytes) -> int:
    """Bytes after `xz -9e`, with a window that reaches back over all of the data."""
    lzma2 = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": XZ_WINDOW}
    return len(lzma.compress(data, filters=[lzma2]))


def byte_bits(training: list[str], held_out: list[str]) -> float:
    """Bits a 5-gram of bytes needs."""
    before, text = (
        [np.frombuffer(line.encode(), np.uint8).astype(np.int64) + 3 for line in part]
        for part in (training, held_out)
    )
    return NGramModel(before, 256 + 3).bits(text)


def character_bits(training: list[str], held_out: list[str]) -> float:
    """Bits a 5-gram of characters needs; one never seen costs its code point besides."""
    number = {char: i for i, char in enumerate(sorted(set().union(*training)), start=3)}
    before, text = (
        [np.array([number.get(char, UNKNOWN) for char in line]) for line in part]
        for part in (training, held_out)
    )
    unknown = sum(np.count_nonzero(line == UNKNOWN) for line in text)
    return NGramModel(before, len(number) + 3).bits(text) + unknown * math.log2(CODE_POINTS)


def piece_bits(training: EncodedDocuments, held_out: EncodedDocuments, pieces: int) -> float:
    """Bits a 5-gram of a tokenizer's pieces needs."""
    before, text = (
        [part[i][1:-1].astype(np.int64) + 3 for i in range(len(part))]
        for part in (training, held_out)
    )
    return NGramModel(before, pieces + 3).bits(text)


if __name__ == "__main__":
    sys.exit(exit_code(main, Path(__file__).name))
