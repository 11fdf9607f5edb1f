"""What may be asked of a generation, checked when it is asked."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Literal

from kogpt.errors import ParameterError
from kogpt.ranges import AT_LEAST_ONE, AT_LEAST_ZERO, Range, set_number
from kogpt.tokenizer.text import normalize_text

SEED_LIMIT = 2**64
# More would carry logits beyond what float32 holds.
LARGE, LARGEST_BIAS = 1_000_000, 1e30


RANGES = {
    "temperature": Range(Real, 0, LARGE),
    "top_k": AT_LEAST_ZERO,
    "top_p": Range(Real, 0, 1, low_excluded=True),
    "min_p": Range(Real, 0, 1),
    "typical_p": Range(Real, 0, 1, low_excluded=True),
    "repetition_penalty": Range(Real, 1 / LARGE, LARGE),
    "presence_penalty": Range(Real, -2, 2),
    "frequency_penalty": Range(Real, -2, 2),
    "no_repeat_ngram_size": AT_LEAST_ZERO,
    "min_new_tokens": AT_LEAST_ZERO,
    "max_new_tokens": AT_LEAST_ZERO,
    "n": AT_LEAST_ONE,
    "seed": Range(Integral, 0, SEED_LIMIT - 1),
    "logprobs": AT_LEAST_ZERO,
    "num_beams": AT_LEAST_ONE,
    "length_penalty": Range(Real, -10, 10),
}
OPTIONAL = ("seed", "logprobs")
SAMPLING_ONLY = ("top_k", "top_p", "min_p", "typical_p", "seed")
BEAMS_ONLY = ("length_penalty", "early_stopping")


@dataclass(frozen=True)
class SamplingParams:
    """How a prompt is continued. Every default is neutral: plain sampling from the model.

    The logits of each step pass through what is asked for in this order: `logit_bias`, the three
    penalties, bans (`min_new_tokens`, `no_repeat_ngram_size`, `banned_words`), `temperature`,
    `top_k`, `top_p`, `min_p`, `typical_p`; each sees what the ones before it left.

    Attributes:
        temperature: divides the logits; 0 takes the most probable token (after bias, penalties
            and bans), and what comes after it in the order then changes nothing.
        top_k: keep the k most probable tokens, and any as probable as the k-th; 0 keeps all.
        top_p: keep the fewest most probable tokens whose mass reaches p.
        min_p: keep tokens at least p times as probable as the most probable one.
        typical_p: keep the tokens whose information is nearest the entropy, up to a mass of p.
        repetition_penalty: divides positive and multiplies negative logits of tokens that are in
            the prompt or were generated.
        presence_penalty: subtracted from the logits of tokens that were generated.
        frequency_penalty: subtracted as often as the token was generated.
        no_repeat_ngram_size: no sequence of this many tokens occurs twice, the prompt included;
            0 allows all.
        logit_bias: added to the logits of these ids; -inf bans one.
        banned_words: texts that are never completed, however their bytes fall into tokens and
            even if they began in the prompt.
        stop: texts that end the generation; the first to be completed does, and is left out.
        stop_ids: ids that end the generation, as the tokenizer's eos always does, and the others of
            its `end_ids`. Their text is left out.
        min_new_tokens: before this many tokens eos and `stop_ids` are banned; `stop` is looked
            for in the text of the tokens after them.
        max_new_tokens: most tokens to generate; fewer fit where the context of the model ends.
        n: samples per prompt; with beams, how many of the best to return.
        seed: makes the samples repeatable: the same prompt and parameters give the same text,
            whatever else is in the batch. None draws one for each prompt, told in the result.
        logprobs: report log-probabilities, with this many most probable alternatives each. They
            are the model's own, before anything above changed them. None reports nothing.
        echo: put the prompt before the text, and with `logprobs` report those of the prompt.
        num_beams: hypotheses of a beam search; 1 samples instead. A search wants the sampling
            fields at their defaults (temperature 0 or 1).
        length_penalty: beams are ranked by their log-probability / length ** length_penalty.
        early_stopping: end the search when `num_beams` hypotheses are finished (True), when no
            running one, at its present length, is better than those (False), or when none could
            become better at any length ("never").

    Raises:
        ValueError: a value is out of range; the message names the range.
        InputRefusedError: a text holds lone surrogates.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    banned_words: Sequence[str] = ()
    stop: Sequence[str] = ()
    stop_ids: Sequence[int] = ()
    min_new_tokens: int = 0
    max_new_tokens: int = 128
    n: int = 1
    seed: int | None = None
    logprobs: int | None = None
    echo: bool = False
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False

    def __post_init__(self) -> None:
        for name, allowed in RANGES.items():
            if not (getattr(self, name) is None and name in OPTIONAL):
                set_number(self, name, allowed)
        if self.min_new_tokens > self.max_new_tokens:
            raise ParameterError(
                f"min_new_tokens is {self.min_new_tokens}, it must be at most "
                f"max_new_tokens, {self.max_new_tokens}"
            )
        if not isinstance(self.echo, bool):
            raise ParameterError(f"echo is {self.echo!r}, it must be True or False")
        if not (isinstance(self.early_stopping, bool) or self.early_stopping == "never"):
            raise ParameterError(
                f"early_stopping is {self.early_stopping!r}, it must be True, False or 'never'"
            )
        self._set("banned_words", _texts("banned_words", self.banned_words))
        self._set("stop", _texts("stop", self.stop))
        self._set("stop_ids", _ids("stop_ids", self.stop_ids))
        self._set("logit_bias", _biases(self.logit_bias))
        if any("\ufffd" in word for word in self.banned_words):
            raise ParameterError(
                f"banned_words is {self.banned_words!r}, it must be texts without U+FFFD, which "
                "stands for bytes, not text"
            )
        self._check_beams()

    def _check_beams(self) -> None:
        if self.num_beams == 1:
            for name in BEAMS_ONLY:
                if getattr(self, name) != getattr(SamplingParams, name):
                    raise ParameterError(f"{name} is of use with num_beams above 1 alone")
            return
        if self.n > self.num_beams:
            raise ParameterError(f"n is {self.n}, it must be at most num_beams, {self.num_beams}")
        if self.temperature not in (0, 1):
            raise ParameterError(
                f"temperature is {self.temperature}, it must be 0 or 1 with num_beams above 1"
            )
        for name in SAMPLING_ONLY:
            if getattr(self, name) != getattr(SamplingParams, name):
                raise ParameterError(f"{name} cannot be used with num_beams above 1")

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


def _texts(name: str, values: Sequence[str]) -> tuple[str, ...]:
    """The texts in the form that prompts are given (see `Tokenizer.encode`)."""
    texts = (values,) if isinstance(values, str) else values
    texts = tuple(texts) if isinstance(texts, Iterable) else (texts,)
    if not all(isinstance(text, str) and text for text in texts):
        raise ParameterError(f"{name} is {values!r}, it must be texts of at least one character")
    return tuple(normalize_text(text, "auto") for text in texts)


def _ids(name: str, values: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(values, Iterable):
        raise ParameterError(f"{name} is {values!r}, it must be a list of ids")
    values = tuple(values)
    for value in values:
        AT_LEAST_ZERO.check(name, value)
    return tuple(map(int, values))


def _biases(values: Mapping[int, float]) -> dict[int, float]:
    if not isinstance(values, Mapping):
        raise ParameterError(
            f"logit_bias is {values!r}, it must be a mapping of ids to what is added"
        )
    allowed = Range(Real, -LARGEST_BIAS, LARGEST_BIAS)
    for bias in values.values():
        if bias != -math.inf and not allowed.holds(bias):
            raise ParameterError(f"logit_bias is {bias!r}, it must be {allowed}, or -inf")
    return dict(zip(_ids("logit_bias", tuple(values)), map(float, values.values()), strict=True))
