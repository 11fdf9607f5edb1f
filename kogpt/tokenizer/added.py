"""Tokens that stand beside a vocabulary, in the files that go with it, and the ids they have.

What transformers adds it adds here, with the same ids: tokens whose ids a file states, by their
ids, and then those that are only named special, which get the ids that are free.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from kogpt.errors import InputRefusedError
from kogpt.notes import say
from kogpt.tokenizer.text import SURROGATE

# Who names special tokens, in the order in which they get ids.
NAMED = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
LISTS = ("extra_special_tokens", "additional_special_tokens")  # of which the first counts

ADDED_TOKENS = "added_tokens.json"  # whose ids say in which order its tokens are added, no more

FLAGS = ("special", "single_word", "lstrip", "rstrip", "normalized")


@dataclass(frozen=True)
class Added:
    """A token that a companion names: its text and how it is matched, and its id if that is told.

    Attributes:
        path: the file; of a token that is only named, its folder.
        token: as the library takes it.
        id: None where the token is only named.
    """

    path: Path
    token: AddedToken
    id: int | None = None


@dataclass(frozen=True)
class Settled:
    """What becomes of tokens beside a vocabulary.

    Attributes:
        stated: tokens whose ids a file states.
        named: the others.
        new: texts and ids of those that the vocabulary lacks.
        unstated: texts that are named, and have an id neither there nor in a file.
    """

    stated: list[AddedToken]
    named: list[AddedToken]
    new: dict[str, int]
    unstated: set[str]


def read_named(folder: Path, settings: Mapping[str, Any]) -> list[Added]:
    """The special tokens that the companions in a folder name, in the order of their ids."""
    extra: Any = next((settings[key] for key in LISTS if settings.get(key)), [])
    extra = list(extra.values()) if isinstance(extra, dict) else extra
    entries = [*map(settings.get, NAMED), *(extra if isinstance(extra, list) else [])]
    texts = [{"content": entry} if isinstance(entry, str) else entry for entry in entries]
    named = [entry for entry in texts if isinstance(entry, dict) and entry.get("content")]
    return [Added(folder, _token(folder, {**entry, "special": True})) for entry in named]


def read_stated(path: Path, entries: Iterable[tuple[Any, Any]], named: list[Added]) -> list[Added]:
    """The tokens whose ids a file states, by their ids; of these, the named are special too.

    Args:
        path: The file.
        entries: Ids, or what stands in their place, and what the file says of the tokens.
        named: The special tokens.

    Raises:
        InputRefusedError: An entry is no token with an id.
    """
    special = {each.token.content for each in named}
    added = []
    for id, entry in entries:
        if not re.fullmatch("[0-9]{1,9}", str(id)) or not isinstance(entry, dict):
            raise InputRefusedError(f"{path}: its added tokens are no tokens with ids")
        token = _token(path, entry)
        token.special = token.special or token.content in special
        added.append(Added(path, token, int(id)))
    return sorted(added, key=by_id)


def by_id(each: Added) -> tuple[bool, int]:
    """What tokens are sorted by: their ids; those without come behind, as they were."""
    return each.id is None, each.id or 0


def settle(
    added: Sequence[Added], find: Callable[[str], int | None], size: int, rows: int | None
) -> Settled:
    """Gives ids to tokens as the library does: that of the vocabulary, or else the next.

    Args:
        added: The tokens, those with ids first.
        find: The vocabulary: the id of a piece.
        size: One more than its highest id.
        rows: How many ids the model knows, if that is told. Tokens beyond are left out, and told.

    Raises:
        InputRefusedError: A file states another id for a token than it has.
    """
    settled, out = Settled([], [], {}, set()), dict[str, Path]()
    for each in added:
        text = each.token.content
        id = settled.new.get(text, find(text))
        if id is None:
            id = size + len(settled.new)
            if each.id is None:
                settled.unstated.add(text)
            if rows is not None and id >= rows:
                out.setdefault(text, each.path)
                continue
            settled.new[text] = id
        if each.id not in (None, id) and each.path.name != ADDED_TOKENS:
            raise InputRefusedError(
                f"{each.path}: the token {text[:60]!r} has id {each.id}, by the vocabulary {id}"
            )
        (settled.named if each.id is None else settled.stated).append(each.token)
    if out:
        _tell_left_out(out, rows)
    return settled


class Matcher:
    """Finds tokens in a text, as the library does: its spaces and longest-first are followed."""

    def __init__(self, tokens: list[AddedToken]) -> None:
        self._library = tokenizers.Tokenizer(tokenizers.models.BPE())  # that has no other pieces
        self._library.add_tokens(tokens)
        decoder = self._library.get_added_tokens_decoder()
        self._texts = {id: token.content for id, token in decoder.items()}

    def find(self, text: str) -> list[tuple[str, int, int]]:
        """The tokens in a text, each with where it begins and ends."""
        if not self._texts:
            return []
        found = self._library.encode(text)
        places = zip(found.ids, found.offsets, strict=True)
        return [(self._texts[id], start, end) for id, (start, end) in places]


def _tell_left_out(out: Mapping[str, Path], rows: int | None) -> None:
    text, path = next(iter(out.items()))
    more = f" and {len(out) - 1} more" if len(out) > 1 else ""
    say(
        f"kogpt: {path}: left out the token {text[:60]!r}{more}: its id would be beyond the"
        f" {rows} rows of the model"
    )


def _token(path: Path, entry: Mapping[str, Any]) -> AddedToken:
    text, flags = entry.get("content"), {key: entry[key] for key in FLAGS if key in entry}
    if not isinstance(text, str) or not text or SURROGATE.search(text):
        raise InputRefusedError(f"{path}: an added token is {text!a:.60}, no text")
    if not all(isinstance(flag, bool) for flag in flags.values()):
        raise InputRefusedError(f"{path}: the flags of the token {text[:60]!r} are not all bools")
    return AddedToken(text, **flags)
