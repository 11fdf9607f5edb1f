"""Times a tokenizer on real text.

Loading, encoding and streaming decode, in processor time.

    python scripts/benchmark_tokenizer.py reviews.tsv.xz [--tokenizer DIR]
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from kogpt.box import BOX
from kogpt.cli import exit_code
from kogpt.errors import InputRefusedError
from kogpt.tokenizer import load_tokenizer
from kogpt.training.documents import read_documents


def seconds(action: Callable[[], object], rounds: int = 5) -> float:
    """Median processor time of an action."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        action()
        times.append(time.process_time() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help=".txt or .tsv, or either with .xz")
    parser.add_argument("--column", default="document")
    parser.add_argument("--tokenizer", type=Path, default=BOX, help="folder")
    args = parser.parse_args()

    texts = list(islice(read_documents([args.data], args.column), 50_000))
    if not texts:
        raise InputRefusedError(f"{args.data}: holds no text")
    size = sum(len(text.encode()) for text in texts)
    tokenizer = load_tokenizer(args.tokenizer)
    ids = [id for text in texts for id in tokenizer.encode(text)]

    print(f"load           {seconds(lambda: load_tokenizer(args.tokenizer)) * 1e3:.0f} ms")
    encode = seconds(lambda: [tokenizer.encode(text) for text in texts])
    print(f"encode         {size / encode / 1e6:.1f} MB/s")
    decode = seconds(lambda: tokenizer.decode(ids))
    print(f"stream decode  {decode / len(ids) * 1e6:.2f} us per id")


if __name__ == "__main__":
    sys.exit(exit_code(main, Path(__file__).name))
