"""The tokenizer of models trained in the project: a sentencepiece `tokenizer.model`."""

import codecs
import re
from pathlib import Path

import sentencepiece

from kogpt.errors import InputRefusedError
from kogpt.tokenizer.base import Tokenizer
from kogpt.tokenizer.files import (
    MAX_MODEL_BYTES,
    one_line,
    read_companions,
    read_regular,
)
from kogpt.tokenizer.modelproto import SpaceRules, check_model
from kogpt.tokenizer.streaming import StreamDecoder

SPACE = "\u2581"  # "▁", how sentencepiece writes a space inside a piece


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece `tokenizer.model`, BPE or unigram.

    Ids are the library's, with one exception: where a vocabulary keeps text as it is, U+2581 in a
    text is spelled in bytes, so that it does not come back as a space.

    Args:
        directory: Folder that holds tokenizer.model and perhaps its companions.

    Raises:
        InputRefusedError: The file is too large or damaged, or it rewrites text after decoding.
    """

    def __init__(self, directory: str | Path) -> None:
        path = Path(directory) / "tokenizer.model"
        companions = read_companions(path.parent)
        self._backend, self.spaces = _read_backend(path)
        self.files = [path, *companions.files]
        self.vocab_size = self._backend.vocab_size()
        self.special_ids = frozenset(filter(self._backend.is_control, range(self.vocab_size)))
        self._resolve_special(self._names_in_model() | companions.names, bool(companions.add_bos))
        self._special = {self.id_to_piece(id): [id] for id in self.special_ids}
        self._fixed = self._spelled_space_symbol()  # text with ids that are not the library's

    def piece_to_id(self, piece: str) -> int | None:
        id = self._backend.piece_to_id(piece)  # that of the unknown piece, if there is no such
        return id if self._backend.id_to_piece(id) == piece else None

    def token_bytes(self, id: int) -> bytes:
        piece = self.id_to_piece(id)
        if id in self.special_ids:
            return b""
        if self._backend.is_byte(id):  # "<0xEA>"
            return bytes.fromhex(piece[3:5])
        if self._backend.is_unknown(id):
            return self._backend.decode([id]).encode()
        return piece.replace(SPACE, " ").encode()

    def stream_decoder(self, *, skip_special: bool = True) -> StreamDecoder:
        return SentencePieceStream(self, skip_special)

    def _piece(self, id: int) -> str | None:
        return self._backend.id_to_piece(id)

    def _encode(self, text: str, allow_special: bool) -> list[int]:
        fixed = self._fixed | self._special if allow_special else self._fixed
        if not any(piece in text for piece in fixed):
            return self._backend.encode(text)
        longest_first = sorted(fixed, key=len, reverse=True)
        ids: list[int] = []
        for part in re.split(f"({'|'.join(map(re.escape, longest_first))})", text):
            ids += fixed[part] if part in fixed else self._backend.encode(part)
        return ids

    def _spelled_space_symbol(self) -> dict[str, list[int]]:
        """U+2581 and the ids of its bytes, if this vocabulary can keep it apart from a space."""
        ids = [self.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        spelled = [id for id in ids if id is not None]
        return {SPACE: spelled} if self.spaces.keeps_text and spelled == ids else {}

    def _names_in_model(self) -> dict[str, str]:
        backend = self._backend
        ids = {
            "bos": backend.bos_id(),
            "eos": backend.eos_id(),
            "pad": backend.pad_id(),
            "unk": backend.unk_id(),
        }
        return {role: backend.id_to_piece(id) for role, id in ids.items() if id >= 0}


class SentencePieceStream(StreamDecoder):
    """Follows sentencepiece in what depends on the neighbours of a piece.

    A special piece between the bytes of a character breaks it, and a model that puts a space in
    front of every text takes it away again.
    """

    def __init__(self, tokenizer: SentencePieceTokenizer, skip_special: bool) -> None:
        super().__init__(tokenizer.token_bytes, errors="kogpt.each_byte")
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._spaces = tokenizer.spaces
        self._at_start = self._spaces.add_dummy_prefix or self._spaces.remove_extra_whitespaces

    def push(self, id: int) -> str:
        if id in self._tokenizer.special_ids:
            return self.flush() + ("" if self._skip_special else self._tokenizer.id_to_piece(id))
        text = super().push(id)
        return self._without_leading_space(id, text) if self._at_start else text

    def _without_leading_space(self, id: int, text: str) -> str:
        piece = self._tokenizer.id_to_piece(id)
        self._at_start = self._spaces.remove_extra_whitespaces and piece == SPACE
        return text.removeprefix(" ") if piece.startswith(SPACE) else text


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    """One U+FFFD for every byte that is not UTF-8, as sentencepiece has it."""
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error("kogpt.each_byte", _replace_each_byte)


def _read_backend(path: Path) -> tuple[sentencepiece.SentencePieceProcessor, SpaceRules]:
    model = read_regular(path, MAX_MODEL_BYTES)
    backend = sentencepiece.SentencePieceProcessor()
    try:
        spaces = check_model(model)
        backend.LoadFromSerializedProto(model)
    except (ValueError, RuntimeError) as error:
        raise InputRefusedError(f"{path}: not a usable model: {one_line(error)}") from error
    return backend, spaces
