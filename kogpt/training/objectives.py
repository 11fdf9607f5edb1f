"""What finetuning asks of a model: a loss of batches, and figures of a split.

A figure is always of a whole split, computed at once from the model as it is: nothing is summed up
while training goes on, so nothing of the training rows can come into a figure of other rows.

Dimension key: `N` texts in a batch, `B` rows they lie in, `T` tokens in a row, `L` labels.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kogpt.choices import SUM
from kogpt.evaluation.classifying import for_head
from kogpt.evaluation.data import Row, Rows
from kogpt.evaluation.likelihood import Ids, Query, log_likelihoods
from kogpt.evaluation.metrics import Outcome, measure
from kogpt.evaluation.prompting import Encoder, Question, ask, shown
from kogpt.evaluation.protocol import Protocol
from kogpt.evaluation.running import Evaluator, Run, TaskData
from kogpt.evaluation.task import LABEL, Prompt, Task
from kogpt.model import KoGPT
from kogpt.tokenizer import Tokenizer
from kogpt.training.batching import lay_out
from kogpt.training.examples import Completion
from kogpt.training.loss import NO_TARGET, next_token_loss
from kogpt.training.shared_prefix import hidden_states

HELD_OUT_LOSS = "held_out_loss"
TOKENS_AT_ONCE = 8192  # where nothing is learnt

R = TypeVar("R", Row, Completion)
E = TypeVar("E")


@dataclass(frozen=True)
class ExampleBatch:
    """Texts that go through the network at once.

    Attributes:
        input_ids: (B, T).
        targets: of each token (B, T), -100 for none; or of each example (N,).
        starts: where rows hold several texts, as `KoGPT.forward` takes it.
        lasts: row and index of the last token of each text, (2, N); None where tokens have targets.
        count: targets.
        tokens: tokens of texts.
    """

    input_ids: Tensor
    targets: Tensor
    starts: Tensor | None
    lasts: Tensor | None
    count: int
    tokens: int


class Objective(ABC, Generic[R, E]):
    """What is asked of a model.

    Attributes:
        main: the figure to choose by.
    """

    main: str = HELD_OUT_LOSS

    def __init__(self, tokenizer: Tokenizer, prefix: Ids, room: int) -> None:
        """Is told how rows become ids.

        Args:
            tokenizer: of the model.
            prefix: virtual tokens that every text begins with.
            room: tokens that a text may have, these among them.
        """
        self.tokenizer, self.prefix, self.room = tokenizer, prefix, room

    @abstractmethod
    def example(self, row: R) -> E | None:
        """A row in ids; None if nothing in it can be learnt."""

    def usable(self, rows: Sequence[R]) -> list[R]:
        """The rows of a split that `figures` can tell something of."""
        return [row for row in rows if self.example(row) is not None]

    @abstractmethod
    def length(self, example: E) -> int:
        """Tokens that the network reads of an example."""

    @abstractmethod
    def collate(self, rows: Sequence[Sequence[E]]) -> ExampleBatch:
        """Examples as a batch; those that are together lie in one row."""

    @abstractmethod
    def loss(self, model: KoGPT, batch: ExampleBatch) -> Tensor:
        """Loss summed over the targets of a batch, float32."""

    @abstractmethod
    def figures(self, model: KoGPT, rows: Sequence[R]) -> dict[str, float]:
        """Figures of usable rows; `held_out_loss`, per target, and `main` are among them."""

    @property
    def better(self) -> int:
        """The sign of a change of `main` for the better."""
        return -1 if self.main == HELD_OUT_LOSS else 1


class CausalExample(NamedTuple):
    """A text and where in it learning begins.

    Attributes:
        ids: of the text.
        first: index of the first id to be predicted, at least 1.
    """

    ids: Ids
    first: int


class Causal(Objective[R, CausalExample]):
    """What objectives have in common that predict ids after others."""

    def length(self, example: CausalExample) -> int:
        return len(example.ids) - 1  # the last one is predicted, not read

    def collate(self, rows: Sequence[Sequence[CausalExample]]) -> ExampleBatch:
        layout = lay_out([[example.ids[:-1] for example in row] for row in rows])
        targets = torch.full_like(layout.input_ids, NO_TARGET)
        examples = [example for row in rows for example in row]
        for example, row, first in zip(examples, layout.rows, layout.firsts, strict=True):
            learnt = torch.tensor(example.ids[example.first :])
            begin = first + example.first - 1
            targets[row, begin : begin + len(learnt)] = learnt
        count = sum(len(example.ids) - example.first for example in examples)
        tokens = sum(map(self.length, examples))
        return ExampleBatch(layout.input_ids, targets, layout.starts, None, count, tokens)

    def loss(self, model: KoGPT, batch: ExampleBatch) -> Tensor:
        return next_token_loss(model, batch.input_ids, batch.targets, batch.starts)

    def _example(self, query: Query, answer: int) -> CausalExample | None:
        """The continuation of a query that shall be learnt."""
        ids = query.context + query.continuations[answer]
        if len(ids) - 1 > self.room or len(ids) == len(query.context):
            return None
        return CausalExample(ids, len(query.context))


class Completions(Causal[Completion]):
    """Learns what follows a prompt, and that it ends."""

    def example(self, row: Completion) -> CausalExample | None:
        return None if not row.completion else self._example(self._query(row), 0)

    def figures(self, model: KoGPT, rows: Sequence[Completion]) -> dict[str, float]:
        """Loss in nats per token of the completions, their ends among them."""
        queries = list(map(self._query, rows))
        found = log_likelihoods(model, queries)
        tokens = sum(len(query.continuations[0]) for query in queries)
        return {HELD_OUT_LOSS: -math.fsum(row[0].value for row in found) / tokens}

    def _query(self, row: Completion) -> Query:
        encoder = Encoder(self.tokenizer, self.room, prefix=self.prefix)
        query = encoder.encode(Question(row.prompt, (row.completion,)))
        end = () if self.tokenizer.eos_id is None else (self.tokenizer.eos_id,)
        return Query(query.context, (query.continuations[0] + end,))


class TaskObjective(Objective[Row, E]):
    """What objectives of a task have in common: an outcome of rows.

    Attributes:
        task: of which.
    """

    task: Task

    @abstractmethod
    def texts(self, row: Row) -> tuple[str, ...]:
        """What is read of a row's free texts: equal, rows are taken for the same."""

    @abstractmethod
    def judge(self, model: KoGPT, rows: Sequence[Row]) -> tuple[Outcome, float]:
        """What rows are taken for, and the mean loss."""

    def figures(self, model: KoGPT, rows: Sequence[Row]) -> dict[str, float]:
        outcome, loss = self.judge(model, rows)
        return {name: measure(name, outcome)[0] for name in self.metrics} | {HELD_OUT_LOSS: loss}

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the task's metrics, the main one first."""
        return self.task.metrics


class LabelWords(Causal[Row], TaskObjective[CausalExample]):
    """Learns the answer of a task's prompt, as a text; predicts the likeliest of all answers."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prefix: Ids,
        room: int,
        task: Task,
        prompt: Prompt,
        n_positions: int,
    ) -> None:
        super().__init__(tokenizer, prefix, room)
        self.task, self.prompt, self.main = task, prompt, task.metrics[0]
        self.n_positions = n_positions  # the context of the model

    def texts(self, row: Row) -> tuple[str, ...]:
        return shown(self.prompt, row)

    def example(self, row: Row) -> CausalExample | None:
        encoder = Encoder(self.tokenizer, self.room, prefix=self.prefix)
        question = ask(self.prompt, row)
        if not question.answers[row.label].strip():
            return None
        return self._example(encoder.encode(question), row.label)

    def usable(self, rows: Sequence[Row]) -> list[Row]:
        """By the evaluation's own rules: no answer is empty, and the model's context has room."""
        encoder = Encoder(self.tokenizer, self.n_positions, prefix=self.prefix)
        asked = [(row, ask(self.prompt, row)) for row in rows]
        told = [(row, question) for row, question in asked if all(map(str.strip, question.answers))]
        return [row for row, question in told if encoder.fit(question) is not None]

    def judge(self, model: KoGPT, rows: Sequence[Row]) -> tuple[Outcome, float]:
        """As `kogpt evaluate` does it; the loss is of the right answers, in nats per token."""
        run = self._run(model, rows)
        right = range(len(run.rows)), [row.label for row in run.rows]
        found = run.sets[0]
        tokens = np.array(found.tokens)[right].sum()
        return run.outcome(SUM), -float(np.array(found.log_likelihoods)[right].sum() / tokens)

    def _run(self, model: KoGPT, rows: Sequence[Row]) -> Run:
        data = TaskData(Rows(Path(self.task.name), "", list(rows), (), ()), list(rows), None)
        protocol = Protocol(scoring=(SUM,))
        (run,) = Evaluator(model, self.tokenizer).run(self.task, self.prompt, protocol, data)
        return run


class HeadExample(NamedTuple):
    """Texts whose last tokens are looked at, and what shall be seen there.

    Attributes:
        texts: ids of one text, or of both orders of two.
        goal: label or degree.
    """

    texts: tuple[Ids, ...]
    goal: float


class LastToken(TaskObjective[HeadExample]):
    """What objectives have in common that put a head on the last token of a text.

    The mean of its outputs counts where there are several texts, and the contents of a row that
    prompts of the task show are one: `kogpt.evaluation.classifying`.
    """

    both_orders: ClassVar[bool] = False

    def __init__(self, tokenizer: Tokenizer, prefix: Ids, room: int, task: Task) -> None:
        super().__init__(tokenizer, prefix, room)
        self.task, self.main = task, task.metrics[0]

    def texts(self, row: Row) -> tuple[str, ...]:
        return row.texts(self.task.names)

    @abstractmethod
    def goal(self, row: Row) -> float:
        """What shall be seen of a row."""

    @abstractmethod
    def loss_of(self, outputs: Tensor, goals: Tensor) -> Tensor:
        """Summed loss of outputs (N, L) for goals (N,)."""

    @abstractmethod
    def scores(self, outputs: np.ndarray) -> np.ndarray:
        """Scores of labels (N, L) by outputs."""

    def example(self, row: Row) -> HeadExample | None:
        texts = for_head(self.tokenizer, self.prefix, self.texts(row), self.both_orders)
        return HeadExample(texts, self.goal(row)) if len(texts[0]) <= self.room else None

    def length(self, example: HeadExample) -> int:
        return sum(map(len, example.texts))

    def collate(self, rows: Sequence[Sequence[HeadExample]]) -> ExampleBatch:
        examples = [example for row in rows for example in row]
        layout = lay_out([texts for row in rows for texts in self._rows_of(row)])
        lengths = [len(text) for example in examples for text in example.texts]
        ends = [first + size - 1 for first, size in zip(layout.firsts, lengths, strict=True)]
        goals = torch.tensor([example.goal for example in examples])
        lasts = torch.tensor([layout.rows, ends])
        tokens = sum(lengths)
        return ExampleBatch(layout.input_ids, goals, layout.starts, lasts, len(examples), tokens)

    def _rows_of(self, row: Sequence[HeadExample]) -> list[list[Ids]]:
        """Texts that lie together: of an example alone each has a row, so each may fill it."""
        texts = [text for example in row for text in example.texts]
        return [texts] if len(row) > 1 else [[text] for text in texts]

    def loss(self, model: KoGPT, batch: ExampleBatch) -> Tensor:
        return self.loss_of(self.outputs_of(model, batch), batch.targets)

    def outputs_of(self, model: KoGPT, batch: ExampleBatch) -> Tensor:
        """What the head says of each example, (N, L), float32."""
        assert batch.lasts is not None, "heads look at last tokens"
        hidden = hidden_states(model, batch.input_ids, batch.starts)
        row, last = batch.lasts
        outputs = model.get_submodule("score")(hidden[row, last].float()).float()
        return outputs.view(batch.count, -1, outputs.size(1)).mean(1)

    @torch.no_grad()
    def judge(self, model: KoGPT, rows: Sequence[Row]) -> tuple[Outcome, float]:
        examples = [(row, example) for row in rows if (example := self.example(row)) is not None]
        examples.sort(key=lambda pair: self.length(pair[1]))
        outputs, loss = [], 0.0
        for batch in self._batches([example for _, example in examples], model.device):
            found = self.outputs_of(model, batch)
            loss += self.loss_of(found, batch.targets).item()
            outputs.append(found.double().cpu().numpy())
        outcome = self._outcome([row for row, _ in examples], np.concatenate(outputs))
        return outcome, loss / len(examples)

    def _outcome(self, rows: Sequence[Row], outputs: np.ndarray) -> Outcome:
        gold, degrees = [row.label for row in rows], [row.degree for row in rows]
        return Outcome.of(self.task.labels, gold, degrees, [self.scores(outputs)])

    def _batches(self, examples: list[HeadExample], device: torch.device) -> list[ExampleBatch]:
        """Batches of examples that are sorted by length."""
        batches = []
        while examples:
            count = max(1, TOKENS_AT_ONCE // self.length(examples[-1]))
            batches.append(to_device(self.collate([[e] for e in examples[-count:]]), device))
            del examples[-count:]
        return batches[::-1]


class Classification(LastToken):
    """Classes by a head on the last token; cross entropy."""

    def goal(self, row: Row) -> float:
        return row.label

    def loss_of(self, outputs: Tensor, goals: Tensor) -> Tensor:
        return F.cross_entropy(outputs, goals.long(), reduction="sum")

    def scores(self, outputs: np.ndarray) -> np.ndarray:
        return outputs


class Regression(LastToken):
    """A task's degree by a head of one output on the last token; squared error.

    Pairs are read in both orders, the outputs' mean counts, as published for KorSTS
    (haven-jeon/KoGPT2-subtasks).
    """

    both_orders = True

    def goal(self, row: Row) -> float:
        assert row.degree is not None, "the task has degrees"
        return row.degree

    def loss_of(self, outputs: Tensor, goals: Tensor) -> Tensor:
        return (outputs.squeeze(1) - goals).square().sum()

    def scores(self, outputs: np.ndarray) -> np.ndarray:
        """A degree above the border speaks for the last label."""
        border = self.task.scored.fields[LABEL].at_least
        assert border is not None, "the label is cut out of the degree"
        return np.concatenate((np.zeros_like(outputs), outputs - border), axis=1)


def to_device(batch: ExampleBatch, device: torch.device) -> ExampleBatch:
    """The batch where the model is."""
    input_ids, targets = batch.input_ids.to(device), batch.targets.to(device)
    starts, lasts = (x if x is None else x.to(device) for x in (batch.starts, batch.lasts))
    return replace(batch, input_ids=input_ids, targets=targets, starts=starts, lasts=lasts)
