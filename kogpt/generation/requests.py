"""From what a caller passes to requests that can be run; what can be refused is refused here."""

import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from numbers import Integral
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from kogpt.errors import InputRefusedError, KoGPTError, ParameterError
from kogpt.generation.params import SamplingParams
from kogpt.generation.processors import LogitsProcessor
from kogpt.generation.sample import Request
from kogpt.generation.vocabulary import Vocabulary
from kogpt.model import KoGPT, KVCache
from kogpt.textfiles import abridged
from kogpt.tokenizer import Tokenizer

Prompt = str | Sequence[int]

# Models that are in use: by how many, and which of their modules were training before.
_USED: WeakKeyDictionary[nn.Module, tuple[int, list[nn.Module]]] = WeakKeyDictionary()
_LOCK = Lock()


def make_requests(
    model: KoGPT,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    params: SamplingParams | Sequence[SamplingParams] | None,
) -> list[Request]:
    """One request per prompt; see `generate` for the arguments and for what is refused."""
    if isinstance(prompts, str):
        prompts = [prompts]
    if not isinstance(prompts, Iterable):
        raise ParameterError(f"prompts are {prompts!r}, they must be texts or lists of ids")
    is_bytes, prompts = isinstance(prompts, bytes), list(prompts)
    if is_bytes or any(map(_is_id, prompts)):
        raise ParameterError("prompts are ids: a prompt of ids goes into a list of prompts")
    if params is None or isinstance(params, SamplingParams):
        params = [params or SamplingParams()] * len(prompts)
    params = list(params)
    if not all(isinstance(asked, SamplingParams) for asked in params):
        raise ParameterError("params must be SamplingParams, for all prompts or for each")
    if len(params) != len(prompts):
        raise ParameterError(f"there are {len(prompts)} prompts and {len(params)} params")
    processors: list[LogitsProcessor] = []
    requests = []
    for index, (prompt, asked) in enumerate(zip(prompts, params, strict=True)):
        name = f"prompt {index}" if len(prompts) > 1 else "the prompt"
        ids = prompt_ids(prompt, name, model, tokenizer)
        room = context_of(model) - len(ids)
        fits = asked.max_new_tokens <= room
        requests.append(
            Request(
                index=index,
                prompt_ids=ids,
                params=asked,
                seed=secrets.randbits(64) if asked.seed is None else asked.seed,
                processor=_processor(asked, processors, model, tokenizer),
                limit=asked.max_new_tokens if fits else room,
                limit_reason="length" if fits else "context",
            )
        )
    return requests


def context_of(model: KoGPT) -> int:
    """Most tokens of a text that the model reads, behind what every text begins with."""
    return model.config.n_positions - len(model.prefix_ids)


def refuse_unreadable(
    ids: Sequence[int], name: str, model: KoGPT, tokenizer: Tokenizer, advice: str = ""
) -> None:
    """Raises InputRefusedError, naming `name`, if the model cannot read `ids` whole.

    The advice is for ids that are too many.
    """
    rows, pieces = model.config.vocab_size, Vocabulary.of(tokenizer).pieces
    if len(pieces) > rows:
        raise InputRefusedError(
            f"the tokenizer has {len(pieces)} ids, the model {rows}: they do not belong together"
        )
    if len(ids) > context_of(model):
        virtual = len(model.prefix_ids)
        less = f", {virtual} of them for its soft prompt" if virtual else ""
        raise InputRefusedError(
            f"{name} has {len(ids)} tokens, the context of the model holds "
            f"{model.config.n_positions}{less}{advice}"
        )
    for id in ids:
        if not 0 <= id < len(pieces) or pieces[id] is None:
            raise InputRefusedError(f"{name} holds id {id}, which has no piece")


@contextmanager
def evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """Turns dropout off until the last of those who asked for it leaves.

    Not to be held by a generator that waits: the garbage collector may end one within these lines.
    """
    entered: list[nn.Module] = []
    try:
        with _LOCK:
            for model in models:
                users, training = _USED.get(model, (0, []))
                now = [module for module in model.modules() if module.training]
                _USED[model] = users + 1, training + now
                entered.append(model)
                if now:
                    model.eval()
        yield
    finally:
        with _LOCK:
            for model in entered:
                users, training = _USED.pop(model)
                if users > 1:
                    _USED[model] = users - 1, training
                else:
                    for module in training:
                        module.training = True


def _are_ids(value: object) -> bool:
    return isinstance(value, Iterable) and all(map(_is_id, value))


def prompt_ids(prompt: Prompt, name: str, model: KoGPT, tokenizer: Tokenizer) -> list[int]:
    """At least one id that the model can read, with bos in front where it was trained so.

    Raises:
        InputRefusedError: `name`, the prompt, cannot be read whole.
        ValueError: it is neither a text nor a list of ids.
    """
    if isinstance(prompt, str):
        ids = encode(prompt, name, tokenizer, bos=tokenizer.add_bos)
    elif isinstance(prompt, bytes) or not _are_ids(prompt):
        raise ParameterError(
            f"{name} is {abridged(repr(prompt))}, it must be a text or a list of ids"
        )
    else:
        ids = list(map(int, prompt))
    if not ids and tokenizer.bos_id is None:
        raise InputRefusedError(f"{name} is empty, and the tokenizer has no bos to begin from")
    ids = ids or [tokenizer.bos_id]  # type: ignore[list-item]
    refuse_unreadable(ids, name, model, tokenizer)
    return ids


def read(model: KoGPT, ids: Tensor, cache: KVCache, starts: Tensor | None = None) -> Tensor:
    """Hidden states (B, T, C) of ids (B, T) that are read into a cache.

    Raises:
        KoGPTError: a class of one's own counts other tokens there than it was given.
    """
    before = cache.length
    hidden = model.transformer(ids, cache, starts)
    if cache.length != before + ids.size(1):
        raise KoGPTError(
            f"the model's cache counts {cache.length - before} tokens where {ids.size(1)} were read"
        )
    return hidden


def encode(text: str, name: str, tokenizer: Tokenizer, **how: Any) -> list[int]:
    """`Tokenizer.encode`, which does not know what a text is called: its error names it."""
    try:
        return tokenizer.encode(text, **how)
    except InputRefusedError as error:
        raise InputRefusedError(f"{name}: {error}") from None


def _is_id(value: object) -> bool:
    """Whether a value is a whole number, of Python, NumPy or PyTorch."""
    if isinstance(value, Tensor):
        return value.ndim == 0 and not value.is_floating_point() and value.dtype != torch.bool
    return isinstance(value, Integral) and not isinstance(value, bool)


def _processor(
    params: SamplingParams, known: list[LogitsProcessor], model: KoGPT, tokenizer: Tokenizer
) -> LogitsProcessor:
    """The processor for `params`, shared among requests that differ in nothing but the seed."""
    params = replace(params, seed=None)
    for processor in known:
        if processor.params == params:
            return processor
    rows = model.config.vocab_size
    for name in ("logit_bias", "stop_ids"):
        if any(id >= rows for id in getattr(params, name)):
            raise ParameterError(
                f"{name} names id {max(getattr(params, name))}, ids end at {rows - 1}"
            )
    processor = LogitsProcessor(
        params, Vocabulary.of(tokenizer), rows, tokenizer.end_ids, model.device
    )
    known.append(processor)
    return processor
