"""Two independent libraries agree on the vocabulary of the box: sentencepiece and `tokenizers`.

sentencepiece merges any two neighbours whose union is a piece, `tokenizers` merges listed pairs;
listing every such pair in the order of the scores makes the same tokenizer. Two kinds of text are
left out: U+2581, which we keep apart from a space, and special pieces, which `tokenizers` matches.
`KOGPT_TEST_SCALE=full` compares 100,000 reviews and 300,000 random strings.
"""

import random

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers

from kogpt.tokenizer.spm import SPACE
from tests.scale import scaled
from tests.tokenizer.conftest import SENTENCES, SYLLABLES, Backend, reviews


def listed_merges(library: sentencepiece.SentencePieceProcessor) -> list[tuple[str, str]]:
    """All pairs of pieces that join to a piece, best score first."""
    first_learnt = library.piece_to_id("<0xFF>") + 1
    pieces = {library.id_to_piece(id): id for id in range(first_learnt, library.vocab_size())}
    pairs = [
        (-library.get_score(id), piece[:cut], piece[cut:])
        for piece, id in pieces.items()
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]
    return [(left, right) for _, left, right in sorted(pairs)]


@pytest.fixture(scope="module")
def reference(nano: Backend) -> tokenizers.Tokenizer:
    library = nano.library
    vocab = {library.id_to_piece(id): id for id in range(library.vocab_size())}
    model = models.BPE(vocab, listed_merges(library), unk_token="[UNK]", byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return backend


def compare(nano: Backend, reference: tokenizers.Tokenizer, text: str) -> None:
    ids = nano.tokenizer.encode(text, normalize="none")
    assert ids == reference.encode(text).ids
    assert nano.tokenizer.decode(ids) == reference.decode(ids) == text


def test_sentences_and_syllables_get_the_same_ids(
    nano: Backend, reference: tokenizers.Tokenizer
) -> None:
    generator = random.Random(0)
    for syllable in SYLLABLES:
        compare(nano, reference, syllable)
        compare(nano, reference, syllable + generator.choice(SYLLABLES))
    for text in SENTENCES:
        compare(nano, reference, text)


def test_reviews_get_the_same_ids(nano: Backend, reference: tokenizers.Tokenizer) -> None:
    for review in reviews(scaled(1_000, 100_000)):
        compare(nano, reference, review)


def test_random_strings_get_the_same_ids(nano: Backend, reference: tokenizers.Tokenizer) -> None:
    generator = random.Random(1)
    pieces = [nano.tokenizer.id_to_piece(id) for id in range(260, 8000)]
    alphabets = [SYLLABLES, list(" ㅋㅠ.!?"), list("0Aa\n\t\x00é漢😤"), pieces]
    for _ in range(scaled(3_000, 300_000)):
        letters = [generator.choice(generator.choice(alphabets)) for _ in range(8)]
        compare(nano, reference, "".join(letters).replace(SPACE, " "))
