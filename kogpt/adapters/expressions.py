"""Regular expressions out of files, which may take for ever: another process tries them."""

import json
import subprocess
import sys
from collections.abc import Iterable

SECONDS = 5.0

PROGRAM = """\
import json, re, sys
expression, names = json.load(sys.stdin)
json.dump([name for name in names if re.fullmatch(expression, name)], sys.stdout)
"""


def fitting(expression: str, names: Iterable[str]) -> list[str]:
    """The names that an expression fits from end to end.

    Raises:
        ValueError: it is no expression, or takes longer than `SECONDS`.
    """
    command = [sys.executable or "python3", "-I", "-S", "-c", PROGRAM]
    given = json.dumps([expression, list(names)])
    try:
        done = subprocess.run(
            command, input=given, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"takes more than {SECONDS:g} seconds for the names of layers") from None
    except OSError as error:
        raise ValueError(f"cannot be tried: {error}") from None
    if done.returncode < 0:
        raise ValueError(f"cannot be tried: signal {-done.returncode}")
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2]
        raise ValueError(f"is no expression: {reason.partition(': ')[2] or reason}")
    fits: list[str] = json.loads(done.stdout)
    return fits
