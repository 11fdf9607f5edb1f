"""Runs a function of a test module in several processes, as torchrun would, but without its words.

    results = run(2, worker, "an argument")

Each process calls `worker(parallel, *arguments)` with its `Parallel` entered.
"""

import importlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60.0  # that processes wait for each other

PROGRAM = """
import sys
from tests.parallel.launch import work
sys.exit(work(*sys.argv[1:]))
"""


def environment(process: int, processes: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    told = {"RANK": process, "LOCAL_RANK": process, "WORLD_SIZE": processes}
    told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    told |= {"PYTHONPATH": ROOT}
    return {**os.environ, **{name: str(value) for name, value in told.items()}}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(processes: int, *program: str, **pipes: Any) -> list[subprocess.Popen]:
    """Starts python with some arguments, so many times."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, *program],
            env=environment(process, processes, port),
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **pipes,
        )
        for process in range(processes)
    ]


def begin(
    processes: int, worker: Callable[..., Any], *arguments: Any, tensor: int = 1, seconds=SECONDS
) -> list[subprocess.Popen]:
    """Starts the processes of `run`."""
    call = json.dumps([worker.__module__, worker.__name__, tensor, seconds, arguments])
    return start(processes, "-c", PROGRAM, call)


def finish(started: list[subprocess.Popen], timeout: float = 120) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each."""
    until = time.monotonic() + timeout
    ended = []
    try:
        for process in started:
            output, errors = process.communicate(timeout=max(0.1, until - time.monotonic()))
            ended.append((process.returncode, output, errors))
    finally:
        for process in started:
            process.kill()
    return ended


def run(processes: int, worker: Callable[..., Any], *arguments: Any, tensor: int = 1) -> list[Any]:
    """What `worker` returns in each process, through JSON."""
    ended = finish(begin(processes, worker, *arguments, tensor=tensor))
    for code, _, errors in ended:
        assert code == 0, "\n".join(errors for _, _, errors in ended)
    return [json.loads(output) for _, output, _ in ended]


def work(call: str) -> int:
    """One of the processes."""
    import torch

    from kogpt.cli import fail
    from kogpt.errors import KoGPTError
    from kogpt.parallel import Parallel

    torch.set_num_threads(1)
    module, name, tensor, seconds, arguments = json.loads(call)
    worker = getattr(importlib.import_module(module), name)
    try:
        with Parallel.launched(tensor, "cpu", seconds) as parallel:
            result = worker(parallel, *arguments)
    except KoGPTError as error:
        return fail(str(error), error.exit_code)
    print(json.dumps(result))
    return 0
