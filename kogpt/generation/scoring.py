"""How probable a text is to the model: log-probabilities of given ids.

Dimension key: `B` rows, `T` columns of a chunk, `V` vocabulary.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import chain
from numbers import Integral
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from kogpt.errors import InputRefusedError, NotFiniteError, ParameterError
from kogpt.generation.requests import (
    context_of,
    encode,
    evaluation_mode,
    read,
    refuse_unreadable,
)
from kogpt.generation.sample import TokenLogprob
from kogpt.model import KoGPT, KVCache
from kogpt.ranges import AT_LEAST_ONE, Range
from kogpt.tokenizer import Tokenizer

SYLLABLE = re.compile("[\uac00-\ud7a3]")
TEXTS_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class Measures:
    """How probable text is, how much of it there is, and the one over the other.

    The bits are those of all the text, whatever they are divided by: a letter, a digit or a space
    has bits, and counts as a byte or as part of a word, but never as a syllable. So models with
    different vocabularies compare on the same text. None stands where there is nothing to divide
    by.

    Attributes:
        log_likelihood: the sum of the tokens' natural log-probabilities.
        num_tokens: how many tokens that sum is over.
        num_bytes: how many UTF-8 bytes of the text those tokens stand for.
        num_syllables: how many whole syllables of Hangul, U+AC00 to U+D7A3; letters alone, such
            as "ㅋ", are none.
        num_eojeols: how many words, by the white space between them.
        num_broken: how many of the tokens hold part of a character: pieces such as "<0xEA>" of
            sentencepiece, and those of byte-level BPE that end or begin within a character. (A
            byte that is a whole character, such as that of a line break, is not broken.)
    """

    log_likelihood: float
    num_tokens: int
    num_bytes: int
    num_syllables: int
    num_eojeols: int
    num_broken: int

    @property
    def perplexity(self) -> float:
        """exp(-log_likelihood / num_tokens): comparable under one tokenizer only."""
        try:
            return math.exp(-self.log_likelihood / self.num_tokens)
        except OverflowError:
            return math.inf

    @property
    def bits(self) -> float:
        """-log2 of the likelihood."""
        return -self.log_likelihood / math.log(2)

    @property
    def bits_per_byte(self) -> float | None:
        return _ratio(self.bits, self.num_bytes)

    @property
    def bits_per_syllable(self) -> float | None:
        return _ratio(self.bits, self.num_syllables)

    @property
    def bits_per_eojeol(self) -> float | None:
        return _ratio(self.bits, self.num_eojeols)

    @property
    def tokens_per_syllable(self) -> float | None:
        return _ratio(self.num_tokens, self.num_syllables)

    @property
    def tokens_per_eojeol(self) -> float | None:
        return _ratio(self.num_tokens, self.num_eojeols)

    @property
    def byte_fallback_share(self) -> float | None:
        """The share of tokens that hold part of a character."""
        return _ratio(self.num_broken, self.num_tokens)

    def to_dict(self) -> dict[str, Any]:
        """All counts and ratios by name; None where a ratio is none, or infinite."""
        ratios = {name: getattr(self, name) for name in RATIOS}
        return asdict(self) | {
            name: None if value == math.inf else value for name, value in ratios.items()
        }


RATIOS = (
    *("perplexity", "bits_per_byte", "bits_per_syllable", "bits_per_eojeol"),
    *("tokens_per_syllable", "tokens_per_eojeol", "byte_fallback_share"),
)


@dataclass(frozen=True, kw_only=True)
class Score(Measures):
    """How probable one text is.

    Attributes:
        token_ids: what the model read, with the bos in front if it was asked for.
        logprobs: natural log-probability of each id, None for the first, before which nothing is.
    """

    token_ids: list[int]
    logprobs: list[float | None]


@dataclass(frozen=True, kw_only=True)
class CorpusScore(Measures):
    """How probable several texts are together.

    Attributes:
        num_texts: how many there are.
    """

    num_texts: int

    @classmethod
    def of(cls, scores: Iterable[Measures]) -> Self:
        """Likelihoods and counts of at least one text, added up: every ratio is divided once."""
        sums: dict[str, Any] = dict.fromkeys((field.name for field in fields(Measures)), 0)
        num_texts = 0
        for score in scores:
            num_texts += 1
            for name in sums:
                sums[name] += getattr(score, name)
        return cls(**sums, num_texts=num_texts)


def score(
    model: KoGPT,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    bos: bool = True,
    batch_size: int = 8,
    normalize: str = "auto",
    names: Sequence[str] | None = None,
    stride: int | None = None,
) -> list[Score]:
    """Scores texts under the model.

    Args:
        model: any model; dropout is off while this runs.
        tokenizer: its tokenizer.
        texts: the texts; one alone counts as a list of it.
        bos: put the tokenizer's bos in front, if it has one, so that the first token of the text
            is scored as the others are. Without, it is only read.
        batch_size: texts the model reads at once. Scores do not depend on it.
        normalize: what `Tokenizer.encode` makes of decomposed Hangul.
        names: what errors call the texts; None counts them from 0.
        stride: tokens that each window over a text longer than the context lies behind the one
            before. A token is scored in the first window that holds it, behind at least
            context - stride others: a smaller stride takes longer and tells more. Shorter texts
            do not depend on it. None refuses longer ones.
            Source: Hugging Face, "Perplexity of fixed-length models".

    Returns:
        One score for each text, in order.

    Raises:
        InputRefusedError: a text is longer than the context (with both counts; nothing is cut)
            and there is no stride, or it leaves nothing to score.
        KoGPTError: the model computes NaN or infinity.
        ValueError: `batch_size` is below 1, `stride` not from 1 to the context less 1, something
            is no text, or there are other names.
    """
    how: dict[str, Any] = {"normalize": normalize, "names": names, "stride": stride}
    return list(stream_scores(model, tokenizer, texts, bos=bos, batch_size=batch_size, **how))


def stream_scores(
    model: KoGPT,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    bos: bool = True,
    batch_size: int = 8,
    normalize: str = "auto",
    names: Sequence[str] | None = None,
    stride: int | None = None,
) -> Iterator[Score]:
    """The scores of `score`, as they are known: those of 256 texts at a time are held.

    All texts are looked at first, so what is refused is refused before the first score. Their ids
    are made twice, as to hold them all would take more than the texts.
    """
    AT_LEAST_ONE.check("batch_size", batch_size)
    if stride is not None:
        Range(Integral, 1, context_of(model) - 1).check("stride", stride)
    texts = [texts] if isinstance(texts, str) else list(texts)
    if not all(isinstance(text, str) for text in texts):
        raise ParameterError("what is scored must be texts")
    if names is not None and len(names) != len(texts):
        raise ParameterError(f"there are {len(texts)} texts and {len(names)} names")
    bos = bos and tokenizer.bos_id is not None
    how: dict[str, Any] = {"bos": bos, "normalize": normalize}
    for index, text in enumerate(texts):
        name = f"text {index}" if names is None else names[index]
        row = encode(text, name, tokenizer, **how)
        step = None if stride is None else context_of(model) - 1  # to look at each id once
        for part in windows(len(row), context_of(model), step):
            ids = row[part.first : part.stop]
            refuse_unreadable(
                ids, name, model, tokenizer, "; a stride (--stride) reads it in windows"
            )
        if len(row) < 2:
            raise InputRefusedError(f"{name} is too short: it leaves no token to score")
    parts = (texts[first : first + TEXTS_AT_ONCE] for first in range(0, len(texts), TEXTS_AT_ONCE))
    return chain.from_iterable(
        _score_rows(
            model, tokenizer, [tokenizer.encode(t, **how) for t in part], batch_size, stride
        )
        for part in parts
    )


class Window(NamedTuple):
    """A part of a row that is read by itself.

    Attributes:
        first: where it begins.
        stop: where it ends.
        given: how many of its first ids it does not score.
    """

    first: int
    stop: int
    given: int


def windows(length: int, context: int, stride: int | None) -> Iterator[Window]:
    """The windows of a row: what is no longer than the context, or has no stride, is one."""
    if stride is None or length <= context:
        yield Window(0, length, 1)
        return
    yield Window(0, context, 1)
    for first in range(stride, length - context + stride, stride):
        yield Window(first, min(first + context, length), context - stride)


def _score_rows(
    model: KoGPT,
    tokenizer: Tokenizer,
    rows: list[list[int]],
    batch_size: int,
    stride: int | None,
) -> list[Score]:
    context = context_of(model)
    parts = [(i, part) for i, row in enumerate(rows) for part in windows(len(row), context, stride)]
    by_length = sorted(parts, key=lambda each: each[1].stop - each[1].first)
    found: dict[tuple[int, Window], list[float]] = {}
    with evaluation_mode(model):
        for first in range(0, len(parts), batch_size):
            chosen = by_length[first : first + batch_size]
            ids = [rows[index][part.first : part.stop] for index, part in chosen]
            for each, scored in zip(chosen, sequence_logprobs(model, ids), strict=True):
                found[each] = [item.logprob for item in scored[each[1].given - 1 :]]
    logprobs: list[list[float]] = [[] for _ in rows]
    for each in parts:
        logprobs[each[0]] += found[each]
    return [_score(row, values, tokenizer) for row, values in zip(rows, logprobs, strict=True)]


def _score(row: list[int], logprobs: list[float], tokenizer: Tokenizer) -> Score:
    scored = [tokenizer.token_bytes(id) for id in row[1:]]
    if row[0] == tokenizer.bos_id:
        text = tokenizer.decode(row)
        num_bytes = len(text.encode())
    else:  # what the first token stands for is not scored
        text = b"".join(scored).decode(errors="replace")
        num_bytes = sum(map(len, scored))
    return Score(
        token_ids=row,
        logprobs=[None, *logprobs],
        log_likelihood=math.fsum(logprobs),
        num_tokens=len(logprobs),
        num_bytes=num_bytes,
        num_syllables=len(SYLLABLE.findall(text)),
        num_eojeols=len(text.split()),
        num_broken=sum(map(_is_broken, scored)),
    )


def _is_broken(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return True
    return False


def _ratio(amount: float, count: int) -> float | None:
    return amount / count if count else None


@torch.inference_mode()
def sequence_logprobs(
    model: KoGPT, rows: Sequence[Sequence[int]], *, top: int = 0, chunk: int = 128
) -> list[list[TokenLogprob]]:
    """Log-probabilities of the ids of each row, from its second on, given those before them.

    Rows are padded on the right, where a causal model does not look.

    Args:
        model: the model, in evaluation mode.
        rows: at least one id each, none longer than the context. They are read behind the model's
            `prefix_ids`.
        top: alternatives to report at each id.
        chunk: columns whose logits are held at once: B x chunk x V floats.

    Raises:
        KoGPTError: the model computes NaN or infinity.
    """
    width = max(map(len, rows))
    if width < 2:
        return [[] for _ in rows]
    padded = [[*row, *[row[0]] * (width - len(row))] for row in rows]
    ids = torch.tensor(padded, device=model.device)
    results: list[list[TokenLogprob]] = [[] for _ in rows]
    prefix = ids.new_tensor(model.prefix_ids).expand(len(rows), -1)
    cache = KVCache(prefix.size(1) + width)
    if prefix.size(1):
        read(model, prefix, cache)
    for columns, targets in zip(
        ids[:, :-1].split(chunk, dim=1), ids[:, 1:].split(chunk, dim=1), strict=True
    ):
        logits = model.logits(read(model, columns, cache))  # (B, T, V)
        refuse_unusable(logits)
        found = token_logprobs(logits.flatten(0, 1), targets.flatten(), top)
        T = targets.size(1)
        for index, row in enumerate(rows):
            room = len(row) - 1 - len(results[index])
            results[index] += found[index * T : index * T + min(T, room)]
    return results


def refuse_unusable(logits: Tensor) -> None:
    """Raises NotFiniteError if a logit is NaN or infinite."""
    if not logits.isfinite().all():
        raise NotFiniteError(
            "the model computes logits that are NaN or infinite: its weights are damaged, or its "
            "dtype is too narrow (try bfloat16 or float32)"
        )


def token_logprobs(logits: Tensor, ids: Tensor, top: int) -> list[TokenLogprob]:
    """Log-probabilities of `ids` (N,) under `logits` (N, V), with the `top` best alternatives."""
    logprobs = logits.log_softmax(-1)
    chosen = logprobs.gather(-1, ids[:, None]).squeeze(-1).tolist()
    best, best_ids = logprobs.topk(min(top, logprobs.size(-1)))
    tops = [
        dict(zip(row_ids, row, strict=True))
        for row_ids, row in zip(best_ids.tolist(), best.tolist(), strict=True)
    ]
    return list(map(TokenLogprob, chosen, tops))
