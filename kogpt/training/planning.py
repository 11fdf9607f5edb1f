"""What a piece of work needs of memory, whether that is there, and what would make it fit."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from kogpt.checkpoint.convert import GROUP_SIZE
from kogpt.checkpoint.names import count_parameters, expand
from kogpt.checkpoint.quantization import Quantization
from kogpt.checkpoint.resources import human
from kogpt.choices import (
    ADAMW,
    EIGHT_BITS,
    FLOAT32,
    FULL,
    INFERENCE,
    LORA,
    MASTER,
    QLORA,
    SOFT_PROMPTS,
    STOCHASTIC,
)
from kogpt.errors import ParameterError
from kogpt.model import KoGPTConfig
from kogpt.parallel.tensor import check_divides
from kogpt.training.config import FinetuningConfig
from kogpt.training.memory import (
    CACHE,
    CASTS,
    GRADIENTS,
    HOST,
    OPTIMIZER,
    PARTS,
    WEIGHTS,
    Parts,
    on_device,
)
from kogpt.training.methods import base_dtype
from kogpt.training.rehearsal import (
    Stage,
    bytes_of_integers,
    bytes_of_prompt,
    rehearse_reading,
    rehearse_training,
)

TABLES = ("transformer.wte.weight", "lm_head.weight")
LOADING = "loading, before it is divided"
GATHERED = "gathered"  # weights of others, for as long as a block is computed
# CUDA's context, its libraries' workspaces, and what PyTorch's allocator leaves unused between
# blocks: an allowance, no measurement.
CUDA_ITSELF = 1 << 30
SHORTEST = 128  # tokens, to which a sequence is shortened in search of what fits

NARROW = ("--precision bfloat16", {"precision": "bfloat16"})
TRAINING: tuple[tuple[str, dict[str, Any]], ...] = (
    NARROW,
    ("--activation-checkpointing", {"activation_checkpointing": True}),
    ("--micro-batch-size 1", {"micro_batch_size": 1}),
)
# What keeps state and weights in less memory, where it is not asked for.
USUAL: dict[str, Any] = {"optimizer": ADAMW, "weights": FLOAT32, "offload": False}
READING: tuple[tuple[str, dict[str, Any]], ...] = (NARROW, ("--batch 1", {"batch_size": 1}))


@dataclass(frozen=True)
class Work:
    """What shall be done.

    Attributes:
        stage: the model, and where.
        method: of finetuning, or "inference".
        config: of finetuning. For "inference", its batch, length and precision count.
        gpus: over which the model is divided; 0 for the CPU.
        as_stored: whether a model that reads in float32 keeps its weights in 16 bits, as one that
            is prepared for decoding does with those of a float16 folder on a CPU.
    """

    stage: Stage
    method: str
    config: FinetuningConfig
    gpus: int
    as_stored: bool = False

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.config.sequence_length or self.stage.shape.n_positions

    def need(self) -> "Need":
        """What it takes of memory when that is most, by rehearsal."""
        if self.method == INFERENCE:
            peaks = self._rehearse_reading()
        else:
            peaks = rehearse_training(self.stage, self._share())
        if self.gpus == 0:
            peaks = {phase: beside_nothing(parts) for phase, parts in peaks.items()}
        if self.gpus > 1:
            whole = max(parts[WEIGHTS] for parts in peaks.values())
            peaks = {phase: divided(parts, self) for phase, parts in peaks.items()}
            if self.method not in (INFERENCE, FULL, LORA):  # see `start_model`
                peaks[LOADING] = {**dict.fromkeys(PARTS, 0), WEIGHTS: whole}
        phase = max(peaks, key=lambda phase: on_device(peaks[phase]))
        host = max(parts[HOST] for parts in peaks.values())
        return Need(phase, {**peaks[phase], HOST: host})

    def _rehearse_reading(self) -> dict[str, Parts]:
        config = self.config
        dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
        peaks = rehearse_reading(self.stage, dtype, config.micro_batch, self.length)
        if not self.as_stored:
            return peaks
        integers = bytes_of_integers(self.stage)  # all else has half the bytes
        return {
            phase: {**parts, WEIGHTS: integers + (parts[WEIGHTS] - integers) // 2}
            for phase, parts in peaks.items()
        }

    def _share(self) -> FinetuningConfig:
        """What one of the GPUs does of a step."""
        config, shares = self.config, max(1, self.gpus)
        rows = -(-config.batch_size // shares)
        micro = config.micro_batch_of(shares)
        return dataclasses.replace(config, batch_size=rows, micro_batch_size=micro)


@dataclass(frozen=True)
class Need:
    """The most memory that something takes.

    Attributes:
        phase: when.
        parts: bytes on each device by what they are for; and on the CPU beside it, "host".
    """

    phase: str
    parts: Parts

    @property
    def total(self) -> int:
        """Bytes on each device."""
        return on_device(self.parts)


@dataclass(frozen=True)
class Way:
    """Another way to do it.

    Attributes:
        options: of the command line, that lead there.
        need: what it takes.
    """

    options: str
    need: Need


@dataclass(frozen=True)
class MemoryPlan:
    """What `kogpt plan` tells.

    Attributes:
        work: what shall be done.
        need: what it takes.
        limit: bytes that each device has; None where that is not known.
        ways: others that were looked at, the last of which fits, if one does.
    """

    work: Work
    need: Need
    limit: int | None
    ways: tuple[Way, ...]

    @property
    def fits(self) -> bool:
        """Whether it fits, or no limit is known."""
        return self.limit is None or fits(self.need, self.limit, self.work.gpus)

    def __str__(self) -> str:
        return "\n".join([*self._needs(), *self._verdict()])

    def _needs(self) -> Iterator[str]:
        gpus = self.work.gpus
        where = {0: "the CPU", 1: "the GPU"}.get(gpus, f"each of {gpus} GPUs")
        config = self.work.config
        count, length = config.batch_size, self.work.length
        tokens = f"{length:,} token{'s' * (length > 1)}"
        rows = f"{count:,} row{'s' * (count > 1)} of {tokens}"
        yield f"memory on {where} when most is taken ({self.need.phase}), {rows}:"
        for part, size in self.need.parts.items():
            if size and part != HOST:
                yield f"  {part:<12}{human(size):>12}"
        yield f"  {'together':<12}{human(self.need.total):>12}"
        if self.need.parts[HOST]:
            yield f"and on the CPU  {human(self.need.parts[HOST]):>10}"
        if gpus == 0 and not config.activation_checkpointing:
            yield "glibc may hold a third more; MALLOC_MMAP_THRESHOLD_=1048576 keeps it from that."
        if GATHERED in self.need.parts:
            yield "What is gathered of other GPUs is estimated, all else rehearsed."

    def _verdict(self) -> Iterator[str]:
        if self.limit is None:
            return
        spare = f", less {human(CUDA_ITSELF)} for CUDA itself" if self.work.gpus else ""
        verdict = "it fits" if self.fits else "it does not fit"
        yield f"There are {human(self.limit)}{spare}: {verdict}."
        for way in self.ways:
            good = "fits" if fits(way.need, self.limit, self.work.gpus) else "does not fit"
            yield f"  {way.options}: {human(way.need.total)}, {good}"

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {
            "gpus": self.work.gpus,
            "rows": self.work.config.batch_size,
            "tokens": self.work.length,
            "phase": self.need.phase,
            "bytes": self.need.parts,
            "total": self.need.total,
            "limit": self.limit,
            "reserved": CUDA_ITSELF if self.work.gpus else 0,
            "fits": self.fits,
            "ways": [
                {"options": way.options, "bytes": way.need.parts, "total": way.need.total}
                for way in self.ways
            ],
        }


def plan(work: Work, limit: int | None) -> MemoryPlan:
    """Finds out what work takes, and if that is more than `limit` bytes, what takes less."""
    need = work.need()
    ways = []
    if limit is not None and not fits(need, limit, work.gpus):
        for options, other in alternatives(work):
            ways.append(Way(options, other.need()))
            if fits(ways[-1].need, limit, other.gpus):
                break
    return MemoryPlan(work, need, limit, tuple(ways))


def fits(need: Need, limit: int, gpus: int) -> bool:
    """Whether devices of `limit` bytes have room."""
    return need.total + (CUDA_ITSELF if gpus else 0) <= limit


def alternatives(work: Work) -> Iterator[tuple[str, Work]]:
    """Ways that take less memory, each with its options, what costs least first.

    What costs hardly anything is put together; the others are taken one by one on top of that.
    """
    options: list[str] = []
    for option, changes in READING if work.method == INFERENCE else TRAINING:
        if any(_setting(work.config, name) != value for name, value in changes.items()):
            work, options = _changed(work, **changes), [*options, option]
            yield " ".join(options), work
    for option, other in (*_less_state(work), *_less_trained(work), *_more_and_shorter(work)):
        if other != work:
            yield " ".join([*options, option]) + _left_out(work, other), other


def _left_out(work: Work, other: Work) -> str:
    """Which options of the work another way does not go with."""
    names = [
        f"--{name}"
        for name, usual in USUAL.items()
        if getattr(other.config, name) == usual != getattr(work.config, name)
    ]
    return f"; without {', '.join(names)}" if names else ""


def _less_state(work: Work) -> Iterator[tuple[str, Work]]:
    if work.method != FULL:
        return
    narrow, eight = {"precision": "bfloat16"}, f"--optimizer {EIGHT_BITS}"
    alone = work.gpus < 2  # several processes share neither states of 8 bits nor narrow weights
    if alone and find_spec("torchao"):
        yield eight, _changed(work, optimizer=EIGHT_BITS, weights=FLOAT32, offload=False)
        yield (
            f"{eight} --weights {STOCHASTIC}",
            _changed(work, optimizer=EIGHT_BITS, weights=STOCHASTIC, offload=False, **narrow),
        )
    if work.gpus:
        yield "--offload", _changed(work, optimizer=ADAMW, weights=FLOAT32, offload=True)
    if alone and work.gpus:
        yield (
            f"--offload --weights {MASTER}",
            _changed(work, optimizer=ADAMW, weights=MASTER, offload=True, **narrow),
        )


def _less_trained(work: Work) -> Iterator[tuple[str, Work]]:
    if work.method == FULL:
        yield f"--method {LORA}", _changed(work, method=LORA, **USUAL)
    if work.stage.model_class is not None:  # a class of one's own is not quantised
        return
    if work.method in (FULL, LORA) and work.stage.shape.n_embd % GROUP_SIZE == 0:
        quantized = _quantized(work, "int4")
        yield (
            f"--method {QLORA}, of what kogpt convert --quantize int4 writes",
            _changed(quantized, method=QLORA, **USUAL),
        )
    if work.method == INFERENCE and work.stage.quantization is None:
        yield "--quantize int8", _quantized(work, "int8")
        if work.stage.shape.n_embd % GROUP_SIZE == 0:
            yield "--quantize int4", _quantized(work, "int4")


def _more_and_shorter(work: Work) -> Iterator[tuple[str, Work]]:
    stage, config = work.stage, work.config
    for gpus in (2, 4, 8):
        if not 0 < work.gpus < gpus or stage.model_class is not None:
            continue
        if work.method == INFERENCE and _divides(stage.shape, gpus):
            whole = dataclasses.replace(stage, quantization=None)  # they widen integers
            yield f"--gpus {gpus}", dataclasses.replace(work, stage=whole, gpus=gpus)
        elif work.method != INFERENCE and (config.weights, config.optimizer) == (FLOAT32, ADAMW):
            yield f"--gpus {gpus}", dataclasses.replace(work, gpus=gpus)
    length = work.length
    while (length := length // 2) >= SHORTEST:
        yield f"--sequence {length}", _changed(work, sequence_length=length)


def _divides(shape: KoGPTConfig, gpus: int) -> bool:
    try:
        check_divides(shape, gpus)
    except ParameterError:
        return False
    return True


def _setting(config: FinetuningConfig, name: str) -> Any:
    """What a setting comes to, where it may be left to others."""
    return config.micro_batch if name == "micro_batch_size" else getattr(config, name)


def _changed(work: Work, **changes: Any) -> Work:
    method = changes.get("method", work.method)
    config = dataclasses.replace(work.config, **changes)
    as_stored = work.as_stored and "precision" not in changes  # which says what weights are
    return dataclasses.replace(work, method=method, config=config, as_stored=as_stored)


def _quantized(work: Work, kind: str) -> Work:
    quantization = Quantization.of(kind, GROUP_SIZE, zero_points=False)
    return dataclasses.replace(
        work, stage=dataclasses.replace(work.stage, quantization=quantization)
    )


def beside_nothing(parts: Parts) -> Parts:
    """What a CPU holds, whose own memory is the one beside it."""
    return {**parts, OPTIMIZER: parts[OPTIMIZER] + parts[HOST], HOST: 0}


def divided(parts: Parts, work: Work) -> Parts:
    """What each of several GPUs holds, as `kogpt.parallel` divides it.

    Of a model that reads, weights and cache are divided, by tensor parallel. In training it is
    weights, gradients and the optimizer's state, by FSDP; activations are each GPU's own, and so
    are integers and all of a soft prompt, whole.
    """
    if work.method == INFERENCE:
        return {**parts, **{part: parts[part] // work.gpus for part in (WEIGHTS, CACHE)}}
    prompt = bytes_of_prompt(work.stage, work.config) if work.method in SOFT_PROMPTS else 0
    whole = bytes_of_integers(work.stage) + prompt
    cut = parts[WEIGHTS] - whole
    parts = {**parts, CASTS: 0, GATHERED: gathered(work)}
    if work.config.offload:  # FSDP then keeps all that is divided there, all parts in one machine
        there = {HOST: parts[HOST] + cut, WEIGHTS: whole}
        if not prompt:
            there = {**there, HOST: there[HOST] + parts[GRADIENTS], GRADIENTS: 0}
        return {**parts, **there}
    learnt = 1 if prompt else work.gpus  # parts of what is trained
    shared = {part: parts[part] // learnt for part in (GRADIENTS, OPTIMIZER)}
    return {**parts, **shared, WEIGHTS: whole + cut // work.gpus}


def gathered(work: Work) -> int:
    """Bytes of what a GPU gathers of the others in training by FSDP.

    Embedding, norm and head throughout, a block and the next in the dtype that products are
    computed in, which leaves nothing to cast, and the gradients of a block until they are added
    up, in float32.
    """
    shape, config, dtype = work.stage.shape, work.config, base_dtype(work.config)
    passed = 2 if config.precision == "bfloat16" else dtype.itemsize
    shapes = expand(shape, work.stage.model_class)
    rest = sum(math.prod(shapes[name]) for name in TABLES if name in shapes)
    integers = bytes_of_integers(work.stage)
    count = count_parameters(shape, work.stage.model_class)
    block = 0 if integers else (count - rest) // shape.n_layer
    size = rest * dtype.itemsize + 2 * block * passed
    if work.method == FULL:
        size += rest * dtype.itemsize + block * (passed + torch.float32.itemsize)
    return size
