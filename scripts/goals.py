"""What the benchmarks that run peers side by side have in common."""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@dataclass(frozen=True)
class Goal:
    """A figure to reach.

    Attributes:
        text: what it is.
        goal: at least so much, or at most.
        found: what was measured; None where somebody did not take part.
        at_most: which of both.
    """

    text: str
    goal: float
    found: float | None
    at_most: bool = False

    @property
    def verdict(self) -> str:
        if self.found is None:
            return "not measured"
        met = self.found <= self.goal if self.at_most else self.found >= self.goal
        return "met" if met else "missed"


def versions(packages: Iterable[str]) -> dict[str, str]:
    """What is installed of some packages."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def last_words(log: Path) -> str:
    """The last line that a program has written, or that there is none."""
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it ended silently")
