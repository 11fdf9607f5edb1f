"""The vocabulary as bytes: which ids have a piece, and which ids would complete a text."""

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from weakref import WeakKeyDictionary

from kogpt.tokenizer import Tokenizer


class Vocabulary:
    """The bytes that each id adds to a text.

    Attributes:
        pieces: bytes by id, empty for special ids, None for ids without a piece.
    """

    def __init__(self, pieces: Sequence[bytes | None]) -> None:
        self.pieces = pieces
        self._sorted = sorted((piece, id) for id, piece in enumerate(pieces) if piece)

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Vocabulary":
        """The vocabulary of a tokenizer, made once for each."""
        if tokenizer not in _KNOWN:
            _KNOWN[tokenizer] = cls(
                [_bytes_of(tokenizer, id) for id in range(tokenizer.vocab_size)]
            )
        return _KNOWN[tokenizer]

    def without_piece(self, vocab_size: int) -> list[int]:
        """Those of `vocab_size` ids that stand for nothing: a model may have rows to spare."""
        holes = [id for id, piece in enumerate(self.pieces) if piece is None]
        return holes + list(range(len(self.pieces), vocab_size))

    def starting_with(self, prefix: bytes) -> list[int]:
        """Ids whose bytes begin with `prefix`."""
        first = bisect_left(self._sorted, (prefix, 0))
        ids = []
        for piece, id in self._sorted[first:]:
            if not piece.startswith(prefix):
                break
            ids.append(id)
        return ids

    def containing(self, words: Iterable[bytes]) -> list[int]:
        """Ids whose bytes hold one of `words` whole."""
        any_word = re.compile(b"|".join(map(re.escape, words)))
        return [id for piece, id in self._sorted if any_word.search(piece)]


_KNOWN: WeakKeyDictionary[Tokenizer, Vocabulary] = WeakKeyDictionary()


class BannedWords:
    """Which ids would complete a banned word, given the text so far.

    A word is complete once its last byte is there, in whatever tokens its bytes arrive: whole in
    one, or a beginning in the text so far and the rest at the start of the next token. Valid
    UTF-8 never matches in the middle of a character, so bytes are as good as characters.

    Attributes:
        always: ids that hold a banned word whole.
    """

    def __init__(self, words: Sequence[str], vocabulary: Vocabulary) -> None:
        encoded = [word.encode() for word in words]
        self.pieces = vocabulary.pieces
        self.always = vocabulary.containing(encoded)
        self._after: dict[bytes, list[int]] = {}
        for word in encoded:
            for cut in range(1, len(word)):
                if ids := vocabulary.starting_with(word[cut:]):
                    self._after.setdefault(word[:cut], []).extend(ids)
        self._reach = max(map(len, self._after), default=0)

    def completing(self, ids: Sequence[int]) -> set[int]:
        """Ids that would complete a word after the text of `ids`, those in `always` aside."""
        tail = self._tail(ids)
        endings = (tail[start:] for start in range(len(tail)))
        return {id for ending in endings for id in self._after.get(ending, ())}

    def _tail(self, ids: Sequence[int]) -> bytes:
        """The last bytes of the text, as many as the beginning of a word can be long."""
        tail = b""
        for id in reversed(ids):
            if len(tail) >= self._reach:
                break
            if id < len(self.pieces):
                tail = (self.pieces[id] or b"") + tail
        return tail[max(0, len(tail) - self._reach) :]


def _bytes_of(tokenizer: Tokenizer, id: int) -> bytes | None:
    try:
        return tokenizer.token_bytes(id)
    except ValueError:
        return None
