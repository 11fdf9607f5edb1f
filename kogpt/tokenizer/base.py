"""The interface that both kinds of tokenizer share."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

from kogpt.tokenizer.streaming import StreamDecoder
from kogpt.tokenizer.text import normalize_text


class Tokenizer(ABC):
    """Text to ids and back. Every id is resolved from the files, none is built in.

    Attributes:
        vocab_size: One more than the highest id that has a piece. A model may have more rows.
        bos_id, eos_id, pad_id, unk_id: Ids of the special pieces; None where the files name none.
        special_ids: Ids that carry no text: `decode` leaves them out unless told otherwise.
        files: The files this tokenizer was read from; copying them copies the tokenizer.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    unk_id: int | None
    special_ids: frozenset[int]
    files: list[Path]

    def encode(
        self,
        text: str,
        *,
        bos: bool = False,
        eos: bool = False,
        allow_special: bool = False,
        normalize: str = "auto",
    ) -> list[int]:
        """Ids of a text.

        Args:
            text: Any text without lone surrogates.
            bos: Put the id of the beginning in front.
            eos: Put the id of the end behind.
            allow_special: Let "[EOS]" and the like in the text become the special id. Otherwise
                they are text like any other, so nobody ends a document by typing its end.
            normalize: "auto" composes a text whose Hangul is decomposed, "nfc" any text, "none"
                nothing; see `normalize_text`.

        Raises:
            InputRefusedError: The text holds lone surrogates.
            ValueError: bos or eos is asked for, but the files name no such piece.
        """
        ids = self._encode(normalize_text(text, normalize), allow_special)
        head = [self._require("bos", self.bos_id)] if bos else []
        tail = [self._require("eos", self.eos_id)] if eos else []
        return head + ids + tail

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of the ids. Bytes that are not UTF-8 become U+FFFD.

        Raises:
            ValueError: An id has no piece; names it.
        """
        stream = self.stream_decoder(skip_special=skip_special)
        return "".join(map(stream.push, ids)) + stream.flush()

    @abstractmethod
    def stream_decoder(self, *, skip_special: bool = True) -> StreamDecoder:
        """A fresh decoder that takes ids one by one."""

    @abstractmethod
    def id_to_piece(self, id: int) -> str:
        """The piece of an id as the vocabulary writes it; ValueError if it has none."""

    @abstractmethod
    def piece_to_id(self, piece: str) -> int | None:
        """The id of a piece, or None."""

    @abstractmethod
    def token_bytes(self, id: int) -> bytes:
        """The bytes an id adds to a text, none for a special one; ValueError if it has no piece."""

    @abstractmethod
    def _encode(self, text: str, allow_special: bool) -> list[int]: ...

    @staticmethod
    def _require(name: str, id: int | None) -> int:
        if id is None:
            raise ValueError(f"{name}=True, but the tokenizer's files name no {name} token")
        return id
