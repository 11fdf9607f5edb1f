"""Checks a sentencepiece model before the library sees it, and reads what the library hides.

The format is protocol buffers, `sentencepiece_model.proto` in google/sentencepiece; the few fields
that matter here do not call for the protobuf package.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass

# Field numbers of ModelProto, SentencePiece and NormalizerSpec.
PIECES, NORMALIZER, DENORMALIZER = 1, 3, 5
PIECE_TEXT, PIECE_SCORE = 1, 2
CHARSMAP, ADD_DUMMY_PREFIX, REMOVE_EXTRA_WHITESPACES = 2, 3, 4

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

MAX_FIELDS = 1 << 19  # twice the pieces of the largest vocabularies in use


@dataclass(frozen=True)
class SpaceRules:
    """What a model does to spaces and characters before it splits a text."""

    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    rewrites_characters: bool

    @property
    def keeps_text(self) -> bool:
        """Whether the pieces hold the text as it was."""
        changes = self.add_dummy_prefix, self.remove_extra_whitespaces, self.rewrites_characters
        return not any(changes)


def check_model(model: bytes) -> SpaceRules:
    """Walks a serialized model.

    Raises:
        ValueError: It is cut off or malformed, a piece is not UTF-8, a score is not finite (the
            library loads NaN), or decoding would rewrite the text.
    """
    settings: dict[int, list[bytes]] = {NORMALIZER: [], DENORMALIZER: []}
    for number, value in _fields(model):
        if number == PIECES:
            _check_piece(_message(value))
        elif number in settings:
            settings[number].append(_message(value))
    # A message may come in parts, which are joined; of a field that is repeated, the last counts.
    rules, afterwards = (dict(_fields(b"".join(parts))) for parts in settings.values())
    if afterwards.get(CHARSMAP):
        raise ValueError("it has a denormalizer, which decoding id by id cannot follow")
    return SpaceRules(
        add_dummy_prefix=bool(rules.get(ADD_DUMMY_PREFIX, True)),
        remove_extra_whitespaces=bool(rules.get(REMOVE_EXTRA_WHITESPACES, True)),
        rewrites_characters=bool(rules.get(CHARSMAP)),
    )


def _check_piece(message: bytes) -> None:
    piece = dict(_fields(message))
    text, score = piece.get(PIECE_TEXT), piece.get(PIECE_SCORE, bytes(4))
    if not isinstance(text, bytes) or not isinstance(score, bytes) or len(score) != 4:
        raise ValueError("a piece is not a text with a float as its score")
    text.decode()  # UnicodeDecodeError is a ValueError
    if not math.isfinite(struct.unpack("<f", score)[0]):
        raise ValueError(f"the score of piece {text.decode()!r} is NaN or infinite")


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number stands in the place of a message")
    return value


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field: an int, or the bytes of anything that is not a varint."""
    at = 0
    for _ in range(MAX_FIELDS):
        if at == len(message):
            return
        key, at = _varint(message, at)
        number, wire_type = key >> 3, key & 7
        if wire_type == VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        size, at = _size(wire_type, message, at)
        if at + size > len(message):
            raise ValueError(f"cut off: {at + size - len(message)} bytes are missing")
        yield number, message[at : at + size]
        at += size
    raise ValueError(f"it has {MAX_FIELDS} fields or more")


def _size(wire_type: int, message: bytes, at: int) -> tuple[int, int]:
    """The size of a value in bytes, and where the value begins."""
    if wire_type == BYTES:
        return _varint(message, at)
    if wire_type in (FIXED32, FIXED64):
        return (4 if wire_type == FIXED32 else 8), at
    raise ValueError(f"no field begins before byte {at}")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number that begins at byte `at`, and where it ends."""
    value = 0
    for shift, byte in enumerate(message[at : at + 10]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, at + shift + 1
    raise ValueError(f"cut off or malformed at byte {at}")
