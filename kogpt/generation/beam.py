"""Beam search: the most probable continuations that a bounded search finds.

Candidates, scores and stopping are those of transformers' `generate(num_beams=...)`, so results
agree: each step ranks the extensions of all beams; those that end are finished if they are among
the first `num_beams`, and of the others the best `num_beams` go on.

Dimension key: `B` beams, `V` vocabulary.
"""

from dataclasses import dataclass, field, replace
from itertools import zip_longest

import torch
from torch import Tensor

from kogpt.generation.batch import Batch
from kogpt.generation.processors import BANNED
from kogpt.generation.sample import NO_TOKEN, Request, Sample, TokenLogprob
from kogpt.generation.scoring import refuse_unusable, token_logprobs
from kogpt.tokenizer import Tokenizer


@dataclass(frozen=True)
class Beam:
    """A continuation under search.

    Attributes:
        ids: the generated ids.
        total: sum of their log-probabilities, each after bias, penalties and bans.
        logprobs: the model's own log-probabilities of them, where those are wanted.
        parent: the beam of the step before that it extends.
    """

    ids: list[int] = field(default_factory=list)
    total: float = 0.0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    parent: int = 0


class BeamSearch:
    """The search for one request."""

    def __init__(self, request: Request, tokenizer: Tokenizer) -> None:
        self.request = request
        self.params = request.params
        self.tokenizer = tokenizer
        self._finished: list[tuple[float, Sample]] = []  # best first

    def run(self, batch: Batch) -> list[Sample]:
        """The best `n` continuations, best first, of a batch that holds the prompt alone."""
        if self.request.limit == 0:
            return [Sample(self.request, self.tokenizer)]
        beams = [Beam()]
        while beams and not self._is_settled(beams[0]):
            ranked = [(beam, self._ends(beam)) for beam in self._extensions(beams, batch)]
            for beam in (beam for beam, ends in ranked[: self.params.num_beams] if ends):
                self._finish(beam)
            beams = [beam for beam, ends in ranked if not ends][: self.params.num_beams]
            if beams:
                batch.select([beam.parent for beam in beams])
                last = [beam.ids[-1] for beam in beams]
                batch.append(torch.tensor(last, device=batch.ids.device))
        for rank, (score, sample) in enumerate(self._finished):
            sample.index, sample.score = rank, score
        return [sample for _, sample in self._finished[: self.params.n]]

    @torch.inference_mode()
    def _extensions(self, beams: list[Beam], batch: Batch) -> list[Beam]:
        """The best extensions of all beams by one id, best first.

        They are so many that `num_beams` go on even if every id that ends a text is among them.
        Where nothing is allowed after any beam, NO_TOKEN extends each.
        """
        logits = batch.logits()
        refuse_unusable(logits)
        logprobs = self.request.processor.constrain(logits.log_softmax(-1), batch.history)
        so_far = torch.tensor(
            [beam.total for beam in beams], dtype=torch.float64, device=logits.device
        )
        totals = (so_far[:, None] + logprobs).flatten()  # (B * V,)
        count = self.params.num_beams * (1 + max(1, len(self.request.processor.end_ids)))
        best, places = totals.topk(min(count, len(totals)))
        allowed = best > BANNED
        if not allowed.any():
            return [
                replace(beam, ids=[*beam.ids, NO_TOKEN], parent=row)
                for row, beam in enumerate(beams)
            ]
        best, places = best[allowed], places[allowed]
        parents, ids = places // logits.size(1), places % logits.size(1)
        return [
            Beam([*beams[row].ids, id], total, [*beams[row].logprobs, *logprob], row)
            for row, id, total, logprob in zip(
                parents.tolist(),
                ids.tolist(),
                best.tolist(),
                self._logprobs(logits, parents, ids),
                strict=True,
            )
        ]

    def _logprobs(self, logits: Tensor, parents: Tensor, ids: Tensor) -> list[list[TokenLogprob]]:
        """The model's own log-probability of each extension, as a list of one or, unasked, none."""
        if self.params.logprobs is None:
            return [[]] * len(ids)
        return [[item] for item in token_logprobs(logits[parents], ids, self.params.logprobs)]

    def _ends(self, beam: Beam) -> bool:
        """Whether the last id of a beam ends it."""
        last = beam.ids[-1]
        if last == NO_TOKEN or last in self.request.processor.end_ids:
            return True
        if self.params.stop:
            return self._sample(beam).finish_reason is not None
        return len(beam.ids) == self.request.limit

    def _sample(self, beam: Beam) -> Sample:
        """The beam as a sample: its text, and why it ended if it did."""
        sample = Sample(self.request, self.tokenizer)
        for id, logprob in zip_longest(beam.ids, beam.logprobs):
            sample.push(id, logprob)
        return sample

    def _finish(self, beam: Beam) -> None:
        """Puts a beam among the finished, of which the best `num_beams` are kept."""
        length = len(beam.ids) - (beam.ids[-1] == NO_TOKEN)
        self._finished.append((self._score(beam.total, length), self._sample(beam)))
        self._finished.sort(key=lambda entry: entry[0], reverse=True)
        del self._finished[self.params.num_beams :]

    def _score(self, total: float, length: int) -> float:
        return total / max(1, length) ** self.params.length_penalty

    def _is_settled(self, best: Beam) -> bool:
        """Whether the finished beams are final, `best` being the best that could go on."""
        if len(self._finished) < self.params.num_beams:
            return False
        if self.params.early_stopping is True:
            return True
        longer_is_better = self.params.length_penalty > 0
        never = self.params.early_stopping == "never"
        length = self.request.limit if never and longer_is_better else len(best.ids)
        return self._score(best.total, length) <= self._finished[-1][0]
