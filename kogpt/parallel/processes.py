"""The processes of a run, as `torchrun` starts them, and what they tell each other.

They stand in a grid. Those of a row hold one model together, each a part of every matrix (tensor
parallel); the rows share the data. One process alone is a grid of one, and tells nobody anything.
"""

import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import cached_property
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed import DeviceMesh, PrefixStore, init_device_mesh
from torch.distributed.rendezvous import rendezvous

from kogpt.errors import KoGPTError, ParameterError

T = TypeVar("T")
P = ParamSpec("P")

SECONDS = 1800.0  # that processes wait for each other: as long as a batch on a CPU may take

_GROUPS = count()  # that this process has been in

# How gloo and NCCL put it that another process is gone or late.
LOST = re.compile(
    r"gloo|nccl|connection (was )?(closed|reset|refused)|broken pipe|timed? ?out|barrier", re.I
)
# How NCCL puts faults of this process, or of how it was started.
OWN_FAULT = re.compile(r"invalid (usage|argument)|unhandled cuda|out of memory|duplicate gpu", re.I)


class Parallel:
    """The processes of this run.

    Use as a context manager: entering connects them, which each does within `seconds`; leaving it
    by the loss of another process is a KoGPTError of one line.

    Attributes:
        rank: number of this process.
        world_size: how many there are.
        tensor_size: how many hold a model together.
        data_size: shares that the data fall into, `world_size / tensor_size`.
        data_rank: the share of this process.
        device: where this process computes.
        seconds: longest wait for another process.
    """

    def __init__(
        self,
        rank: int = 0,
        world_size: int = 1,
        *,
        tensor_size: int = 1,
        device: torch.device | str = "cpu",
        seconds: float = SECONDS,
    ) -> None:
        """Describes the processes; one alone where nothing is said.

        Raises:
            ValueError: so many cannot hold models together; names both numbers.
        """
        if tensor_size < 1 or world_size % tensor_size:
            raise ParameterError(
                f"tensor parallel {tensor_size} does not divide the {world_size} processes of this"
                " run (torchrun --nproc-per-node N starts N)"
            )
        self.rank, self.world_size, self.tensor_size = rank, world_size, tensor_size
        self.data_rank, self.data_size = rank // tensor_size, world_size // tensor_size
        self.device = torch.device(device)
        self.seconds = seconds

    @classmethod
    def launched(
        cls,
        tensor_size: int = 1,
        device: torch.device | str | None = None,
        seconds: float = SECONDS,
    ) -> "Parallel":
        """The processes that `torchrun` started, or this one alone.

        Args:
            tensor_size: how many hold a model together.
            device: where to compute; None or "cuda" is a GPU for each process of a machine, None
                without GPUs the CPU.
            seconds: longest wait for another process.

        Raises:
            ValueError: as the constructor; or a variable of torchrun is out of range.
        """
        world_size = _told("WORLD_SIZE", 1, low=1)
        rank = _told("RANK", 0, below=world_size) if world_size > 1 else 0  # others set it too
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if device.type == "cuda" and device.index is None and world_size > 1:
            local = _told("LOCAL_RANK", 0)
            device = torch.device("cuda", local % torch.cuda.device_count())
        return cls(rank, world_size, tensor_size=tensor_size, device=device, seconds=seconds)

    def __enter__(self) -> "Parallel":
        if self.world_size == 1:
            return self
        backend = "gloo"  # results and messages travel between CPUs
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            backend = "cpu:gloo,cuda:nccl"
        patience = timedelta(seconds=self.seconds)
        try:
            store, rank, size = next(rendezvous("env://", timeout=patience))
            # torchrun's store outlives a group: the next one must not read what that one wrote.
            store = PrefixStore(f"kogpt-{next(_GROUPS)}", store)
            distributed.init_process_group(
                backend, store=store, rank=rank, world_size=size, timeout=patience
            )
        except (distributed.DistError, RuntimeError, ValueError) as error:
            raise KoGPTError(f"{self}: the processes do not find each other: {error}") from None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.world_size == 1:
            return
        # To take leave of those who are gone may wait for them, over NCCL.
        if error is None or self.device.type == "cpu":
            distributed.destroy_process_group()
            _let_threads_rest()
        if isinstance(error, RuntimeError) and is_loss(str(error)):
            raise KoGPTError(
                f"{self}: another process has ended, or kept silent for {self.seconds:.0f} s"
            ) from error

    def __str__(self) -> str:
        return f"process {self.rank} of {self.world_size}"

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.world_size == 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that speaks, and writes what is written once."""
        return self.rank == 0

    @property
    def leads(self) -> bool:
        """Whether this process is the first of those that hold one model together."""
        return self.rank % self.tensor_size == 0

    @cached_property
    def mesh(self) -> DeviceMesh:
        """The grid, with dimensions "data" and "tensor"; all processes make it at once."""
        assert not self.alone, "one process is no mesh"
        shape = (self.data_size, self.tensor_size)
        return init_device_mesh(self.device.type, shape, mesh_dim_names=("data", "tensor"))

    def share(self, work: Sequence[T]) -> Sequence[T]:
        """What this process does of the work."""
        return work[self.data_rank :: self.data_size]

    def turns(self, work: Sequence[T]) -> list[tuple[T, bool]]:
        """What this process does of the work, in as many turns as every other process.

        Processes that gather each other's weights must all come to every pass. Where there is no
        work left for one of them, it does some that is done elsewhere, and that does not count.

        Returns:
            Pairs: the work, and whether it counts.
        """
        count = -(-len(work) // self.data_size)
        places = (self.data_rank + turn * self.data_size for turn in range(count))
        return [(work[min(place, len(work) - 1)], place < len(work)) for place in places]

    def gather(self, done: dict[int, T]) -> dict[int, T]:
        """What all processes did."""
        if self.alone:
            return done
        parts: list[dict[int, T]] = [{} for _ in range(self.world_size)]
        distributed.all_gather_object(parts, done)
        return {key: value for part in parts for key, value in part.items()}

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all shares of the data; to the bit the same on every process."""
        return self._sum(value, every=self.tensor_size)

    def sum_all(self, value: Tensor) -> Tensor:
        """The sum over all processes; to the bit the same on every one."""
        return self._sum(value, every=1)

    def add_up(self, count: int) -> int:
        """The sum of a number of each process."""
        return int(self.sum_all(torch.tensor(count)))

    def _sum(self, value: Tensor, every: int) -> Tensor:
        if self.alone:
            return value
        mine = value.detach().cpu().contiguous()
        parts = [torch.empty_like(mine) for _ in range(self.world_size)]
        distributed.all_gather(parts, mine)
        return torch.stack(parts[::every]).sum(0).to(value.device)

    def once(self, function: Callable[[], T]) -> T:
        """What the function returns on the first process, which alone calls it.

        Where it raises, the others leave without a word.
        """
        if self.alone:
            return function()
        box: list[tuple[T] | None] = [None]
        try:
            if self.first:
                box = [(function(),)]
        finally:
            distributed.broadcast_object_list(box, src=0)
        if box[0] is None:
            raise SystemExit(1)
        return box[0][0]

    def as_forward(self, model: nn.Module, function: Callable[P, T]) -> Callable[P, T]:
        """Makes the calls of a function passes of a model; see `kogpt.parallel.sharding`."""
        if self.alone:
            return function
        from kogpt.parallel.sharding import as_forward

        return as_forward(model, function)

    def clip(self, parameters: Iterable[nn.Parameter], limit: float) -> float:
        """Scales gradients down to a norm of `limit`; returns what it was."""
        if self.alone:
            return torch.nn.utils.clip_grad_norm_(parameters, limit).item()
        from kogpt.parallel.sharding import clip

        return clip(parameters, limit, self)

    def wait(self) -> None:
        """Goes on when all have come here.

        Raises:
            RuntimeError: one of them has ended, or did not come in time.
        """
        if not self.alone:
            distributed.all_reduce(torch.zeros(1))


def is_loss(message: str) -> bool:
    """Whether torch says that another process is gone or late."""
    return bool(LOST.search(message)) and not OWN_FAULT.search(message)


def _told(name: str, default: int, low: int = 0, below: int = 1 << 31) -> int:
    """A number that torchrun tells its processes; ValueError if it is none, or out of range."""
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not text.isdecimal() or not low <= int(text) < below:
        raise ParameterError(f"{name} is {text!r}, it must be a whole number {low} to {below - 1}")
    return int(text)


def _let_threads_rest() -> None:
    """Waits, on Linux, until gloo's threads sleep; for ten seconds at most.

    PyTorch ends these threads when nothing refers to their group any more, and its caches of cut
    tensors refer to it for good. One that is still letting go of the last message's tensor when
    the interpreter ends is killed within a destructor, which aborts the whole process
    (https://github.com/pytorch/pytorch/pull/179291).
    """
    until = time.monotonic() + 10
    quiet = 0
    # Thrice in a row, since a thread that waits for the interpreter's lock sleeps as well.
    while quiet < 3 and time.monotonic() < until:
        time.sleep(0.001)  # without the lock
        quiet = 0 if _threads_run("pt_gloo_runloop") else quiet + 1


def _threads_run(name: str) -> bool:
    """Whether a thread of this process that has this name does anything but sleep."""
    for task in Path("/proc/self/task").glob("*/stat"):
        with suppress(OSError):  # it has just ended
            said = task.read_text()
            if f"({name})" in said and ") S " not in said:
                return True
    return False
