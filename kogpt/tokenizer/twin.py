"""What a tokenizer.json that was made from a tokenizer.model adds to it.

transformers writes one where it saves such a tokenizer, and from then on reads nothing else. Of the
two, pieces are compared; how a text is cut into them is the tokenizer.model's to say.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kogpt.errors import InputRefusedError
from kogpt.jsonfiles import parse_json_object
from kogpt.tokenizer.added import Added, read_stated
from kogpt.tokenizer.files import MAX_JSON_BYTES, read_regular
from kogpt.tokenizer.jsonfile import FILE


@dataclass(frozen=True)
class Twin:
    """What the file holds beside the pieces.

    Attributes:
        files: the file, if it exists.
        added: its added tokens, those of the pieces among them.
        first: what its template puts in front of a text, if it is a token.
    """

    files: list[Path]
    added: list[Added]
    first: str | None


def read_twin(model: Path, pieces: Sequence[str], beside: list[Added]) -> Twin:
    """Reads the tokenizer.json beside a model, if there is one.

    Args:
        model: The tokenizer.model.
        pieces: Of the model, by id.
        beside: Tokens that other files name.

    Raises:
        InputRefusedError: It is damaged, or holds other pieces: then it was not made from the
            model, and which of the two is right is not for us to guess.
    """
    path = model.with_name(FILE)
    if not path.exists():
        return Twin([], [], None)
    content = parse_json_object(read_regular(path, MAX_JSON_BYTES), path)
    ids = _vocab(content.get("model"))
    wrong = [id for id, piece in enumerate(pieces) if ids.pop(piece, None) != id]
    if wrong or ids:
        what = f"id {wrong[0]}" if wrong else f"the piece {next(iter(ids))[:60]!r}"
        raise InputRefusedError(
            f"{path}: was not made from {model} beside it: they differ in {what}; take away the one"
            " that is not the model's (transformers reads tokenizer.json)"
        )
    entries = content.get("added_tokens") or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputRefusedError(f"{path}: added_tokens is no list of objects")
    stated = [(entry.get("id"), entry) for entry in entries]
    named = [each for each in beside if each.id is None]
    return Twin([path], read_stated(path, stated, named), _first_of_template(content))


def _vocab(model: Any) -> dict[str, int]:
    """The ids of pieces, which a BPE has as an object, a unigram model as a list with scores."""
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, list):
        pieces = [entry[0] if isinstance(entry, list) and entry else None for entry in vocab]
        return {str(piece): id for id, piece in enumerate(pieces)}
    return dict(vocab) if isinstance(vocab, dict) else {}


def _first_of_template(content: dict[str, Any]) -> str | None:
    try:
        return content["post_processor"]["single"][0]["SpecialToken"]["id"]
    except (KeyError, IndexError, TypeError):
        return None
