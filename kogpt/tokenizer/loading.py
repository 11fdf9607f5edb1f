"""Finds out which kind of tokenizer a folder holds."""

from collections.abc import Iterable
from os import PathLike
from pathlib import Path

from kogpt.box import BOX
from kogpt.errors import InputRefusedError
from kogpt.notes import say
from kogpt.tokenizer.base import Tokenizer
from kogpt.tokenizer.bytelevel import ByteLevelTokenizer
from kogpt.tokenizer.files import read_ids
from kogpt.tokenizer.jsonfile import FILE, decoder_of
from kogpt.tokenizer.metaspace import MetaspaceTokenizer
from kogpt.tokenizer.spm import SentencePieceTokenizer


def load_tokenizer(directory: str | PathLike[str] | None = None) -> Tokenizer:
    """The tokenizer of a model folder; of the model in the box where none is named.

    A `tokenizer.model` goes first: where both lie side by side, tokenizer.json must have been made
    from it. Where no file of the tokenizer names the pieces that begin and end a text, as with
    KoGPT2, those of the model do, and where one is only named, they say which id is meant. Of
    several ends that a file of the model lists, all end a text.

    Raises:
        InputRefusedError: The folder holds no tokenizer, or one that cannot be used.
    """
    directory = BOX if directory is None else Path(directory)
    tokenizer = _load(directory)
    ids, files = read_ids(directory, tokenizer.vocab_size)
    ends = ids.get("eos", [])
    nameless = tokenizer.bos_id is None and tokenizer.eos_id is None
    roles = {"bos", "eos"} if nameless else set(tokenizer.unsettled)
    roles |= {"pad"} if nameless and tokenizer.pad_id is None else set()
    for role in roles & ids.keys():
        setattr(tokenizer, f"{role}_id", ids[role][0])
    if len(set(ends)) > 1:  # which nobody writes by default, as single ids often are
        tokenizer.further_ends = frozenset(ends)
    if nameless or tokenizer.unsettled or tokenizer.further_ends:
        tokenizer.files += files
    _tell_unsettled(directory, tokenizer, tokenizer.unsettled - ids.keys())
    return tokenizer


def _tell_unsettled(directory: Path, tokenizer: Tokenizer, roles: Iterable[str]) -> None:
    """Tells which ends have ids that no file states: the model may never write them."""
    for role in sorted(roles):
        id = tokenizer.bos_id if role == "bos" else tokenizer.eos_id
        done = "there is none" if id is None else f"taken for the next, {id}"
        say(
            f"kogpt: {directory}: the {role}_token named there is not in the vocabulary, and no"
            f" file states its id: {done}"
        )


def _load(directory: Path) -> Tokenizer:
    if (directory / "tokenizer.model").exists():
        return SentencePieceTokenizer(directory)
    if (directory / FILE).exists():
        is_metaspace = decoder_of(directory / FILE) == MetaspaceTokenizer.decoder
        return MetaspaceTokenizer(directory) if is_metaspace else ByteLevelTokenizer(directory)
    if not directory.is_dir():
        raise InputRefusedError(f"{directory}: no such folder")
    raise InputRefusedError(f"{directory}: holds neither tokenizer.model nor tokenizer.json")
