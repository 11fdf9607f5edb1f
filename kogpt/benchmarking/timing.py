"""Generation with a clock beside it.

Dimension key: `B` rows, `T` tokens of a prompt, `N` new tokens.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import Tensor

from kogpt.benchmarking.bandwidth import read_bandwidth
from kogpt.benchmarking.machine import peak_memory, reset_peak
from kogpt.benchmarking.report import Figures
from kogpt.benchmarking.traffic import step_bytes
from kogpt.generation.transfer import reads_on, start_copy
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
    """A model, and the best read bandwidth seen around what was measured.

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
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the activations, and so of the cache."""
        return self.model.dtype

    def measure(self, plan: Plan) -> list[Figures]:
        """Runs the plan, one shape after the other."""
        before = read_bandwidth(self.device)
        shapes = product(plan.batches, plan.prompts)
        figures = [self.measure_shape(B, T, plan) for B, T in shapes]
        self.bandwidth = max(before, read_bandwidth(self.device))
        return figures

    def measure_shape(self, B: int, T: int, plan: Plan) -> Figures:
        """Continues prompts of one shape in every round, with one cache and what belongs to it."""
        sizes = B, T, plan.new_tokens
        figures = Figures(*sizes, step_bytes(self.model, *sizes))
        cache, prompts = KVCache(T + plan.new_tokens), self.prompts(B, T)
        generate(self.model, prompts, plan.new_tokens, cache)  # makes buffers and graphs
        for _ in range(plan.rounds):
            known = reset_peak(self.device)
            cache.truncate(0)
            _, times = generate(self.model, prompts, plan.new_tokens, cache)
            figures.add(times, peak_memory(self.device) if known else None)
        return figures

    def prompts(self, batch: int, tokens: int) -> Tensor:
        """Random ids (B, T): how long a token takes does not depend on which it is."""
        size = (batch, tokens)
        vocab_size = self.model.config.vocab_size
        return torch.randint(vocab_size, size, generator=self.generator).to(self.device)


@torch.inference_mode()
def generate(
    model: KoGPT, prompts: Tensor, new_tokens: int, cache: KVCache
) -> tuple[Tensor, list[float]]:
    """Continues prompts of one length by the likeliest tokens, past the ends of texts.

    Args:
        model: in evaluation mode.
        prompts: ids (B, T).
        new_tokens: N; with T it must fit the context.
        cache: empty, for at least T + N tokens.

    Returns:
        The new ids (B, N), and for each of the N columns the seconds from the start until this
        process knew it.
    """
    columns, times = [], []
    arriving: deque[Callable[[], Tensor]] = deque()  # as generation does, see `generation.transfer`
    unread = prompts
    start = time.perf_counter()
    for step in range(1, new_tokens + 1):
        for part in unread.split(PREFILL_CHUNK, dim=1):
            hidden = model.transformer(part, cache, None)
        unread = model.logits(hidden[:, -1]).argmax(-1, keepdim=True)  # (B, 1)
        arriving.append(start_copy(unread.flatten()))
        while len(arriving) > (reads_on(model.device) and step < new_tokens):
            columns.append(arriving.popleft()().tolist())
            times.append(time.perf_counter() - start)
    return torch.tensor(columns).T, times
