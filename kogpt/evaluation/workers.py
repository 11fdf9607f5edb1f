"""Several processes that share the work of an evaluation, as `torchrun` starts them."""

import os
from collections.abc import Sequence
from types import TracebackType
from typing import TypeVar

import torch
from torch import distributed

T = TypeVar("T")


class Workers:
    """The processes of this run: one, unless `torchrun` started more.

    Use as a context manager. Each computes a share of the batches, then all know all results.

    Attributes:
        rank: of this process.
        size: how many there are.
        local_rank: of this process on its machine.
    """

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", 0))
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        self.local_rank = int(os.environ.get("LOCAL_RANK", 0))

    def __enter__(self) -> "Workers":
        if self.size > 1:
            distributed.init_process_group("gloo")  # results are small, and objects
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.size > 1:
            distributed.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this process is the one that speaks and writes the report."""
        return self.rank == 0

    def device(self) -> torch.device:
        """Where this process computes unless told otherwise: a GPU each, where there are any."""
        if torch.cuda.is_available():
            return torch.device("cuda", self.local_rank % torch.cuda.device_count())
        return torch.device("cpu")

    def share(self, work: Sequence[T]) -> Sequence[T]:
        """What this process does of the work."""
        return work[self.rank :: self.size]

    def gather(self, done: dict[int, T]) -> dict[int, T]:
        """What all processes did."""
        if self.size == 1:
            return done
        parts: list[dict[int, T]] = [{} for _ in range(self.size)]
        distributed.all_gather_object(parts, done)
        return {key: value for part in parts for key, value in part.items()}

    def wait(self) -> None:
        """Goes on when all have come here."""
        if self.size > 1:
            distributed.barrier()
