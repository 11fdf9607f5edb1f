"""Progress is for a person at a terminal, and for nobody else."""

import subprocess
import sys

from tests.checkpoint.tiny import write_released
from tests.cli.terminal import Terminal


def test_a_conversion_shows_a_bar_on_a_terminal(tmp_path):
    write_released(tmp_path / "src")
    with Terminal(["convert", str(tmp_path / "src"), str(tmp_path / "dst")]) as terminal:
        assert terminal.wait() == 0
        assert "100%" in terminal.screen and "B/s" in terminal.screen
        assert "wrote" in terminal.screen


def test_a_conversion_shows_none_elsewhere(tmp_path):
    write_released(tmp_path / "src")
    command = [sys.executable, "-m", "kogpt", "convert", tmp_path / "src", tmp_path / "dst"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = done.stderr.splitlines()
    assert line.startswith("note: ") and "wrote" in done.stdout
