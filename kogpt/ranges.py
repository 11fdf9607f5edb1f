"""The values that a parameter may have."""

import math
from numbers import Integral, Real
from typing import Any, NamedTuple

from kogpt.errors import ParameterError


class Range(NamedTuple):
    """The allowed values of a number; infinite and NaN values never are."""

    kind: type[Integral] | type[Real]
    low: float
    high: float = math.inf
    low_excluded: bool = False
    high_excluded: bool = False

    def check(self, name: str, value: object) -> None:
        """Raises ValueError, with the name, the value and this range, if the value is outside."""
        if not self.holds(value):
            raise ParameterError(f"{name} is {value!r}, it must be {self}")

    def holds(self, value: Any) -> bool:
        """Whether a value is a number in the range."""
        number = isinstance(value, self.kind) and not isinstance(value, bool)
        return number and self._spans(value)

    def _spans(self, value: Any) -> bool:
        above = value > self.low if self.low_excluded else value >= self.low
        below = value < self.high if self.high_excluded else value <= self.high
        return bool(above and below and abs(value) < math.inf)

    def __str__(self) -> str:
        words = ["a whole number" if self.kind is Integral else "a finite number"]
        if self.low > -math.inf:
            words.append(f"above {self.low}" if self.low_excluded else f"of at least {self.low}")
        if self.high < math.inf:
            words.append(f"and {'below' if self.high_excluded else 'at most'} {self.high}")
        return " ".join(words)


def set_number(config: object, name: str, allowed: Range) -> None:
    """Checks a field of a frozen dataclass, and keeps it as Python's own number.

    NumPy's cannot be written as JSON, and torch takes some of them for no numbers.

    Raises:
        ValueError: as `Range.check`.
    """
    value = getattr(config, name)
    allowed.check(name, value)
    try:
        number: float = int(value) if allowed.kind is Integral else float(value)
    except OverflowError:
        number = math.inf
    if not allowed.holds(number):  # as rounded
        raise ParameterError(f"{name} is {value!r}, it must be {allowed}")
    object.__setattr__(config, name, number)


AT_LEAST_ZERO, AT_LEAST_ONE = Range(Integral, 0), Range(Integral, 1)
ABOVE_ZERO = Range(Real, 0, low_excluded=True)


def check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    """Raises ValueError, naming what there is, unless `value` is one of `known`."""
    if value not in known:
        choices = ", ".join(known[:-1]) + f" or {known[-1]}"
        raise ParameterError(f"{name} is {value!r}, it must be {choices}")
