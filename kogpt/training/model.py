"""The model a run begins with: new, from a checkpoint, or where the run was left."""

import dataclasses
from pathlib import Path

import torch

from kogpt.checkpoint import load_model
from kogpt.errors import InputRefusedError
from kogpt.model import PRESETS, KoGPT, KoGPTConfig
from kogpt.tokenizer import Tokenizer, load_tokenizer
from kogpt.training.config import FLOAT32, TrainingConfig


def load_start(config: TrainingConfig, last: Path | None) -> tuple[KoGPT, Tokenizer]:
    """The model, its weights as the config says, and its tokenizer.

    Args:
        config: says what to begin with.
        last: the newest checkpoint of a run that goes on.

    Raises:
        InputRefusedError: one of them is missing or damaged, or they do not fit each other.
    """
    dtype = torch.float32 if config.weights == FLOAT32 else torch.bfloat16
    if last is not None:
        return load_model(last, dtype=dtype), load_tokenizer(last)
    folder = config.tokenizer or Path(config.model)
    if not folder.is_dir():
        raise InputRefusedError(f"{folder} is no folder with a tokenizer; name one")
    tokenizer = load_tokenizer(folder)
    if Path(config.model).is_dir():
        model = load_model(config.model, dtype=dtype)
        _check_vocabulary(model.config, tokenizer, config.model)
    else:
        model = _new_model(config, tokenizer).to(dtype)
    return model, tokenizer


def _new_model(config: TrainingConfig, tokenizer: Tokenizer) -> KoGPT:
    known = config.model in PRESETS
    shape = PRESETS[config.model] if known else KoGPTConfig.from_file(config.model)
    _check_vocabulary(shape, tokenizer, config.model)
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_id") for role in ("bos", "eos", "pad")}
    model = KoGPT(dataclasses.replace(shape, **ids))
    model.init_weights(torch.Generator().manual_seed(config.seed))
    return model


def _check_vocabulary(shape: KoGPTConfig, tokenizer: Tokenizer, name: str) -> None:
    # Fewer ids than rows is common: rows are rounded up to sizes that suit the hardware.
    if tokenizer.vocab_size > shape.vocab_size:
        raise InputRefusedError(
            f"the tokenizer has {tokenizer.vocab_size} ids, model {name} only {shape.vocab_size}"
        )
