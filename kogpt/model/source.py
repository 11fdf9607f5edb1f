"""Whether the network of this package is as what was made beside it takes it to be."""

import functools
import hashlib
from pathlib import Path
from types import FunctionType

from kogpt.model.rotary import RotaryEmbedding, Rotation
from kogpt.model.transformer import MLP, Attention, Block, KoGPT, Transformer
from kogpt.model.variants.gpt2 import GPT2, GPT2Block
from kogpt.model.variants.gpt_neox import GELUMLP, GPTNeoX, GPTNeoXBlock
from kogpt.model.variants.parts import (
    BiasedAttention,
    HalfRotaryEmbedding,
    HalfRotation,
    LearnedPositions,
    SequentialBlock,
    TiedHead,
    TwoNormBlock,
)

HERE = Path(__file__).resolve().parent
# The sources that say what the network prepared for decoding computes, too. Whoever edits one of
# them sees to that, and then puts the new hash here.
SOURCES = {
    "transformer.py": "2dbe77c506dd01acaed32bde1cf43e328c6d90926623ea4b4c6644a681f23453",
    "rotary.py": "aae030b30d4ee7ed230327bb972e48abc523925ae7df2a4b5642bb841ba0c614",
    "variants/parts.py": "af27ef8b9789c2fc62af0776c3056f78664f80d8706706fbaeef7b03f534a2f2",
    "variants/gpt2.py": "5bdd94c6555c4f3e4bd7a985d040f44254f27a255e568864c71ded53a623f08c",
    "variants/gpt_neox.py": "213291a344c7b08981ed402b906630dc233db7c35b64720cbc86335710e23e08",
}
# What models are made of: KoGPT, and its neighbours of that and more.
PARTS: dict[type[KoGPT], tuple[type, ...]] = {
    KoGPT: (KoGPT, Transformer, Block, Attention, MLP, RotaryEmbedding, Rotation),
    GPT2: (
        *(GPT2, GPT2Block, SequentialBlock, TwoNormBlock),
        *(BiasedAttention, LearnedPositions, TiedHead),
    ),
    GPTNeoX: (
        *(GPTNeoX, GPTNeoXBlock, TwoNormBlock),
        *(BiasedAttention, GELUMLP, HalfRotaryEmbedding, HalfRotation),
    ),
}
# Where all is from that it is made of; a named tuple's own functions are from `collections`.
HOMES = ("kogpt.model.", "torch.nn.", "collections")
AS_MADE = {part: dict(vars(part)) for parts in PARTS.values() for part in parts}


def change(model_class: type[KoGPT] = KoGPT) -> str | None:
    """What of a network is not as it was released; None for nothing.

    A file that was edited, or a function, class or other attribute that took another's place.

    Args:
        model_class: of the model.
    """
    if model_class not in PARTS:
        return model_class.__name__
    parts = dict.fromkeys((*PARTS[KoGPT], *PARTS[model_class]))
    homes = dict.fromkeys(part.__module__.removeprefix("kogpt.model.") for part in parts)
    for home in homes:
        if is_edited(name := home.replace(".", "/") + ".py"):
            return str(HERE / name)
    for part in parts:
        for name in AS_MADE[part] | vars(part):
            if _is_other(part, name):
                return f"{part.__name__}.{name}"
    return None


def _is_other(part: type, name: str) -> bool:
    """Whether an attribute is another than was made with its class, which may have come earlier."""
    value = vars(part).get(name)
    if isinstance(value, type | FunctionType) and not value.__module__.startswith(HOMES):
        return True
    is_note = name.startswith("__") and not callable(value)  # Python's own, as `copy` leaves one
    return value is not AS_MADE[part].get(name) and not is_note


@functools.cache
def is_edited(name: str) -> bool:
    """Whether one of the sources has another hash."""
    source = (HERE / name).read_bytes().replace(b"\r\n", b"\n")  # as git writes it on Windows
    return hashlib.sha256(source).hexdigest() != SOURCES[name]


@functools.cache
def network_fingerprint() -> str:
    """Hash of all the sources that say what models of this package compute."""
    digest = hashlib.sha256()
    for path in sorted(HERE.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
