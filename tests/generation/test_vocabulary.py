"""Banned words by bytes, against trying every token."""

import random

import pytest

from kogpt.generation.vocabulary import BannedWords, Vocabulary
from kogpt.tokenizer import Tokenizer
from tests.scale import scaled

WORDS = ["한국", "국어", "한국어 영화", "ㅋㅋ", "a", "aa", "했어요~ 한", "영", "😤"]


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary.of(tokenizer)


def completes(words: list[str], before: bytes, piece: bytes) -> bool:
    """Whether a word ends inside `piece`, said without any cleverness."""
    text = before + piece
    return any(
        text[end - len(word) : end] == word
        for word in (word.encode() for word in words)
        for end in range(len(before) + 1, len(text) + 1)
        if end >= len(word)
    )


def test_exactly_the_ids_that_would_complete_a_word_are_banned(vocabulary):
    random_numbers = random.Random(0)
    pieces = vocabulary.pieces
    for _ in range(scaled(150, 5000)):
        words = random_numbers.sample(WORDS, random_numbers.randint(1, 4))
        banned = BannedWords(words, vocabulary)
        # A text that goes a random way into a word, so that something is about to be completed.
        beginning = random_numbers.choice(words).encode()
        beginning = beginning[: random_numbers.randint(0, len(beginning))]
        ids = [random_numbers.randrange(len(pieces)) for _ in range(random_numbers.randint(0, 3))]
        ids += [pieces.index(bytes([byte])) for byte in beginning]
        before = b"".join(pieces[id] for id in ids)
        expected = {id for id, piece in enumerate(pieces) if completes(words, before, piece)}
        assert banned.completing(ids) | set(banned.always) == expected


def test_special_ids_between_the_bytes_of_a_word_do_not_hide_it(vocabulary, tokenizer):
    banned = BannedWords(["한국"], vocabulary)
    apart = tokenizer.encode("한") + [tokenizer.pad_id] * 50
    assert set(tokenizer.encode("국")) <= banned.completing(apart)


def test_ids_without_a_piece_are_holes_and_rows_to_spare():
    vocabulary = Vocabulary([b"", b"a", None, b"b"])
    assert vocabulary.without_piece(6) == [2, 4, 5]


def test_ids_are_found_by_the_beginning_of_their_bytes():
    vocabulary = Vocabulary([b"", b"ab", b"a", b"b", None, b"abc", b"ab", b"\xff\xff"])
    assert sorted(vocabulary.starting_with(b"ab")) == [1, 5, 6]
    assert vocabulary.starting_with(b"c") == []
    assert vocabulary.starting_with(b"\xff") == [7]


def test_a_vocabulary_is_read_once_for_each_tokenizer(tokenizer):
    assert Vocabulary.of(tokenizer) is Vocabulary.of(tokenizer)


def test_words_that_begin_alike_are_all_banned():
    banned = BannedWords(["ab", "ac"], Vocabulary([b"a", b"b", b"c"]))
    assert banned.completing([0]) == {1, 2}
