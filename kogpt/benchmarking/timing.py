"""Generation with a clock beside it.

Dimension key: `B` rows, `T` tokens of a prompt, `N` new tokens.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import Tensor

from kogpt.benchmarking.bandwidth import read_bandwidth
from kogpt.benchmarking.machine import peak_memory, reset_peak
from kogpt.benchmarking.report import Figures
from kogpt.benchmarking.traffic import step_bytes
from kogpt.model import KoGPT, KVCache

PREFILL_CHUNK = 512  # as generation reads prompts


@dataclass(frozen=True)
class Plan:
    """What is measured: every batch with every length of prompt.

    Attributes:
        batches: rows that are continued together.
        prompts: tokens of each row's prompt.
        new_tokens: that each row is continued by, at least two.
        rounds: times of which medians are taken; one more, before them, is not counted.
    """

    batches: Sequence[int] = (1,)
    prompts: Sequence[int] = (32, 512)
    new_tokens: int = 32
    rounds: int = 3


@dataclass
class Bench:
    """A model, and the best read bandwidth seen so far.

    Attributes:
        model: in evaluation mode.
        bandwidth: bytes a second.
        generator: of the prompts.
    """

    model: KoGPT
    bandwidth: float = 0.0
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.transformer.wte.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the activations, and so of the cache."""
        return self.model.transformer.wte.weight.dtype

    def measure(self, plan: Plan) -> list[Figures]:
        """Runs the plan; shapes take turns, so that a slow minute is not one shape's alone."""
        figures = [
            Figures(
                B, T, plan.new_tokens, step_bytes(self.model, self.dtype, B, T, plan.new_tokens)
            )
            for B, T in product(plan.batches, plan.prompts)
        ]
        for shape in figures:
            self.run(shape)  # warm: buffers, kernels, graphs
        for _ in range(plan.rounds):
            self.bandwidth = max(self.bandwidth, read_bandwidth(self.device))
            for shape in figures:
                shape.add(*self.run(shape))
        return figures

    def run(self, shape: Figures) -> tuple[list[float], int | None]:
        """Seconds until each new token, and the most memory that was taken meanwhile."""
        prompts = self.prompts(shape.batch, shape.prompt_tokens)
        known = reset_peak(self.device)
        _, times = generate(self.model, prompts, shape.new_tokens)
        return times, peak_memory(self.device) if known else None

    def prompts(self, batch: int, tokens: int) -> Tensor:
        """Random ids (B, T): how long a token takes does not depend on which it is."""
        size = (batch, tokens)
        vocab_size = self.model.config.vocab_size
        return torch.randint(vocab_size, size, generator=self.generator).to(self.device)


@torch.inference_mode()
def generate(model: KoGPT, prompts: Tensor, new_tokens: int) -> tuple[Tensor, list[float]]:
    """Continues prompts of one length by the likeliest tokens, past the ends of texts.

    Args:
        model: in evaluation mode.
        prompts: ids (B, T).
        new_tokens: N; with T it must fit the context.

    Returns:
        The new ids (B, N), and for each of the N columns the seconds from the start until this
        process knew it.
    """
    cache = make_cache(model, prompts.size(1) + new_tokens)
    columns, times = [], []
    unread = prompts
    start = time.perf_counter()
    for _ in range(new_tokens):
        for part in unread.split(PREFILL_CHUNK, dim=1):
            hidden = model.transformer(part, cache, None)
        unread = model.logits(hidden[:, -1]).argmax(-1, keepdim=True)  # (B, 1)
        columns.append(unread.flatten().tolist())  # waits for the device, as streaming must
        times.append(time.perf_counter() - start)
    return torch.tensor(columns).T, times


def make_cache(model: KoGPT, capacity: int) -> KVCache:
    """A cache of the kind that the model asks for."""
    make: Callable[[int], KVCache] = getattr(model, "make_cache", KVCache)
    return make(capacity)
