"""What memory is for, tensor by tensor, while something runs.

A storage is followed from the operation that makes it to its end, so nothing is known here of
networks or optimizers, and tensors without data do as well. Memory that an operation takes and
gives back inside of itself is not seen. PyTorch has a tracker of this kind, for its own use alone
(`torch.distributed._tools`).
"""

import weakref
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass

# Casts are of weights, as autocast makes and keeps them for a pass forward. What is kept on the CPU
# beside a model on a GPU counts apart, as the host's.
WEIGHTS, CASTS, GRADIENTS, OPTIMIZER, ACTIVATIONS, CACHE, TEMPORARY, HOST = PARTS = (
    *("weights", "casts", "gradients", "optimizer", "activations", "cache", "temporary", "host"),
)

Parts = dict[str, int]  # bytes by what they are for


class MemoryTracker(TorchDispatchMode):
    """Counts bytes while it is on; what is made then is temporary until it is said to be more.

    What autograd keeps for the backward pass becomes `ACTIVATIONS`, by `keeping_activations`.

    Attributes:
        parts: bytes there are now.
        peaks: the parts when there were most on the device, for each name given to `enter`.
        made_as: what new storages are taken for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parts: Parts = dict.fromkeys(PARTS, 0)
        self.peaks: dict[str, Parts] = {}
        self.made_as = TEMPORARY
        self._phases: tuple[str, ...] = ()
        self._storages: dict[int, tuple[weakref.ref[Any], str, int]] = {}

    def enter(self, *phases: str) -> None:
        """Begins a phase, of one or more names, or goes on with it; what is there counts."""
        self._phases = phases
        self._note()

    def label(self, tensors: Iterable[Tensor], part: str) -> None:
        """Says what tensors are for, new ones too; what holds others stands for these."""
        for tensor in _plain(tensors):
            storage = tensor.untyped_storage()
            self._forget(storage._cdata)
            self._follow(storage, part)
        self._note()

    def label_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Says of gradients that they are, as they come to be."""
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._label_gradient)

    def keeping_activations(self) -> AbstractContextManager[None]:
        """A context in which what autograd keeps is labelled."""
        return saved_tensors_hooks(self._keep, lambda tensor: tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        part = self.made_as
        if func is torch.ops.aten._to_copy.default and self._part_of(args[0]) == WEIGHTS:
            part = CASTS if part == TEMPORARY else part
        for tensor in _plain(result if isinstance(result, tuple | list) else (result,)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._storages:
                self._follow(storage, part)
        self._note()
        return result

    def _label_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self.label([parameter.grad], GRADIENTS)

    def _keep(self, tensor: Tensor) -> Tensor:
        if self._part_of(tensor) in (None, TEMPORARY):
            self.label([tensor], ACTIVATIONS)
        return tensor

    def _part_of(self, tensor: Tensor) -> str | None:
        """What a tensor is known to be for; None if it is not known, or a stand-in for others."""
        if is_traceable_wrapper_subclass(tensor):
            return None
        known = self._storages.get(tensor.untyped_storage()._cdata)
        return None if known is None else known[1]

    def _follow(self, storage: torch.UntypedStorage, part: str) -> None:
        key, size = storage._cdata, storage.nbytes()
        end = weakref.ref(storage, lambda _: self._forget(key))
        self._storages[key] = end, part, size
        self.parts[part] += size

    def _forget(self, key: int) -> None:
        if key in self._storages:
            _, part, size = self._storages.pop(key)
            self.parts[part] -= size

    def _note(self) -> None:
        for phase in self._phases:
            if on_device(self.parts) > on_device(self.peaks.get(phase, {})):
                self.peaks[phase] = dict(self.parts)


def on_device(parts: Parts) -> int:
    """The sum of all parts that are where the model is."""
    return sum(size for part, size in parts.items() if part != HOST)


def _plain(tensors: Iterable[Any]) -> Iterable[Tensor]:
    """The tensors that have a storage: those inside of others, and no other things."""
    for tensor in tensors:
        if is_traceable_wrapper_subclass(tensor):
            yield from _plain(getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
        elif isinstance(tensor, Tensor):
            yield tensor
