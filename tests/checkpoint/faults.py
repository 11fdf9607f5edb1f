"""Runs an action in a process of its own in which system calls fail, kill or are recorded.

The faults are injected between Python and the operating system (the functions of the module
`os`), so the code under test has no hooks for them.
"""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

from kogpt.adapters import LoRAConfig, write_adapter
from kogpt.checkpoint import ConversionOptions, convert, write_checkpoint
from kogpt.errors import KoGPTError
from kogpt.model import KoGPT
from tests.adapters.filled import trained_lora
from tests.checkpoint.tiny import CONFIG, tiny_state
from tests.server import SERVER

CHANGING = ("pwrite", "fsync", "fdatasync", "rename", "mkdir", "unlink", "rmdir")


def convert_small(root: Path) -> None:
    """A conversion of a few shards, `src` to `dst`."""
    convert(root / "src", root / "dst", ConversionOptions(max_shard_size=6000, quiet=True))


def quantize_small(root: Path) -> None:
    """A conversion to 4 bits with zero points, in shards that cut matrices apart."""
    options = ConversionOptions(
        quantize="int4", group_size=8, zero_points=True, max_shard_size=1500, quiet=True
    )
    convert(root / "src", root / "dst", options)


def save_small(root: Path) -> None:
    """What training does: a checkpoint of weights in memory."""
    write_checkpoint(root / "dst", CONFIG, tiny_state(), max_shard_size=6000)


def write_small_adapter(root: Path, alpha: float = 8.0) -> None:
    """What training does with its result: an adapter, `dst`, takes the place of another."""
    model = KoGPT(CONFIG)
    trained_lora(model, LoRAConfig(rank=2, alpha=alpha), seed=int(alpha))
    write_adapter(root / "dst", model, root / "src")


def run(
    action: Callable[[Path], None],
    root: Path,
    fault: str | int | None = None,
    at: int = 0,
    trace: Path | None = None,
) -> int:
    """Runs `action(root)` in a new process.

    Args:
        fault: what happens instead of call number `at` (from 1) that changes the disk: `kill`,
            `interrupt` or an errno.
        trace: where to write one line for each such call.

    Returns:
        The exit code: that of a KoGPTError, 130 interrupted, or minus the signal.
    """
    process = SERVER.Process(target=_child, args=(action, root, fault, at, trace))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _child(
    action: Callable[[Path], None], root: Path, fault: str | int | None, at: int, trace: Path | None
) -> None:
    calls = _inject(fault, at)
    code = 0
    try:
        action(root)
    except KoGPTError as error:
        code = error.exit_code
        assert "\n" not in str(error)
    except KeyboardInterrupt:
        code = 130
    if trace is not None:
        trace.write_text("\n".join(calls))
    os._exit(code)


def _inject(fault: str | int | None, at: int) -> list[str]:
    calls: list[str] = []
    lock = threading.Lock()

    def wrap(name: str, real: Callable, changes: Callable[..., bool]) -> Callable:
        def call(*args, **kwargs):
            if changes(*args):
                with lock:
                    calls.append(f"{name} {args[0]}")
                    if len(calls) == at:
                        _strike(fault, str(args[0]))
            return real(*args, **kwargs)

        return call

    for name in CHANGING:
        setattr(os, name, wrap(name, getattr(os, name), lambda *_: True))
    os.open = wrap("open", os.open, lambda path, flags, *_: bool(flags & os.O_CREAT))
    return calls


def _strike(fault: str | int | None, path: str) -> None:
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()  # the signal may take a moment to arrive
    if fault == "interrupt":
        raise KeyboardInterrupt
    if isinstance(fault, int):
        raise OSError(fault, os.strerror(fault), path)
