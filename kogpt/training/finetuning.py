"""Finetuning: a model, a method, an objective and examples; what comes out is measured and kept.

out/            the result: a checkpoint, or an adapter in PEFT's layout, and results.json
out/run/        the run: step-*, the best weights so far, log, pictures
"""

import dataclasses
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

import torch
from torch import Tensor

import kogpt
from kogpt.adapters.files import adapter_content, write_adapter_content
from kogpt.adapters.head import head_of, read_head
from kogpt.checkpoint import write_checkpoint
from kogpt.checkpoint.convert import license_of
from kogpt.checkpoint.names import numbered_labels
from kogpt.checkpoint.staging import fsync_path, refuse_existing, write_atomically
from kogpt.choices import BEST, COMPLETION, FULL, HEAD, LABEL_WORDS, REGRESSION
from kogpt.errors import InputRefusedError, ParameterError
from kogpt.evaluation.metrics import interval, measure, require_sklearn
from kogpt.evaluation.provenance import commit
from kogpt.evaluation.task import DEGREE, LABEL, Task, load_task
from kogpt.generation.requests import evaluation_mode
from kogpt.jsonfiles import to_json
from kogpt.model import KoGPT
from kogpt.parallel import Parallel
from kogpt.tokenizer import Tokenizer, load_tokenizer
from kogpt.training.batching import RowPlan, cut
from kogpt.training.config import FinetuningConfig
from kogpt.training.examples import Splits, fingerprint, read_examples, read_task
from kogpt.training.job import Job
from kogpt.training.log import LOG_NAME, read_log
from kogpt.training.loop import run_job
from kogpt.training.loss import autocast
from kogpt.training.methods import learnt, restore, saved_buffers, start_model, stored_head
from kogpt.training.model import fingerprint_of_base, own_class, require_checkpoint
from kogpt.training.objectives import (
    HELD_OUT_LOSS,
    Classification,
    Completions,
    ExampleBatch,
    LabelWords,
    Objective,
    Regression,
    TaskObjective,
    to_device,
)
from kogpt.training.optimizer import trained
from kogpt.training.pages import use_huge_pages
from kogpt.training.sharing import refuse_unshared
from kogpt.training.state import Files, read_state, stored_tensors, write_step, write_tensors

T = TypeVar("T")

WEIGHTS_NAME = "trained.safetensors"
BEST_NAME, STEP = "best.safetensors", "step"
RESULTS_NAME = "results.json"


def finetune(config: FinetuningConfig, stream: TextIO | None = None) -> dict[str, Any]:
    """Finetunes a model; the same settings and data give the same weights, interrupted or not.

    On a CPU in float32 that holds to the last bit. Seeds torch's global generator.

    Args:
        config: all settings.
        stream: where progress is told; None for stderr.

    Returns:
        What `results.json` in `config.out` holds: figures of the validation and test splits.

    Raises:
        InputRefusedError: data, model, tokenizer or an earlier run cannot be used.
        KoGPTError: the loss is no longer a number, another process trains in the same folder, or
            an extra is missing.
        NotEnoughResourcesError: no room for the model, a step or a checkpoint.
        ValueError: a setting does not fit the model or the data.
    """
    use_huge_pages()
    if config.task is not None:
        require_sklearn()
    with Parallel.launched(config.tensor_parallel, config.device) as parallel:
        refuse_unshared(config, parallel.world_size)
        parallel.once(lambda: refuse_foreign(config))
        return run_job(config, Finetuning.start, stream, parallel).finish()


def refuse_foreign(config: FinetuningConfig) -> None:
    """Refuses to write where anything is but the run that shall be resumed.

    Raises:
        InputRefusedError: something else is there.
    """
    if not (config.resume and config.folder.is_dir()):
        refuse_existing(config.out)


class Finetuning(Job[FinetuningConfig, ExampleBatch]):
    """A model that is being finetuned."""

    dynamic = True  # rows are as long as their texts

    def __init__(
        self,
        config: FinetuningConfig,
        model: KoGPT,
        tokenizer: Tokenizer,
        objective: Objective[Any, Any],
        splits: Splits[Any],
        parallel: Parallel,
    ) -> None:
        self.config, self.model, self.tokenizer = config, model, tokenizer
        self.parallel = parallel
        self.objective, self.splits = objective, usable(splits, objective)
        found = map(objective.example, splits.training)
        self.examples = [example for example in found if example is not None]
        self.data = fingerprint(self.examples, self.splits.validation)
        self.base = None if config.method == FULL else fingerprint_of_base(config)
        if not self.examples:
            raise InputRefusedError(
                f"{' '.join(config.data)}: none of {len(splits.training)} rows fits the context of "
                f"{objective.room} tokens and has anything to learn"
            )
        lengths = list(map(objective.length, self.examples))
        room = objective.room if config.pack else None
        self.plan = RowPlan(lengths, config.batch_size, config.seed, room)

    @classmethod
    def start(
        cls, config: FinetuningConfig, last: Path | None, stream: TextIO, parallel: Parallel
    ) -> "Finetuning":
        """The job at its beginning, or where checkpoint `last` was written."""
        task = None if config.task is None else load_task(config.task)
        kind = find_objective(config, task)
        require_checkpoint(config)
        tokenizer = load_tokenizer(config.model)
        model = start_model(config, head_labels(kind, task), parallel)
        parallel.once(lambda: forget_best(config.folder / BEST_NAME, last))
        if last is not None:
            with stored_tensors(last / WEIGHTS_NAME) as tensors:
                restore(learnt(model, config.method), tensors)
        objective = make_objective(kind, config, model, tokenizer, task)
        splits: Splits[Any]
        if isinstance(objective, TaskObjective):
            splits = read_task(objective.task, config, objective.texts)
        else:
            splits = read_examples(config)
        print(f"encoding {len(splits.training):,} examples", file=stream, flush=True)
        return cls(config, model, tokenizer, objective, splits, parallel)

    def num_steps(self) -> int:
        return self.config.steps or self.plan.num_steps(self.config.epochs)

    def batches(self, step: int, steps: int) -> list[ExampleBatch]:
        rows = [[self.examples[i] for i in row] for row in self.plan.step(step)]
        return [
            to_device(self.objective.collate(micro), self.parallel.device)
            for micro in cut(rows, self.config.micro_batch_of(self.parallel.data_size))
        ]

    def loss(self, batch: ExampleBatch) -> Tensor:
        return self.objective.loss(self.model, batch)

    def describe(self) -> str:
        numbers = sum(p.numel() for p in trained(self.model).values())
        left_out = len(self.splits.training) - len(self.examples)
        return (
            f"{numbers:,} of {sum(p.numel() for p in self.model.parameters()):,} parameters "
            f"trained, {len(self.examples):,} examples"
            + (f" ({left_out:,} left out: too long, or nothing to learn)" if left_out else "")
            + f", {len(self.splits.validation):,} held out"
            + self._head_words()
        )

    def _head_words(self) -> str:
        """Whose head it is, where there is one, or that the base's is lost."""
        if not hasattr(self.model, "score"):
            head = read_head(self.config.model, own_class(self.config))
            lost = self.config.method == FULL and head is not None
            return ", without the head of the model" if lost else ""
        (weight,) = self.model.get_submodule("score").parameters()
        is_new = stored_head(self.config, len(weight)) is None
        return f", {'a new head' if is_new else 'the head of the model'}"

    def begin(self) -> None:
        super().begin()
        if self.config.method != FULL:
            # An adapter holds no buffers: layers that would change theirs compute as they are.
            for name in saved_buffers(self.model):
                self.model.get_submodule(name.rpartition(".")[0]).training = False

    def _learnt(self) -> dict[str, Tensor]:
        return learnt(self.model, self.config.method)

    def validate(self) -> dict[str, float]:
        """Figures of the validation split."""
        return self.figures(self.splits.validation) if self.splits.validation else {}

    def validated(self, step: int, figures: Mapping[str, float]) -> None:
        """Keeps the best weights so far."""
        if self.config.keep_weights != BEST:
            return
        if self.parallel.once(lambda: self._is_best(step, figures)):
            tensors = {STEP: torch.tensor(step), **self._learnt()}
            write_tensors(self._best, tensors, self.parallel)

    def figures(self, rows: Sequence[Any]) -> dict[str, float]:
        """Figures of a split, by the model as it is."""
        return self._judged(self.objective.figures, rows)

    def _judged(self, judge: Callable[[KoGPT, Sequence[Any]], T], rows: Sequence[Any]) -> T:
        """What is made of rows by the model as it is."""

        def judged() -> T:
            with evaluation_mode(self.model), autocast(self.model, self.config.precision):
                return judge(self.model, rows)

        return self.parallel.as_forward(self.model, judged)()

    def save(self, folder: Path, files: Files) -> None:
        write_step(folder, {WEIGHTS_NAME: self._learnt(), **files}, self.parallel)

    def finish(self) -> dict[str, Any]:
        """Takes the weights to keep, measures them, and writes the result."""
        step = self.num_steps()
        if self.config.keep_weights == BEST and self._best.exists():
            with stored_tensors(self._best) as best:
                found = int(best.pop(STEP)[:])
                if found <= step:  # else of a longer run that this one was cut from
                    step = found
                    restore(self._learnt(), best)
        publish(self)  # first, so that weights are there whatever comes of measuring them
        results = self._results(step)
        if self.parallel.first:
            write_atomically(self.config.out / RESULTS_NAME, to_json(results))
        return results

    @property
    def _best(self) -> Path:
        return self.config.folder / BEST_NAME

    def _is_best(self, step: int, figures: Mapping[str, float]) -> bool:
        """Whether no validation before was as good; a resumed run has their log."""
        name, sign = self.objective.main, self.objective.better
        before = [value for at, value in self._validations().items() if at < step]
        return all(sign * figures[name] > value for value in before)

    def _lost_best(self, step: int) -> Iterator[str]:
        """Notes where another step than this was the best, and its weights are gone.

        As of a run that was cut shorter after better steps had come, or whose files were removed.
        """
        if self.config.keep_weights != BEST or not self.parallel.first:
            return
        values, name = self._validations(), self.objective.main
        best = max(values, key=values.__getitem__, default=step)
        if values.get(best) != values.get(step):
            yield f"step {best} was better than step {step} by its {name}; its weights are gone"

    def _validations(self) -> dict[int, float]:
        """How good each step was that the log tells of, more being better."""
        name, sign = self.objective.main, self.objective.better
        log = read_log(self.config.folder / LOG_NAME)
        return {entry["step"]: sign * entry[name] for entry in log if name in entry}

    def _results(self, step: int) -> dict[str, Any]:
        splits = {"validation": self.splits.validation, "test": self.splits.test}
        return {
            "command": shlex.join(("kogpt", *sys.argv[1:])),
            "kogpt": kogpt.__version__,
            "commit": commit(),
            "torch": torch.__version__,
            "settings": self.config.to_dict(),
            "step": step,
            "examples": len(self.examples),
            "left_out": len(self.splits.training) - len(self.examples),
            "trained_parameters": sum(p.numel() for p in trained(self.model).values()),
            "notes": [*self.splits.notes, *self._lost_best(step)],
            **{name: self._measured(rows) for name, rows in splits.items() if rows},
        }

    def _measured(self, rows: Sequence[Any]) -> dict[str, Any]:
        """Figures of a split, with intervals where there are metrics."""
        if not isinstance(self.objective, TaskObjective):
            return {"rows": len(rows), **self.figures(rows)}
        outcome, loss = self._judged(self.objective.judge, rows)
        measured = {
            name: {"value": measure(name, outcome)[0], "interval": list(interval(name, outcome))}
            for name in self.objective.metrics
        }
        return {"rows": len(outcome.gold), **measured, HELD_OUT_LOSS: loss}


def usable(splits: Splits[Any], objective: Objective[Any, Any]) -> Splits[Any]:
    """The splits without held-out rows of which nothing can be told, which are noted."""
    kept = {name: objective.usable(getattr(splits, name)) for name in ("validation", "test")}
    notes = [
        f"{missing:,} rows of the {name} split are left out: too long, or nothing to learn"
        for name, rows in kept.items()
        if (missing := len(getattr(splits, name)) - len(rows))
    ]
    return dataclasses.replace(splits, **kept, notes=(*splits.notes, *notes))


def find_objective(config: FinetuningConfig, task: Task | None) -> str:
    """The objective of a run.

    Raises:
        ValueError: it does not go with the data.
    """
    if task is None:
        if config.objective not in (None, COMPLETION):
            raise ParameterError(f"objective {config.objective} is one of tasks, not of files")
        return COMPLETION
    if config.objective == COMPLETION:
        raise ParameterError(f"objective {COMPLETION} is one of files, not of tasks: {LABEL_WORDS}")
    if config.objective == REGRESSION:
        degree, label = (task.scored.fields.get(name) for name in (DEGREE, LABEL))
        if degree is None:
            raise ParameterError(f"objective {REGRESSION}: the rows of {task.name} have no degree")
        if label is None or label.at_least is None or label.column != degree.column:
            raise ParameterError(
                f"objective {REGRESSION}: the label of {task.name} is not cut out of its degree: "
                f'label = {{ column = "{degree.column}", at_least = ... }}'
            )
    return config.objective or LABEL_WORDS


def head_labels(kind: str, task: Task | None) -> tuple[str, ...]:
    """Names of the outputs of the head that an objective needs; none where it needs no head."""
    if kind == HEAD:
        assert task is not None, "a head is for tasks"
        return task.labels
    return numbered_labels(1) if kind == REGRESSION else ()


def make_objective(
    kind: str, config: FinetuningConfig, model: KoGPT, tokenizer: Tokenizer, task: Task | None
) -> Objective[Any, Any]:
    """The objective, told how rows become ids for this model.

    Raises:
        ValueError: the task has no such prompt, or the sequence length does not fit the model.
    """
    most = model.config.n_positions
    if (room := config.sequence_length or most) > most:
        raise ParameterError(f"sequence_length is {room}, it must be at most the model's {most}")
    reading = tokenizer, tuple(model.prefix_ids), room
    if task is None:
        return Completions(*reading)
    if kind == LABEL_WORDS:
        return LabelWords(*reading, task, task.prompt(config.prompt), most)
    return (Classification if kind == HEAD else Regression)(*reading, task)


def forget_best(path: Path, last: Path | None) -> None:
    """Removes the best weights of a run where they are of a step that is yet to come.

    Of the steps behind `last`, the checkpoint that it goes on from, nothing else is left.
    """
    if last is None:
        path.unlink(missing_ok=True)
    elif path.exists():
        with stored_tensors(path) as best:
            step = int(best[STEP][:])
        if step > read_state(last).step:
            path.unlink()


def publish(job: Finetuning) -> None:
    """Writes the result into the run's folder, over what an interrupted run may have left."""
    config, base = job.config, Path(job.config.model)
    notice = config.license_notice or license_of(base, job.model.config)
    if config.method != FULL:
        content = adapter_content(job.model)  # of all processes
        if job.parallel.first:
            write_adapter_content(config.out, content, base, notice)
        return
    staged = config.folder / "result"
    job.parallel.once(lambda: shutil.rmtree(staged, ignore_errors=True))
    write_result(staged, job, notice)
    if job.parallel.first:
        replace(staged, config.out)


def write_result(staged: Path, job: Finetuning, notice: str) -> None:
    """Writes all weights as a checkpoint."""
    files = {path.name: path for path in job.tokenizer.files}
    head = head_of(job.model)
    labels = None if head is None else head.labels
    if job.parallel.alone:
        tensors = job.model.state_dict()
        write_checkpoint(
            staged,
            job.model.config,
            tensors,
            files=files,
            license_notice=notice,
            labels=labels,
            model_class=own_class(job.config),
        )
        return
    from kogpt.parallel.saving import export  # slow to import

    parameters = dict(job.model.named_parameters())
    export(
        staged,
        job.model.config,
        parameters,
        job.parallel,
        files=files,
        license_notice=notice,
        labels=labels,
    )


def replace(staged: Path, out: Path) -> None:
    """Puts the files of a checkpoint into a folder, over what is there."""
    # Its config comes last: before, the folder is no checkpoint.
    for path in sorted(staged.iterdir(), key=lambda path: path.name == "config.json"):
        os.replace(path, out / path.name)
    staged.rmdir()
    fsync_path(out)
