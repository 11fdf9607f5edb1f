"""Drawing tokens: one uniform number per (seed, sample, step), and the inverse of the CDF.

A token is a function of the logits and of one number that depends on nothing but the request. So
a request draws the same tokens alone or in a batch, on any device, whatever was drawn before it,
as far as its logits are the same; where they differ in the last bits (other matrix shapes, other
kernels), a token differs only if its number falls within those bits of a boundary.

Dimension key: `B` rows, `V` vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kogpt.generation.processors import History
from kogpt.generation.sample import NO_TOKEN, Sample


def uniforms(seed: int, sample: int, count: int) -> Tensor:
    """The numbers in [0, 1) that the steps of one sample use, (count,), float64.

    They come from the counter-based generator Philox with (seed, sample) as its key, so no two
    samples share a stream, and from its raw 64-bit words, which NumPy promises never to change.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
    """
    words = np.random.Philox(key=np.array([seed, sample], dtype=np.uint64)).random_raw(count)
    return torch.from_numpy((words >> np.uint64(11)) * 2.0**-53)


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Ids (B,) at which the CDFs of `logits` (B, V), in vocabulary order, pass `uniform` (B,).

    The softmax is that of the logits' dtype, the sums are float64. A token of probability 0 is
    not drawn, since the CDF does not rise there (a GPU, which adds in another order for each sum,
    may let it rise by 1e-16).
    """
    cdf = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(cdf, uniform[:, None] * cdf[:, -1:], right=True).squeeze(-1)


class Sampler:
    """Chooses the next id of every row of a batch."""

    def __init__(self, samples: Sequence[Sample], device: torch.device) -> None:
        self.groups = [
            (samples[rows[0]].request.processor, torch.tensor(rows, device=device))
            for rows in _rows_that_share_parameters(samples)
        ]
        steps = max(sample.request.limit for sample in samples)
        streams = [uniforms(s.request.seed, s.index, steps) for s in samples]
        self.uniforms = torch.stack(streams).to(device)  # (B, steps)

    @torch.inference_mode()
    def __call__(self, logits: Tensor, history: History) -> Tensor:
        """Ids (B,) after logits (B, V); NO_TOKEN where none is allowed, or a logit is NaN."""
        ids = torch.empty(len(logits), dtype=torch.long, device=logits.device)
        for processor, rows in self.groups:
            allowed = processor.constrain(logits[rows], history.select(rows))
            best, chosen = allowed.max(-1)
            if processor.params.temperature > 0:
                chosen = draw(processor.warp(allowed), self.uniforms[rows, history.generated])
            ids[rows] = chosen.masked_fill(~best.isfinite(), NO_TOKEN)
        return ids


def _rows_that_share_parameters(samples: Sequence[Sample]) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for row, sample in enumerate(samples):
        groups.setdefault(id(sample.request.processor), []).append(row)
    return list(groups.values())
