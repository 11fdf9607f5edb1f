"""Next-token training, from documents to checkpoints.

Dimension key: `B` sequences, `T` tokens in a sequence.
"""

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor

from kogpt.errors import KoGPTError
from kogpt.model import KoGPT, KoGPTConfig
from kogpt.training.activation_checkpointing import checkpoint_activations
from kogpt.training.config import TrainingConfig
from kogpt.training.curve import CURVE_NAME, draw_curve, require_matplotlib
from kogpt.training.data import EncodedDocuments, PackedSequences, encode_documents
from kogpt.training.documents import read_documents
from kogpt.training.log import LOG_NAME, Progress, read_log
from kogpt.training.loss import autocast, next_token_loss, score_documents
from kogpt.training.model import load_start
from kogpt.training.optimizer import make_optimizer, restore_optimizer
from kogpt.training.schedule import learning_rate
from kogpt.training.state import (
    TrainingState,
    checkpoints,
    claimed,
    read_moments,
    read_state,
    write_state,
)


def train(config: TrainingConfig, stream: TextIO | None = None) -> Path:
    """Trains a model; the same settings and data give the same weights, interrupted or not.

    On a CPU in float32 that holds to the last bit. Seeds torch's global generator.

    Args:
        config: all settings.
        stream: where progress is told; None for stderr.

    Returns:
        The folder of the last checkpoint.

    Raises:
        InputRefusedError: data, model, tokenizer or an earlier run cannot be used.
        KoGPTError: the loss is no longer a number, another process trains in the same folder, or
            matplotlib is missing.
        NotEnoughResourcesError: no room for a checkpoint.
        ValueError: a setting does not fit the model.
    """
    stream = stream or sys.stderr
    if config.curve:
        require_matplotlib()
    with claimed(config.out, config.resume):
        last = checkpoints(config.out)[-1] if checkpoints(config.out) else None
        model, tokenizer = load_start(config, last)
        # In memory, because the checkpoint they come from will be removed.
        tokenizer_files = {path.name: path.read_bytes() for path in tokenizer.files}
        print(f"reading {', '.join(map(str, config.data))}", file=stream, flush=True)
        training, held_out = encode_documents(read_documents(config.data, config.column), tokenizer)
        trainer = Trainer(config, model, training, held_out)
        if last is not None:
            trainer.restore(last)
        with Progress(config.out, trainer.step, trainer.steps, stream) as progress:
            progress.say(trainer.describe())
            return trainer.run(progress, tokenizer_files)


class Trainer:
    """A run in progress.

    Attributes:
        step: optimizer steps taken.
        steps: optimizer steps in all.
    """

    def __init__(
        self,
        config: TrainingConfig,
        model: KoGPT,
        training: EncodedDocuments,
        held_out: EncodedDocuments,
    ) -> None:
        self.config, self.model = config, model.to(config.device)
        self.training, self.held_out = training, held_out
        self.length = _sequence_length(config, model.config)
        self.sequences = PackedSequences(training, self.length, config.seed)
        exact = config.epochs * self.sequences.per_epoch / config.batch_size
        self.step, self.steps = 0, config.steps or math.ceil(exact)
        self.optimizer = make_optimizer(model, config)
        self._begun = TrainingState(0, config.to_dict(), training.fingerprint())
        if config.activation_checkpointing:
            checkpoint_activations(model)
        loss: Callable[[Tensor, Tensor], Tensor] = partial(next_token_loss, model)
        self._loss = torch.compile(loss, dynamic=False) if config.compile else loss
        self._seconds: list[float] = []  # of the steps since the log was written

    def restore(self, checkpoint: Path) -> None:
        """Goes back to where `checkpoint`, which the model was loaded from, was written."""
        state = read_state(checkpoint)
        state.require_equal(self._begun)
        restore_optimizer(self.optimizer, self.model, read_moments(checkpoint), state.step)
        self.step = state.step

    def describe(self) -> str:
        """One line on what is about to happen."""
        start = f"from step {self.step:,}" if self.step else "from the start"
        return (
            f"{self.model.config.num_parameters:,} parameters, "
            f"{len(self.training):,} documents, {len(self.training.ids):,} tokens an epoch, "
            f"{len(self.held_out):,} documents held out; {self.steps:,} steps of "
            f"{self.step_tokens:,} tokens, {start}"
        )

    @property
    def step_tokens(self) -> int:
        """Tokens in one step."""
        return self.config.batch_size * self.length

    def run(self, progress: Progress, tokenizer_files: Mapping[str, bytes]) -> Path:
        """Takes the steps that are left; returns the last checkpoint."""
        self.model.train()
        while self.step < self.steps:
            began = time.monotonic()
            loss, norm = self.take_step()
            self._seconds.append(time.monotonic() - began)
            if self._due(self.config.log_every):
                self._log(progress, loss, norm)
            if self._due(self.config.validate_every) and len(self.held_out):
                self._validate(progress)
            if self._due(self.config.save_every):
                self._save(tokenizer_files)
        self.model.eval()
        return checkpoints(self.config.out)[-1]

    def _due(self, every: int) -> bool:
        return self.step == self.steps or bool(every and self.step % every == 0)

    def take_step(self) -> tuple[float, float]:
        """One optimizer step.

        Returns:
            Loss, in nats per token, and norm of the gradient before clipping.

        Raises:
            KoGPTError: either is not a finite number; the weights are as before the step.
        """
        # Dropout is a function of the step, like the data: a resumed run needs no other memory.
        torch.manual_seed(self.config.seed * 1_000_003 + self.step)
        rows = self.sequences.batch(self.step, self.config.batch_size).to(self.config.device)
        loss = self._accumulate(rows)
        norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), self.config.gradient_clip
        ).item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise KoGPTError(
                f"step {self.step + 1}: the loss is {loss}, the norm of its gradient {norm}; "
                f"lower the learning rate {self.config.learning_rate} or use float32"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.steps, self.config)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss, norm

    def _accumulate(self, rows: Tensor) -> float:
        """Adds up the gradient of the mean loss of `rows` (B, T + 1), a micro-batch at a time."""
        total = torch.zeros((), device=rows.device)
        for micro in rows.split(self.config.micro_batch):
            inputs, targets = self._cut(micro[:, :-1]), self._cut(micro[:, 1:])
            with autocast(rows.device, self.config.precision):
                loss = self._loss(inputs, targets) / (len(rows) * self.length)
            loss.backward()
            total += loss.detach()
        return total.item()

    def _cut(self, rows: Tensor) -> Tensor:
        """Sequences (B, T) as they go into the network: in pieces during the first part."""
        short = self.step < self.config.short_part * self.steps
        width = self.config.short_length if short else None
        return rows.reshape(-1, width or self.length)

    def _log(self, progress: Progress, loss: float, norm: float) -> None:
        speed = len(self._seconds) * self.step_tokens / sum(self._seconds)
        self._seconds.clear()
        entry = {
            "loss": loss,
            "gradient_norm": norm,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "tokens_per_second": speed,
        }
        progress.record(self.step, self.step * self.step_tokens, entry)
        progress.trained(self.step, loss, speed)

    def _validate(self, progress: Progress) -> None:
        documents = self.held_out.first(self.config.validation_documents or len(self.held_out))
        score = score_documents(self.model, documents, precision=self.config.precision)
        entry = {"held_out_loss": score.loss, "held_out_bits_per_byte": score.bits_per_byte}
        progress.record(self.step, self.step * self.step_tokens, entry)
        progress.say(
            f"step {self.step}: held out: loss {score.loss:.4f}, "
            f"{score.bits_per_byte:.4f} bits per byte"
        )

    def _save(self, tokenizer_files: Mapping[str, bytes]) -> None:
        state = dataclasses.replace(self._begun, step=self.step)
        write_state(state, self.model, self.optimizer, tokenizer_files, self.config)
        if self.config.curve:
            draw_curve(read_log(self.config.out / LOG_NAME), self.config.out / CURVE_NAME)


def _sequence_length(config: TrainingConfig, shape: KoGPTConfig) -> int:
    length = config.sequence_length or shape.n_positions
    if length > shape.n_positions:
        raise ValueError(
            f"sequence_length is {length}, it must be at most the model's {shape.n_positions}"
        )
    if config.short_length is not None and length % config.short_length:
        raise ValueError(f"short_length is {config.short_length}, it must be a divisor of {length}")
    return length
