"""Ids to text, one by one, without ever showing half a syllable."""

import codecs
from collections.abc import Callable


class StreamDecoder:
    """Decodes the bytes of ids as they come.

    For every sequence of ids the pieces of `push` and the last one of `flush` join to exactly what
    `Tokenizer.decode` returns (which is written as just that). A character appears with the push
    that brings its last byte, and bytes that cannot become a character any more appear as U+FFFD.
    A push costs the same however long the text has grown.

    Args:
        token_bytes: Gives the bytes of an id; raises ValueError for an id without a piece.
        errors: How bytes that are not UTF-8 are replaced, a name known to `codecs`. "replace"
            writes one U+FFFD for each longest beginning of a character (Unicode 15.0, section 3.9,
            "U+FFFD Substitution of Maximal Subparts"), as browsers and Rust do.
    """

    def __init__(self, token_bytes: Callable[[int], bytes], errors: str = "replace") -> None:
        self._token_bytes = token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors)

    def push(self, id: int) -> str:
        """The text that has become certain with this id; often "" inside a syllable."""
        return self._utf8.decode(self._token_bytes(id))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was never finished, or ""."""
        return self._utf8.decode(b"", final=True)
