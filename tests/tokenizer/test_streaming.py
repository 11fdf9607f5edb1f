"""Streaming decode: the pieces join to decode(ids), which is the library's text; nothing is late.

`KOGPT_TEST_SCALE=full` runs 100,000 random sequences and 10,000 reviews for each tokenizer.
"""

import random
import time
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kogpt.tokenizer import Tokenizer
from tests.scale import scaled
from tests.tokenizer.conftest import SYLLABLES, Backend, reviews


def streamed(tokenizer: Tokenizer, ids: Sequence[int], skip_special: bool = True) -> str:
    decoder = tokenizer.stream_decoder(skip_special=skip_special)
    return "".join([decoder.push(id) for id in ids]) + decoder.flush()


def single_bytes(tokenizer: Tokenizer) -> dict[bytes, int]:
    """Ids that bring one byte: what can break a character."""
    pieces = {tokenizer.token_bytes(id): id for id in range(tokenizer.vocab_size)}
    return {data: id for data, id in pieces.items() if len(data) == 1}


def random_sequences(tokenizer: Tokenizer, count: int, seed: int = 0) -> Iterator[list[int]]:
    """Sequences of up to 40 ids: any, single bytes, special ones and words after a space, in
    varying shares."""
    generator = random.Random(seed)
    ids = range(tokenizer.vocab_size)
    pools = [
        list(ids),
        list(single_bytes(tokenizer).values()),
        sorted(tokenizer.special_ids),
        [id for id in ids if tokenizer.token_bytes(id).startswith(b" ")],
    ]
    for _ in range(count):
        shares = [generator.random() ** 2 for _ in pools]
        length = generator.randrange(41)
        yield [generator.choice(pool) for pool in generator.choices(pools, shares, k=length)]


def test_random_ids_stream_to_what_the_library_decodes(any_backend: Backend) -> None:
    tokenizer = any_backend.tokenizer
    for ids in random_sequences(tokenizer, scaled(2_000, 100_000)):
        text = any_backend.decode(ids)
        assert streamed(tokenizer, ids) == text, ids
        assert tokenizer.decode(ids) == text, ids


def test_random_ids_cut_at_every_length_lose_nothing(any_backend: Backend) -> None:
    tokenizer = any_backend.tokenizer
    for ids in random_sequences(tokenizer, scaled(100, 1_000), seed=1):
        for length in range(len(ids)):
            assert streamed(tokenizer, ids[:length]) == any_backend.decode(ids[:length])


def test_reviews_come_back_streamed_whole_and_cut(backend: Backend) -> None:
    tokenizer = backend.tokenizer
    for number, review in enumerate(reviews(scaled(500, 10_000))):
        ids = tokenizer.encode(review, normalize="none")
        assert ids == backend.encode(review)
        assert streamed(tokenizer, ids) == backend.decode(ids) == review
        for length in range(len(ids) if number % 10 == 0 else 0):
            assert streamed(tokenizer, ids[:length]) == backend.decode(ids[:length])


def test_a_syllable_appears_with_its_last_byte(backend: Backend) -> None:
    id_of = single_bytes(backend.tokenizer)
    decoder = backend.tokenizer.stream_decoder()
    for syllable in SYLLABLES:
        *first, last = [id_of[bytes([byte])] for byte in syllable.encode()]
        assert [decoder.push(id) for id in first] == ["", ""]
        assert decoder.push(last) == syllable
    assert decoder.flush() == ""


def test_no_more_than_the_beginning_of_one_character_is_held_back(backend: Backend) -> None:
    tokenizer = backend.tokenizer
    for ids in random_sequences(tokenizer, scaled(500, 10_000), seed=2):
        decoder = tokenizer.stream_decoder()
        shown = ""
        for length, id in enumerate(ids, start=1):
            shown += decoder.push(id)
            held_back = tokenizer.decode(ids[:length]).removeprefix(shown)
            assert held_back in ("", "\ufffd", "\ufffd" * 2, "\ufffd" * 3), ids[:length]


def test_the_tail_is_flushed_once(backend: Backend) -> None:
    tokenizer = backend.tokenizer
    id_of = single_bytes(tokenizer)
    decoder = tokenizer.stream_decoder()
    assert decoder.push(id_of[b"\xed"]) == ""
    assert decoder.flush() == tokenizer.decode([id_of[b"\xed"]]) == "\ufffd"
    assert decoder.flush() == ""


def test_special_ids_are_shown_only_when_asked_for(backend: Backend) -> None:
    tokenizer = backend.tokenizer
    ids = tokenizer.encode("좋은 영화", bos=True, eos=True)
    assert tokenizer.decode(ids) == streamed(tokenizer, ids) == "좋은 영화"
    shown = tokenizer.decode(ids, skip_special=False)
    assert shown == streamed(tokenizer, ids, skip_special=False) == "[BOS]좋은 영화[EOS]"


def test_special_ids_shown_equal_the_library(byte_level: Backend) -> None:
    for ids in random_sequences(byte_level.tokenizer, scaled(500, 10_000), seed=3):
        expected = byte_level.library.decode(ids, skip_special_tokens=False)
        assert byte_level.tokenizer.decode(ids, skip_special=False) == expected


@pytest.mark.parametrize("id", [-1, 10**6, 2**40])
def test_an_id_without_a_piece_is_named(backend: Backend, id: int) -> None:
    with pytest.raises(ValueError, match=f"id {id} has no piece"):
        backend.tokenizer.decode([id])
    with pytest.raises(ValueError, match=f"id {id} has no piece"):
        backend.tokenizer.stream_decoder().push(id)


def test_a_push_costs_the_same_after_a_long_text(nano: Backend) -> None:
    ids = nano.tokenizer.encode("처음부터 끝까지 눈을 뗄 수 없었다. 뷁! ") * 5_000

    def seconds(count: int) -> float:
        start = time.process_time()
        streamed(nano.tokenizer, ids[:count])
        return time.process_time() - start

    # Ten times the ids; decoding the whole text with every id would take a hundred times as long.
    assert seconds(50_000) < 30 * min(seconds(5_000) for _ in range(3))


@given(st.data())
def test_any_text_streams_back(backend: Backend, data: st.DataObject) -> None:
    text = data.draw(st.text(st.characters(exclude_categories=["Cs"])))
    ids = backend.tokenizer.encode(text, normalize="none")
    assert streamed(backend.tokenizer, ids) == text
