"""Runs a function of a test module in several processes, as torchrun would, but without its words.

    results = run(2, worker, "an argument")

Each process calls `worker(parallel, *arguments)` with its `Parallel` entered.
"""

import json
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from kogpt.cli import fail
from kogpt.errors import KoGPTError
from kogpt.parallel import Parallel
from tests.server import Forked

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60.0  # that processes wait for each other


def environment(process: int, processes: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    told = {"RANK": process, "LOCAL_RANK": process, "WORLD_SIZE": processes}
    told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in told.items()}


def free_port() -> int:
    """A port that is free and stays so: below those that the system gives to whoever asks."""
    while True:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", secrets.choice(range(15_000, 32_000))))
            return probe.getsockname()[1]


def start(processes: int, function: Callable[..., Any], *arguments: Any) -> list[Forked]:
    """Starts processes that call a function and end with what it returns."""
    port = free_port()
    return [
        Forked(environment(process, processes, port), function, *arguments)
        for process in range(processes)
    ]


def begin(
    processes: int, worker: Callable[..., Any], *arguments: Any, tensor: int = 1, seconds=SECONDS
) -> list[Forked]:
    """Starts the processes of `run`."""
    return start(processes, work, worker, tensor, seconds, arguments)


def finish(started: list[Forked], timeout: float = 120) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each."""
    until = time.monotonic() + timeout
    try:
        return [process.finish(until) for process in started]
    finally:
        for process in started:
            process.kill()


def run(processes: int, worker: Callable[..., Any], *arguments: Any, tensor: int = 1) -> list[Any]:
    """What `worker` returns in each process, through JSON."""
    ended = finish(begin(processes, worker, *arguments, tensor=tensor))
    for code, _, errors in ended:
        assert code == 0, "\n".join(errors for _, _, errors in ended)
    return [json.loads(output) for _, output, _ in ended]


def work(worker: Callable[..., Any], tensor: int, seconds: float, arguments: Sequence[Any]) -> int:
    """One of the processes."""
    try:
        with Parallel.launched(tensor, "cpu", seconds) as parallel:
            result = worker(parallel, *arguments)
    except KoGPTError as error:
        return fail(str(error), error.exit_code)
    print(json.dumps(result))
    return 0
