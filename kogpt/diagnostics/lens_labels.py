"""Tokens as a reader can tell them apart: visible spaces, bytes where a character is broken."""

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass

from kogpt.tokenizer import Tokenizer

VISIBLE = {" ": "␣", "\n": "↵", "\t": "⇥"}
BROKEN = re.compile("[\udc80-\udcff]+")  # what "surrogateescape" makes of bytes that are no UTF-8


@dataclass(frozen=True)
class Piece:
    """What an id stands for.

    Attributes:
        id: the id.
        data: the bytes it adds to a text, none for a special or virtual token.
        label: how it is shown. Spaces are "␣", bytes that are no character by themselves "‹EC 95›",
            and characters that draw nothing, or that stand for others, "‹U+200B›".
        kind: "text"; "bytes" where a part of a character is in it; "special"; "virtual", of a soft
            prompt.
    """

    id: int
    data: bytes
    label: str
    kind: str


@dataclass(frozen=True)
class Token:
    """A piece in a text.

    Attributes:
        piece: what it is.
        completes: the character whose last bytes it brings, if others brought the first, or "".
        pending: first bytes of a character that are still without the others after it.
    """

    piece: Piece
    completes: str
    pending: bytes


def piece_of(tokenizer: Tokenizer, id: int) -> Piece:
    """The piece of an id, of one too that stands for no piece: a model may have rows to spare."""
    if id >= tokenizer.vocab_size:
        return Piece(id, b"", f"‹id {id}›", "special")
    try:
        data = tokenizer.token_bytes(id)
    except ValueError:
        return Piece(id, b"", f"‹id {id}›", "special")
    if id in tokenizer.special_ids:
        return Piece(id, b"", tokenizer.id_to_piece(id), "special")
    return Piece(id, data, *label_of(data))


def label_of(data: bytes) -> tuple[str, str]:
    """How bytes are shown, and "text" or "bytes"."""
    text = data.decode("utf-8", "surrogateescape")
    shown = BROKEN.sub(lambda match: _hex(match.group()), "".join(map(_visible, text)))
    return shown, "bytes" if BROKEN.search(text) else "text"


def tokens_of(tokenizer: Tokenizer, ids: Sequence[int], virtual: int = 0) -> list[Token]:
    """The ids as a text, the first `virtual` of them those of a soft prompt."""
    tokens = []
    pending = b""
    for place, id in enumerate(ids):
        if place < virtual:
            piece = Piece(id, b"", f"‹prompt {place + 1}›", "virtual")
        else:
            piece = piece_of(tokenizer, id)
        completes = completed(pending, piece.data)
        pending = _unfinished(pending, piece.data)
        tokens.append(Token(piece, completes, pending))
    return tokens


def completed(pending: bytes, data: bytes) -> str:
    """The character that `data` completes, of which there are the bytes `pending`, or ""."""
    if not pending or not data:
        return ""
    first = _decoder(pending).decode(data)[:1]
    return "" if first == "\ufffd" else first


def _unfinished(pending: bytes, data: bytes) -> bytes:
    """The bytes behind the last whole character; a special token, without bytes, breaks one."""
    if not data:
        return b""
    decoder = _decoder(pending)
    decoder.decode(data)
    return decoder.getstate()[0]


def _decoder(pending: bytes) -> codecs.IncrementalDecoder:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.setstate((pending, 0))
    return decoder


def _visible(character: str) -> str:
    if BROKEN.match(character):
        return character
    if character in VISIBLE:
        return VISIBLE[character]
    # A replacement character that is really there must not look like one that we have put there.
    shows = character.isprintable() and character != "\ufffd"
    return character if shows else f"‹U+{ord(character):04X}›"


def _hex(escaped: str) -> str:
    return f"‹{escaped.encode('utf-8', 'surrogateescape').hex(' ').upper()}›"
