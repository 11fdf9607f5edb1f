"""One continuation, in the making and done: ids in, text out, and why it ended."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, takewhile
from operator import eq
from typing import NamedTuple

from kogpt.generation.params import SamplingParams
from kogpt.generation.processors import LogitsProcessor
from kogpt.tokenizer import Tokenizer

# Stands for the id of a row that has none: nothing was allowed.
NO_TOKEN = -1


class TokenLogprob(NamedTuple):
    """The log-probability of a token, and the most probable tokens with theirs, best first."""

    logprob: float
    top: dict[int, float]


@dataclass(frozen=True)
class Request:
    """A prompt and how to continue it, with all that follows from both.

    Attributes:
        index: which prompt of the call.
        prompt_ids: at least one id.
        params: as given.
        seed: the seed given, or one drawn.
        processor: shared by all requests with equal parameters.
        limit: most tokens to generate.
        limit_reason: what sets the limit: "length" (`max_new_tokens`) or "context".
    """

    index: int
    prompt_ids: list[int]
    params: SamplingParams
    seed: int
    processor: LogitsProcessor
    limit: int
    limit_reason: str


@dataclass(frozen=True)
class Generation:
    """A finished continuation.

    Attributes:
        text: the continuation; with `echo`, the prompt and the continuation. Without the eos,
            stop string or stop id that ended it.
        token_ids: every generated id, with those whose text a stop left out.
        finish_reason: "eos"; "stop", a stop string or stop id; "length", `max_new_tokens`;
            "context", the model reads no further; "exhausted", every token was banned.
        stop_reason: the stop string or stop id, if one ended it.
        prompt_token_ids: what the model read first.
        prompt_index: which prompt of the call this continues.
        sample_index: which of the `n` continuations of the prompt this is.
        seed: repeats this sample, with the same `n` or more; None where nothing was drawn.
        logprobs: log-probability of each id in `token_ids`, if asked for.
        top_logprobs: at each id, the most probable ids and their log-probabilities, best first.
        prompt_logprobs: with `echo`, those of `prompt_token_ids`, None for the first.
        prompt_top_logprobs: with `echo`, the alternatives to those.
        score: what beams are ranked by.
        drafted: tokens that were guessed (see `speculate`), None where that was not tried.
        accepted: how many of them came true. Neither counts when generations are compared, since
            they say how the text was computed.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    stop_reason: str | int | None
    prompt_token_ids: list[int]
    prompt_index: int
    sample_index: int
    seed: int | None
    logprobs: list[float] | None = None
    top_logprobs: list[dict[int, float]] | None = None
    prompt_logprobs: list[float | None] | None = None
    prompt_top_logprobs: list[dict[int, float] | None] | None = None
    score: float | None = None
    drafted: int | None = field(default=None, compare=False)
    accepted: int | None = field(default=None, compare=False)


class StopStrings:
    """Lets text through until a stop string is complete, holding back what may become one.

    Stop strings are looked for as if the text came character by character: the one that ends
    first wins, of those that end together the longest. So how text falls into tokens is without
    effect, and no part of a stop string ever gets through.

    Attributes:
        found: the stop string that was completed, if any.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.found: str | None = None
        self._stops = stops
        self._longest = max(map(len, stops), default=1) - 1  # that may be a beginning
        self._held = ""

    def push(self, text: str) -> str:
        """Takes more text and returns what can be let through."""
        text = self._held + text
        places = [(text.find(stop), stop) for stop in self._stops if stop in text]
        if places:
            start, self.found = min(places, key=lambda place: (place[0] + len(place[1]), place[0]))
            self._held = ""
            return text[:start]
        ends = (text[cut:] for cut in range(max(0, len(text) - self._longest), len(text)))
        begun = (end for end in ends if any(stop.startswith(end) for stop in self._stops))
        self._held = next(begun, "")
        return text.removesuffix(self._held)

    def flush(self) -> str:
        """The text held back, once no more will come."""
        held, self._held = self._held, ""
        return held


class Sample:
    """One continuation of a request.

    The text is what the generated ids add to the text of the prompt, decoded in its context, so
    a space between the two is kept and a character begun in the prompt is completed.

    Attributes:
        request: what is continued.
        index: which sample of the request.
        token_ids: the generated ids, with the one that ended it.
        logprobs: log-probabilities of `token_ids`, where the request wants them.
        pieces: the text so far, in pieces that will not change.
        finish_reason: None as long as it is not finished; see `Generation`.
        stop_reason: the stop string or stop id that ended it.
        score: its rank among beams.
        guesses: runs of ids that were guessed, each with the number of tokens before it.
    """

    def __init__(self, request: Request, tokenizer: Tokenizer, index: int = 0) -> None:
        self.request = request
        self.index = index
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.pieces: list[str] = []
        self.finish_reason: str | None = None
        self.stop_reason: str | int | None = None
        self.score: float | None = None
        self.guesses: list[tuple[int, list[int]]] = []
        self._end_ids = tokenizer.end_ids
        self._decoder = tokenizer.stream_decoder()
        self._stops = StopStrings(request.params.stop)
        prompt = [self._decoder.push(id) for id in request.prompt_ids]
        if request.params.echo:
            self.pieces += prompt
        self._end_at_limit()

    @property
    def remaining(self) -> int:
        """Tokens to its limit."""
        return self.request.limit - len(self.token_ids)

    def push(self, id: int, logprob: TokenLogprob | None = None) -> None:
        """Takes the next id, or NO_TOKEN where none is allowed, and its log-probability."""
        assert self.finish_reason is None, "a finished sample takes no more"
        if id == NO_TOKEN:
            return self._finish("exhausted")
        self.token_ids.append(id)
        if logprob is not None:
            self.logprobs.append(logprob)
        if id in self._end_ids:
            return self._finish("eos")
        if id in self.request.processor.end_ids:
            return self._finish("stop", id)
        self._show(self._decoder.push(id))
        self._end_at_limit()

    def expect(self, ids: Sequence[int]) -> None:
        """Notes a guess of the next ids, of which nothing but the counts depends."""
        self.guesses.append((len(self.token_ids), list(ids)))

    def generation(self, prompt_logprobs: list[TokenLogprob] | None = None) -> Generation:
        """The finished sample, with log-probabilities of its prompt (of the second id on)."""
        assert self.finish_reason is not None, "the sample is not finished"
        request, params = self.request, self.request.params
        drawn = params.temperature > 0 and params.num_beams == 1 and len(self.token_ids) > 0
        result = Generation(
            text="".join(self.pieces),
            token_ids=self.token_ids,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            prompt_token_ids=list(request.prompt_ids),
            prompt_index=request.index,
            sample_index=self.index,
            seed=request.seed if drawn else None,
            score=self.score,
        )
        if self.guesses:
            result = replace(result, drafted=self._drafted(), accepted=self._accepted())
        if params.logprobs is not None:
            logprobs, tops = _columns(self.logprobs, params.logprobs)
            result = replace(result, logprobs=logprobs, top_logprobs=tops)
        if params.logprobs is not None and prompt_logprobs is not None:
            logprobs, tops = _columns(prompt_logprobs, params.logprobs)
            result = replace(
                result, prompt_logprobs=[None, *logprobs], prompt_top_logprobs=[None, *tops]
            )
        return result

    def _drafted(self) -> int:
        return sum(len(ids) for _, ids in self.guesses)

    def _accepted(self) -> int:
        agreements = (map(eq, ids, self.token_ids[first:]) for first, ids in self.guesses)
        return sum(sum(takewhile(bool, agreement)) for agreement in agreements)

    def _end_at_limit(self) -> None:
        if self.finish_reason is None and self.remaining == 0:
            self._finish(self.request.limit_reason)

    def _show(self, text: str) -> None:
        if len(self.token_ids) > self.request.params.min_new_tokens:
            text = self._stops.push(text)
        self.pieces.append(text)
        if self._stops.found is not None:
            self.finish_reason, self.stop_reason = "stop", self._stops.found

    def _finish(self, reason: str, stopped_by: int | None = None) -> None:
        self._show(self._decoder.flush())
        self.pieces.append(self._stops.flush())
        if self.finish_reason is None:
            self.finish_reason, self.stop_reason = reason, stopped_by


def _columns(
    logprobs: Sequence[TokenLogprob], top: int
) -> tuple[list[float], list[dict[int, float]]]:
    """The log-probabilities, and the `top` best alternatives to each."""
    return [item.logprob for item in logprobs], [
        dict(islice(item.top.items(), top)) for item in logprobs
    ]
