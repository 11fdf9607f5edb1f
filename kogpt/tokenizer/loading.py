"""Finds out which kind of tokenizer a folder holds."""

from os import PathLike
from pathlib import Path

from kogpt.box import BOX
from kogpt.errors import InputRefusedError
from kogpt.tokenizer.base import Tokenizer
from kogpt.tokenizer.bytelevel import ByteLevelTokenizer
from kogpt.tokenizer.files import read_ids
from kogpt.tokenizer.jsonfile import FILE, decoder_of
from kogpt.tokenizer.metaspace import MetaspaceTokenizer
from kogpt.tokenizer.spm import SentencePieceTokenizer


def load_tokenizer(directory: str | PathLike[str] | None = None) -> Tokenizer:
    """The tokenizer of a model folder; of the model in the box where none is named.

    A `tokenizer.model` goes first: where both lie side by side, tokenizer.json was made from it.
    Where no file of the tokenizer names the pieces that begin and end a text, as with KoGPT2, those
    of the model do.

    Raises:
        InputRefusedError: The folder holds no tokenizer, or one that cannot be used.
    """
    directory = BOX if directory is None else Path(directory)
    tokenizer = _load(directory)
    if tokenizer.bos_id is None and tokenizer.eos_id is None:
        ids, files = read_ids(directory, tokenizer.vocab_size)
        tokenizer.files += files
        tokenizer.bos_id, tokenizer.eos_id = ids.get("bos"), ids.get("eos")
        tokenizer.pad_id = ids.get("pad") if tokenizer.pad_id is None else tokenizer.pad_id
    return tokenizer


def _load(directory: Path) -> Tokenizer:
    if (directory / "tokenizer.model").exists():
        return SentencePieceTokenizer(directory)
    if (directory / FILE).exists():
        is_metaspace = decoder_of(directory / FILE) == MetaspaceTokenizer.decoder
        return MetaspaceTokenizer(directory) if is_metaspace else ByteLevelTokenizer(directory)
    if not directory.is_dir():
        raise InputRefusedError(f"{directory}: no such folder")
    raise InputRefusedError(f"{directory}: holds neither tokenizer.model nor tokenizer.json")
