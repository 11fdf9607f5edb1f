"""Training on whole documents, token after token.

Dimension key: `B` sequences, `T` tokens in a sequence.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from torch import Tensor

from kogpt.checkpoint import write_checkpoint
from kogpt.checkpoint.names import count_parameters
from kogpt.errors import ParameterError
from kogpt.jsonfiles import to_json
from kogpt.model import KoGPT
from kogpt.parallel import Parallel
from kogpt.tokenizer import Tokenizer
from kogpt.training.config import TrainingConfig
from kogpt.training.data import EncodedDocuments, PackedSequences, encode_documents
from kogpt.training.documents import read_documents
from kogpt.training.job import Job
from kogpt.training.loop import run_job
from kogpt.training.loss import next_token_loss, score_documents
from kogpt.training.model import begins_new, load_start, own_class
from kogpt.training.optimizer import trained
from kogpt.training.pages import use_huge_pages
from kogpt.training.sharing import refuse_unshared
from kogpt.training.state import Files, checkpoints, write_slices


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
            what an option needs is missing.
        NotEnoughResourcesError: no room for the model, a step or a checkpoint.
        ValueError: a setting does not fit the model.
    """
    use_huge_pages()
    with Parallel.launched(config.tensor_parallel, config.device) as parallel:
        refuse_unshared(config, parallel.world_size)
        run_job(config, Pretraining.start, stream, parallel)
    return checkpoints(config.out)[-1]


@dataclass(frozen=True)
class Sequences:
    """A micro-batch: inputs and targets (B, T)."""

    inputs: Tensor
    targets: Tensor

    @property
    def count(self) -> int:
        return self.targets.numel()

    @property
    def tokens(self) -> int:
        return self.inputs.numel()


class Pretraining(Job[TrainingConfig, Sequences]):
    """A language model and documents."""

    def __init__(
        self,
        config: TrainingConfig,
        model: KoGPT,
        tokenizer: Tokenizer,
        training: EncodedDocuments,
        held_out: EncodedDocuments,
        parallel: Parallel | None = None,
    ) -> None:
        self.parallel = parallel or Parallel(device=config.device)
        self.config, self.continues = config, not begins_new(config)
        self.model = model.to(config.device) if self.parallel.alone else model
        self.training, self.held_out = training, held_out
        self.length = sequence_length(config, model.config.n_positions)
        self.sequences = PackedSequences(training, self.length, config.seed)
        self.data = f"{training.fingerprint()} {held_out.fingerprint()}"
        # In memory, because the checkpoint they come from will be removed.
        self._tokenizer_files = {path.name: path.read_bytes() for path in tokenizer.files}

    @classmethod
    def start(
        cls, config: TrainingConfig, last: Path | None, stream: TextIO, parallel: Parallel
    ) -> "Pretraining":
        """The job at its beginning, or where checkpoint `last` was written."""
        model, tokenizer = load_start(config, last, parallel)
        ids, rows = tokenizer.vocab_size, model.config.vocab_size
        if begins_new(config) and last is None and ids < 0.9 * rows:
            note = (
                f"note: the tokenizer has {ids:,} ids, the shape {rows:,}: its others stay unused"
            )
            print(note, file=stream, flush=True)
        print(f"reading {', '.join(map(str, config.data))}", file=stream, flush=True)
        documents = read_documents(config.data, config.column)
        return cls(config, model, tokenizer, *encode_documents(documents, tokenizer), parallel)

    def num_steps(self) -> int:
        exact = self.config.epochs * self.sequences.per_epoch / self.config.batch_size
        return self.config.steps or math.ceil(exact)

    def batches(self, step: int, steps: int) -> list[Sequences]:
        rows = self.sequences.batch(step, self.config.batch_size).to(self.parallel.device)
        short = step < self.config.short_part * steps
        width = (self.config.short_length if short else None) or self.length
        return [
            Sequences(micro[:, :-1].reshape(-1, width), micro[:, 1:].reshape(-1, width))
            for micro in rows.split(self.config.micro_batch_of(self.parallel.data_size))
        ]

    def loss(self, batch: Sequences) -> Tensor:
        return next_token_loss(self.model, batch.inputs, batch.targets)

    def describe(self) -> str:
        return (
            f"{count_parameters(self.model.config, own_class(self.config)):,} parameters, "
            f"{len(self.training):,} documents, {len(self.training.ids):,} tokens an epoch, "
            f"{len(self.held_out):,} documents held out, "
            f"{self.config.batch_size * self.length:,} tokens a step"
        )

    def validate(self) -> dict[str, float]:
        if not len(self.held_out):
            return {}
        documents = self.held_out.first(self.config.validation_documents or len(self.held_out))
        judge = self.parallel.as_forward(self.model, score_documents)
        score = judge(self.model, documents, precision=self.config.precision)
        return {"held_out_loss": score.loss, "held_out_bits_per_byte": score.bits_per_byte}

    def save(self, folder: Path, files: Files) -> None:
        files, notice = {**self._tokenizer_files, **files}, self.config.license_notice
        shape = self.model.config
        if self.parallel.alone:
            tensors = self.model.state_dict()
            own = own_class(self.config)
            write_checkpoint(
                folder, shape, tensors, files=files, license_notice=notice, model_class=own
            )
        else:
            files |= {".": trained(self.model), "config.json": to_json(shape.to_dict())}
            write_slices(folder, files, self.parallel, notice)


def sequence_length(config: TrainingConfig, n_positions: int) -> int:
    """T of a run.

    Raises:
        ValueError: a length does not fit the model, or not the other length.
    """
    length = config.sequence_length or n_positions
    if length > n_positions:
        raise ParameterError(
            f"sequence_length is {length}, it must be at most the model's {n_positions}"
        )
    if config.short_length is not None and length % config.short_length:
        raise ParameterError(
            f"short_length is {config.short_length}, it must be a divisor of {length}"
        )
    return length
