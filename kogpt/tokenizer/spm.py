"""The tokenizer of models trained in the project: a sentencepiece `tokenizer.model`."""

import codecs
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken

from kogpt.errors import InputRefusedError
from kogpt.notes import say
from kogpt.tokenizer.added import Matcher, by_id, settle
from kogpt.tokenizer.base import Tokenizer
from kogpt.tokenizer.files import (
    MAX_MODEL_BYTES,
    one_line,
    read_companions,
    read_regular,
)
from kogpt.tokenizer.modelproto import SpaceRules, check_model
from kogpt.tokenizer.streaming import StreamDecoder
from kogpt.tokenizer.twin import read_twin

SPACE = "\u2581"  # "▁", how sentencepiece writes a space inside a piece


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece `tokenizer.model`, BPE or unigram.

    Ids are the library's, with one exception: where a vocabulary keeps text as it is, U+2581 in a
    text is spelled in bytes, so that it does not come back as a space.

    Args:
        directory: Folder that holds tokenizer.model and perhaps its companions, a tokenizer.json
            that was made from it among them: what was added to that is read too.

    Raises:
        InputRefusedError: The file is too large or damaged, or it rewrites text after decoding; or
            the tokenizer.json has other pieces.
    """

    def __init__(self, directory: str | Path) -> None:
        path = Path(directory) / "tokenizer.model"
        companions = read_companions(path.parent)
        self._backend, self.spaces = _read_backend(path)
        self._size = self._backend.vocab_size()  # of the model; added tokens have ids from there on
        pieces = list(map(self._backend.id_to_piece, range(self._size)))
        twin = read_twin(path, pieces, companions.added)
        self.files = [path, *twin.files, *companions.files]
        added = sorted(twin.added + companions.added, key=by_id)
        settled = settle(added, self._find, self._size, companions.rows)
        self._added = settled.new
        self._added_pieces = list(settled.new)
        self.vocab_size = self._size + len(self._added)
        tokens = [*settled.stated, *settled.named]
        controls = filter(self._backend.is_control, range(self._size))
        special = {token.content for token in tokens if token.special}
        self.special_ids = frozenset(controls).union(
            id for text, id in self._added.items() if text in special
        )
        names = self._names_in_model() | companions.names
        add_bos = "bos" in names and twin.first == names["bos"]
        add_bos = add_bos if companions.add_bos is None else companions.add_bos
        self._resolve_special(names, add_bos, settled.unstated)
        self._tell_of_ordinary(path, settled.stated)
        self._matchers = self._make_matchers(tokens)
        self._spelled = self._spelled_space_symbol()

    def piece_to_id(self, piece: str) -> int | None:
        return self._added.get(piece, self._find(piece))

    def token_bytes(self, id: int) -> bytes:
        piece = self.id_to_piece(id)
        if id in self.special_ids:
            return b""
        if id >= self._size:
            return piece.encode()
        if self._backend.is_byte(id):  # "<0xEA>"
            return bytes.fromhex(piece[3:5])
        if self._backend.is_unknown(id):
            return self._backend.decode([id]).encode()
        return piece.replace(SPACE, " ").encode()

    def stream_decoder(self, *, skip_special: bool = True) -> StreamDecoder:
        return SentencePieceStream(self, skip_special)

    def _piece(self, id: int) -> str | None:
        if id >= self._size:
            return self._added_pieces[id - self._size]
        return self._backend.id_to_piece(id)

    def _find(self, piece: str) -> int | None:
        """The id of a piece of the model, or None."""
        id = self._backend.piece_to_id(piece)  # that of the unknown piece, if there is no such
        return id if self._backend.id_to_piece(id) == piece else None

    def _encode(self, text: str, allow_special: bool) -> list[int]:
        ids: list[int] = []
        end = 0
        for token, start, stop in self._matchers[allow_special].find(text):
            ids += self._encode_plain(text[end:start]) + self._ids[token]
            end = stop
        return ids + self._encode_plain(text[end:])

    def _encode_plain(self, text: str) -> list[int]:
        if not self._spelled or SPACE not in text:
            return self._backend.encode(text)
        first, *others = text.split(SPACE)
        ids = self._backend.encode(first)
        for part in others:
            ids += self._spelled + self._backend.encode(part)
        return ids

    def _tell_of_ordinary(self, path: Path, tokens: Iterable[AddedToken]) -> None:
        """Tells of added tokens that are part of any text, where ids around them are not known.

        Whether a space goes in front of what follows one is for versions of transformers to say.
        """
        texts = [t.content for t in tokens if not t.special and t.content in self._added]
        if texts and not self.spaces.keeps_text:
            say(
                f"kogpt: {path}: rewrites spaces, so the added token {texts[0][:60]!r} is not"
                " looked for in texts"
            )

    def _make_matchers(self, tokens: Iterable[AddedToken]) -> dict[bool, Matcher]:
        """What looks for tokens apart from the model, with the special ones (True) and without.

        Pieces that are control symbols in the model are special, whatever other files say. Those
        that are not, and that others call special, are text to it wherever they stand.
        """
        known = {self.id_to_piece(id) for id in self.special_ids}
        matched = {piece: AddedToken(piece, special=True) for piece in known}
        for token in tokens:
            if token.content in known or (self.spaces.keeps_text and not token.special):
                token.special = token.content in known
                matched[token.content] = token
        self._ids = {
            text: [self._added.get(text, self._backend.piece_to_id(text))] for text in matched
        }
        ordinary = [token for token in matched.values() if not token.special]
        return {True: Matcher([*matched.values()]), False: Matcher(ordinary)}

    def _spelled_space_symbol(self) -> list[int]:
        """The ids of the bytes of U+2581, if this vocabulary can keep it apart from a space.

        Text with it has ids that are not the library's.
        """
        ids = [self.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        spelled = [id for id in ids if id is not None]
        return spelled if self.spaces.keeps_text and spelled == ids else []

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
