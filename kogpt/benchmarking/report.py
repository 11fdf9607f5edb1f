"""What was measured, as a table and as an object."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from kogpt.textfiles import aligned

HEADINGS = (
    *("batch", "prompt", "first token", "prefill tok/s", "decode tok/s", "min-max"),
    *("GB/s", "of bandwidth", "memory"),
)


@dataclass
class Figures:
    """How fast prompts of one length are continued, some of them together.

    Attributes:
        batch: rows.
        prompt_tokens: of each row.
        new_tokens: of each row.
        step_bytes: that a step of decoding reads.
        first_token: seconds until the first new tokens, of each round.
        decode: seconds from then until the last, of each round.
        memory: most bytes taken, over all rounds; None where that cannot be told.
    """

    batch: int
    prompt_tokens: int
    new_tokens: int
    step_bytes: float
    first_token: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    memory: int | None = None

    def add(self, times: Sequence[float], memory: int | None) -> None:
        """Takes in a round: seconds from its start until each new token, and its memory."""
        self.first_token.append(times[0])
        self.decode.append(times[-1] - times[0])
        self.memory = None if memory is None else max(memory, self.memory or 0)

    @property
    def prefill_rates(self) -> list[float]:
        """Tokens of the prompts a second, of each round."""
        return [self.batch * self.prompt_tokens / seconds for seconds in self.first_token]

    @property
    def decode_rates(self) -> list[float]:
        """New tokens a second, all rows together and the first of each not counted."""
        return [self.batch * (self.new_tokens - 1) / seconds for seconds in self.decode]

    @property
    def read_rate(self) -> float:
        """Bytes a second that decoding reads, the median."""
        return statistics.median(self.decode_rates) / self.batch * self.step_bytes

    def to_dict(self, bandwidth: float) -> dict[str, Any]:
        return {
            "batch": self.batch,
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": self.new_tokens,
            "first_token_seconds": spread(self.first_token),
            "prefill_tokens_per_second": spread(self.prefill_rates),
            "decode_tokens_per_second": spread(self.decode_rates),
            "bytes_per_step": round(self.step_bytes),
            "bytes_per_second": self.read_rate,
            "fraction_of_bandwidth": self.read_rate / bandwidth,
            "peak_memory": self.memory,
        }

    def cells(self, bandwidth: float) -> tuple[str, ...]:
        """A row of the table."""
        rates = self.decode_rates
        return (
            str(self.batch),
            str(self.prompt_tokens),
            duration(statistics.median(self.first_token)),
            number(statistics.median(self.prefill_rates)),
            number(statistics.median(rates)),
            f"{number(min(rates))}-{number(max(rates))}",
            f"{self.read_rate / 1e9:.1f}",
            f"{self.read_rate / bandwidth:.0%}",
            gigabytes(self.memory),
        )


@dataclass(frozen=True)
class Report:
    """A model's figures on a machine.

    Attributes:
        model: what was measured.
        machine: on what.
        start: how long the first token of the process took, and its memory until then.
        bandwidth: bytes a second that the memory was seen to deliver.
        figures: one for each batch and length of prompt.
    """

    model: dict[str, Any]
    machine: dict[str, Any]
    start: dict[str, Any]
    bandwidth: float
    figures: list[Figures]

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "machine": self.machine,
            "start": self.start,
            "read_bandwidth": self.bandwidth,
            "runs": [figures.to_dict(self.bandwidth) for figures in self.figures],
        }

    def __str__(self) -> str:
        rows = [HEADINGS, *(figures.cells(self.bandwidth) for figures in self.figures)]
        return "\n".join([*self.about(), "", *aligned(rows, ">" * len(HEADINGS))])

    def about(self) -> Iterator[str]:
        """What comes before the table."""
        model, machine, start = self.model, self.machine, self.start
        yield (
            f"model      {model['path']}: {model['parameters'] / 1e6:,.1f} M parameters, "
            f"{model['bits_per_weight']:.2f} bits a weight, {model['dtype']}, {model['decoding']}"
        )
        kernels = "compiled kernels" if machine["kernels"] else "no compiled kernels"
        yield (
            f"machine    {machine['device']}, {machine['threads']} threads, torch "
            f"{machine['torch']}, {kernels}, load {machine['load_average']:.1f}"
        )
        yield f"bandwidth  {self.bandwidth / 1e9:.1f} GB/s read"
        if start["seconds"] is not None:
            memory = gigabytes(start["peak_memory"])
            yield f"start      {start['seconds']:.1f} s to the first token, {memory} until then"


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Rounds in their order, and what stands for them."""
    return {"median": statistics.median(values), "rounds": list(values)}


def number(value: float) -> str:
    """About three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def gigabytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 1e9:.2f} GB"
