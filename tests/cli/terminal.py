"""A pseudo-terminal with a program in it, typed at and read from as a person would."""

import codecs
import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence

IUTF8 = 0o40000  # <linux/termbits.h>; the termios module does not name it


class Terminal:
    """Runs `python -m kogpt ARGS` on a pseudo-terminal of its own, as a context manager."""

    def __init__(
        self,
        args: Sequence[str] = (),
        utf8: bool = True,
        seconds: float = 120,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.deadline = time.monotonic() + seconds
        self.screen = ""  # everything the program has shown so far
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._master, slave = pty.openpty()
        settings = termios.tcgetattr(slave)
        settings[0] = settings[0] | IUTF8 if utf8 else settings[0] & ~IUTF8
        termios.tcsetattr(slave, termios.TCSANOW, settings)
        termios.tcsetwinsize(slave, (24, 80))

        def take_terminal() -> None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored below a background job
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [sys.executable, "-m", "kogpt", *args],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            preexec_fn=take_terminal,
            env={
                **{**os.environ, "LANG": "C.UTF-8", "TERM": "xterm", "OMP_NUM_THREADS": "1"},
                **(environment or {}),
            },
        )
        os.close(slave)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        os.close(self._master)

    def type(self, text: str | bytes) -> None:
        """Sends keystrokes, piecewise, since a terminal's line buffer is small."""
        data = text.encode() if isinstance(text, str) else text
        for start in range(0, len(data), 512):
            os.write(self._master, data[start : start + 512])
            time.sleep(0.01)
            self._read(0)

    def expect(self, text: str) -> str:
        """Waits until `text` is shown; returns what was shown up to its end and forgets it."""
        while text not in self.screen:
            if time.monotonic() > self.deadline or not self._read(0.5):
                raise AssertionError(f"{text!r} never came; the screen says {self.screen!r}")
        seen, _, self.screen = self.screen.partition(text)
        return seen + text

    def wait(self) -> int:
        """Reads until the program ends; returns its exit code."""
        while self._read(0.5):
            assert time.monotonic() < self.deadline, f"no end; the screen says {self.screen!r}"
        return self.process.wait(timeout=10)

    def _read(self, seconds: float) -> bool:
        """Reads what has come; False once the program has closed the terminal."""
        if select.select([self._master], [], [], seconds)[0]:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # Linux answers EIO when the other side is closed
                return False
            self.screen += self._decoder.decode(data)
        return True
