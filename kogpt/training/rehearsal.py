"""A step rehearsed on tensors that have a shape and no contents, to see what memory it takes.

Model, loop, loss and optimizer are those of a run, so a rehearsal knows nothing of them and needs
no change where they change. It runs on any machine: PyTorch's tensors without contents pass for
tensors of the CPU, and where they stand for a GPU's, what the network would do else there is done.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from kogpt.checkpoint.quantization import Quantization, Scheme
from kogpt.choices import EIGHT_BITS
from kogpt.generation.speculative import PREFILL_CHUNK
from kogpt.kernels import FrozenLinear, Weight
from kogpt.kernels.extension import suppose_gpu
from kogpt.model import KoGPT, KoGPTConfig, KVCache
from kogpt.model.variants import class_of
from kogpt.training.config import FinetuningConfig
from kogpt.training.cross_entropy import chunk_rows
from kogpt.training.job import Files, Job
from kogpt.training.loop import Trainer
from kogpt.training.loss import next_token_loss
from kogpt.training.memory import (
    CACHE,
    HOST,
    OPTIMIZER,
    TEMPORARY,
    WEIGHTS,
    MemoryTracker,
    Parts,
)
from kogpt.training.methods import attach_method, base_dtype
from kogpt.training.optimizer import initial_state, make_optimizer, trained
from kogpt.training.pretraining import Sequences

FORWARD, LOSS, UPDATE = "forward", "loss", "update"
FIRST, SECOND, LAST = "backward, first block", "backward, second block", "backward, last block"

LINEAR = 2  # chunks of the loss, from which on memory is linear in the number of rows

Peaks = dict[str, Parts]


@dataclass(frozen=True)
class Stage:
    """Where a rehearsal takes place.

    Attributes:
        shape: of the model.
        gpu: whether the tensors stand for those of a GPU.
        quantization: how matrices are stored that are no floats; None for none.
        model_class: of one's own; None for the one that belongs to the shape.
    """

    shape: KoGPTConfig
    gpu: bool
    quantization: Quantization | None = None
    model_class: type[KoGPT] | None = None


def rehearse_training(stage: Stage, config: FinetuningConfig) -> Peaks:
    """The most memory that each phase of a step takes, the optimizer's state being there already.

    Phases are the pass forward, the loss, the pass back through the first, second and last block,
    and the update. What a model of many equal blocks takes in any of these is linear in their
    number, and in the blocks between it takes no more than at the ends, so two short rehearsals
    tell of any number of blocks.
    """
    if config.optimizer == EIGHT_BITS:
        _fill_tables(config)
    rows = config.micro_batch
    parts = 2 if config.batch_size > rows else 1

    def of(count: int) -> Peaks:
        fewer = dataclasses.replace(config, batch_size=parts * count, micro_batch_size=count)
        step = partial(take_step, config=config if count == rows else fewer)
        return _by_length(stage, step)

    return _by_rows(of, stage, rows, config.sequence_length or stage.shape.n_positions)


def _fill_tables(config: FinetuningConfig) -> None:
    """Has torchao compute the numbers that codes stand for, once and for all.

    It keeps them as long as the process lives: those of a rehearsal would have no contents, and
    spoil all later training.
    """
    layer = nn.Linear(64, 64, bias=False)  # large enough for 8 bits
    initial_state(make_optimizer(layer, config), layer.weight)


def rehearse_reading(stage: Stage, dtype: torch.dtype, batch: int, length: int) -> Peaks:
    """The most memory that it takes to read a batch of texts into a cache.

    Args:
        stage: with the model.
        dtype: to compute in.
        batch: texts.
        length: tokens of each, those to be written included.
    """

    def of(count: int) -> Peaks:
        return _by_length(stage, partial(read, dtype=dtype, batch=count, length=length))

    return _by_rows(of, stage, batch, length)


def _by_rows(of: Callable[[int], Peaks], stage: Stage, rows: int, length: int) -> Peaks:
    """Peaks with so many rows; of very many, as two smaller rehearsals tell, for it is linear."""
    few = -(-LINEAR * chunk_rows(stage.shape.vocab_size) // length)
    return of(rows) if rows <= 2 * few else _line(of(few), of(2 * few), (rows - few) / few)


def _by_length(stage: Stage, run: Callable[[Stage, MemoryTracker], None]) -> Peaks:
    if stage.shape.n_layer <= 3 or stage.model_class is not None:  # whose blocks may differ
        return _rehearse(stage, run)
    two, three = (_rehearse(_of_layers(stage, layers), run) for layers in (2, 3))
    return _line(two, three, stage.shape.n_layer - 2)


def _of_layers(stage: Stage, layers: int) -> Stage:
    return dataclasses.replace(stage, shape=dataclasses.replace(stage.shape, n_layer=layers))


def _line(first: Peaks, second: Peaks, steps: float) -> Peaks:
    """So many steps of that from the first to the second beyond the first."""
    return {
        phase: {
            part: size + round(steps * (second[phase][part] - size)) for part, size in parts.items()
        }
        for phase, parts in first.items()
    }


def _rehearse(stage: Stage, run: Callable[[Stage, MemoryTracker], None]) -> Peaks:
    with empty_tensors(stage.gpu) as tracker:
        run(stage, tracker)
    return tracker.peaks


class _Rehearsal(Job[FinetuningConfig, Sequences]):
    """Rows that are full of targets."""

    data = ""

    def __init__(self, config: FinetuningConfig, model: KoGPT, tracker: MemoryTracker) -> None:
        self.config, self.model, self._tracker = config, model, tracker

    def num_steps(self) -> int:
        return 1

    def batches(self, step: int, steps: int) -> list[Sequences]:
        """Two micro-batches at most: the second meets the gradients of the first, as all do."""
        config = self.config
        length = config.sequence_length or self.model.config.n_positions
        count = min(config.batch_size, 2 * config.micro_batch)
        rows = torch.zeros(count, length, dtype=torch.long)
        return [Sequences(part, part.clone()) for part in rows.split(config.micro_batch)]

    def loss(self, batch: Sequences) -> Tensor:
        self._tracker.enter(FORWARD)
        starts = torch.zeros_like(batch.inputs) if self.config.pack else None
        with self._tracker.keeping_activations():
            return next_token_loss(self.model, batch.inputs, batch.targets, starts)

    def describe(self) -> str:
        return "a rehearsal"

    def validate(self) -> dict[str, float]:
        return {}

    def save(self, folder: Any, files: Files) -> None:
        raise NotImplementedError("a rehearsal leaves nothing")


def take_step(stage: Stage, tracker: MemoryTracker, config: FinetuningConfig) -> None:
    """Takes a step before a tracker that is on, of a model that is made for it."""
    model = make_model(stage, base_dtype(config))
    attach_method(model, config)
    trainer = Trainer(_Rehearsal(config, model.train(), tracker))
    optimizer, parameters = trainer.optimizer, list(trained(model).values())
    for parameter in parameters:
        optimizer.state[parameter] = initial_state(optimizer, parameter)
    states = [tensor for state in optimizer.state.values() for tensor in state.values()]
    tracker.label(_tensors(model), WEIGHTS)
    tracker.label(states, HOST if config.offload else OPTIMIZER)
    tracker.label_gradients(parameters)
    _announce(model, tracker)
    if config.optimizer == EIGHT_BITS:
        setattr(optimizer, "step", partial(_compiled_update, tracker, parameters))  # noqa: B010
    optimizer.register_step_pre_hook(lambda *_: _begin_update(tracker, config.offload))
    trainer.take_step()


def read(stage: Stage, tracker: MemoryTracker, dtype: torch.dtype, batch: int, length: int) -> None:
    """Reads texts before a tracker that is on, with a model that is made for it."""
    with torch.inference_mode():
        model = make_model(stage, dtype).eval()
        tracker.label(_tensors(model), WEIGHTS)
        cache = _LabelledCache(length, tracker)
        tracker.enter(FORWARD)
        for ids in torch.zeros(batch, length, dtype=torch.long).split(PREFILL_CHUNK, dim=1):
            model.logits(model.transformer(ids, cache)[:, -1])


def _begin_update(tracker: MemoryTracker, offload: bool) -> None:
    tracker.enter(UPDATE)
    tracker.made_as = HOST if offload else TEMPORARY


def _compiled_update(tracker: MemoryTracker, parameters: list[nn.Parameter]) -> None:
    """What an 8-bit optimizer's step takes, which is compiled and cannot be rehearsed.

    Of one parameter after the other both new moments are there in float32 before they are rounded:
    8.02 bytes a weight, as measured with torch 2.11 and torchao 0.18 on a CPU.
    """
    tracker.enter(UPDATE)
    torch.empty(2, max(parameter.numel() for parameter in parameters))


def _announce(model: KoGPT, tracker: MemoryTracker) -> None:
    """Has the tracker told of the phases of a step."""
    model.transformer.register_forward_hook(lambda *_: tracker.enter(LOSS))
    blocks = list(model.transformer.h)
    names = {0: {FIRST}, 1: {SECOND}}
    names.setdefault(len(blocks) - 1, set()).add(LAST)  # of two blocks, the second is the last
    for index, phases in names.items():
        blocks[index].register_forward_hook(partial(_enter_on_the_way_back, tracker, phases))


def _enter_on_the_way_back(
    tracker: MemoryTracker, phases: set[str], block: nn.Module, inputs: Any, output: Tensor
) -> None:
    if output.requires_grad:
        output.register_hook(lambda gradient: tracker.enter(*phases))


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def make_model(stage: Stage, dtype: torch.dtype) -> KoGPT:
    """A new model, in the form in which `load_model` gives one."""
    # Of attention's dropout a GPU keeps a seed, where a CPU keeps all weights.
    shape = dataclasses.replace(stage.shape, attn_pdrop=0.0) if stage.gpu else stage.shape
    model = (stage.model_class or class_of(shape))(shape)
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    layers = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    for name in layers if stage.quantization else []:
        assert stage.quantization is not None
        scheme = stage.quantization.scheme(f"{name}.weight")
        if scheme is not None:
            layer = model.get_submodule(name)
            model.set_submodule(name, _quantized(layer, scheme))
    return model


def bytes_of_integers(stage: Stage) -> int:
    """What matrices take that are stored as integers, their scales among it."""
    if stage.quantization is None:
        return 0

    def count(layers: int) -> int:
        model = make_model(_of_layers(stage, layers), torch.bfloat16)
        frozen = [part for part in model.modules() if isinstance(part, FrozenLinear)]
        return sum(buffer.nbytes for part in frozen for buffer in part.buffers(recurse=False))

    with empty_tensors(stage.gpu):
        one, two = count(1), count(2)
    return one + (stage.shape.n_layer - 1) * (two - one)


def bytes_of_prompt(stage: Stage, config: FinetuningConfig) -> int:
    """What a soft prompt takes, with the network that computes it."""
    with empty_tensors(stage.gpu):
        model = make_model(_of_layers(stage, 1), base_dtype(config))  # of which it knows nothing
        attach_method(model, config)
        return sum(parameter.nbytes for parameter in trained(model).values())


def _quantized(layer: nn.Module, scheme: Scheme) -> FrozenLinear:
    """A layer that keeps integers in the place of one."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor) and (bias is None or isinstance(bias, Tensor))
    N, K = weight.shape
    narrow = (
        torch.zeros(N, K, dtype=torch.int8)
        if scheme.bits == 8
        else torch.zeros(N, K // 8, dtype=torch.int32)
    )
    scale = weight.new_zeros(N, scheme.groups(K))
    offset = torch.zeros_like(scale) if scheme.zero_points else None
    return FrozenLinear(Weight(narrow, scale, offset), bias if bias is None else bias.detach())


@contextmanager
def empty_tensors(gpu: bool) -> Iterator[MemoryTracker]:
    """A place where tensors have no contents, and are counted."""
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        if gpu:
            stack.enter_context(suppose_gpu())
        stack.enter_context(FakeTensorMode())
        tracker = stack.enter_context(MemoryTracker())
        stack.enter_context(_Guesses())
        yield tracker


class _Guesses(TorchDispatchMode):
    """Answers what depends on contents: a number is 1, and as many as there can be are not zero.

    And what is asked for most, which makes no tensor: where one is.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1
        if func is torch.ops.aten.nonzero.default:
            return args[0].new_empty(args[0].numel(), args[0].ndim, dtype=torch.long)
        return func(*args, **(kwargs or {}))


class _LabelledCache(KVCache):
    def __init__(self, capacity: int, tracker: MemoryTracker) -> None:
        super().__init__(capacity)
        self._tracker = tracker

    def buffers(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = super().buffers(layer, k, v)
        self._tracker.label((keys, values), CACHE)
        return keys, values
