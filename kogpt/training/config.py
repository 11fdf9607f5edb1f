"""What a run is told: every setting, its meaning and its range."""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from kogpt import choices
from kogpt.adapters import LoRAConfig, PromptConfig
from kogpt.choices import (
    ADAMW,
    BEST,
    EIGHT_BITS,
    FLOAT32,
    FULL,
    LORA,
    MASTER,
    P_TUNING,
    PROMPT_TUNING,
    QLORA,
    STOCHASTIC,
)
from kogpt.errors import ParameterError
from kogpt.ranges import ABOVE_ZERO, AT_LEAST_ONE, AT_LEAST_ZERO, Range, check_choice, set_number
from kogpt.training.documents import COLUMN

# Settings that may change on resume: where things lie, how a run is watched and shared, and what
# fits it to a machine's memory, by which sums are rounded and dropout falls otherwise. `steps` and
# `epochs` are among them so that a run can be made longer; the rest of the learning rate schedule
# then follows the new length.
MAY_CHANGE = frozenset(
    {
        "data",
        "data_dir",
        "out",
        "resume",
        "steps",
        "epochs",
        "log_every",
        "validate_every",
        "validation_documents",
        "save_every",
        "keep",
        "curve",
        "tensorboard",
        "tensor_parallel",
        "device",
        "micro_batch_size",
        "activation_checkpointing",
        "offload",
        "tokenizer",  # a resumed run takes that of its checkpoint
    }
)

MOST_EPOCHS = 1_000_000
LARGEST_SEED = 2**32 - 1  # torch has 64 bits, of which steps and processes take some

OF_ANY_RUN = {
    "steps": AT_LEAST_ONE,
    "epochs": Range(Real, 0, MOST_EPOCHS, low_excluded=True),
    "batch_size": AT_LEAST_ONE,
    "micro_batch_size": AT_LEAST_ONE,
    "sequence_length": AT_LEAST_ONE,
    "learning_rate": ABOVE_ZERO,
    "final_learning_rate": Range(Real, 0, 1),
    "warmup_steps": AT_LEAST_ZERO,
    "weight_decay": Range(Real, 0),
    "beta1": Range(Real, 0, 1, high_excluded=True),
    "beta2": Range(Real, 0, 1, high_excluded=True),
    "gradient_clip": ABOVE_ZERO,
    "seed": Range(Integral, 0, LARGEST_SEED),
    "tensor_parallel": AT_LEAST_ONE,
    "log_every": AT_LEAST_ONE,
    "validate_every": AT_LEAST_ZERO,
    "save_every": AT_LEAST_ZERO,
    "keep": AT_LEAST_ONE,
}
OF_PRETRAINING = {
    "short_length": AT_LEAST_ONE,
    "short_part": Range(Real, 0, 1),
    "validation_documents": AT_LEAST_ZERO,
}
OF_FINETUNING = {
    "virtual_tokens": AT_LEAST_ONE,
    "encoder_width": AT_LEAST_ONE,
    "validation_rows": AT_LEAST_ONE,
    "test_rows": AT_LEAST_ZERO,
}
MAY_BE_NONE = {
    *("steps", "micro_batch_size", "sequence_length", "warmup_steps", "short_length"),
    *("encoder_width", "test_rows"),
}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What any run is told.

    Attributes:
        out: folder of the run.
        model: what to begin with.
        architecture: class of a model of one's own, as `FILE.py:CLASS`; None for the one that
            belongs to the model's config.
        steps: number of optimizer steps; None to count them from `epochs`.
        epochs: passes over the data, where `steps` is None.
        batch_size: sequences in one optimizer step.
        micro_batch_size: sequences that go through the network at once, gradients being
            accumulated; None for the whole batch.
        sequence_length: tokens in a sequence; None for the model's `n_positions`.
        learning_rate: peak of the schedule.
        final_learning_rate: what the cosine ends at, as a share of the peak.
        warmup_steps: steps over which the rate rises linearly from 0; None for a tenth of all.
        weight_decay: of AdamW, on matrices only.
        beta1: of AdamW.
        beta2: of AdamW.
        gradient_clip: largest norm of the gradient of all parameters.
        precision: of matrix products, "float32" or "bfloat16".
        weights: what weights are that are trained: "float32"; "bfloat16-master", with float32
            master weights in the optimizer's state; or "bfloat16-stochastic", without, each
            update being rounded up or down by chance.
        optimizer: "adamw", or "adamw-8bit" with moments of 8 bits, which needs torchao and a C++
            compiler.
        offload: keep the optimizer's state on the CPU, and compute the update there.
        tensor_parallel: of the processes that torchrun started, how many hold the model together;
            the rest share the rows of a step, and each holds a part of what is trained.
        compile: run the network through `torch.compile`, which needs a C++ compiler.
        activation_checkpointing: recompute each block in the backward pass to save memory.
        device: where to train.
        seed: of new weights, the data order and dropout.
        log_every: steps between lines of the log.
        validate_every: steps between validations; 0 for none but the last.
        save_every: steps between checkpoints; 0 for none but the last.
        keep: checkpoints to keep, the newest ones.
        curve: draw `curve.png` at every checkpoint, which needs matplotlib.
        tensorboard: write events for TensorBoard too; None where it is installed.
        resume: continue from the newest checkpoint in `out`, if there is one.

    Raises:
        ValueError: a value is out of its range; names it and the range.
    """

    out: Path
    model: str
    architecture: str | None = None
    steps: int | None = None
    epochs: float = 1.0
    batch_size: int = 8
    micro_batch_size: int | None = None
    sequence_length: int | None = None
    learning_rate: float = 1e-3
    final_learning_rate: float = 0.0
    warmup_steps: int | None = 100
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    gradient_clip: float = 1.0
    precision: str = "float32"
    weights: str = FLOAT32
    optimizer: str = ADAMW
    offload: bool = False
    tensor_parallel: int = 1
    compile: bool = False
    activation_checkpointing: bool = False
    device: str = "cpu"
    seed: int = 0
    log_every: int = 10
    validate_every: int = 200
    save_every: int = 200
    keep: int = 2
    curve: bool = True
    tensorboard: bool | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        self._set_plain()
        _set_numbers(self, OF_ANY_RUN)
        check_choice("precision", self.precision, choices.PRECISIONS)
        check_choice("weights", self.weights, choices.WEIGHTS)
        check_choice("optimizer", self.optimizer, choices.OPTIMIZERS)
        if self.weights != FLOAT32 and self.precision == "float32":
            raise ParameterError(f"weights is {self.weights!r}, which goes with precision bfloat16")
        if self.optimizer == EIGHT_BITS and self.weights == MASTER:
            raise ParameterError(
                f"optimizer {EIGHT_BITS} keeps no master weights: {STOCHASTIC} is left"
            )
        if self.optimizer == EIGHT_BITS and self.offload:
            raise ParameterError(f"optimizer {EIGHT_BITS} has no offload: choose either")

    def _set_plain(self) -> None:
        """Keeps names of files as paths and switches as Python's own, such as of NumPy's."""
        for name in ("out", "data_dir", "tokenizer"):
            value = getattr(self, name, None)
            if value == "":
                raise ParameterError(f"{name} is empty")
            if value is not None:
                object.__setattr__(self, name, Path(value))
        for field in dataclasses.fields(self):
            if isinstance(getattr(self, field.name), np.bool_):
                object.__setattr__(self, field.name, bool(getattr(self, field.name)))
        object.__setattr__(self, "device", str(self.device))

    @property
    def folder(self) -> Path:
        """Where the run keeps its checkpoints, log and pictures."""
        return self.out

    @property
    def micro_batch(self) -> int:
        """Sequences that go through the network at once."""
        return self.micro_batch_of(1)

    def micro_batch_of(self, shares: int) -> int:
        """The same, where so many processes share the rows of a step."""
        return min(self.micro_batch_size or self.batch_size, -(-self.batch_size // shares))

    def warmup(self, steps: int) -> int:
        """Steps of linear rise in a run of `steps`."""
        return steps // 10 if self.warmup_steps is None else self.warmup_steps

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {key: _to_json(value) for key, value in dataclasses.asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(RunConfig):
    """A run that trains on whole documents.

    Attributes:
        license_notice: of the weights, noted with them.
        data: files to train on: `.txt` with one document a line, `.tsv` with a header and one
            document a row, unquoted; either may end in `.xz`.
        out: folder of the run: checkpoints `step-*`, `log.jsonl` and `curve.png`.
        model: a preset's name or a `config.json` to start from scratch, or a checkpoint folder.
        tokenizer: folder of the tokenizer; None for the one in the checkpoint folder `model`.
        column: name of the column of tables that holds the text.
        short_length: tokens in a sequence during the first part of the run, a divisor of
            `sequence_length`: each sequence is cut into pieces of that length, so a step sees
            the same tokens and only attention reaches less far, which is faster on a CPU. The
            change costs loss at first: leave enough steps, and enough learning rate, behind it.
            None for full length throughout.
        short_part: share of the steps, from the first, that use `short_length`.
        validation_documents: held-out documents to validate on, the first ones; 0 for all. Every
            hundredth document is held out.

    Raises: as `RunConfig`.
    """

    license_notice: str = "not stated"
    data: tuple[Path, ...]
    model: str = "nano"
    tokenizer: Path | None = None
    column: str = COLUMN
    short_length: int | None = None
    short_part: float = 0.5
    validation_documents: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "data", tuple(map(Path, _files(self.data))))
        if not self.data:
            raise ParameterError("data names no file to train on")
        _set_numbers(self, OF_PRETRAINING)


EXAMPLES = (".jsonl", ".jsonl.xz")  # what files of examples end in

# A method that trains fewer numbers takes longer steps.
LEARNING_RATES = {FULL: 5e-5, LORA: 2e-4, QLORA: 2e-4, P_TUNING: 1e-3, PROMPT_TUNING: 1e-2}


@dataclass(frozen=True, kw_only=True)
class FinetuningConfig(RunConfig):
    """A run that trains on examples.

    Attributes:
        license_notice: of the result; None for that of the model.
        data: a task of the evaluation by its name or `.toml` file, or files of examples: `.jsonl`
            with an object a line, whose `prompt` is read and whose `completion` is learnt.
        data_dir: folder of the tasks' data.
        out: folder of the result; the run itself is in `out/run`.
        model: checkpoint folder to begin with.
        method: "full" trains all weights; "lora" low-rank updates; "qlora" the same beside weights
            that are stored as integers; "p-tuning" virtual tokens through a network that computes
            them; "prompt-tuning" virtual tokens as they are.
        objective: "completion" learns what follows a prompt; "label-words" the answer of a task's
            prompt, and predicts the likeliest; "head" classes by a layer on the last token;
            "regression" a task's degree by such a layer, pairs in both orders. None is
            "completion" for files and "label-words" for a task.
        prompt: name of one of the task's; None is its first.
        targets: linear layers that LoRA updates.
        rank: of the updates.
        alpha: numerator of the update's scale, which is alpha / rank.
        dropout: of their input.
        virtual_tokens: of a soft prompt.
        encoder: network of p-tuning, "lstm" or "mlp".
        encoder_width: inside that network; None for the model's.
        pack: lay as many examples into a row as fit `sequence_length`; they do not see each other.
        validation_rows: held-out rows, where the data bring none: about so many, at most a tenth.
            They choose the result.
        test_rows: rows of the task's test split to measure in the end; None for all, 0 for none.
        keep_weights: "best" by validation, or "last".
        learning_rate: peak of the schedule; None for one that suits the method.

    Raises: as `RunConfig`.
    """

    license_notice: str | None = None
    data: tuple[str, ...]
    data_dir: Path | None = None
    method: str
    objective: str | None = None
    prompt: str | None = None
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    virtual_tokens: int = 20
    encoder: str = "lstm"
    encoder_width: int | None = None
    pack: bool = False
    validation_rows: int = 1000
    test_rows: int | None = None
    keep_weights: str = BEST
    batch_size: int = 32
    learning_rate: float = None  # type: ignore[assignment]  # set below
    warmup_steps: int | None = None
    weight_decay: float = 0.01
    beta2: float = 0.98

    def __post_init__(self) -> None:
        check_choice("method", self.method, choices.METHODS)
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", LEARNING_RATES[self.method])
        super().__post_init__()
        object.__setattr__(self, "data", tuple(map(os.fspath, _files(self.data))))
        if not self.data:
            raise ParameterError("data names nothing to train on")
        others = [name for name in self.data if not name.endswith(EXAMPLES)]
        if others and len(self.data) > 1:
            raise ParameterError(f"data is one task or files of examples: {others[0]} is no .jsonl")
        if others and Path(others[0]).suffix not in ("", ".toml"):
            raise ParameterError(
                f"data is {others[0]}: neither a task nor {' or '.join(EXAMPLES)} with"
                ' {"prompt": "...", "completion": "..."} a line'
            )
        if self.objective is not None:
            check_choice("objective", self.objective, choices.OBJECTIVES)
        check_choice("encoder", self.encoder, choices.ENCODERS)
        _set_numbers(self, OF_FINETUNING)
        _ = self.soft_prompt  # which checks its values
        for name in ("targets", "rank", "alpha", "dropout"):
            object.__setattr__(self, name, getattr(self.lora, name))
        check_choice("keep_weights", self.keep_weights, choices.KEPT)
        if self.weights != FLOAT32 and self.method != FULL:
            raise ParameterError(
                f"weights is {self.weights!r}, which goes with method full: what {self.method}"
                " trains is float32"
            )

    @property
    def task(self) -> str | None:
        """The task that `data` names; None where they are files of examples."""
        return None if self.data[0].endswith(EXAMPLES) else self.data[0]

    @property
    def folder(self) -> Path:
        return self.out / "run"

    @property
    def lora(self) -> LoRAConfig:
        """The updates of LoRA and QLoRA."""
        return LoRAConfig(self.targets, self.rank, self.alpha, self.dropout)

    @property
    def soft_prompt(self) -> PromptConfig:
        """The virtual tokens of p-tuning and prompt tuning."""
        encoder = self.encoder if self.method == P_TUNING else "none"
        return PromptConfig(self.virtual_tokens, encoder, self.encoder_width)


def _set_numbers(config: RunConfig, ranges: Mapping[str, Range]) -> None:
    for name, allowed in ranges.items():
        if getattr(config, name) is not None or name not in MAY_BE_NONE:
            set_number(config, name, allowed)


def _files(data: Any) -> Iterable[Any]:
    """The files, also of a single one; none where its name is empty."""
    if data == "":
        return ()
    return (data,) if isinstance(data, str | os.PathLike) else data


def _to_json(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(map(_to_json, value)) if isinstance(value, tuple) else value
