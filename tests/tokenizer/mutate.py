"""Child process of test_hostile_files: loads and uses mutations of one tokenizer file.

    python -m tests.tokenizer.mutate FILE SCRATCH_FOLDER COUNT

Prints the number of each mutation before it is tried, so that a crash names its cause, and a JSON
report at the end. An error other than InputRefusedError ends the process with its traceback.
"""

import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kogpt.errors import InputRefusedError
from kogpt.tokenizer import load_tokenizer

TEXT = "재미있는 영화 뷁쉛 😤:) [EOS]  GPT-2\n\x00▁"
ODD_VALUES = [None, True, -1, 0, 2**31, 2**63, 1e400, "", "가", "\x00", [], {}, [[]], {"type": "x"}]


def flip_bytes(data: bytes, generator: random.Random) -> bytes:
    mutated = bytearray(data)
    for _ in range(generator.randrange(1, 4)):
        mutated[generator.randrange(len(mutated))] = generator.randrange(256)
    return bytes(mutated)


def flip_bytes_near_an_end(data: bytes, generator: random.Random) -> bytes:
    """In a tokenizer.model the settings lie at the end, in a tokenizer.json at the beginning."""
    head, tail = data[:-600], data[-600:]
    if generator.random() < 0.5:
        return head + flip_bytes(tail, generator)
    return flip_bytes(data[:3000], generator) + data[3000:]


def cut(data: bytes, generator: random.Random) -> bytes:
    return data[: generator.randrange(len(data))]


def move_a_block(data: bytes, generator: random.Random) -> bytes:
    start, target = sorted(generator.randrange(len(data)) for _ in range(2))
    block = data[start : start + generator.randrange(1, 200)]
    return data[:target] + block + data[target + generator.choice([0, len(block)]) :]


def change_a_value(data: bytes, generator: random.Random) -> bytes:
    """Replaces or removes one value of a JSON file, at any depth."""
    root = node = json.loads(data)
    while True:
        key = generator.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if not isinstance(node[key], dict | list) or not node[key] or generator.random() < 0.2:
            break
        node = node[key]
    if generator.random() < 0.3:
        del node[key]
    else:
        node[key] = generator.choice(ODD_VALUES)
    return json.dumps(root).encode()


def use(directory: Path) -> None:
    """Everything a program does with a tokenizer."""
    tokenizer = load_tokenizer(directory)
    tokenizer.encode(TEXT, allow_special=True)
    tokenizer.decode(tokenizer.encode(TEXT))
    for id in range(min(tokenizer.vocab_size, 10_000)):
        try:
            tokenizer.token_bytes(id)
        except ValueError as error:
            assert "has no piece" in str(error)


def main(original: Path, scratch: Path, count: int) -> None:
    data = original.read_bytes()
    mutations: list[Callable[[bytes, random.Random], bytes]] = [
        flip_bytes,
        flip_bytes_near_an_end,
        cut,
        move_a_block,
    ]
    if original.suffix == ".json":
        mutations += [change_a_value] * 4
    report: dict[str, Any] = {"refused": 0, "accepted": 0, "slowest_s": 0.0}
    for number in range(count):
        print(number, flush=True)
        generator = random.Random(number)
        (scratch / original.name).write_bytes(generator.choice(mutations)(data, generator))
        start = time.perf_counter()
        try:
            use(scratch)
            report["accepted"] += 1
        except InputRefusedError:
            report["refused"] += 1
        report["slowest_s"] = max(report["slowest_s"], time.perf_counter() - start)
    report["peak_mb"] = peak_memory() >> 20
    print(json.dumps(report))


def peak_memory() -> int:
    """Most bytes this program has held; what getrusage tells begins with its parent's peak."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
