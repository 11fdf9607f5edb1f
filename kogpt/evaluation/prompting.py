"""From rows to what a model reads: texts first, then ids."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from typing import NamedTuple

from kogpt.errors import InputRefusedError
from kogpt.evaluation.data import Row
from kogpt.evaluation.likelihood import Ids, Query, common_start
from kogpt.evaluation.task import Prompt
from kogpt.tokenizer import Tokenizer

# What stands for "anything" where the bias of a prompt is measured: Zhao et al. 2021, Calibrate
# Before Use, section 5.
CONTENT_FREE = ("N/A", "", "[MASK]")

# `general_detokenize` of the harness, in its order. It changes real reviews: it belongs to the
# prompts whose published numbers were made with it.
DETOKENIZE = (
    (" n't", "n't"),
    (" )", ")"),
    ("( ", "("),
    ('" ', '"'),
    (' "', '"'),
)
SPACE_BEFORE = re.compile(r" (['.,])")


class Question(NamedTuple):
    """A row as text.

    Attributes:
        context: all before the answer.
        answers: one for each label.
    """

    context: str
    answers: tuple[str, ...]


def ask(prompt: Prompt, row: Row) -> Question:
    """The row, without its label."""
    return _fill(prompt, row.fields)


def shown(prompt: Prompt, row: Row) -> tuple[str, ...]:
    """A row's free texts as they are shown: rows of which they are equal are taken for the same."""
    texts = row.texts(prompt.names)
    return tuple(map(detokenize, texts)) if prompt.detokenize else texts


def ask_nothing(prompt: Prompt, row: Row) -> list[Question]:
    """The row's answers behind texts that say nothing: what they score is the prompt's bias."""
    answers = _fill(prompt, row.fields).answers
    blanks = [{name: text for name in row.content} for text in CONTENT_FREE]
    return [_fill(prompt, {**row.fields, **blank})._replace(answers=answers) for blank in blanks]


def example(prompt: Prompt, row: Row) -> str:
    """The row with its answer, as a shot."""
    context, answers = ask(prompt.in_shots, row)
    return context + answers[row.label]


def _fill(prompt: Prompt, fields: Mapping[str, str]) -> Question:
    if prompt.detokenize:
        fields = {name: detokenize(text) for name, text in fields.items()}
    answers = tuple(target.format_map(fields) for target in prompt.targets)
    return Question(prompt.context.format_map(fields), answers)


def detokenize(text: str) -> str:
    """Drops spaces around punctuation as the harness does."""
    for old, new in DETOKENIZE:
        text = text.replace(old, new)
    return SPACE_BEFORE.sub(r"\1", text)


@dataclass(frozen=True)
class Encoder:
    """Questions to ids, with as many shots as fit.

    Attributes:
        tokenizer: of the model.
        n_positions: the context of the model.
        separator: between shots.
        prefix: ids that every text begins with: the model's `prefix_ids`.
    """

    tokenizer: Tokenizer
    n_positions: int
    separator: str = "\n\n"
    prefix: Ids = ()

    def encode(self, question: Question, shots: Sequence[str] = ()) -> Query:
        """Ids of a question after shots.

        Texts are encoded as wholes, since a token may lie across any border in them. An answer
        begins where its ids part from those of the context alone, but with what spaces the context
        ends in: the harness's rule, except that there a token that lies across the border is cut
        off by count.
        """
        text = self.separator.join([*shots, question.context])
        wholes = [self._ids(text + answer) for answer in question.answers]
        context = common_start([self._ids(text.rstrip()), *wholes])
        answers = tuple(whole[len(context) :] for whole in wholes)
        return Query(context or (self._beginning(),), answers)

    def fit(self, question: Question, shots: Sequence[str] = ()) -> tuple[Query, int] | None:
        """The question after as many of the shots as fit, the last ones, and how many these are.

        Returns:
            None if the question alone exceeds the context.
        """
        query = self.encode(question, shots)
        if self._fits(query):
            return query, len(shots)
        alone = self.encode(question)
        if not self._fits(alone):
            return None
        used = self._guess(self.n_positions - alone.num_read, shots)
        query = self._after_last(used, shots, question)
        while not self._fits(query):
            used -= 1
            query = self._after_last(used, shots, question)
        while used < len(shots):
            longer = self._after_last(used + 1, shots, question)
            if not self._fits(longer):
                break
            query, used = longer, used + 1
        return query, used

    def _fits(self, query: Query) -> bool:
        return query.num_read <= self.n_positions

    def _after_last(self, count: int, shots: Sequence[str], question: Question) -> Query:
        return self.encode(question, shots[len(shots) - count :])

    def _guess(self, room: int, shots: Sequence[str]) -> int:
        """How many of the last shots fill so much room, nearly: ids change with neighbours."""
        parts = (self.separator + shot for shot in reversed(shots))
        ends = accumulate(len(self.tokenizer.encode(part)) for part in parts)
        return sum(1 for _ in takewhile(lambda end: end <= room, ends))

    def _ids(self, text: str) -> Ids:
        return (*self.prefix, *self.tokenizer.encode(text, bos=self.tokenizer.add_bos))

    def _beginning(self) -> int:
        """What stands before a text that has nothing before it."""
        for id in (self.tokenizer.bos_id, self.tokenizer.eos_id):
            if id is not None:
                return id
        raise InputRefusedError("a prompt is empty, and the tokenizer has no bos or eos to put in")
