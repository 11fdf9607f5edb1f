"""The order in which training meets its data."""

import unicodedata
from collections import Counter

import numpy as np
import pytest
import torch

from kogpt.errors import InputRefusedError
from kogpt.training.data import PackedSequences, encode_documents
from tests.training.conftest import SENTENCES


@pytest.fixture
def documents(tokenizer):
    texts = [f"{SENTENCES[i % 5]} {i}" for i in range(150)]
    return encode_documents(texts, tokenizer)[0]


def epoch_stream(packed, epoch):
    """All tokens of an epoch that training meets, put together again from its batches."""
    rows = [packed.batch(epoch * packed.per_epoch + i, 1)[0] for i in range(packed.per_epoch)]
    assert all(a[-1] == b[0] for a, b in zip(rows, rows[1:], strict=False))
    return torch.cat([row[:-1] for row in rows] + [rows[-1][-1:]]).tolist()


def test_documents_carry_their_begin_and_end_and_count_their_bytes(tokenizer):
    texts = ["빼고", unicodedata.normalize("NFD", "하나"), "  ", "둘 셋"]
    training, held_out = encode_documents(texts, tokenizer)
    assert [tokenizer.decode(training[i], skip_special=False) for i in range(2)] == [
        "[BOS]하나[EOS]",
        "[BOS]둘 셋[EOS]",
    ]
    assert len(training) == 2 and len(held_out) == 1
    assert training.text_bytes.tolist() == [6, 7]
    assert training.ids.dtype == np.uint16


def test_every_epoch_is_a_new_order_of_the_same_documents(documents, tokenizer):
    packed = PackedSequences(documents, 16, seed=3)
    whole = Counter(tuple(documents[i].tolist()) for i in range(len(documents)))
    streams = [epoch_stream(packed, epoch) for epoch in range(3)]
    assert len({tuple(stream) for stream in streams}) == 3
    for stream in streams:
        ends = [i + 1 for i, id in enumerate(stream) if id == tokenizer.eos_id]
        starts = [0, *ends[:-1]]
        met = Counter(tuple(stream[a:b]) for a, b in zip(starts, ends, strict=True))
        assert not met - whole  # nothing twice, nothing torn
        assert (whole - met).total() <= 2  # what the tail, shorter than a sequence, held


def test_the_order_is_a_function_of_seed_and_step_alone(documents):
    fresh = PackedSequences(documents, 16, seed=3)
    used = PackedSequences(documents, 16, seed=3)
    steps = [0, 5, 400, 7, 150]
    expected = {step: used.batch(step, 4) for step in steps}
    for step in reversed(steps):
        assert torch.equal(fresh.batch(step, 4), expected[step])
    other = PackedSequences(documents, 16, seed=4)
    assert not torch.equal(other.batch(0, 4), expected[0])


def test_a_batch_may_reach_into_the_next_epoch(documents):
    packed = PackedSequences(documents, 16, seed=3)
    last = packed.per_epoch - 1
    both = packed.batch(0, packed.per_epoch + 1)
    assert torch.equal(both[-2:], torch.cat((packed.batch(last, 1), packed.batch(last + 1, 1))))


def test_the_fingerprint_tells_data_apart(tokenizer):
    texts = ["held out", "하나", "둘"]
    same = [encode_documents(texts, tokenizer)[0].fingerprint() for _ in range(2)]
    assert same[0] == same[1]
    assert encode_documents(["", "하나둘"], tokenizer)[0].fingerprint() != same[0]


@pytest.mark.parametrize("texts", [[], ["only a held-out row"], ["", " ", "\t"]])
def test_data_without_a_document_is_refused(tokenizer, texts):
    with pytest.raises(InputRefusedError, match="no document to train on"):
        encode_documents(texts, tokenizer)


def test_data_shorter_than_a_sequence_is_refused_with_both_counts(tokenizer):
    documents, _ = encode_documents(["", "영화"], tokenizer)
    with pytest.raises(
        InputRefusedError, match=rf"{len(documents.ids)} tokens.* one sequence of 64"
    ):
        PackedSequences(documents, 64, seed=0)
