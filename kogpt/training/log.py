"""The record of a run, one JSON object a line, and its face on a terminal."""

import json
import time
from collections.abc import Mapping
from importlib.util import find_spec
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from tqdm import tqdm

from kogpt.checkpoint.staging import append, write_atomically
from kogpt.errors import InputRefusedError, KoGPTError
from kogpt.training.config import RunConfig

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOG_NAME = "log.jsonl"
QUIET_SECONDS = 30.0  # between lines where stderr is no terminal


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a log, oldest first; a last line cut short by a crash is left out.

    Raises:
        InputRefusedError: another line is damaged; names it.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [_entry(path, number, line) for number, line in enumerate(lines, start=1)]


def _entry(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputRefusedError(f"{path}: line {number}: {error}") from None
    if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
        raise InputRefusedError(f"{path}: line {number}: is no entry of a log")
    return entry


class Progress:
    """Writes `log.jsonl`, and tells of it: a bar on a terminal, else a line now and then.

    Entries after `start` are dropped: the run that wrote them was killed before its next
    checkpoint, and those steps come again.
    """

    def __init__(self, config: RunConfig, start: int, steps: int, stream: TextIO) -> None:
        self.stream = stream
        self.start, self.steps = start, steps
        path = config.folder / LOG_NAME
        kept = [json.dumps(entry) + "\n" for entry in read_log(path) if entry["step"] <= start]
        write_atomically(path, "".join(kept).encode())
        self._file = FileIO(path, "a")
        self._events = _events(config, start)
        terminal = self.stream.isatty()
        self._bar = tqdm(
            total=steps, initial=start, file=self.stream, disable=not terminal, unit="step"
        )
        self._quiet = not terminal
        self._began = time.monotonic()
        self._spoke = -QUIET_SECONDS

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
        self._file.close()
        if self._events is not None:
            self._events.close()

    def record(self, step: int, tokens: int, entry: Mapping[str, float]) -> None:
        """Appends an entry to the log."""
        line = json.dumps({"step": step, "tokens": tokens, **entry}) + "\n"
        append(Path(self._file.name), self._file, line.encode())
        if self._events is not None:
            for name, value in entry.items():
                self._events.add_scalar(name, value, step)

    def trained(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Tells how far training is, `step` steps done."""
        self._bar.set_postfix_str(f"loss {loss:.3f}, {tokens_per_second:,.0f} tokens/s")
        self._bar.update(step - self._bar.n)
        now = time.monotonic()
        if self._quiet and (now - self._spoke > QUIET_SECONDS or step == self.steps):
            self._spoke = now
            left = (now - self._began) / (step - self.start) * (self.steps - step)
            self.say(
                f"step {step}/{self.steps}  loss {loss:.3f}  "
                f"{tokens_per_second:,.0f} tokens/s  {clock(left)} left"
            )

    def say(self, text: str) -> None:
        """Tells something, above the bar if there is one."""
        tqdm.write(text, file=self.stream)
        self.stream.flush()


class Silent(Progress):
    """Says and writes nothing: one process tells of what several do together."""

    def __init__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def record(self, step: int, tokens: int, entry: Mapping[str, float]) -> None:
        pass

    def trained(self, step: int, loss: float, tokens_per_second: float) -> None:
        pass

    def say(self, text: str) -> None:
        pass


def clock(seconds: float) -> str:
    """A time span as h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"


def _events(config: RunConfig, start: int) -> "SummaryWriter | None":
    """What writes for TensorBoard, if it is wanted; events after `start` are taken back."""
    installed = find_spec("tensorboard") is not None
    if not (installed if config.tensorboard is None else config.tensorboard):
        return None
    if not installed:
        raise KoGPTError("events for TensorBoard need it: pip install tensorboard")
    from torch.utils.tensorboard import SummaryWriter  # slow to import

    return SummaryWriter(str(config.folder / "tensorboard"), purge_step=start + 1)
