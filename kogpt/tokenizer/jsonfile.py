"""A `tokenizer.json`, read with the library that wrote it, `tokenizers`."""

import threading
from abc import abstractmethod
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from kogpt.errors import InputRefusedError
from kogpt.jsonfiles import parse_json_object
from kogpt.tokenizer.added import Settled, settle
from kogpt.tokenizer.base import Tokenizer
from kogpt.tokenizer.files import MAX_JSON_BYTES, one_line, read_companions, read_regular

FILE = "tokenizer.json"

# Four times the largest vocabularies in use; a file may write any number as the id of a piece.
MAX_VOCAB_SIZE = 1 << 20


class JSONTokenizer(Tokenizer):
    """A BPE `tokenizer.json`; a subclass knows how its pieces become text.

    Splitting, merging, normalising and the matching of added tokens are the library's, so ids are
    those of the reference by construction.

    Args:
        directory: Folder that holds tokenizer.json and perhaps its companions.

    Raises:
        InputRefusedError: The file is too large, damaged, or of another kind.
    """

    decoder: str  # the type of the file's decoder

    def __init__(self, directory: str | Path) -> None:
        path = Path(directory) / FILE
        companions = read_companions(path.parent)
        backend = _read_backend(path, self.decoder)
        size = 1 + max(backend.get_vocab().values(), default=-1)
        if not 0 < size <= MAX_VOCAB_SIZE:
            raise InputRefusedError(f"{path}: {size} ids, not 1 to {MAX_VOCAB_SIZE}")
        settled = settle(companions.added, backend.token_to_id, size, companions.rows)
        _add(backend, settled, path)
        splitter = backend.pre_tokenizer
        if companions.prefix_space is not None and isinstance(splitter, ByteLevel):
            splitter.add_prefix_space = companions.prefix_space

        self._backend = backend
        self._lock = threading.Lock()  # for the backend's switch between typed and special text
        self.files = [path, *companions.files]
        self.vocab_size = size + len(settled.new)
        self.special_ids = frozenset(
            id for id, token in backend.get_added_tokens_decoder().items() if token.special
        )
        self._resolve_special(companions.names, add_bos=True, unstated=settled.unstated)
        told = companions.add_bos
        self.add_bos = self.add_bos and (self._puts_bos_before_texts() if told is None else told)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def _puts_bos_before_texts(self) -> bool:
        """Whether the library does, by the file's template."""
        first, plain = (
            self._backend.encode("a", add_special_tokens=special).ids[:1]
            for special in (True, False)
        )
        return first == [self.bos_id] != plain

    def piece_to_id(self, piece: str) -> int | None:
        return self._backend.token_to_id(piece)

    def token_bytes(self, id: int) -> bytes:
        return b"" if id in self.special_ids else self._written_bytes(id)

    def _piece(self, id: int) -> str | None:
        return self._backend.id_to_token(id)

    def _encode(self, text: str, allow_special: bool) -> list[int]:
        with self._lock:
            self._backend.encode_special_tokens = not allow_special
            return self._backend.encode(text, add_special_tokens=False).ids

    @abstractmethod
    def _written_bytes(self, id: int) -> bytes:
        """The bytes of an id's piece, be it special or not; ValueError if it has none."""


def decoder_of(path: Path) -> object:
    """What the file says of its decoder, for choosing among the kinds.

    Raises:
        InputRefusedError: it is too large, or no JSON object.
    """
    decoder = parse_json_object(read_regular(path, MAX_JSON_BYTES), path).get("decoder")
    return decoder.get("type") if isinstance(decoder, dict) else None


def _read_backend(path: Path, decoder: str) -> tokenizers.Tokenizer:
    data = read_regular(path, MAX_JSON_BYTES)
    _check_kind(path, parse_json_object(data, path), decoder)
    try:
        backend = tokenizers.Tokenizer.from_str(data.decode())
    except Exception as error:  # the library raises Exception itself, nothing narrower
        raise InputRefusedError(f"{path}: not a valid tokenizer.json: {one_line(error)}") from error
    # Settings of a training run or a server that may have been saved along: never cut or pad a
    # text behind the user's back, never split it at random.
    backend.no_truncation()
    backend.no_padding()
    backend.model.dropout = None
    return backend


def _add(backend: tokenizers.Tokenizer, settled: Settled, path: Path) -> None:
    """Adds the tokens that stand only beside the file, and calls special what they call so."""
    backend.add_tokens(settled.stated)
    known = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    # A token that is there keeps how text is searched for it.
    backend.add_special_tokens([known.get(token.content, token) for token in settled.named])
    for text, id in settled.new.items():
        if backend.token_to_id(text) != id:  # it counts pieces, and some ids have none
            raise InputRefusedError(f"{path}: ids are missing, so {text[:60]!r} cannot be {id}")


def _check_kind(path: Path, content: dict[str, Any], wanted: str) -> None:
    """Refuses what is not BPE with that decoder: others join pieces in ways not followed here, and
    prefixes of subwords, which such BPE has none of, can abort the library (0.23.3)."""
    model, decoder = content.get("model"), content.get("decoder")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        raise InputRefusedError(f"{path}: its model is not BPE")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise InputRefusedError(f"{path}: {key} is set, which is not read")
    if not isinstance(decoder, dict) or decoder.get("type") != wanted:
        raise InputRefusedError(
            f"{path}: its decoder is not {wanted}; of a tokenizer.json only ByteLevel and"
            " Metaspace are read, sentencepiece from its tokenizer.model"
        )
