"""Speculative decoding: guesses of the tokens to come, read in the pass that reads the last one.

One pass over the weights then gives several tokens, as many as the guesses that come true and one
more. Guesses change no result: every token is drawn as it is without them, from the logits after
the tokens before it and from the numbers of its own step, and a guess only decides whether those
logits are there already. This has the same distribution as the rejection of Leviathan et al.
(arXiv 2211.17192), and more: the same tokens. The price: tokens of a draft model are accepted a
little less often than the best coupling of the two distributions would allow, since `sampling.draw`
couples them nearly as well. Guesses that are not drawn, as in a lookup, cost nothing.

Dimension key: `B` rows, `T` guesses, `L` columns of ids, `V` vocabulary.
"""

from dataclasses import dataclass
from itertools import takewhile
from operator import eq
from typing import Protocol

import torch
from torch import Tensor

from kogpt.errors import ParameterError
from kogpt.generation.batch import Batch
from kogpt.generation.processors import History
from kogpt.generation.requests import read
from kogpt.generation.sample import Sample
from kogpt.generation.sampling import Sampler
from kogpt.model import KoGPT, KVCache
from kogpt.ranges import AT_LEAST_ONE

# Columns of a text that a draft model reads at once.
PREFILL_CHUNK = 512


class Drafter(Protocol):
    """Guesses how one text goes on."""

    def draft(self, history: History, choose: Sampler, count: int) -> Tensor:
        """Up to `count` guesses (1, T) of what `choose` will choose after a history of one row."""


@dataclass(frozen=True)
class PromptLookup:
    """Guesses that the text goes on as it did after the same words before, prompt included.

    It needs no second model, and pays where texts repeat themselves: summaries, translations,
    answers about a document.

    Attributes:
        tokens: most tokens to guess at once. Eight rows, the last token and seven guesses, are
            what the kernels for few rows take in one pass.
        ngram: most last tokens to look for; if those are new, fewer are, down to one.

    Raises:
        ValueError: a number is below 1.
    """

    tokens: int = 7
    ngram: int = 3

    def __post_init__(self) -> None:
        _check_counts(tokens=self.tokens, ngram=self.ngram)

    def drafter(self) -> Drafter:
        """What guesses for one sample."""
        return self

    def draft(self, history: History, choose: Sampler, count: int) -> Tensor:
        """The tokens that followed the latest earlier occurrence of the longest n-gram."""
        row = _text_of(history)
        ids = row[0].tolist()
        return row.new_tensor([continuation(ids, self.ngram, count)])


def continuation(ids: list[int], ngram: int, count: int) -> list[int]:
    """What `count` ids would follow if the text went on as after its last n-gram before.

    Source: the prompt lookup decoding of A. Saxena (2023), with copies that may run into
    themselves, as in LZ77, so that a text that has begun to repeat itself is followed.

    Returns:
        `count` ids, or none if no occurrence of the last id precedes it.
    """
    for size in range(min(ngram, len(ids) - 1), 0, -1):
        tail = ids[-size:]
        for end in range(len(ids) - 1, size - 1, -1):
            if ids[end - size : end] == tail:
                copied = list(ids)
                for place in range(end, end + count):
                    copied.append(copied[place])
                return copied[len(ids) :]
    return []


@dataclass(frozen=True)
class DraftModel:
    """Guesses what a smaller model of the same vocabulary would choose by the same numbers.

    Attributes:
        model: the smaller model. Beyond its context it reads the latest half of it anew.
        tokens: most tokens to guess at once.

    Raises:
        ValueError: `tokens` is below 1.
    """

    model: KoGPT
    tokens: int = 5

    def __post_init__(self) -> None:
        _check_counts(tokens=self.tokens)

    def drafter(self) -> Drafter:
        """What guesses for one sample."""
        return _ModelDrafter(self.model)


Speculation = PromptLookup | DraftModel


class _ModelDrafter:
    """The draft model's place in one text.

    Its cache holds the text from `_first` on and, between two calls, guesses that did not come
    true; `_held` are the ids of both.
    """

    def __init__(self, model: KoGPT) -> None:
        self._model = model
        self._context = model.config.n_positions
        self._half = (self._context + 1) // 2
        self._held: list[int]
        self._restart(0)

    @torch.inference_mode()
    def draft(self, history: History, choose: Sampler, count: int) -> Tensor:
        """What `choose` chooses from the draft model's logits, one guess after another."""
        text = self._text_of(history)
        length, count = text.size(1), min(count, self._half - 1)
        self._make_room(length + count)
        self._forget_mistakes(text[0, self._first :].tolist())
        for _ in range(count):
            logits = self._logits(text).to(text.device)
            history = history.append(choose(logits, history).clamp(min=0))
            text = self._text_of(history)
        self._held = text[0, self._first :][: self._cache.length].tolist()
        return text[:, length:]

    def _text_of(self, history: History) -> Tensor:
        """What the draft model reads, (1, L)."""
        text = _text_of(history)
        return torch.cat((text.new_tensor([self._model.prefix_ids]), text), dim=1)

    def _make_room(self, length: int) -> None:
        """Begins anew in the middle of the context where it would not hold `length` ids."""
        if length > self._first + self._context:
            self._restart(length - self._half)

    def _restart(self, first: int) -> None:
        self._first = first
        self._cache = KVCache(self._context)
        self._held = []

    def _forget_mistakes(self, ids: list[int]) -> None:
        """Forgets what is held but not in `ids`."""
        agree = sum(takewhile(bool, map(eq, self._held, ids)))
        if self._cache.has_state and agree < self._cache.length:
            self._restart(self._first)  # all is read again: no guess is taken out of a state
        else:
            self._cache.truncate(agree)

    def _logits(self, text: Tensor) -> Tensor:
        """Logits (1, V) after `text` (1, L), of which the cache holds a part."""
        unread = text[:, self._first + self._cache.length :].to(self._model.device)
        for columns in unread.split(PREFILL_CHUNK, dim=1):
            hidden = read(self._model, columns, self._cache)
        return self._model.logits(hidden[:, -1])


class Speculator:
    """Has guesses read for a batch of one row.

    A batch of several rows is read as ever: its rows share a pass over the weights already, and
    would all have to guess right.
    """

    def __init__(self, how: Speculation) -> None:
        self._tokens = how.tokens
        self._drafter = how.drafter()

    def guess(self, sample: Sample, batch: Batch, choose: Sampler) -> None:
        """Before logits are asked for: lets the batch expect guesses, unless it has the logits."""
        if len(batch.ids) > 1 or batch.is_ahead:
            return
        # After the last token that may be generated none is needed.
        useful = sample.remaining - 1
        count = min(self._tokens, useful, batch.room)
        guesses = self._drafter.draft(batch.history, choose, count)
        batch.expect(guesses)
        sample.expect(guesses[0].tolist())


def refuse_speculation(how: Speculation, model: KoGPT, beams: bool) -> None:
    """Raises ValueError if `model` cannot be helped so, or if there are beams."""
    if not isinstance(how, Speculation):
        raise ParameterError(f"speculate is {how!r}, it must be a PromptLookup or a DraftModel")
    if beams:
        raise ParameterError("speculate cannot be used with num_beams above 1")
    if isinstance(how, DraftModel) and how.model.config.vocab_size != model.config.vocab_size:
        raise ParameterError(
            f"the draft model has a vocabulary of {how.model.config.vocab_size}, the model of "
            f"{model.config.vocab_size}: they must have the same"
        )


def _text_of(history: History) -> Tensor:
    """The ids of a history of one row, (1, L), without padding."""
    return history.ids if history.starts is None else history.ids[:, int(history.starts) :]


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        AT_LEAST_ONE.check(name, count)
