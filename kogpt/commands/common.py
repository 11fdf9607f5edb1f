"""What several commands do alike: read text, load a model, print results."""

import argparse
import json
import math
import re
import sys
from codecs import lookup
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, get_args, get_type_hints

from kogpt.choices import LOW_RANK, P_TUNING, SOFT_PROMPTS
from kogpt.errors import InputRefusedError, NotEnoughResourcesError, ParameterError, UsageError
from kogpt.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:  # torch takes seconds to import, and not every command needs it
    import torch

    from kogpt.generation.speculative import Speculation
    from kogpt.model import KoGPT
    from kogpt.parallel import Parallel

TEMPERATURE = 0.8  # the released program's default

METHODS_OF = {  # of finetuning, for which an option is
    **dict.fromkeys(("targets", "rank", "alpha", "dropout"), LOW_RANK),
    "virtual_tokens": SOFT_PROMPTS,
    **dict.fromkeys(("encoder", "encoder_width"), (P_TUNING,)),
}

NO_MEMORY = "DefaultCPUAllocator: can't allocate memory"  # which is no error of its own on a CPU

POSITIONAL = {  # names of arguments that have no option, as they are shown
    **{"source": "SRC", "destination": "DST", "adapters": "ADAPTER", "path": "DIR"},
    **{"first": "A", "second": "B"},
}
NAMED = {  # arguments that are names, of files most of them
    *POSITIONAL,
    *("model", "adapter", "draft_model", "tokenizer", "against", "data"),
    *("data_dir", "out", "output", "png", "plot", "compare", "license_notice"),
}

OPTIONS = {  # that are called otherwise than their parameters
    "banned_words": "--ban",
    "n": "--samples",
    "num_beams": "--beams",
    "stop_ids": "--stop-id",
}


def read_text(argument: str) -> str:
    """The argument itself, or all of standard input for "-".

    Raises:
        InputRefusedError: standard input is not UTF-8.
    """
    if argument != "-":
        return argument
    if sys.stdin is None:
        raise InputRefusedError("standard input is closed")
    data = sys.stdin.buffer.read()
    try:
        return data.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise InputRefusedError(
            f"standard input is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}"
        ) from None


def is_number(word: str) -> bool:
    """Whether a word is digits alone, no more of them than 64 bits hold."""
    return word.isdecimal() and len(word) <= 18


def load(
    args: argparse.Namespace, parallel: "Parallel | None" = None, fast: bool = False
) -> "tuple[KoGPT, Tokenizer]":
    """Model and tokenizer that `--model`, `--adapter`, `--dtype` and `--device` ask for."""
    from kogpt.architecture import load_architecture

    own = load_architecture(args.architecture)
    return load_folder(args.model, args, parallel, fast, args.adapter, own)


def load_folder(
    path: str | None,
    args: argparse.Namespace,
    parallel: "Parallel | None" = None,
    fast: bool = False,
    adapters: Sequence[str] = (),
    model_class: "type[KoGPT] | None" = None,
) -> "tuple[KoGPT, Tokenizer]":
    """Model and tokenizer of one folder, as `--dtype` and `--device` ask for.

    Where several processes hold a model together, each loads its part of the readable network.
    """
    from kogpt.loading import load

    if parallel is None or parallel.tensor_size == 1:
        device = parallel.device if parallel else device_of(args)
        return load(path, args.dtype, device, fast=fast, adapter=adapters, model_class=model_class)
    if model_class is not None:
        raise UsageError("argument --architecture: only in one process")
    from kogpt.parallel.loading import load_parallel

    return load_parallel(path, parallel, args.dtype, adapters=adapters), load_tokenizer(path)


def device_of(args: argparse.Namespace) -> "torch.device":
    """The device that `--device` names, a GPU where there is one and nothing is named."""
    import torch

    default = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(getattr(args, "device", None) or default)
    except RuntimeError:
        raise UsageError(f"argument --device: no such device: {args.device!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"argument --device: must be cpu or cuda, is {args.device!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("argument --device: this machine or this build of torch has no CUDA")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"argument --device: {args.device}: there are {torch.cuda.device_count()}")
    return device


def processes(args: argparse.Namespace) -> "Parallel":
    """The processes that torchrun started, as `--tensor-parallel` and `--device` ask for."""
    from kogpt.parallel import Parallel

    return Parallel.launched(args.tensor_parallel, device_of(args))


def speculation(
    args: argparse.Namespace, parallel: "Parallel | None" = None
) -> "Speculation | None":
    """What `--speculate`, `--draft-model` and `--draft-tokens` ask for."""
    from kogpt.generation import DraftModel, PromptLookup

    if args.draft_tokens is not None and not (args.speculate or args.draft_model):
        raise UsageError("argument --draft-tokens: only with --speculate or --draft-model")
    tokens = {} if args.draft_tokens is None else {"tokens": args.draft_tokens}
    with naming_options({"tokens": "--draft-tokens"}):
        lookup = PromptLookup(**tokens)  # of either kind, so that a wrong number is told at once
    if args.draft_model is None:
        return lookup if args.speculate else None
    draft, _ = load_folder(args.draft_model, args, parallel, fast=not args.reference)
    return DraftModel(draft, **tokens)


def options_of(args: argparse.Namespace) -> dict[str, str]:
    """The options of a command, by the parameters that they set."""
    own = {"out": "--output"} if getattr(args, "command", None) == "finetune" else {}
    return {name: option_of(name) for name in vars(args)} | OPTIONS | own


@contextmanager
def naming_options(options: Mapping[str, str]) -> Iterator[None]:
    """Lets the refusal of a parameter's value name the options that parameters come from."""
    try:
        yield
    except ParameterError as error:
        name, _, rest = str(error).partition(" ")
        words = f"argument {options[name]}: {rest}" if name in options else str(error)
        # Names of parameters, not what is in quotes or in a path.
        parameter = r"(?<![\w'\"./-])\w+_\w+(?![\w'\"./-])"
        words = re.sub(parameter, lambda match: options.get(match[0], match[0]), words)
        raise UsageError(words) from None


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turns a device that ran out of memory into a shortage."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise NotEnoughResourcesError(f"not enough memory: {error}") from None
    except RuntimeError as error:
        if NO_MEMORY not in str(error):
            raise
        _, _, words = str(error).partition(NO_MEMORY)
        raise NotEnoughResourcesError(f"not enough memory{words}") from None


def check_plot(path: Path) -> None:
    """Refuses a picture that could not be written once everything is computed."""
    from kogpt.benchmarking.plot import KINDS
    from kogpt.pictures import require_matplotlib

    check_file("plot", path, KINDS)
    require_matplotlib()


def check_file(option: str, path: Path, kinds: Sequence[str] = ()) -> None:
    """Refuses a file to be written that has no folder, or another ending than it must have."""
    if kinds and path.suffix not in kinds:
        raise UsageError(f"argument --{option}: must end in {' or '.join(kinds)}: {path}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"argument --{option}: no such folder: {path.parent}")


def option_of(name: str) -> str:
    """The option of the command line that an argument of that name comes from."""
    return f"--{name.replace('_', '-')}"


def refuse_below(args: argparse.Namespace, **least: int) -> None:
    """Refuses options, numbers or lists of them, that are below what makes sense, or no numbers."""
    for name, low in least.items():
        values = getattr(args, name)
        for value in values if isinstance(values, list) else [values]:
            if value is not None and not low <= value < math.inf:
                raise UsageError(f"argument {option_of(name)}: must be at least {low}, is {value}")


def refuse_empty(args: argparse.Namespace) -> None:
    """Refuses files and folders without a name, which would be the folder one is in."""
    for name, value in vars(args).items():
        if name in NAMED and (value == "" or (isinstance(value, list) and "" in value)):
            raise UsageError(f"argument {POSITIONAL.get(name) or options_of(args)[name]}: is empty")


def refuse_idle(args: argparse.Namespace) -> None:
    """Refuses options of one method of finetuning beside another."""
    for name, methods in METHODS_OF.items():
        if getattr(args, name, None) is not None and args.method not in methods:
            words = f"only with --method {' or '.join(methods)}"
            raise UsageError(f"argument {option_of(name)}: {words}")


def run_settings(args: argparse.Namespace, config: type) -> dict[str, Any]:
    """The settings that the command line gives, for a config of that type."""
    hints = get_type_hints(config)
    given = {name: value for name in hints if (value := getattr(args, name, None)) is not None}
    if given.keys() >= {"epochs", "steps"}:
        raise UsageError("argument --epochs: not with --steps")
    if "short_part" in given and "short_length" not in given:
        raise UsageError("argument --short-part: only with --short-length")
    given["device"] = str(device_of(args))
    return {name: _setting(value, hints[name]) for name, value in given.items()}


def _setting(value: Any, hint: Any) -> Any:
    """A value of the command line as a config has it."""
    if isinstance(value, list):
        kind = Path if Path in get_args(hint) else str
        return tuple(map(kind, value))
    return Path(value) if Path in (hint, *get_args(hint)) else value


def print_json(value: object) -> None:
    """One object on one line of standard output, Hangul as Hangul where it speaks UTF-8."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    text = json.dumps(value, ensure_ascii=lookup(encoding).name != "utf-8", allow_nan=False)
    print(text, flush=True)


class Printable(Protocol):
    """What an operation tells of itself: as text for a person, as an object for a program."""

    def __str__(self) -> str: ...

    def to_dict(self) -> dict[str, Any]: ...


def print_report(report: Printable, as_json: bool) -> None:
    """The report on standard output, in either form."""
    if as_json:
        print_json(report.to_dict())
    else:
        print(report)


def parse_size(text: str, option: str) -> int:
    """Bytes of a size such as `500MB` or `5GiB`.

    Raises:
        UsageError: it is none; names the option.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)\s*([kmg]i?b|)", text.strip().lower())
    if match is None:
        raise UsageError(f"argument {option}: {text!r} is no size, such as 80GB or 500MiB")
    prefix, kilo = match[2][:1], 1024 if "i" in match[2] else 1000
    return int(float(match[1]) * kilo ** " kmg".index(prefix or " "))
