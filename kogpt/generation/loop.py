"""The sampling loop: read, choose, record, go on with the rows that are not finished."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from kogpt.generation.batch import Batch
from kogpt.generation.sample import NO_TOKEN, Request, Sample
from kogpt.generation.sampling import Sampler
from kogpt.generation.scoring import refuse_unusable, token_logprobs
from kogpt.generation.speculative import Speculation, Speculator
from kogpt.generation.transfer import reads_on, start_copy

# Lays out the prompts of some requests, each once.
MakeBatch = Callable[[Sequence[Request]], Batch]


def run(
    make_batch: MakeBatch,
    samples: Sequence[Sample],
    speculate: Speculation | None = None,
) -> Iterator[None]:
    """Continues samples together until all are finished, pausing after each step.

    Finished rows stay in the batch, ignored, until they are half of it: then leaving them out is
    worth the copy of the cache.

    Raises:
        KoGPTError: the model computes NaN or infinite logits.
    """
    live = [sample for sample in samples if sample.finish_reason is None]
    if not live:
        return
    batch, logits = read_prompts(make_batch, live)
    choose = Sampler(live, logits.device)
    speculator = Speculator(speculate) if speculate else None
    while True:
        ids = choose(logits, batch.history)
        chosen = start_copy(ids)
        read_on = reads_on(ids.device) and not speculator and may_go_on(live, batch)
        if read_on:  # while the host learns what was chosen
            batch.append(ids.clamp(min=0))
            batch.logits()
        record(live, logits, ids, chosen().tolist())
        yield
        unfinished = [row for row, sample in enumerate(live) if sample.finish_reason is None]
        if not unfinished:
            return
        if batch.is_full or 2 * len(unfinished) <= len(live):
            batch.select(unfinished)
            ids = ids[unfinished]
            live = [live[row] for row in unfinished]
            choose = Sampler(live, logits.device)
        if not read_on:
            batch.append(ids.clamp(min=0))
        if speculator:
            speculator.guess(live[0], batch, choose)
        logits = batch.logits()


def may_go_on(samples: Sequence[Sample], batch: Batch) -> bool:
    """Whether a token after the next one is wanted, as far as can be told without the next."""
    unfinished = (sample for sample in samples if sample.finish_reason is None)
    return not batch.is_full and any(sample.remaining > 1 for sample in unfinished)


def read_prompts(make_batch: MakeBatch, samples: Sequence[Sample]) -> tuple[Batch, Tensor]:
    """A batch with a row for each sample, and its logits (B, V); shared prompts are read once."""
    requests = {sample.request.index: sample.request for sample in samples}
    row_of_prompt = {index: row for row, index in enumerate(requests)}
    batch = make_batch(list(requests.values()))
    logits = batch.logits()
    rows = [row_of_prompt[sample.request.index] for sample in samples]
    batch.select(rows)
    return batch, logits[rows]


@torch.inference_mode()
def record(samples: Sequence[Sample], logits: Tensor, ids: Tensor, chosen: Sequence[int]) -> None:
    """Hands each unfinished sample its row of `ids` (B,), chosen by `logits` (B, V).

    Args:
        chosen: `ids` on the host.
    """
    wanted = [s.request.params.logprobs for s in samples if s.request.params.logprobs is not None]
    if NO_TOKEN in chosen:
        refuse_unusable(logits)
    logprobs = token_logprobs(logits, ids.clamp(min=0), max(wanted)) if wanted else None
    for row, sample in enumerate(samples):
        if sample.finish_reason is None:
            sample.push(chosen[row], logprobs[row] if logprobs else None)
