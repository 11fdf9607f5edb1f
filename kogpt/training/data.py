"""Token ids of documents, and the order in which training meets them.

Dimension key: `B` sequences, `T` tokens in a sequence.
"""

import hashlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kogpt.errors import InputRefusedError
from kogpt.tokenizer import Tokenizer, normalize_text
from kogpt.training.documents import HOLD_OUT_EVERY, is_held_out


@dataclass(frozen=True)
class EncodedDocuments:
    """Ids of many documents, one after another, each with its begin and end.

    Attributes:
        ids: uint16, or int32 for large vocabularies.
        ends: where each document ends in `ids`, (documents,) int64.
        text_bytes: UTF-8 bytes of each text as the model reads it, with Hangul composed,
            (documents,) int64.
    """

    ids: np.ndarray
    ends: np.ndarray
    text_bytes: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.ids[self.ends[index - 1] if index else 0 : self.ends[index]]

    def first(self, count: int) -> "EncodedDocuments":
        """The first `count` documents, or all where there are fewer."""
        ends = self.ends[:count]
        return EncodedDocuments(self.ids[: ends[-1]], ends, self.text_bytes[:count])

    def fingerprint(self) -> str:
        """Hash by which a resumed run knows its data again."""
        digest = hashlib.sha256(self.ids.tobytes())
        digest.update(self.ends.tobytes())
        return digest.hexdigest()


class _Encoder:
    """Grows an `EncodedDocuments`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        if tokenizer.bos_id is None and tokenizer.eos_id is None:
            raise InputRefusedError("the tokenizer names neither a begin nor an end of text")
        self._tokenizer = tokenizer
        self._bos = tokenizer.bos_id is not None
        # Where one id plays both roles (GPT-J), once between two documents is enough.
        self._eos = tokenizer.eos_id is not None and tokenizer.eos_id != tokenizer.bos_id
        self._wide = tokenizer.vocab_size > 1 << 16
        self._ids = array("i" if self._wide else "H")
        self._ends, self._bytes = array("q"), array("q")

    def add(self, text: str) -> None:
        self._ids.extend(self._tokenizer.encode(text, bos=self._bos, eos=self._eos))
        self._ends.append(len(self._ids))
        self._bytes.append(len(normalize_text(text, "auto").encode()))

    def finish(self) -> EncodedDocuments:
        ids = np.array(self._ids, dtype=np.int32 if self._wide else np.uint16)
        return EncodedDocuments(ids, np.array(self._ends), np.array(self._bytes))


def encode_documents(
    documents: Iterable[str], tokenizer: Tokenizer
) -> tuple[EncodedDocuments, EncodedDocuments]:
    """Ids of all documents that are not blank.

    Returns:
        The training documents and the held-out ones.

    Raises:
        InputRefusedError: no training document is left, or a text holds lone surrogates.
    """
    training, held_out = _Encoder(tokenizer), _Encoder(tokenizer)
    for index, text in enumerate(documents):
        if text.strip():
            (held_out if is_held_out(index) else training).add(text)
    result = training.finish(), held_out.finish()
    if not len(result[0]):
        raise InputRefusedError(
            "the data holds no document to train on: the first of every "
            f"{HOLD_OUT_EVERY} rows is held out"
        )
    return result


class PackedSequences:
    """Documents shuffled anew in every epoch, laid end to end and cut into sequences.

    The order is a pure function of (seed, epoch), so a step number says which tokens come next
    and a resumed run needs no memory of what it read.

    Attributes:
        length: T.
        per_epoch: sequences in an epoch; a tail shorter than a sequence is left out.

    Raises:
        InputRefusedError: the documents are too few for one sequence.
    """

    def __init__(self, documents: EncodedDocuments, length: int, seed: int) -> None:
        self._documents, self.length, self._seed = documents, length, seed
        self.per_epoch = (len(documents.ids) - 1) // length
        self._epoch, self._stream = -1, documents.ids
        if not self.per_epoch:
            raise InputRefusedError(
                f"the data holds {len(documents.ids)} tokens, "
                f"too few for one sequence of {length} and its last target"
            )

    def batch(self, step: int, size: int) -> Tensor:
        """The sequences of a step, each with one more token, the last target: (B, T + 1)."""
        rows = [self._row(step * size + i) for i in range(size)]
        return torch.from_numpy(np.stack(rows).astype(np.int64))

    def _row(self, index: int) -> np.ndarray:
        epoch, row = divmod(index, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._stream = epoch, self._shuffle(epoch)
        return self._stream[row * self.length : (row + 1) * self.length + 1]

    def _shuffle(self, epoch: int) -> np.ndarray:
        """The ids of all documents, in the order of an epoch."""
        ends = self._documents.ends
        starts = np.concatenate(([0], ends[:-1]))
        order = np.random.default_rng((self._seed, epoch)).permutation(len(ends))
        lengths = (ends - starts)[order]
        # Position i of the stream, in document d, reads ids[starts[d] + i - (where d begins)].
        begins = np.cumsum(lengths) - lengths
        index = np.arange(len(self._documents.ids)) + np.repeat(starts[order] - begins, lengths)
        return self._documents.ids[index]
