"""CUDA graphs of decode steps: hundreds of kernels launched as one.

A step at batch 1 is about 200 kernels of a few microseconds each, which Python and the driver would
take longer to launch than the GPU to run. A graph is recorded once for a cache and replayed.
"""

import functools
from collections.abc import Callable
from threading import Lock
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from kogpt.model import KVCache


class StepInput(NamedTuple):
    """All of a step that changes from one to the next.

    Attributes:
        input_ids: the new tokens (B, T).
        lengths: tokens that each row of the cache holds, (B,).
        starts: as for `KoGPT.forward`.
    """

    input_ids: Tensor
    lengths: Tensor
    starts: Tensor | None


# Recordings of a device share a stream, as each stream is given a workspace by cuBLAS for good.
_RECORDING = Lock()

# How many new tokens, and whether without padding: what a graph cannot vary.
Kind = tuple[int, bool]

# Hidden states (B, T, C) of the new tokens, which it appends to the cache.
Run = Callable[[StepInput, KVCache], Tensor]


class Recording(NamedTuple):
    """A graph, the tensors it reads and the one it writes."""

    graph: torch.cuda.CUDAGraph
    given: StepInput
    hidden: Tensor

    def replay(self, step: StepInput) -> Tensor:
        self.given.input_ids.copy_(step.input_ids)
        self.given.lengths.copy_(step.lengths)
        if self.given.starts is not None and step.starts is not None:
            self.given.starts.copy_(step.starts)
        self.graph.replay()
        return self.hidden.clone()  # the next replay overwrites it


class Graphs:
    """The graphs of one model: for each cache in use, one for each kind of step.

    What runs a step is given anew each time: kept here, it would keep the model that keeps this.
    """

    def __init__(self) -> None:
        self._recordings: WeakKeyDictionary[KVCache, dict[Kind, Recording | None]] = (
            WeakKeyDictionary()
        )

    def __call__(self, run: Run, step: StepInput, cache: KVCache) -> Tensor:
        """Runs a step; the first of its kind as it is, which makes buffers and loads kernels."""
        recordings = self._recordings.setdefault(cache, {})
        kind = (step.input_ids.size(1), step.starts is None)
        if kind not in recordings:
            recordings[kind] = None
            return run(step, cache)
        recording = recordings[kind]
        if recording is None:
            recording = recordings[kind] = _record(run, step, cache)
        return recording.replay(step)


def _record(run: Run, step: StepInput, cache: KVCache) -> Recording:
    with torch.inference_mode(False):  # replays write to these, in inference mode or out of it
        starts = None if step.starts is None else step.starts.clone()
        given = StepInput(step.input_ids.clone(), step.lengths.clone(), starts)
    graph, device = torch.cuda.CUDAGraph(), step.input_ids.device
    with (
        _RECORDING,
        torch.cuda.device(device),  # that of the model, which need not be the current one
        # Other threads may go on: what they ask of the GPU meanwhile is no part of the graph.
        torch.cuda.graph(graph, stream=_stream(device), capture_error_mode="thread_local"),
    ):
        hidden = run(given, cache)
    return Recording(graph, given, hidden)


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
