"""The prompt loop: ask for a prompt and two settings, write the continuation, ask again.

The questions are those of the released program. Input stays in the terminal's own cooked mode,
through readline where Python has it, because raw-mode line editors break Hangul input methods.
"""

import argparse
import locale
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

from kogpt.commands.common import (
    TEMPERATURE,
    is_number,
    load,
    memory_errors,
    speculation,
)
from kogpt.errors import InputRefusedError
from kogpt.generation import SamplingParams, stream
from kogpt.generation.params import SEED_LIMIT
from kogpt.generation.requests import context_of
from kogpt.generation.speculative import Speculation, refuse_speculation
from kogpt.model import KoGPT
from kogpt.notes import say
from kogpt.tokenizer import Tokenizer

T = TypeVar("T")

MAX_LENGTH = 128


def run(args: argparse.Namespace) -> None:
    SamplingParams(seed=args.seed)  # which checks it
    prepare_input()
    speculate = speculation(args)
    model, tokenizer = load(args, fast=not args.reference)
    if speculate is not None:
        refuse_speculation(speculate, model, False)
    say("Ctrl-C stops a text, Ctrl-D leaves.")
    seed = args.seed
    while True:
        try:
            ids, params = ask_request(model, tokenizer, args.normalize, seed)
            if seed is not None:
                seed = (seed + 1) % SEED_LIMIT  # each text its own, the session repeatable
            write(model, tokenizer, ids, params, speculate)
        except EOFError:
            say("")
            return
        except KeyboardInterrupt:
            say("")


def prepare_input() -> None:
    """Editing by whole characters, and broken bytes kept for `encode` to refuse by name."""
    if sys.stdin is None:
        raise InputRefusedError("standard input is closed: kogpt generate takes a prompt")
    if sys.stdin.isatty():
        use_utf8_locale()
        try:
            import readline  # importing it is what makes `input` use it
        except ImportError:
            say("this Python has no readline: Backspace may leave half of a Hangul syllable")
        else:  # a pasted prompt of several lines is one prompt, not answers to the next questions
            readline.parse_and_bind("set enable-bracketed-paste on")
    sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]


def use_utf8_locale() -> None:
    """Has readline edit by characters where the locale is "C", or one that is not installed.

    Python itself then takes text for UTF-8, while readline would edit it by bytes.
    """
    if not sys.flags.utf8_mode or locale.nl_langinfo(locale.CODESET) == "UTF-8":
        return
    try:
        locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
        os.environ["LC_ALL"] = "C.UTF-8"  # readline asks for it again
    except locale.Error:
        say("this locale is no UTF-8: Backspace may leave half of a Hangul syllable")


def ask_request(
    model: KoGPT, tokenizer: Tokenizer, normalize: str, seed: int | None
) -> tuple[list[int], SamplingParams]:
    """A prompt with its settings, each asked until it can be used."""
    context = context_of(model)
    ids = ask("prompt> ", partial(read_prompt, tokenizer, normalize, context))
    temperature = ask(f"temperature({TEMPERATURE})> ", read_temperature)
    usual = MAX_LENGTH if len(ids) < MAX_LENGTH <= context else min(len(ids) + MAX_LENGTH, context)
    length = ask(f"max_length({usual})> ", partial(read_max_length, len(ids), context, usual))
    params = SamplingParams(
        temperature=temperature, max_new_tokens=length - len(ids), seed=seed, echo=True
    )
    return ids, params


def read_prompt(tokenizer: Tokenizer, normalize: str, context: int, line: str) -> list[int]:
    ids = tokenizer.encode(line, bos=tokenizer.add_bos, normalize=normalize)
    if not line:
        raise ValueError("type the beginning of a text, or Ctrl-D to leave")
    if len(ids) >= context:
        raise ValueError(
            f"the prompt has {len(ids)} tokens; the model's context of {context} leaves no room"
        )
    return ids


def read_temperature(line: str) -> float:
    try:
        temperature = float(line or TEMPERATURE)
    except ValueError:
        raise ValueError(f"temperature is {line!r}, it must be a number such as 0.8") from None
    return SamplingParams(temperature=temperature).temperature


def read_max_length(prompt_length: int, context: int, usual: int, line: str) -> int:
    low = prompt_length + 1
    line = line.strip()
    length = int(line) if is_number(line) else 0 if line else usual
    if not low <= length <= context:
        raise ValueError(f"max_length is {line}; it counts the prompt, so give {low} to {context}")
    return length


def ask(question: str, read: Callable[[str], T]) -> T:
    """Asks until `read` can use the answer, and says why it cannot."""
    while True:
        try:
            return read(read_line(question))
        except ValueError as error:
            say(str(error))


def read_line(question: str) -> str:
    if sys.stdin.isatty() and sys.stdout.isatty():
        return input(question)  # readline has to know the question to redraw the line
    say(question, end="")
    # Some files begin with a mark and end lines in two characters, neither of them text.
    return input().removeprefix("\ufeff").removesuffix("\r")


def write(
    model: KoGPT,
    tokenizer: Tokenizer,
    ids: list[int],
    params: SamplingParams,
    speculate: Speculation | None,
) -> None:
    """Writes the prompt and its continuation as it comes, until Ctrl-C."""
    with suppress(KeyboardInterrupt), memory_errors():
        for piece in stream(model, tokenizer, ids, params, speculate=speculate):
            print(piece, end="", flush=True)
    print(flush=True)
