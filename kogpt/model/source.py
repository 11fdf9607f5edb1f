"""Whether the network of this package is as what was made beside it takes it to be."""

import functools
import hashlib
from pathlib import Path
from types import FunctionType

from kogpt.model.rotary import RotaryEmbedding
from kogpt.model.transformer import MLP, Attention, Block, KoGPT, Transformer

HERE = Path(__file__).resolve().parent
# The sources that say what the network prepared for decoding computes, too. Whoever edits one of
# them sees to that, and then puts the new hash here.
SOURCES = {
    "transformer.py": "2dbe77c506dd01acaed32bde1cf43e328c6d90926623ea4b4c6644a681f23453",
    "rotary.py": "aae030b30d4ee7ed230327bb972e48abc523925ae7df2a4b5642bb841ba0c614",
}
HOMES = ("kogpt.model.", "torch.nn.")  # where all is from that it is made of


def change() -> str | None:
    """What of the network is not as it was released; None for nothing.

    A file that was edited, or a function or class that took the place of another.
    """
    if edited := edited_source():
        return edited
    for made in (KoGPT, Transformer, Block, Attention, MLP, RotaryEmbedding):
        for name, part in vars(made).items():
            if isinstance(part, type | FunctionType) and not part.__module__.startswith(HOMES):
                return f"{made.__name__}.{name}"
    return None


@functools.cache
def edited_source() -> str | None:
    """The first of the sources that has another hash."""
    for name, sha256 in SOURCES.items():
        source = (HERE / name).read_bytes().replace(b"\r\n", b"\n")  # as git writes it on Windows
        if hashlib.sha256(source).hexdigest() != sha256:
            return str(HERE / name)
    return None


@functools.cache
def network_fingerprint() -> str:
    """Hash of all the sources that say what models of this package compute."""
    digest = hashlib.sha256()
    for path in sorted(HERE.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
