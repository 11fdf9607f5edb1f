"""Tiny models of many shapes, written as checkpoints, and the model in the box in every format."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kogpt.box import BOX
from kogpt.checkpoint import ConversionOptions, convert, load_model, write_checkpoint
from kogpt.fast import FastKoGPT, load_fast
from kogpt.model import KoGPT, KoGPTConfig
from kogpt.model.variants import GPT2Config, GPTNeoXConfig
from tests.checkpoint.tiny import tiny_state

Pair = tuple[KoGPT, FastKoGPT]

BASE = {"vocab_size": 333, "n_positions": 48, "n_layer": 2, "rotary_dim": 16}
GPTJS = {
    "heads of 64": {"n_embd": 128, "n_head": 2},
    "heads of 256": {"n_embd": 256, "n_head": 1, "rotary_dim": 64},
    "heads of 24": {"n_embd": 384, "n_head": 16, "rotary_dim": 8, "n_layer": 1},
    "heads of 8": {"n_embd": 128, "n_head": 16, "rotary_dim": 8},
    "heads of 12": {"n_embd": 48, "n_head": 4, "rotary_dim": 8},
    "no rotary": {"n_embd": 128, "n_head": 4, "rotary_dim": 0},
    "all rotary": {"n_embd": 128, "n_head": 4, "rotary_dim": None},
    "rotary of 12": {"n_embd": 128, "n_head": 2, "rotary_dim": 12},
    "an inner width of its own": {"n_embd": 128, "n_head": 2, "n_inner": 384},
    "widths of no block": {"n_embd": 80, "n_head": 2, "n_inner": 72},
    "a vocabulary of 1": {"n_embd": 128, "n_head": 2, "vocab_size": 1},
}
NEOXES = {
    "GPT-NeoX": {"n_embd": 128, "n_head": 2},
    "GPT-NeoX, all rotary": {"n_embd": 128, "n_head": 2, "rotary_dim": None, "rotary_base": 500.0},
    "GPT-NeoX, no rotary": {"n_embd": 128, "n_head": 2, "rotary_dim": 0},
    "GPT-NeoX, heads of 12": {"n_embd": 48, "n_head": 4, "rotary_dim": 8, "n_inner": 72},
}
GPT2S = {
    "GPT-2": {"n_embd": 128, "n_head": 2},
    "GPT-2, heads of 12": {"n_embd": 48, "n_head": 4, "n_inner": 72},
}
SHAPES = {
    **{name: KoGPTConfig(**{**BASE, **sizes}) for name, sizes in GPTJS.items()},
    **{name: GPTNeoXConfig(**{**BASE, **sizes}) for name, sizes in NEOXES.items()},
    **{name: GPT2Config(**{**BASE, **sizes, "rotary_dim": 0}) for name, sizes in GPT2S.items()},
}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Callable[[str], Pair]:
    """The models of a shape, by its name."""
    made: dict[str, Pair] = {}

    def load(shape: str) -> Pair:
        if shape not in made:
            folder = tmp_path_factory.mktemp("tiny") / "model"
            write_checkpoint(folder, SHAPES[shape], tiny_state(SHAPES[shape]))
            made[shape] = load_model(folder), load_fast(folder)
        return made[shape]

    return load


FORMATS = {
    "float16": {"dtype": "float16"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"quantize": "int8"},
    "int4": {"quantize": "int4"},
    "int4 in groups of 32": {"quantize": "int4", "group_size": 32},
    "int4 with zero points": {"quantize": "int4", "zero_points": True},
}


@pytest.fixture(scope="session")
def box(tmp_path_factory) -> Callable[[str], Path]:
    """The folder with the model in the box in a format, by its name."""
    parent = tmp_path_factory.mktemp("formats")

    def folder(name: str) -> Path:
        target = parent / name
        if not target.exists():
            convert(BOX, target, ConversionOptions(**FORMATS[name], quiet=True))
        return target

    return folder


@pytest.fixture(scope="session")
def nano() -> Pair:
    """The model in the box, in float32."""
    return load_model(dtype=torch.float32), load_fast(dtype=torch.float32)
