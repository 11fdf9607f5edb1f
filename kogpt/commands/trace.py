"""`kogpt trace`: the first tensor at which two models part."""

import argparse
import math
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from kogpt.architecture import load_architecture
from kogpt.box import BOX
from kogpt.checkpoint import load_model
from kogpt.checkpoint.dtypes import dtype_name
from kogpt.commands.common import check_plot, device_of, memory_errors, print_report, read_text
from kogpt.diagnostics.trace import trace
from kogpt.errors import InputRefusedError, KoGPTError, UsageError
from kogpt.generation.requests import refuse_unreadable
from kogpt.model import KoGPT
from kogpt.tokenizer import Tokenizer, load_tokenizer

TRANSFORMERS = "transformers"


def run(args: argparse.Namespace) -> None:
    refuse_wrong_use(args)
    device = device_of(args)
    folder = Path(args.model or BOX)
    dtype = getattr(torch, args.dtype) if args.dtype else None
    with memory_errors():
        own = load_architecture(args.architecture)
        model, tokenizer = load_ours(folder, dtype, device, own), load_tokenizer(folder)
        ids = read_prompt(args, tokenizer)
        refuse_unreadable(ids, "the prompt", model, tokenizer)
        dtypes = model.dtype, reference_dtype(args, model.dtype)
        other = load_other(args, folder, dtypes[1], device)
        if isinstance(other, KoGPT):  # of another folder, whose context may be shorter
            refuse_unreadable(ids, "the prompt", other, tokenizer)
        classes = tuple(type(side).__name__ for side in (model, other) if isinstance(side, KoGPT))
        names = names_of((folder, Path(args.against or folder)), dtypes, classes)
        report = trace(model, other, torch.tensor([ids]), tolerance=args.tolerance, names=names)
    if args.plot:
        from kogpt.diagnostics.trace_plot import draw

        draw(report, Path(args.plot))
    print_report(report, args.json)


def refuse_wrong_use(args: argparse.Namespace) -> None:
    """Refuses what can be seen to be wrong before a model is loaded."""
    if args.tolerance is not None and not 0 < args.tolerance < math.inf:
        raise UsageError(f"argument --tolerance: must be above 0, is {args.tolerance}")
    if args.plot:
        check_plot(Path(args.plot))
    if args.against == TRANSFORMERS and args.against_architecture:
        raise UsageError("argument --against-architecture: of no use with --against transformers")
    if args.against == TRANSFORMERS and find_spec(TRANSFORMERS) is None:
        raise KoGPTError("--against transformers needs it: pip install transformers")


def read_prompt(args: argparse.Namespace, tokenizer: Tokenizer) -> list[int]:
    """The ids of the text, as `kogpt generate` would have the model read it."""
    text = read_text(args.prompt)
    ids = tokenizer.encode(text, bos=tokenizer.add_bos, normalize=args.normalize)
    if not ids:
        raise InputRefusedError("the prompt is empty")
    return ids


def is_same(args: argparse.Namespace) -> bool:
    """Whether both sides are of one folder, and ours."""
    if args.against == TRANSFORMERS:
        return False
    folders = [Path(path or args.model or BOX).resolve() for path in (args.model, args.against)]
    return folders[0] == folders[1]


def of_reference(args: argparse.Namespace) -> str | None:
    """The class of the reference, as `load_architecture` takes it; None for the checkpoint's."""
    return args.against_architecture or (None if args.against else args.architecture)


def reference_dtype(args: argparse.Namespace, dtype: torch.dtype) -> torch.dtype:
    """What the reference computes in: what is asked for; else, of the same folder, a finer one.

    Raises:
        UsageError: nothing would differ.
    """
    folder, same = Path(args.model or BOX).resolve(), is_same(args)
    if args.against_dtype:
        chosen = getattr(torch, args.against_dtype)
    elif same:
        chosen = torch.float32 if dtype.itemsize < 4 else torch.float64
    else:
        chosen = dtype
    if same and chosen == dtype and args.architecture == of_reference(args):
        finest = dtype == torch.float64 and not args.against_dtype
        raise UsageError(
            f"argument --{'' if finest else 'against-'}dtype: nothing differs: both are"
            f" {folder.name} in {dtype_name(dtype)}{', and nothing is finer' * finest}"
        )
    return chosen


def load_ours(
    folder: Path, dtype: torch.dtype | None, device: torch.device, own: type[KoGPT] | None
) -> KoGPT:
    """The readable network of a folder, in float64 too."""
    if dtype == torch.float64:
        return load_model(folder, torch.float32, device, model_class=own).double()
    return load_model(folder, dtype, device, model_class=own)


def load_other(
    args: argparse.Namespace, folder: Path, dtype: torch.dtype, device: torch.device
) -> nn.Module:
    """The reference: ours of another folder or dtype, or transformers' network of the same."""
    if args.against != TRANSFORMERS:
        name = of_reference(args)
        own = load_architecture(name)
        return load_ours(Path(args.against or folder), dtype, device, own)
    from transformers import AutoModelForCausalLM  # no requirement, and slow to import
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        other: nn.Module = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="eager", local_files_only=True
        )
    except torch.OutOfMemoryError:
        raise  # which is no fault of the folder
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise InputRefusedError(f"{folder}: transformers cannot load it: {error}") from None
    return other.to(device)


def names_of(
    paths: tuple[Path, Path], dtypes: tuple[torch.dtype, torch.dtype], classes: tuple[str, ...]
) -> tuple[str, str]:
    """What both sides are called: folders by their last part, unless that tells them not apart,
    and the classes of our networks where they are two.
    """
    shown = [path.resolve().name for path in paths]
    if shown[0] == shown[1] and paths[0] != paths[1]:
        shown = list(map(str, paths))
    about = [dtype_name(dtype) for dtype in dtypes]
    if len(set(classes)) > 1:
        about = [f"{kind}, {dtype}" for kind, dtype in zip(classes, about, strict=True)]
    first, second = (f"{name} ({what})" for name, what in zip(shown, about, strict=True))
    return first, second
