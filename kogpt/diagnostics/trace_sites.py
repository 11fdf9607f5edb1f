"""The tensors that are compared, and where each implementation has them.

A site is a tensor under our name for it, a place is where a network has it. `OURS` says which
sites there are, in the order in which the network computes them. Of transformers' networks the
places follow from the tables by which checkpoints are read. A site that a network lacks is passed
over. Where it keeps several of our tensors in one, the place takes it apart:

    Site(f"{BLOCK}.attn.q_proj"): Place(f"{BLOCK}.attn.c_attn", take=lambda x, _: x.chunk(3, -1)[0])
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from itertools import count
from typing import Any, NamedTuple

from torch import Tensor

from kogpt.checkpoint.layouts import Layout, Row

BLOCK = "transformer.h.{}"  # the braces stand for the number of the layer
OUTPUT = "output"


class Site(NamedTuple):
    """A tensor, by our names.

    Attributes:
        module: that computes it.
        tensor: which of its tensors.
    """

    module: str
    tensor: str = OUTPUT

    def __str__(self) -> str:
        return self.module if self.tensor == OUTPUT else f"{self.module} {self.tensor}"


class Place(NamedTuple):
    """Where an implementation has the tensor of a site.

    Attributes:
        module: that gives or takes it.
        end: `output` and `input` are what the module returns and its first argument, or the first
            element of either where it is a tuple; `query` and `key` are the first and the second
            argument of the module's method `attend`.
        take: makes our tensor (shape, order of channels) of theirs and their config.
    """

    module: str
    end: str = OUTPUT
    take: Callable[[Tensor, Any], Tensor] | None = None


Places = Mapping[Site, Place]


def outputs(*modules: str) -> dict[Site, Place]:
    """Sites that are outputs of modules of the same name."""
    return {Site(module): Place(module) for module in modules}


LOGITS = Site("logits")  # what the network itself returns, whatever it makes of the head's output

OURS: Places = {
    **outputs("transformer.wte", "transformer.wpe"),
    **outputs(f"{BLOCK}.ln_1"),
    **outputs(f"{BLOCK}.attn.q_proj", f"{BLOCK}.attn.k_proj", f"{BLOCK}.attn.v_proj"),
    Site(f"{BLOCK}.attn", "rotated queries"): Place(f"{BLOCK}.attn", "query"),
    Site(f"{BLOCK}.attn", "rotated keys"): Place(f"{BLOCK}.attn", "key"),
    Site(f"{BLOCK}.attn", "mixed values"): Place(f"{BLOCK}.attn.out_proj", "input"),
    **outputs(f"{BLOCK}.attn.out_proj"),
    **outputs(f"{BLOCK}.ln_2"),
    **outputs(f"{BLOCK}.mlp.fc_in"),
    Site(f"{BLOCK}.mlp", "activation"): Place(f"{BLOCK}.mlp.fc_out", "input"),
    **outputs(f"{BLOCK}.mlp.fc_out"),
    **outputs(BLOCK),
    **outputs("transformer.ln_f", "lm_head"),
    LOGITS: Place(""),
}

# transformers' GPTJForCausalLM: the modules of the released checkpoint, as ours are. It rotates
# between modules, where no hook reaches.
GPTJ: Places = {site: place for site, place in OURS.items() if place.end in (OUTPUT, "input")}


def released(layout: Layout, modules: Collection[str]) -> Places:
    """Where a network of transformers, with these modules, has what a layout of its names tells."""
    return {site: _released(place, layout, modules) for site, place in GPTJ.items()}


def _released(place: Place, layout: Layout, modules: Collection[str]) -> Place:
    if not place.module:
        return place
    if place.module == BLOCK:
        return place._replace(module=f"{layout.blocks}.{{}}")
    row, tensor = layout.find(f"{place.module}.weight")
    module = layout.version(tensor, [f"{name}.weight" for name in modules])
    take = None if row.third is None else partial(_third, row)
    return place._replace(module=module.removesuffix(".weight"), take=take)


def _third(row: Row, tensor: Tensor, config: Any) -> Tensor:
    """Queries, keys or values out of all three."""
    width, heads = tensor.size(-1) // 3, config.num_attention_heads
    return tensor[..., row.places(range(width), width, width // heads)]


def depth(places: Places, modules: Collection[str]) -> int:
    """Number of blocks that a network of these modules has."""
    block = places[Site(BLOCK)].module
    return next(layer for layer in count() if _filled(block, layer) not in modules)


def expand(places: Places, layers: int) -> Iterator[tuple[Site, Place]]:
    """All sites and their places, layer by layer."""
    rows = list(places.items())
    inner = [i for i, (site, _) in enumerate(rows) if site.module.startswith(BLOCK)]
    first, end = inner[0], inner[-1] + 1
    yield from rows[:first]
    for layer in range(layers):
        for site, place in rows[first:end]:
            yield (
                site._replace(module=_filled(site.module, layer)),
                place._replace(module=_filled(place.module, layer)),
            )
    yield from rows[end:]


def _filled(template: str, layer: int) -> str:
    return template.replace("{}", str(layer))
