"""The size knob of long test campaigns: small by default, everything with KOGPT_TEST_SCALE=full."""

import os
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def scaled(small: int, full: int) -> int:
    """Number of cases a campaign runs."""
    return full if os.environ.get("KOGPT_TEST_SCALE") == "full" else small


def some(cases: Sequence[T], count: int) -> Sequence[T]:
    """The first cases, all at full scale: for tests of which each starts several processes."""
    return cases[: scaled(count, len(cases))]
