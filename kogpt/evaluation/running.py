"""Runs a task: draws shots, puts every row to the model, keeps what came back."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import NamedTuple
from typing import Protocol as Interface

import numpy as np

from kogpt.choices import CALIBRATED, PER_CHARACTER, PER_TOKEN, SUM
from kogpt.errors import InputRefusedError
from kogpt.evaluation.data import Row, Rows, find_first, read_rows
from kogpt.evaluation.journal import Journal, Values
from kogpt.evaluation.likelihood import Query, SharedReader, plan_batches
from kogpt.evaluation.metrics import Outcome
from kogpt.evaluation.prompting import Encoder, Question, ask, ask_nothing, example, shown
from kogpt.evaluation.protocol import Protocol
from kogpt.evaluation.shots import draw_shots, sample_rows
from kogpt.evaluation.task import Prompt, Task, load_task
from kogpt.generation.requests import evaluation_mode, refuse_unreadable
from kogpt.model import KoGPT
from kogpt.parallel import Parallel
from kogpt.tokenizer import Tokenizer, normalize_text


@dataclass(frozen=True)
class TaskData:
    """The rows of a task.

    Attributes:
        scored: the file that is scored.
        sample: those of its rows that are.
        shots: the file of examples; None where none are needed.
    """

    scored: Rows
    sample: list[Row]
    shots: Rows | None


def read_data(task: Task, folder: Path, protocol: Protocol) -> TaskData:
    """Reads the files of a task; raises InputRefusedError as `read_rows` does."""
    labels = len(task.labels)
    scored = read_rows(task.scored, folder, labels)
    shots = None
    if max(protocol.shots) > 0:
        shots = read_rows(find_first(task.shots, folder), folder, labels)
    return TaskData(scored, sample_rows(scored.rows, protocol.limit), shots)


@dataclass
class Answers:
    """What the model made of the rows after one set of shots; one entry for each row.

    Attributes:
        shots: indices of the examples in their file.
        fitted: examples that fit before the row.
        log_likelihoods: of each answer.
        tokens: of each answer.
        characters: of each answer, but for spaces around it.
        priors: log-probability of each answer among them when nothing is asked; empty where that
            was not computed.
    """

    shots: list[int]
    fitted: list[int] = field(default_factory=list)
    log_likelihoods: list[list[float]] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)
    characters: list[list[int]] = field(default_factory=list)
    priors: list[list[float]] = field(default_factory=list)

    def scores(self, rule: str) -> np.ndarray:
        """The score of each answer (n, L) by one of the rules of `Protocol.scoring`."""
        values = np.array(self.log_likelihoods)
        if rule == SUM:
            return values
        if rule == CALIBRATED:
            return values - np.array(self.priors)
        return values / np.array({PER_TOKEN: self.tokens, PER_CHARACTER: self.characters}[rule])


@dataclass
class Run:
    """A task, put in one way to one model.

    Attributes:
        task: of which.
        prompt: how a row was put.
        protocol: how all else was done; `shots` is one number here.
        data: the rows.
        rows: those that were scored.
        too_long: indices of rows that exceed the context by themselves, and were not.
        sets: what came back, for each set of shots.
    """

    task: Task
    prompt: Prompt
    protocol: Protocol
    data: TaskData
    rows: list[Row]
    too_long: list[int]
    sets: list[Answers] = field(default_factory=list)

    @property
    def shots(self) -> int:
        """Examples that were asked for."""
        return self.protocol.shots[0]

    @property
    def equal_answers(self) -> list[int]:
        """Indices of rows of which two answers are equal, so that none of these is the likelier."""
        labels, asked = len(self.task.labels), [ask(self.prompt, row) for row in self.rows]
        return [
            row.index
            for row, question in zip(self.rows, asked, strict=True)
            if len(set(question.answers)) < labels
        ]

    @property
    def rules(self) -> tuple[str, ...]:
        """How answers are scored."""
        return rules_of(self.protocol, self.prompt)

    def outcome(self, rule: str) -> Outcome:
        """What the rows were taken for by a rule of scoring."""
        gold, degrees = [row.label for row in self.rows], [row.degree for row in self.rows]
        scores = [answers.scores(rule) for answers in self.sets]
        return Outcome.of(self.task.labels, gold, degrees, scores)


def rules_of(protocol: Protocol, prompt: Prompt) -> tuple[str, ...]:
    """The rules that a protocol names, or those that come for nothing."""
    if protocol.scoring is not None:
        return protocol.scoring
    return (SUM, CALIBRATED) if prompt.fixed else (SUM, PER_TOKEN)


def num_sets(protocol: Protocol) -> int:
    """Draws of examples; none has nothing to draw."""
    return protocol.sets if max(protocol.shots) > 0 else 1


def draw_set(
    task: Task,
    prompt: Prompt,
    protocol: Protocol,
    data: TaskData,
    number: int,
    tokenizer: Tokenizer,
) -> list[Row]:
    """The examples of one set, of a protocol of one number of shots; never a text that is scored.

    Nor a row whose right answer is empty: as an example it shows none.

    Raises:
        InputRefusedError: too few rows suit; names their file.
    """
    (count,) = protocol.shots
    if count == 0:
        return []
    assert data.shots is not None, "examples were read"
    scored, limit = {shown(prompt, row) for row in data.sample}, protocol.max_shot_tokens

    def suits(row: Row) -> bool:
        answer = ask(prompt.in_shots, row).answers[row.label]
        if shown(prompt, row) in scored or not answer.strip():
            return False
        texts = row.texts(prompt.in_shots.names)
        return limit is None or sum(len(tokenizer.encode(text)) for text in texts) <= limit

    labels = len(task.labels) if protocol.balanced else None
    try:
        return draw_shots(data.shots.rows, count, protocol.seed, number, labels, suits)
    except InputRefusedError as error:
        short = "" if limit is None else f", of at most {limit} tokens"
        raise InputRefusedError(
            f"{data.shots.path}: {error} (texts that are not scored and have an answer{short})"
        ) from None


class Watch(Interface):
    """Is told how many rows more have been read."""

    def update(self, n: int) -> object: ...


class Evaluator:
    """A model, and what helps it through an evaluation."""

    def __init__(
        self,
        model: KoGPT,
        tokenizer: Tokenizer,
        journal: Journal | None = None,
        parallel: Parallel | None = None,
        watch: Watch | None = None,
    ) -> None:
        """Takes a model.

        Args:
            model: any, in evaluation mode.
            tokenizer: its tokenizer.
            journal: where finished batches are kept; None keeps none.
            parallel: the processes that share the work; None is this one alone.
            watch: is told of progress.

        Raises:
            InputRefusedError: the tokenizer is not the model's.
        """
        refuse_unreadable((), "", model, tokenizer)
        self.model, self.tokenizer = model, tokenizer
        self.journal = journal or Journal(None, "")
        self.parallel = parallel or Parallel()
        self.watch = watch

    def run(self, task: Task, prompt: Prompt, protocol: Protocol, data: TaskData) -> Iterator[Run]:
        """Runs a task once for each number of shots.

        Raises:
            InputRefusedError: there are too few rows to draw shots from, no row fits the
                context, or an answer is empty.
        """
        for shots in protocol.shots:
            yield self._run(task, prompt, replace(protocol, shots=(shots,)), data)

    def _run(self, task: Task, prompt: Prompt, protocol: Protocol, data: TaskData) -> Run:
        context, prefix = self.model.config.n_positions, tuple(self.model.prefix_ids)
        encoder = Encoder(self.tokenizer, context, protocol.separator, prefix)
        rows = [row for row in data.sample if encoder.fit(ask(prompt, row)) is not None]
        too_long = sorted({row.index for row in data.sample} - {row.index for row in rows})
        if not rows:
            raise InputRefusedError(f"{data.scored.path}: no row fits the context of the model")
        for row in rows:
            if not all(answer.strip() for answer in ask(prompt, row).answers):
                raise InputRefusedError(f"{data.scored.path}: row {row.index}: an answer is empty")
        run = Run(task, prompt, protocol, data, rows, too_long)
        for number in range(num_sets(protocol)):
            shots = draw_set(task, prompt, protocol, data, number, self.tokenizer)
            run.sets.append(self._answers(run, encoder, shots))
        return run

    def _answers(self, run: Run, encoder: Encoder, shots: Sequence[Row]) -> Answers:
        board = Board(encoder, [example(run.prompt, row) for row in shots])
        answers = Answers([row.index for row in shots])
        places, blanks = [], []
        for row in run.rows:
            question = ask(run.prompt, row)
            place = board.place(question)
            places.append(place)
            answers.fitted.append(place.fitted)
            answers.tokens.append(list(map(len, board.query(place).continuations)))
            read = (normalize_text(answer, "auto") for answer in question.answers)
            answers.characters.append([len(text.strip()) for text in read])
            if CALIBRATED in run.rules:
                asked = ask_nothing(run.prompt, row)
                blanks.append([board.place(blank, place.fitted) for blank in asked])
        size = run.protocol.batch_size
        found = {fitted: self._score(group, size) for fitted, group in board.groups.items()}
        answers.log_likelihoods = [found[fitted][at] for fitted, at in places]
        answers.priors = [prior([found[fitted][at] for fitted, at in row]) for row in blanks]
        return answers

    def _score(self, queries: Sequence[Query], batch_size: int) -> Values:
        """Log-likelihoods of queries that begin alike; what the journal knows is not read again."""
        batches = plan_batches(queries, batch_size)
        parts = [[queries[i] for i in batch] for batch in batches]
        names = list(map(self.journal.name, parts))
        known = {at: self.journal.get(name) for at, name in enumerate(names)}
        found = {at: answers for at, answers in known.items() if answers is not None}
        self._tell(sum(len(parts[at]) for at in found))
        reader = SharedReader(self.model, queries, max(map(len, batches)))
        # Shared by number: what a process knows already need not be known to the others.
        for at in [at for at in self.parallel.share(range(len(parts))) if at not in found]:
            found[at] = [[answer.value for answer in row] for row in reader.read(parts[at])]
            self.journal.put(names[at], found[at])
            self._tell(len(parts[at]) * self.parallel.data_size)
        found = self.parallel.gather(found)
        values: Values = [[] for _ in queries]
        for at, batch in enumerate(batches):
            for query, answers in zip(batch, found[at], strict=True):
                values[query] = answers
        return values

    def _tell(self, rows: int) -> None:
        if self.watch is not None:
            self.watch.update(rows)


def evaluate(
    model: KoGPT,
    tokenizer: Tokenizer,
    task: str | Task,
    data: str | PathLike[str],
    protocol: Protocol | None = None,
    prompt: str | None = None,
) -> list[Run]:
    """Puts a task to a model.

    Args:
        model: any; dropout is off while this runs.
        tokenizer: its tokenizer.
        task: its name, the path of its `.toml` file, or itself.
        data: folder of the tasks' data.
        protocol: how it is done; None is zero-shot, all rows.
        prompt: name of one of the task's; None is its first.

    Returns:
        A run for each number of shots; `measure(metric, run.outcome(rule))` gives its scores.

    Raises:
        ValueError: there is no such task or prompt.
        InputRefusedError: the data or the task's file cannot be used, or the tokenizer is not the
            model's.
    """
    task = load_task(task) if isinstance(task, str) else task
    protocol = protocol or Protocol()
    rows = read_data(task, Path(data), protocol)
    with evaluation_mode(model):
        return list(Evaluator(model, tokenizer).run(task, task.prompt(prompt), protocol, rows))


class Place(NamedTuple):
    """Where a question's answers will be found.

    Attributes:
        fitted: examples that fit before it.
        at: its place among those with as many.
    """

    fitted: int
    at: int


class Board:
    """Questions behind the same examples, in groups that begin alike; equal ones are one.

    Attributes:
        groups: by how many examples fit.
    """

    def __init__(self, encoder: Encoder, shots: Sequence[str]) -> None:
        self.groups: dict[int, list[Query]] = {}
        self._encoder, self._shots = encoder, shots
        self._places: dict[tuple[Question, int], Place] = {}

    def place(self, question: Question, most: int | None = None) -> Place:
        """Takes in a question.

        Args:
            question: put behind as many examples as fit.
            most: of these; None for all.

        Raises:
            InputRefusedError: it exceeds the context by itself.
        """
        shots = self._shots if most is None else self._shots[len(self._shots) - most :]
        key = question, len(shots)
        if key not in self._places:
            fit = self._encoder.fit(question, shots)
            if fit is None:  # rows were left out; only what is asked instead can be longer
                raise InputRefusedError("calibration asks what exceeds the context of the model")
            query, fitted = fit
            group = self.groups.setdefault(fitted, [])
            group.append(query)
            self._places[key] = Place(fitted, len(group) - 1)
        return self._places[key]

    def query(self, place: Place) -> Query:
        """The question in ids."""
        return self.groups[place.fitted][place.at]


def prior(blanks: Sequence[Sequence[float]]) -> list[float]:
    """Log-probability of each answer among all, the mean of probabilities over some questions."""
    values = np.array(blanks)
    # In logarithms throughout: answers of unequal lengths are further apart than a double reaches.
    shares = values - np.logaddexp.reduce(values, axis=-1, keepdims=True)
    return (np.logaddexp.reduce(shares, axis=0) - np.log(len(values))).tolist()
