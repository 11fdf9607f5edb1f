"""Drawing tokens: a race whose runners' luck depends on nothing but the request.

Each token of the vocabulary draws an exponential variate and divides it by its probability; the
smallest quotient wins, which is as probable as the token is. The variates are a function of (seed,
sample, step, token). So a request draws the same tokens alone or in a batch, on any device,
whatever was drawn before it, as far as its logits are the same. Where they differ a little (other
matrix shapes, other kernels, a narrower dtype), the same token wins nearly as often as any way of
drawing could have it: distributions P and Q with total variation distance d agree at least
(1 - d) / (1 + d) of the time, and the best possible, for somebody who sees both, is 1 - d. (The
inverse of a CDF has no such bound: a little mass moved at low ids shifts all the ids above.)

Source: Daliri et al., "Coupling without communication and drafter-invariant speculative decoding"
(arXiv 2408.07978), where the race is called Gumbel sampling.

Dimension key: `B` rows, `V` vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kogpt.generation.processors import History
from kogpt.generation.sample import NO_TOKEN, Sample


def step_words(seed: int, sample: int, count: int) -> Tensor:
    """The 64 random bits from which each step of one sample draws, (count,), int64.

    They come from the counter-based generator Philox with (seed, sample) as its key, so no two
    samples share a stream, and are its raw words, which NumPy promises never to change.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
    """
    philox = np.random.Philox(key=np.array([seed, sample], dtype=np.uint64))
    return torch.from_numpy(philox.random_raw(count).view(np.int64))


def split_mix(words: Tensor, places: Tensor) -> Tensor:
    """Outputs of the generator SplitMix64 seeded by each of `words` (B,), the first at place 0.

    Source: Steele et al., "Fast splittable pseudorandom number generators" (OOPSLA 2014).

    Args:
        words: seeds.
        places: which outputs, (n,), int64.

    Returns:
        (B, n), int64, to be read as 64 bits: sums and products wrap around.
    """
    z = words[:, None] + (places + 1) * _signed(0x9E3779B97F4A7C15)
    z ^= _shifted(z, 30)
    z *= _signed(0xBF58476D1CE4E5B9)
    z ^= _shifted(z, 27)
    z *= _signed(0x94D049BB133111EB)
    z ^= _shifted(z, 31)
    return z


def draw(logits: Tensor, words: Tensor) -> Tensor:
    """Ids (B,) drawn from the softmax of `logits` (B, V) by `words` (B,).

    A token of probability 0 is not drawn.
    """
    probs = logits.softmax(-1)
    runners = torch.arange(probs.size(-1), device=probs.device)
    if probs.device.type == "cpu":  # a GPU would have to be waited for, to know how many there are
        allowed = (probs != 0).any(0)  # and NaN, so that it is noticed
        if not allowed.all():
            runners, probs = runners[allowed], probs[:, allowed]
    bits = _shifted(split_mix(words, runners), 12)
    uniforms = bits.double().add_(0.5).mul_(2.0**-52)  # of 53 bits, so exact, and neither 0 nor 1
    return runners[(uniforms.log_().neg_() / probs).argmin(-1)]


def _shifted(words: Tensor, places: int) -> Tensor:
    """The bits of `words` moved right, zeros coming in from the left."""
    moved = words >> places
    moved &= 2 ** (64 - places) - 1
    return moved


def _signed(word: int) -> int:
    """64 bits above 2^63 as torch writes them."""
    return word - 2**64


class Sampler:
    """Chooses the next id of every row of a batch."""

    def __init__(self, samples: Sequence[Sample], device: torch.device) -> None:
        self.groups = [
            (samples[rows[0]].request.processor, torch.tensor(rows, device=device))
            for rows in _rows_that_share_parameters(samples)
        ]
        steps = max(sample.request.limit for sample in samples)
        streams = [step_words(s.request.seed, s.index, steps) for s in samples]
        self.words = torch.stack(streams).to(device)  # (B, steps)

    @torch.inference_mode()
    def __call__(self, logits: Tensor, history: History) -> Tensor:
        """Ids (B,) after logits (B, V); NO_TOKEN where none is allowed, or a logit is NaN."""
        ids = torch.empty(len(logits), dtype=torch.long, device=logits.device)
        for processor, rows in self.groups:
            allowed = processor.constrain(logits[rows], history.select(rows))
            best, chosen = allowed.max(-1)
            if processor.params.temperature > 0:
                chosen = draw(processor.warp(allowed), self.words[rows, history.generated])
            ids[rows] = chosen.masked_fill(~best.isfinite(), NO_TOKEN)
        return ids


def _rows_that_share_parameters(samples: Sequence[Sample]) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for row, sample in enumerate(samples):
        groups.setdefault(id(sample.request.processor), []).append(row)
    return list(groups.values())
