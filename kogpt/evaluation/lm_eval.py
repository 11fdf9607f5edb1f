"""KoGPT as a model of lm-evaluation-harness, and its command line with that model and our tasks:

    python -m kogpt.evaluation.lm_eval --model kogpt --model_args path=kogpt-6b --batch_size 32 \
        --tasks kogpt_nsmc_harness-303 --num_fewshot 20 --metadata '{"data": "data"}'

The harness up to 0.4.13 finds no models in installed packages, so its own `lm_eval` does not know
"kogpt"; here it is registered first. From Python, importing this module does that.
"""

import sys
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from kogpt.architecture import load_architecture
from kogpt.errors import KoGPTError, ParameterError
from kogpt.evaluation.likelihood import Ids, Likelihood, Query, log_likelihoods
from kogpt.generation import SamplingParams, generate
from kogpt.generation.requests import context_of
from kogpt.loading import load
from kogpt.notes import say

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ModuleNotFoundError as error:
    if error.name != "lm_eval":
        raise
    MISSING = "lm-evaluation-harness is not installed: pip install 'kogpt[harness]'"
    if __name__ == "__main__":
        sys.exit(f"kogpt: {MISSING}")
    raise KoGPTError(MISSING) from None

TASKS = Path(__file__).with_name("harness")

BATCH_SIZE = 32
NEW_TOKENS = 256  # written where a task does not say how many; the harness's own default
TOO_FEW = """\
--num_fewshot exceeds the examples that there are: --metadata '{..., "shots": N}' draws N"""

Pair = tuple[Sequence[int], Sequence[int]]  # a context and its continuation, in ids


@register_model("kogpt")
class KoGPTLM(TemplateLM):
    """A model of this project, as the harness sees one.

    What requests share is read once: the shots of a task's rows, if they are the same, and the
    context of a row's answers.

    Attributes:
        model: the network.
        tokenizer: its tokenizer.
        batch_size: contexts read at once.
        max_length: ids that the model is given at most.
    """

    def __init__(
        self,
        path: str | None = None,
        dtype: str | None = None,
        device: str = "cuda",
        batch_size: int | str = BATCH_SIZE,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        fast: bool = True,
        adapter: str | None = None,
        architecture: str | None = None,
        **unknown: object,
    ) -> None:
        """Loads a model; the arguments are those of `--model_args`, as `path=DIR,fast=False`.

        Args:
            path: a folder with a checkpoint and its tokenizer; None for the model in the box.
            dtype: to compute in: float32, float16, bfloat16; None for the one stored.
            device: where; a GPU only if there is one. (The harness's command line says cuda:0
                unless told otherwise.)
            batch_size: contexts read at once; "auto" is 32. (The harness's command line says 1
                unless told otherwise.)
            max_batch_size: given by the harness, for which there is no use here.
            max_length: ids to give the model at most; None for its whole context.
            fast: the network prepared for speed; False for the readable one.
            adapter: folder of an adapter of the model; None for none.
            architecture: a class of one's own, as FILE.py:CLASS; None for the class that the
                folder names.

        Raises:
            ValueError: no such argument or dtype, or `max_length` exceeds the context.
            InputRefusedError: the folder holds no model that can be used, or the file no class.
        """
        super().__init__()
        if unknown:
            known = ", ".join(name for name in signature(KoGPTLM).parameters if name != "unknown")
            raise ParameterError(f"model_args: no {min(unknown)!r}; there are {known}")
        is_auto = str(batch_size).startswith("auto")
        if not is_auto and not str(batch_size).isdecimal():
            raise ParameterError(f"batch_size is {batch_size!r}, it must be a number or auto")
        self.batch_size = BATCH_SIZE if is_auto else int(batch_size)
        if not torch.cuda.is_available():
            device = "cpu"
        self.model, self.tokenizer = load(
            path,
            dtype,
            device,
            fast=fast,
            adapter=adapter or (),
            model_class=load_architecture(architecture),
        )
        room = context_of(self.model)
        self.max_length = room if max_length is None else max_length
        if not 1 < self.max_length <= room:
            raise ParameterError(f"max_length is {max_length}, it must be 2 to {room}")

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def eot_token_id(self) -> int:
        return self._first("eos_id", "bos_id")

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it."""
        return self._first("bos_id", "eos_id")

    def chat_template(self, chat_template: bool | str = False) -> str:
        raise KoGPTError("these models have no chat template: leave out --apply_chat_template")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **unused: Any
    ) -> list[int]:
        """Ids of a text, after bos if the model's texts begin so, or as `add_special_tokens` says.

        "[BOS]" and the like in a text are text.
        """
        tokenizer = self.tokenizer
        bos = tokenizer.add_bos if add_special_tokens is None else add_special_tokens
        return tokenizer.encode(string, bos=bos and tokenizer.bos_id is not None)

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Task by task, since the requests of one may begin alike."""
        places: dict[str | None, list[int]] = {}
        for place, request in enumerate(requests):
            places.setdefault(request.task_name, []).append(place)
        found: dict[int, tuple[float, bool]] = {}
        for of_task in places.values():
            answers = super().loglikelihood([requests[i] for i in of_task], disable_tqdm)
            found.update(zip(of_task, answers, strict=True))
        return [found[place] for place in range(len(requests))]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, Sequence[int], Sequence[int]]], **unused: Any
    ) -> list[tuple[float, bool]]:
        for texts, _, continuation in requests:
            if not continuation:  # the tokens of the whole text are cut by the context's number
                raise KoGPTError("answer {1!r} has no token of its own after {0!r}".format(*texts))
        pairs = [self._cut(context, continuation) for _, context, continuation in requests]
        wholes = (context for _, context, _ in requests)
        lost = [len(whole) - len(left) for whole, (left, _) in zip(wholes, pairs, strict=True)]
        tell_cut([max(0, count) for count in lost])  # an empty context gains an id
        found = score_pairs(self.model, pairs, self.batch_size)
        return [(answer.value, answer.greedy) for answer in found]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Of whole texts, in the harness's windows: each id once, the first after one before it."""
        windows = [self._windows(*request.args) for request in requests]
        pairs = [pair for of_text in windows for pair in of_text]
        found = iter(score_pairs(self.model, pairs, self.batch_size))
        return [sum(next(found).value for _ in of_text) for of_text in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        prompts, params, lost = [], [], []
        for context, asked in (request.args for request in requests):
            how = sampling_params(asked)
            room = self.max_length - how.max_new_tokens
            if room < 1:
                raise ParameterError(
                    f"{how.max_new_tokens} tokens are to be written, the context holds "
                    f"{self.max_length}"
                )
            ids = self.tok_encode(context)
            lost.append(max(0, len(ids) - room))
            prompts.append(ids[-room:])
            params.append(how)
        tell_cut(lost)
        written = generate(self.model, self.tokenizer, prompts, params, batch_size=self.batch_size)
        return [generation.text for generation in written]

    def _first(self, *roles: str) -> int:
        for role in roles:
            id = getattr(self.tokenizer, role)
            if id is not None:
                return id
        raise KoGPTError("the tokenizer has neither bos nor eos")

    def _cut(self, context: Sequence[int], continuation: Sequence[int]) -> Pair:
        """The end of the context that fits before the continuation, at least one id of it.

        The last id of all is predicted, but not read.
        """
        if len(continuation) > self.max_length:
            raise KoGPTError(
                f"an answer has {len(continuation)} tokens, the context holds {self.max_length}"
            )
        context = context or [self.prefix_token_id]
        return context[-(self.max_length + 1 - len(continuation)) :], continuation

    def _windows(self, text: str) -> list[Pair]:
        ids = self.tok_encode(text, add_special_tokens=False)
        windows = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1)
        return list(map(make_disjoint_window, windows))


def score_pairs(model: Any, pairs: Sequence[Pair], batch_size: int) -> list[Likelihood]:
    """Likelihoods of continuations; each context is read once for all that it has."""
    answers: dict[Ids, dict[Ids, int]] = {}  # of a context: continuations and their places
    for context, continuation in pairs:
        known = answers.setdefault(tuple(context), {})
        known.setdefault(tuple(continuation), len(known))
    prefix = tuple(model.prefix_ids)
    queries = [Query(prefix + context, tuple(known)) for context, known in answers.items()]
    found = dict(zip(answers, log_likelihoods(model, queries, batch_size), strict=True))
    return [found[tuple(c)][answers[tuple(c)][tuple(answer)]] for c, answer in pairs]


def sampling_params(asked: Mapping[str, Any]) -> SamplingParams:
    """How a text is to be continued, from what the harness calls `gen_kwargs`.

    Raises:
        ValueError: something is asked for that is not known here, or out of range.
    """
    given = dict(normalize_gen_kwargs(dict(asked), NEW_TOKENS))
    if given.pop("do_sample"):
        given["seed"] = int(torch.randint(2**62, ()))  # follows the harness's own seed
    else:
        given["temperature"] = 0.0  # which is left out where nothing was said
    until = given.pop("until", None) or ()
    given["stop"] = tuple(filter(None, [until] if isinstance(until, str) else until))
    given["max_new_tokens"] = given.pop("max_gen_toks")
    try:
        return SamplingParams(**given)
    except TypeError as error:
        raise ParameterError(f"cannot generate as asked: {error}") from None


def tell_cut(lost: Sequence[int]) -> None:
    """Says how many requests lost ids, and how many; the harness itself cuts without a word."""
    cut = list(filter(None, lost))
    if cut:
        say(
            f"kogpt: {len(cut)} of {len(lost)} requests exceed the context and lost their left "
            f"end, {sum(cut)} tokens in all"
        )


def main() -> None:
    """The harness's command line; it finds our tasks unless told where to look."""
    from lm_eval.__main__ import cli_evaluate

    if not any(argument.startswith("--include_path") for argument in sys.argv):
        sys.argv += ["--include_path", str(TASKS)]
    try:
        cli_evaluate()
    except (KoGPTError, ValueError) as error:
        say(f"kogpt: {error}")
        sys.exit(getattr(error, "exit_code", 2))
    except AssertionError as error:
        if "number of fewshot samples" not in str(error):
            raise
        say(f"kogpt: {TOO_FEW}")
        sys.exit(2)


if __name__ == "__main__":
    main()
