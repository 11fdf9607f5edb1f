"""The loop: steps, the log, validations and checkpoints of any job."""

import io
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Generic, TextIO, TypeVar

import torch
from torch import Tensor

from kogpt.architecture import source_fingerprint
from kogpt.checkpoint.resources import require_disk, require_memory
from kogpt.choices import EIGHT_BITS, FLOAT32, MASTER
from kogpt.errors import InputRefusedError, KoGPTError, NotFiniteError, ParameterError
from kogpt.model.source import network_fingerprint
from kogpt.parallel import Parallel
from kogpt.parallel.parts import held
from kogpt.pictures import require_matplotlib
from kogpt.training.activation_checkpointing import checkpoint_activations
from kogpt.training.curve import CURVE_NAME, draw_curve
from kogpt.training.job import B, C, Job
from kogpt.training.log import LOG_NAME, Progress, Silent, read_log
from kogpt.training.loss import autocast
from kogpt.training.optimizer import (
    make_optimizer,
    optimizer_tensors,
    require_compiler,
    restore_optimizer,
    set_learning_rate,
    trained,
)
from kogpt.training.schedule import learning_rate
from kogpt.training.state import (
    MOMENTS_NAME,
    STATE_NAME,
    Files,
    TrainingState,
    checkpoints,
    claimed,
    discard_all_but,
    read_state,
    stored_tensors,
)

J = TypeVar("J", bound=Job[Any, Any])

# Settings that each process may have its own of: where things lie.
PLACES = ("data", "data_dir", "out", "model", "tokenizer", "device")
FINGERPRINTS = {"data": "other data", "base": "another base model"}


def run_job(
    config: C,
    make_job: Callable[[C, Path | None, TextIO, Parallel], J],
    stream: TextIO | None,
    parallel: Parallel,
) -> J:
    """Does a job, from the newest checkpoint in its folder if it shall be resumed.

    Args:
        config: all settings.
        make_job: makes the job, given the checkpoint that it goes on from, or None.
        stream: where progress is told; None for stderr.
        parallel: the processes that do it together; the first tells and writes of it.

    Returns:
        The job, done.
    """
    stream = (stream or sys.stderr) if parallel.first else io.StringIO()
    if config.curve:
        require_matplotlib(otherwise=", or train without a curve")
    with ExitStack() as stack:
        parallel.once(lambda: stack.enter_context(claimed(config)))
        last = parallel.once(lambda: next(reversed(checkpoints(config.folder)), None))
        if last is not None:
            read_state(last).require_settings(config)
        job = make_job(config, last, stream, parallel)
        trainer = Trainer(job)
        if last is not None:
            trainer.restore(last)
        trainer.require_room()
        about = trainer.describe()  # what fails here leaves no log
        with trainer.progress(stream) as progress:
            progress.say(about)
            trainer.run(progress)
    return job


class Trainer(Generic[C, B]):
    """A run in progress.

    Attributes:
        job: what it works on.
        step: optimizer steps taken.
        steps: optimizer steps in all.
        tokens: tokens read.
    """

    def __init__(self, job: Job[C, B]) -> None:
        self.job, self.config, self.parallel = job, job.config, job.parallel
        self.step, self.steps, self.tokens = 0, job.num_steps(), 0
        self.optimizer = make_optimizer(job.model, self.config)
        own = self.config.architecture
        source = None if own is None else source_fingerprint(own, job.model)
        fingerprints = job.data, job.base, source, network_fingerprint()
        self._begun = TrainingState(0, 0, self.config.to_dict(), *fingerprints)
        self._require_alike()
        if self.config.activation_checkpointing:
            checkpoint_activations(job.model)
        compiles = self.config.compile
        if compiles and self.parallel.device.type == "cpu":
            require_compiler("compile")
        self._loss = torch.compile(job.loss, dynamic=job.dynamic) if compiles else job.loss
        self._forward = self.parallel.as_forward(job.model, self._mean_loss)
        self._seconds, self._read = 0.0, 0  # since the log was written

    def _require_alike(self) -> None:
        """Refuses processes that would take other steps: each reads its own copy of the data.

        Raises:
            InputRefusedError: on the first process; names one that differs, and in what.
        """
        settings = self.config.to_dict()
        for place in PLACES:
            settings.pop(place, None)
        mine = {**settings, "data": self.job.data, "base": self.job.base, "steps": self.steps}
        everyone = self.parallel.gather({self.parallel.rank: mine})
        self.parallel.once(lambda: _refuse_differences(everyone))

    def restore(self, checkpoint: Path) -> None:
        """Goes back to where `checkpoint`, which the job was made from, was written.

        Raises:
            InputRefusedError: it is of another run, or of a step beyond the end of this one.
        """
        state = read_state(checkpoint)
        state.require_same(self._begun)
        if state.step > self.steps:
            raise InputRefusedError(
                f"{checkpoint}: is of step {state.step}, the run has {self.steps} steps"
            )
        with stored_tensors(checkpoint / MOMENTS_NAME) as moments:
            restore_optimizer(self.optimizer, self.job.model, moments, state.step)
        self.step, self.tokens = state.step, state.tokens

    def require_room(self) -> None:
        """Refuses a run whose first step or checkpoint there is certainly no room for.

        Raises:
            NotEnoughResourcesError: the disk could not even hold one checkpoint, or a device not
                what a step keeps beside the weights.
        """
        moments = 2 if self.config.optimizer == EIGHT_BITS else 8  # bytes for each weight
        moments += 4 if self.config.weights == MASTER else 0  # which lie beside them
        weights = trained(self.job.model).values()
        needed = sum(weight.numel() * (weight.itemsize + moments) for weight in weights)
        require_disk(self.config.folder, needed)
        kept: Counter[torch.device] = Counter()
        for weight in map(held, weights):
            kept[weight.device] += weight.nbytes  # the gradient
            if not self.optimizer.state:
                place = torch.device("cpu") if self.config.offload else weight.device
                kept[place] += weight.numel() * moments
        for device, size in kept.items():
            what = "gradients and the optimizer's state (kogpt plan tells what takes less)"
            require_memory(device, size, what)

    def progress(self, stream: TextIO) -> Progress:
        """What tells of the run, if this process does."""
        if not self.parallel.first:
            return Silent()
        return Progress(self.config, self.step, self.steps, stream)

    def describe(self) -> str:
        """One line on what is about to happen."""
        begun = f"the weights of {self.config.model}" if self.job.continues else "new weights"
        start = f"from step {self.step:,}" if self.step else f"from {begun}"
        if not self.parallel.alone:
            start += f", in {self.parallel.world_size} processes"
        return f"{self.job.describe()}; {self.steps:,} steps, {start}"

    def run(self, progress: Progress) -> None:
        """Takes the steps that are left."""
        self.job.begin()
        while self.step < self.steps:
            began, before = time.monotonic(), self.tokens
            loss, norm = self.take_step()
            self._seconds += time.monotonic() - began
            self._read += self.tokens - before
            if self._due(self.config.log_every):
                self._log(progress, loss, norm)
            if self._due(self.config.validate_every):
                self._validate(progress)
            if self._due(self.config.save_every):
                self._save()
        self.job.model.eval()

    def _due(self, every: int) -> bool:
        return self.step == self.steps or bool(every and self.step % every == 0)

    def take_step(self) -> tuple[float, float]:
        """One optimizer step.

        Returns:
            Loss, a mean over targets, and norm of the gradient before clipping.

        Raises:
            KoGPTError: either is not a finite number; the weights are as before the step.
        """
        # Dropout is a function of the step, like the data: a resumed run needs no other memory.
        # Processes that hold one model together must drop the same; those with other rows need not.
        torch.manual_seed(
            (self.parallel.data_rank << 40) + self.config.seed * 1_000_003 + self.step
        )
        loss = self._accumulate(self.job.batches(self.step, self.steps))
        norm = self.parallel.clip(self.job.model.parameters(), self.config.gradient_clip)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise KoGPTError(
                f"step {self.step + 1}: the loss is {loss}, the norm of its gradient {norm}; "
                f"{self._advice}"
            )
        set_learning_rate(self.optimizer, learning_rate(self.step, self.steps, self.config))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss, norm

    @property
    def _advice(self) -> str:
        """What may help where figures are no numbers any more."""
        lower = f"lower the learning rate {self.config.learning_rate}"
        wide = (self.config.precision, self.config.weights) == ("float32", FLOAT32)
        return lower if wide else f"{lower} or use float32"

    def _accumulate(self, batches: Sequence[B]) -> float:
        """Adds up the gradient of the mean loss, a micro-batch at a time."""
        count = sum(batch.count for batch in batches)
        total = torch.zeros(())  # of the CPU, and then where losses are
        for batch, counts in self.parallel.turns(batches):
            loss = self._forward(batch, count)
            (loss if counts else loss * 0).backward()
            total = total + loss.detach() * counts
        self.tokens += sum(batch.tokens for batch in batches)
        return self.parallel.sum(total).item()

    def _mean_loss(self, batch: B, count: int) -> Tensor:
        """What a micro-batch adds to the mean loss over the `count` targets of a step.

        A class of one's own may add to it: `auxiliary_loss()` gives, after a batch was read, what
        is added to its mean, as to balance experts.
        """
        with autocast(self.job.model, self.config.precision):
            loss = self._loss(batch)
            auxiliary = getattr(self.job.model, "auxiliary_loss", None)
            if auxiliary is not None:
                more = auxiliary()
                if more.numel() != 1:
                    raise ParameterError(
                        f"auxiliary_loss gives {more.numel()} numbers, it must be one"
                    )
                loss = loss + batch.count * more.squeeze()
            return loss / count

    def _require_finite(self) -> None:
        """Refuses weights that the last step has spoilt, which no loss has shown yet."""
        parameters = trained(self.job.model)
        spoilt = [int(held(each).isfinite().logical_not().sum()) for each in parameters.values()]
        everywhere = self.parallel.sum_all(torch.tensor(spoilt)).tolist()
        for name, count in zip(parameters, everywhere, strict=True):
            if count:
                raise KoGPTError(f"step {self.step}: {name} is not finite; {self._advice}")

    def _log(self, progress: Progress, loss: float, norm: float) -> None:
        speed = self._read / self._seconds
        self._seconds, self._read = 0.0, 0
        entry = {
            "loss": loss,
            "gradient_norm": norm,
            "learning_rate": float(self.optimizer.param_groups[0]["lr"]),
            "tokens_per_second": speed,
        }
        progress.record(self.step, self.tokens, entry)
        progress.trained(self.step, loss, speed)

    def _validate(self, progress: Progress) -> None:
        try:
            figures = self.job.validate()
        except NotFiniteError as error:
            raise KoGPTError(f"step {self.step}: {error}; {self._advice}") from None
        for name, x in figures.items():
            if not math.isfinite(x):
                raise KoGPTError(f"step {self.step}: {name} is {x}; {self._advice}")
        if figures:
            self.job.validated(self.step, figures)
            progress.record(self.step, self.tokens, figures)
            told = ", ".join(f"{name.replace('_', ' ')} {x:.4f}" for name, x in figures.items())
            progress.say(f"step {self.step}: {told}")

    def _save(self) -> None:
        self._require_finite()
        config, folder = self.config, self.config.folder
        state = self._begun.at(self.step, self.tokens)
        moments = optimizer_tensors(self.optimizer, self.job.model, self.step)
        files: Files = {STATE_NAME: state.to_json(), MOMENTS_NAME: moments}
        self.job.save(folder / f"step-{self.step:08}", files)
        if not self.parallel.first:
            return
        discard_all_but(config.keep, folder)
        if config.curve:
            draw_curve(read_log(folder / LOG_NAME), folder / CURVE_NAME)


def _refuse_differences(everyone: Mapping[int, Mapping[str, Any]]) -> None:
    """Refuses processes, by rank, of which something differs from that of the first."""
    first = everyone[0]
    for rank, theirs in everyone.items():
        for name in (*FINGERPRINTS, *first):  # the number of steps follows from the data
            if theirs[name] == first[name]:
                continue
            differs = FINGERPRINTS.get(name, f"{name} {theirs[name]!r}, not {first[name]!r}")
            raise InputRefusedError(f"process {rank} does not fit process 0: it has {differs}")
