"""`kogpt plan`: tell what memory a piece of work takes, before anything is loaded."""

import argparse
from pathlib import Path

import torch

from kogpt.architecture import load_architecture
from kogpt.box import BOX
from kogpt.checkpoint.convert import GROUP_SIZE
from kogpt.checkpoint.dtypes import compute_dtype
from kogpt.checkpoint.headers import read_headers
from kogpt.checkpoint.quantization import Quantization
from kogpt.checkpoint.resources import available_memory
from kogpt.choices import FULL, INFERENCE, P_TUNING, PROMPT_TUNING, QLORA
from kogpt.commands.common import (
    option_of,
    parse_size,
    print_report,
    refuse_below,
    refuse_idle,
    run_settings,
)
from kogpt.errors import NotEnoughResourcesError, ParameterError, UsageError
from kogpt.parallel.tensor import check_divides
from kogpt.training.config import FinetuningConfig
from kogpt.training.planning import Work, plan
from kogpt.training.rehearsal import Stage
from kogpt.training.sharing import refuse_unshared

TRAINING = (  # settings of it
    *("optimizer", "micro_batch_size", "weights"),
    *("offload", "activation_checkpointing", "pack"),
)


def run(args: argparse.Namespace) -> int | None:
    has_gpu = torch.cuda.is_available()
    gpus = int(has_gpu) if args.gpus is None else args.gpus
    refuse_below(args, gpus=0)
    limit = find_limit(args.memory, gpus)
    asked = args.memory is not None or args.gpus is not None
    result = plan(find_work(args, gpus), limit)
    print_report(result, args.json)
    return NotEnoughResourcesError.exit_code if asked and not result.fits else None


def find_work(args: argparse.Namespace, gpus: int) -> Work:
    """What the arguments ask for."""
    refuse_idle_training(args)
    own = load_architecture(args.architecture)
    shape, dtype, stored_as = read_headers(args.model or str(BOX), own)
    stored = dtype or torch.bfloat16  # as it would be written
    quantization = quantization_of(args, stored_as)
    if quantization is not None and own is not None:
        raise UsageError("argument --architecture: not with qlora or --quantize: none is quantised")
    if quantization is not None:
        quantization.check_fits(shape, args.model or str(BOX))
    fixed = {"out": Path(), "model": "", "data": ("",), "device": "cpu"}
    given = {**run_settings(args, FinetuningConfig), **fixed}
    as_stored = False
    if args.method == INFERENCE:
        given["method"] = FULL  # of a config that counts for batch, length and precision alone
        computed = compute_dtype(stored, torch.device("cuda" if gpus else "cpu"))
        as_stored = own is None and "precision" not in given and computed != stored
        given.setdefault("precision", "bfloat16" if computed.itemsize == 2 else "float32")
    config = FinetuningConfig(**given)
    check_length(config, shape.n_positions)
    if args.method == INFERENCE and gpus > 1:
        check_divides(shape, gpus)
        quantization = None  # the network that several processes share widens integers
    elif gpus > 1:
        refuse_unshared(config, gpus)
    if gpus > 1 and own is not None:
        raise UsageError("argument --architecture: only on one GPU")
    return Work(Stage(shape, gpus > 0, quantization, own), args.method, config, gpus, as_stored)


def refuse_idle_training(args: argparse.Namespace) -> None:
    """Refuses options of training where nothing is trained, and those of other methods."""
    refuse_idle(args)
    for name in TRAINING if args.method == INFERENCE else ():
        if getattr(args, name):
            raise UsageError(f"argument {option_of(name)}: not with --method inference")
    if args.quantize and args.method not in (QLORA, INFERENCE):
        raise UsageError("argument --quantize: only with --method inference or qlora")


def quantization_of(args: argparse.Namespace, stored: Quantization | None) -> Quantization | None:
    """How matrices would lie in memory; None for as floats.

    Args:
        args: of the command.
        stored: how they lie in the folder.
    """
    if args.method not in (QLORA, INFERENCE):
        return None  # other methods widen what is stored as integers
    if args.quantize:
        return Quantization.of(args.quantize, GROUP_SIZE, zero_points=False)
    if args.method == QLORA and stored is None:
        return Quantization.of("int4", GROUP_SIZE, zero_points=False)
    return stored


def check_length(config: FinetuningConfig, most: int) -> None:
    """Refuses a length that the model does not read, or that leaves no room for a text.

    Raises:
        ValueError: names both.
    """
    length = config.sequence_length or most
    if length > most:
        raise ParameterError(f"sequence is {length}, it must be at most the model's {most}")
    if config.method in (P_TUNING, PROMPT_TUNING) and length <= config.virtual_tokens:
        raise ParameterError(
            f"sequence is {length}, it must be above the {config.virtual_tokens} virtual tokens"
        )


def find_limit(memory: str | None, gpus: int) -> int | None:
    """Bytes that each device has, as told or as found here; None where neither tells."""
    if memory is not None:
        return parse_size(memory, "--memory")
    if gpus == 0:
        return available_memory(torch.device("cpu"))
    return torch.cuda.mem_get_info()[1] if torch.cuda.is_available() else None
