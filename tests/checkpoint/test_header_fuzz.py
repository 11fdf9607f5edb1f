"""A million damaged safetensors headers: refused in kind, or accepted and equal."""

import gc
import json
import random
import resource
import time

import pytest
import torch

from kogpt.checkpoint.safetensors_file import (
    MAX_HEADER,
    SafetensorsFile,
    encode_header,
    parse_header,
)
from kogpt.errors import InputRefusedError
from tests.scale import scaled

TENSORS = [
    ("transformer.wte.weight", torch.float16, (5, 4)),
    ("transformer.h.0.ln_1.bias", torch.float32, (4,)),
    ("lm_head.bias", torch.bfloat16, (5,)),
    ("masked_bias", torch.float32, ()),
]
GOOD = encode_header(TENSORS, {"format": "pt"})[8:].rstrip()
DATA_SIZE = 40 + 16 + 10 + 4
TABLE = json.loads(GOOD)


def flip_bits(chance: random.Random) -> bytes:
    data = bytearray(GOOD)
    for _ in range(chance.randint(1, 4)):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def cut_or_repeat(chance: random.Random) -> bytes:
    at, to = sorted(chance.randrange(len(GOOD) + 1) for _ in range(2))
    return chance.choice([GOOD[:at], GOOD[:at] + GOOD[to:], GOOD[:to] + GOOD[at:], GOOD[at:]])


def swap_token(chance: random.Random) -> bytes:
    tokens = [b"[", b"]", b"{", b"}", b",", b":", b'"', b"0", b"-1", b"1e9", b"null", b"NaN"]
    tokens += [b"true", b"\xff", b"\\u0000", b"\\ud800", b"9" * 30, b"[" * 5000, b'{"a":' * 3000]
    at = chance.randrange(len(GOOD))
    return GOOD[:at] + chance.choice(tokens) + GOOD[at + chance.randint(0, 3) :]


def change_entry(chance: random.Random) -> bytes:
    table = json.loads(GOOD)
    entry = table[chance.choice(TENSORS)[0]]
    sizes = [0, 1, -1, 2**31, 2**63, 2**64, 10**30, 1.5, "4", None, True, [], {}]
    change = chance.randrange(5)
    if change == 0:
        entry["dtype"] = chance.choice(["F16", "F8", "", "F32 ", "I128", None, 3, ["F16"], "U8"])
    elif change == 1:
        entry["shape"] = [chance.choice([*sizes, 4, 5]) for _ in range(chance.randint(0, 20))]
    elif change == 2:
        entry["data_offsets"][chance.randrange(2)] = chance.choice([*sizes, 40, 56, 66, 70])
    elif change == 3:
        entry[chance.choice(["dtype", "shape", "data_offsets", "extra"])] = chance.choice(sizes)
    else:
        table[chance.choice(["x", "", "../x", "a" * 999, "__metadata__"])] = chance.choice(
            [entry, {}, {"a": 1}, sizes[0], [entry]]
        )
    return json.dumps(table).encode()


def name_twice(chance: random.Random) -> bytes:
    name, entry = chance.choice(list(TABLE.items()))
    pair = json.dumps({name: chance.choice([entry, {}])}).encode()[1:-1]
    return GOOD[:-1] + b"," + pair + b"}"


MUTATIONS = (flip_bits, cut_or_repeat, swap_token, change_entry, name_twice)


def test_a_mutated_header_is_refused_in_kind_or_means_the_same():
    chance = random.Random(0)
    good = parse_header(GOOD, DATA_SIZE, "file")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused, slowest = 0, 0.0
    gc.freeze()  # a collection would walk the whole session and be timed as a slow header
    for i in range(scaled(20_000, 1_000_000)):
        raw = MUTATIONS[i % len(MUTATIONS)](chance)
        start = time.thread_time()
        try:
            header = parse_header(raw, DATA_SIZE, "file")
        except InputRefusedError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 400
        else:
            # Names and free text may differ; a table that passes describes the whole data.
            sizes = [(e.begin, e.end) for e in header.entries.values()]
            assert sizes[0][0] == 0 and sizes[-1][1] == DATA_SIZE
            assert all(a[1] == b[0] for a, b in zip(sizes, sizes[1:], strict=False))
            assert len(header.entries) >= len(good.entries) or raw != GOOD
        slowest = max(slowest, time.thread_time() - start)
    gc.unfreeze()
    assert refused > 0.8 * scaled(20_000, 1_000_000)
    assert slowest < 0.05
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 << 10  # in kB


def test_every_name_given_twice_is_refused():
    chance = random.Random(1)
    for _ in range(200):
        with pytest.raises(InputRefusedError, match="appears twice"):
            parse_header(name_twice(chance), DATA_SIZE, "file")


@pytest.mark.parametrize(
    "length", [0, 1, 7, 2**31, 2**63, 2**64 - 1, MAX_HEADER + 1, len(GOOD) - 1, len(GOOD) + 1]
)
def test_a_false_length_is_refused_unread(tmp_path, length):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(length.to_bytes(8, "little") + GOOD + bytes(DATA_SIZE))
        file.truncate(1 << 30 if length > len(GOOD) + 1 else file.tell())
    with pytest.raises(InputRefusedError, match="model.safetensors"):
        SafetensorsFile(path)


def test_the_good_header_is_accepted_and_read_by_the_library(tmp_path):
    from safetensors import safe_open

    path = tmp_path / "model.safetensors"
    path.write_bytes(encode_header(TENSORS, {"format": "pt"}) + bytes(range(DATA_SIZE)))
    ours = SafetensorsFile(path)
    with safe_open(path, "pt") as theirs:
        assert set(theirs.keys()) == set(ours.tensors)
        for name in theirs.keys():
            assert torch.equal(
                theirs.get_tensor(name).view(-1).view(torch.uint8),
                ours.read(name).view(-1).view(torch.uint8),
            )
    ours.close()


def test_a_file_cut_while_open_is_noticed(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(encode_header(TENSORS, {}) + bytes(DATA_SIZE))
    file = SafetensorsFile(path)
    with path.open("r+b") as writer:
        writer.truncate(path.stat().st_size - 6)
    with pytest.raises(InputRefusedError, match="masked_bias ends early"):
        file.read("masked_bias")
    file.close()
