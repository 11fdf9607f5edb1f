"""The interface that all tokenizers share."""

from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Mapping
from pathlib import Path

from kogpt.errors import ParameterError
from kogpt.tokenizer.streaming import StreamDecoder
from kogpt.tokenizer.text import normalize_text


class Tokenizer(ABC):
    """Text to ids and back. Every id is resolved from the files, none is built in.

    Attributes:
        vocab_size: One more than the highest id that has a piece. A model may have more rows.
        bos_id: Id of the piece that begins a text; like the next three, None if no file names it.
        eos_id: Id of the piece that ends a text; the first if there are several.
        pad_id: Id of the piece that fills a batch.
        unk_id: Id of the piece that stands for the unknown.
        add_bos: Whether the model was trained on texts that begin with bos, as the files tell;
            prompts follow it, `encode` leaves it to the caller.
        further_ends: Ids that end a text as `eos_id` does, where the model's files list several.
        unsettled: Those of "bos" and "eos" whose pieces the files only name: the vocabulary has no
            such piece, and no file of the tokenizer states its id.
        special_ids: Ids that carry no text; `decode` leaves them out unless told otherwise.
        files: The files this tokenizer was read from. Copying them copies the tokenizer.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    unk_id: int | None
    add_bos: bool
    further_ends: frozenset[int] = frozenset()
    unsettled: frozenset[str]
    special_ids: frozenset[int]
    files: list[Path]

    @property
    def end_ids(self) -> frozenset[int]:
        """All ids that end a text."""
        return self.further_ends.union(() if self.eos_id is None else (self.eos_id,))

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
                they are text like any other, and nobody ends a document by typing its end.
            normalize: "auto" composes a text whose Hangul is decomposed, "nfc" any text, "none"
                no text; see `normalize_text`.

        Raises:
            InputRefusedError: The text holds lone surrogates.
            ValueError: `bos` or `eos` is asked for, but no file names such a piece.
        """
        ids = self._encode(normalize_text(text, normalize), allow_special)
        head = [_required(self.bos_id, "bos")] if bos else []
        tail = [_required(self.eos_id, "eos")] if eos else []
        return head + ids + tail

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of the ids; bytes that are not UTF-8 become U+FFFD.

        Raises:
            ValueError: An id has no piece; names it.
        """
        stream = self.stream_decoder(skip_special=skip_special)
        return "".join(map(stream.push, ids)) + stream.flush()

    def id_to_piece(self, id: int) -> str:
        """The piece of an id as the vocabulary writes it; ValueError if it has none."""
        last = self.vocab_size - 1
        piece = self._piece(id) if 0 <= id <= last else None
        if piece is None:
            raise ParameterError(f"id {id} has no piece; the vocabulary has ids 0 to {last}")
        return piece

    @abstractmethod
    def piece_to_id(self, piece: str) -> int | None:
        """The id of a piece, or None."""

    @abstractmethod
    def token_bytes(self, id: int) -> bytes:
        """The bytes an id adds to a text, none for a special one; ValueError if it has no piece."""

    @abstractmethod
    def stream_decoder(self, *, skip_special: bool = True) -> StreamDecoder:
        """A fresh decoder that takes ids one by one."""

    @abstractmethod
    def _piece(self, id: int) -> str | None:
        """The piece of an id below vocab_size, or None if the vocabulary leaves that id out."""

    @abstractmethod
    def _encode(self, text: str, allow_special: bool) -> list[int]:
        """Ids of a text that holds no lone surrogates."""

    def _resolve_special(
        self, names: Mapping[str, str], add_bos: bool, unstated: Container[str] = ()
    ) -> None:
        """Sets bos_id and its like to the ids of the pieces that `names` gives them."""
        ids = {role: self.piece_to_id(piece) for role, piece in names.items()}
        self.bos_id, self.eos_id = ids.get("bos"), ids.get("eos")
        self.pad_id, self.unk_id = ids.get("pad"), ids.get("unk")
        self.add_bos = add_bos and self.bos_id is not None
        self.unsettled = frozenset(
            role for role in ("bos", "eos") if role in names and names[role] in unstated
        )


def _required(id: int | None, role: str) -> int:
    if id is None:
        raise ParameterError(f"{role}=True, but the files of the tokenizer name no {role} token")
    return id
