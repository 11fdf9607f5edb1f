"""The two ways to have text written: all at once, or as it comes."""

from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from itertools import chain

from kogpt.errors import ParameterError
from kogpt.generation.batch import Batch
from kogpt.generation.beam import BeamSearch
from kogpt.generation.loop import MakeBatch, run
from kogpt.generation.params import SamplingParams
from kogpt.generation.requests import Prompt, evaluation_mode, make_requests
from kogpt.generation.sample import Generation, Request, Sample
from kogpt.generation.scoring import sequence_logprobs
from kogpt.generation.speculative import DraftModel, Speculation, refuse_speculation
from kogpt.model import KoGPT
from kogpt.ranges import AT_LEAST_ONE
from kogpt.tokenizer import Tokenizer

END = object()  # of steps


def generate(
    model: KoGPT,
    tokenizer: Tokenizer,
    prompts: str | Sequence[Prompt],
    params: SamplingParams | Sequence[SamplingParams] | None = None,
    *,
    batch_size: int = 8,
    prefill_chunk: int = 512,
    use_cache: bool = True,
    speculate: Speculation | None = None,
) -> list[Generation]:
    """Continues prompts.

    The keyword arguments say how to compute, not what: results depend on them as far as a model's
    logits do, which is by rounding (more of it where 8 or 4 bit weights meet many rows on a CPU).

    Args:
        model: any model; dropout is off while this runs.
        tokenizer: its tokenizer.
        prompts: texts or lists of ids; one text alone counts as a list of it. A text follows the
            tokenizer's bos if its files say so (`Tokenizer.add_bos`); an empty prompt always does.
        params: how to continue: the same for all prompts, or a list with those of each.
        batch_size: samples that run together; memory grows with it.
        prefill_chunk: most tokens of a prompt that are read at once.
        use_cache: keep keys and values between steps, which costs memory and saves much time.
        speculate: guess tokens to come and read several at once, which saves time where one sample
            runs alone: in a batch, guessing begins when one row is left of it.

    Returns:
        `n` generations for each prompt, in the order of the prompts: `n` in all for one prompt.
        (A beam search that finds fewer than `n` endings gives those.)

    Raises:
        InputRefusedError: a prompt is longer than the context of the model (with both counts;
            nothing is cut), empty with no bos to begin from, or holds lone surrogates or an id
            without a piece.
        ValueError: an id in `params` is not in the vocabulary, the counts do not match, a draft
            model has another vocabulary, `speculate` is given with `num_beams` above 1,
            `batch_size` or `prefill_chunk` is below 1, or something is no prompt or no params.
        KoGPTError: the model computes logits that are NaN or infinite. Where one is drawn, a single
            -inf means a token that never is.
    """
    requests = make_requests(model, tokenizer, prompts, params)
    make_batch = batch_maker(model, prefill_chunk, use_cache)
    if speculate:
        refuse_speculation(speculate, model, any(r.params.num_beams > 1 for r in requests))
    with evaluation_mode(*_models(model, speculate)):
        samples = _sample(make_batch, tokenizer, requests, batch_size, speculate)
        samples += _search(make_batch, tokenizer, requests)
        echoes = {
            request.index: sequence_logprobs(
                model, [request.prompt_ids], top=request.params.logprobs or 0
            )[0]
            for request in requests
            if request.params.echo and request.params.logprobs is not None
        }
    samples.sort(key=lambda sample: (sample.request.index, sample.index))
    return [sample.generation(echoes.get(sample.request.index)) for sample in samples]


def stream(
    model: KoGPT,
    tokenizer: Tokenizer,
    prompt: Prompt,
    params: SamplingParams | None = None,
    *,
    prefill_chunk: int = 512,
    use_cache: bool = True,
    speculate: Speculation | None = None,
) -> Generator[str, None, None]:
    """Continues one prompt, giving the text as it comes.

    A character comes once its last byte is generated; of what may become a stop string, nothing
    comes before that is settled. Joined, the pieces are the text that `generate` returns.

    Args: as for `generate`.

    Returns:
        Pieces of text, none empty. A generator, which may be closed early.

    Raises:
        ValueError: `n` or `num_beams` is above 1. And what `generate` raises; all but KoGPTError
            before the first piece is asked for.
    """
    params = params or SamplingParams()
    if not isinstance(params, SamplingParams):
        raise ParameterError("params must be SamplingParams: those of the one prompt")
    if params.n > 1 or params.num_beams > 1:
        raise ParameterError("one sample can be streamed: n and num_beams must be 1")
    (request,) = make_requests(model, tokenizer, [prompt], params)
    make_batch = batch_maker(model, prefill_chunk, use_cache)
    if speculate:
        refuse_speculation(speculate, model, beams=False)
    steps = partial(run, make_batch, speculate=speculate)
    return _pieces(_models(model, speculate), steps, Sample(request, tokenizer))


def batch_maker(model: KoGPT, prefill_chunk: int, use_cache: bool) -> MakeBatch:
    """What lays out the prompts of requests in a batch for the model.

    Raises:
        ValueError: `prefill_chunk` is below 1.
    """
    AT_LEAST_ONE.check("prefill_chunk", prefill_chunk)

    def make_batch(requests: Sequence[Request]) -> Batch:
        prompts = [request.prompt_ids for request in requests]
        room = max(request.limit for request in requests)
        return Batch(model, prompts, room=room, prefill_chunk=prefill_chunk, use_cache=use_cache)

    return make_batch


def _models(model: KoGPT, speculate: Speculation | None) -> list[KoGPT]:
    """All that compute."""
    return [model, speculate.model] if isinstance(speculate, DraftModel) else [model]


def _pieces(
    models: Sequence[KoGPT], steps: Callable[[list[Sample]], Iterator[None]], sample: Sample
) -> Generator[str, None, None]:
    shown = 0
    for _ in chain([None], _evaluated(models, steps([sample]))):  # first what needs no step
        yield from filter(None, sample.pieces[shown:])
        shown = len(sample.pieces)


def _evaluated(models: Sequence[KoGPT], steps: Iterator[None]) -> Iterator[None]:
    """Steps in evaluation mode; between them the models are the caller's, who may leave for good.

    So nothing is to be undone where the garbage collector ends a stream, which it may do in any
    line of any thread.
    """
    while True:
        with evaluation_mode(*models):
            if next(steps, END) is END:
                return
        yield


def _sample(
    make_batch: MakeBatch,
    tokenizer: Tokenizer,
    requests: Sequence[Request],
    batch_size: int,
    speculate: Speculation | None,
) -> list[Sample]:
    """Runs the requests that sample, in batches of prompts that are about as long."""
    AT_LEAST_ONE.check("batch_size", batch_size)
    samples = [
        Sample(request, tokenizer, index)
        for request in sorted(requests, key=lambda request: len(request.prompt_ids))
        if request.params.num_beams == 1
        for index in range(request.params.n)
    ]
    for first in range(0, len(samples), batch_size):
        for _ in run(make_batch, samples[first : first + batch_size], speculate):
            pass
    return samples


def _search(
    make_batch: MakeBatch, tokenizer: Tokenizer, requests: Sequence[Request]
) -> list[Sample]:
    """Runs the requests that search, one by one: the beams of each are a batch."""
    return [
        sample
        for request in requests
        if request.params.num_beams > 1
        for sample in BeamSearch(request, tokenizer).run(make_batch([request]))
    ]
