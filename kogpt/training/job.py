"""What a run works on: the loop knows a job and nothing of what it trains, or on what."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from torch import Tensor

from kogpt.model import KoGPT
from kogpt.parallel import Parallel
from kogpt.training.config import RunConfig
from kogpt.training.state import Files


class Batch(Protocol):
    """Rows that go through the network at once.

    Attributes:
        count: targets, over which the loss is a mean.
        tokens: tokens that the network reads, padding left out.
    """

    @property
    def count(self) -> int: ...

    @property
    def tokens(self) -> int: ...


B = TypeVar("B", bound=Batch)
C = TypeVar("C", bound=RunConfig)


class Job(ABC, Generic[C, B]):
    """A model, its data, and what is asked of it.

    Attributes:
        config: all settings.
        model: is trained where its parameters require gradients.
        data: fingerprint of the data, by which a resumed run knows them again.
        base: likewise of the weights that it reads again and does not train; None for none.
        dynamic: whether micro-batches come in many shapes, for `torch.compile`.
        continues: whether it begins with the weights of `config.model`, or with new ones.
        parallel: the processes that do it together; one, unless it is told of more.
    """

    config: C
    model: KoGPT
    data: str
    base: str | None = None
    parallel: Parallel = Parallel()
    dynamic: bool = False
    continues: bool = True

    def begin(self) -> None:
        """Readies the model for steps."""
        self.model.train()

    @abstractmethod
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""

    @abstractmethod
    def batches(self, step: int, steps: int) -> Sequence[B]:
        """The micro-batches of a step, counted from 0; a function of these alone."""

    @abstractmethod
    def loss(self, batch: B) -> Tensor:
        """Loss summed over the targets of a micro-batch, float32."""

    @abstractmethod
    def describe(self) -> str:
        """A few words on model and data, for the line that a run begins with."""

    @abstractmethod
    def validate(self) -> Mapping[str, float]:
        """Figures of held-out data, for the log; none where there are no such data."""

    def validated(self, step: int, figures: Mapping[str, float]) -> None:
        """Is told figures that are numbers, before they are in the log."""

    @abstractmethod
    def save(self, folder: Path, files: Files) -> None:
        """Writes a checkpoint, complete or not at all: what is trained, and the loop's `files`."""
