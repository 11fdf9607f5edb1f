"""Processes forked from a server that has imported everything but run nothing.

To start python and import torch takes seconds of a core, which tests of many processes have not.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from multiprocessing.reduction import DupFd
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["kogpt.commands.generate", "kogpt.training", "kogpt.parallel.loading", "torch.testing"]
    + ["torch.distributed.tensor", "tests.checkpoint.faults"]
)


class Forked:
    """A call in a process of its own, which writes to files; what is used here of a Popen.

    Attributes:
        pid: the process.
    """

    def __init__(
        self, environment: Mapping[str, str], function: Callable[..., Any], *arguments: Any
    ) -> None:
        """Starts the process.

        Args:
            environment: what is added to that of the server.
            function: of a module; a SystemExit is the end of the process, as of a program.
            arguments: of the function.
        """
        self._files = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        outputs = [DupFd(file.fileno()) for file in self._files]
        call = (outputs, dict(environment), function, arguments)
        self._process = SERVER.Process(target=_child, args=call)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """The exit code, minus the signal if one has killed it; None while it runs."""
        return self._process.exitcode

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def finish(self, until: float) -> tuple[int, str, str]:
        """Exit code, output and errors, which must be there by a time of the monotonic clock."""
        self._process.join(max(0.1, until - time.monotonic()))
        code = self.poll()
        assert code is not None, f"it still runs; errors so far: {self.written(1)}"
        return code, self.written(0), self.written(1)

    def written(self, number: int = 0) -> str:
        """What it has written so far, to its output or (1) its errors."""
        file = self._files[number].fileno()
        return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")


def _child(
    outputs: list[Any],
    environment: Mapping[str, str],
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    import torch

    for number, output in enumerate(outputs, start=1):
        os.dup2(output.detach(), number)
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.exit(function(*arguments))
