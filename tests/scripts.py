"""Runs the programs of `scripts/`, each forked from a server that has imported torch."""

import os
import runpy
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess

from tests.server import Forked

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"


def run_script(
    name: str, *arguments: str | Path, environment: Mapping[str, str] | None = None
) -> CompletedProcess[str]:
    """What `python scripts/NAME ARGUMENTS` does in the root of the repository."""
    words = [str(SCRIPTS / name), *map(str, arguments)]
    started = Forked(environment or {}, _run, words)
    return CompletedProcess(words, *started.finish(time.monotonic() + 240))


def _run(words: Sequence[str]) -> None:
    os.chdir(ROOT)
    sys.argv = list(words)
    sys.path.insert(0, str(SCRIPTS))
    runpy.run_path(words[0], run_name="__main__")
