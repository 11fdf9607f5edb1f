"""What is told to a person beside results: notes, refusals, questions."""

import sys
from contextlib import suppress


def say(text: str, end: str = "\n") -> None:
    """Writes to standard error; where that is closed or full, the text is lost, not the work."""
    if sys.stderr is None:  # closed; `print` would take standard output instead
        return
    with suppress(OSError):  # at once, or lines of several processes run together
        print(text + end, end="", file=sys.stderr, flush=True)
