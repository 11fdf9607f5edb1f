"""The learning rate: a linear rise, then half a cosine down."""

import math

from kogpt.training.config import RunConfig


def learning_rate(step: int, steps: int, config: RunConfig) -> float:
    """Rate of a step, counted from 0, in a run of so many `steps`.

    Source: Loshchilov & Hutter, "SGDR" (arXiv 1608.03983), equation 5, one period.
    """
    warmup = config.warmup(steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    cosine = (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2
    floor = config.final_learning_rate
    return config.learning_rate * (floor + (1 - floor) * cosine)
