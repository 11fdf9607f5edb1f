"""The speed at which memory can be read: what a token costs at least."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

CPU_BYTES = 1 << 29  # many times the largest cache
CUDA_BYTES = 4 << 30  # 2^30 float32, as in published read ceilings
ROUNDS = 3


def read_bandwidth(device: torch.device) -> float:
    """Bytes a second that reductions over a long vector read, with the threads torch is set to.

    Which reduction is the fastest depends on the processor and the version of torch, so several
    run in turn and the fastest pass of all counts: a ceiling is what the memory can, at best.
    """
    if device.type == "cuda":
        size = min(CUDA_BYTES, torch.cuda.mem_get_info(device)[0] // 2)
        vector = torch.zeros(size // 4, dtype=torch.float32, device=device)
        passes: list[Callable[[], object]] = [vector.sum]
    else:
        vector = torch.ones(CPU_BYTES // 4)  # written, so that pages are there
        passes = cpu_passes(vector)
    times = [seconds(one, device) for _ in range(ROUNDS) for one in passes]
    return vector.nbytes / min(times)


def cpu_passes(vector: Tensor) -> list[Callable[[], object]]:
    """Ways to read every byte of a float32 vector once and write nothing."""
    return [
        vector.view(torch.int64).sum,
        vector.view(torch.bfloat16).sum,
        vector.max,
        vector.view(torch.int8).max,
        lambda: torch.linalg.vector_norm(vector),
    ]


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """How long one call takes until the device is done with it."""
    synchronize(device)
    start = time.perf_counter()
    action()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
