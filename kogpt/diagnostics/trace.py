"""Where two implementations of one network part: module by module, on the same ids.

Three runs. The other side runs and is watched. Then ours runs, and the difference of every tensor
is the *propagated* error, which rounding lets grow from layer to layer. Then ours runs once more,
and each tensor, once it is measured, is replaced by the other side's. So all that follows computes
from the same numbers as on the other side, and the difference is a tensor's *own* error. The first
tensor whose own error is more than rounding can make is where they part.

Rounding makes at most the tolerance

    FACTOR eps + √N eps of the sums

of a relative norm. The first eps is that of the coarser dtype, to which inputs, weights and results
are rounded, some of them twice, and softmax and GELU make more of it. N is the number of terms in
the widest sum, whose rounding grows as √N (Higham & Mary, "A New Approach to Probabilistic Rounding
Error Analysis", 2019). Sums are kept in float32, or in float64 where both sides are. What the model
in the box makes, in any dtype and against transformers, is a quarter of that at most.
"""

from collections.abc import Callable, Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from kogpt.checkpoint.layouts import LAYOUTS
from kogpt.diagnostics.capture import watching
from kogpt.diagnostics.trace_errors import Distance, coarser, distance
from kogpt.diagnostics.trace_report import Compared, Parting, Trace
from kogpt.diagnostics.trace_sites import (
    BLOCK,
    GPTJ,
    OURS,
    Place,
    Places,
    Site,
    depth,
    expand,
    released,
)
from kogpt.errors import InputRefusedError
from kogpt.generation.requests import evaluation_mode
from kogpt.model import KoGPT, KoGPTConfig

FACTOR = 4.0

Rows = Iterable[tuple[Site, Place]]


@torch.no_grad()
def trace(
    model: KoGPT,
    other: nn.Module,
    input_ids: Tensor,
    *,
    tolerance: float | None = None,
    names: tuple[str, str] = ("the model", "the other"),
    places: Places | None = None,
) -> Trace:
    """Runs both on the same ids and finds the first tensor at which they part.

    Args:
        model: what is looked into.
        other: what it should be: a `KoGPT`, or a network called with ids whose names are known,
            such as transformers' GPTJForCausalLM. It may be of another dtype.
        input_ids: token ids (B, T), int64.
        tolerance: largest own error, a relative norm, that is no fault; None for what rounding
            explains.
        names: of both, for the report.
        places: where `other` has our tensors; None finds them by its `model_type`.

    Returns:
        The errors of every site that both have, and where they part, if they do.

    Raises:
        InputRefusedError: `other` is of an unknown kind, a tensor has another shape there, or one
            of both is compiled.
    """
    for network in (model, other):
        if hasattr(network, "_orig_mod"):
            raise InputRefusedError("a compiled model shows no tensors: give what was compiled")
    places = places_of(other) if places is None else places
    rows = list(rows_of(OURS, model))
    with evaluation_mode(model, other):
        reference = captured(other, rows_of(places, other), input_ids)
        dtypes = dtypes_of(model, other)
        propagated = compared(model, rows, input_ids, reference, dtypes, leave)
        own = compared(model, rows, input_ids, reference, dtypes, replace)
    if tolerance is None:
        tolerance = tolerance_of(model, other, input_ids.size(1))
    blocks = max(depth(OURS, modules_of(model)), depth(places, modules_of(other)))
    order = [site for site, _ in expand(OURS, blocks)]
    return Trace(
        names=names,
        tokens=input_ids.numel(),
        tolerance=tolerance,
        parting=find_parting(order, propagated, reference, own, tolerance, names),
        sites=tuple(
            Compared(*site, layer_of(site), before, after)
            for site in order
            if (before := propagated.get(site)) and (after := own.get(site))
        ),
        alone=tuple(site for site in order if (site in own) != (site in reference)),
    )


def places_of(other: nn.Module) -> Places:
    """Where a network has our tensors, by its kind.

    Raises:
        InputRefusedError: its kind is not known.
    """
    if isinstance(other, KoGPT):
        return OURS
    kind = getattr(getattr(other, "config", None), "model_type", None)
    if kind == KoGPTConfig.released_type:
        return GPTJ
    if not isinstance(kind, str) or kind not in LAYOUTS:
        known = ", ".join([KoGPTConfig.released_type, *LAYOUTS])
        raise InputRefusedError(f"model_type is {kind!r}; it can be one of {known}")
    return released(LAYOUTS[kind], modules_of(other))


def rows_of(places: Places, model: nn.Module) -> Rows:
    return expand(places, depth(places, modules_of(model)))


def modules_of(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_modules(remove_duplicate=False)}


def captured(model: nn.Module, rows: Rows, input_ids: Tensor) -> dict[Site, Tensor]:
    """What a network has at its sites, on the CPU."""
    found: dict[Site, Tensor] = {}

    def see(site: Site, tensor: Tensor) -> None:
        refuse_again(site, found)
        found[site] = tensor.to("cpu", copy=True)  # whatever is later done to it in place

    run(model, rows, input_ids, see)
    return found


def compared(
    model: nn.Module,
    rows: Rows,
    input_ids: Tensor,
    reference: Mapping[Site, Tensor],
    dtypes: Collection[torch.dtype],
    answer: Callable[[Tensor, Tensor], Tensor | None],
) -> dict[Site, Distance | None]:
    """How far each site is from the reference; None where that has none.

    `answer` says what the network goes on with, from its tensor and the reference.
    """
    found: dict[Site, Distance | None] = {}

    def see(site: Site, tensor: Tensor) -> Tensor | None:
        refuse_again(site, found)
        found[site] = None
        if site not in reference:
            return None
        if tensor.shape != reference[site].shape:
            shapes = [" x ".join(map(str, x.shape)) for x in (tensor, reference[site])]
            raise InputRefusedError(f"{site} is {shapes[0]}, and {shapes[1]} on the other side")
        found[site] = distance(tensor, reference[site], *dtypes)
        return answer(tensor, reference[site])

    run(model, rows, input_ids, see)
    return found


def refuse_again(site: Site, found: Mapping[Site, object]) -> None:
    """Refuses what is computed more than once in a pass, of which one would be compared."""
    if site in found:
        raise InputRefusedError(f"{site} is computed more than once in a pass")


def leave(tensor: Tensor, reference: Tensor) -> None:
    """Lets errors propagate."""


def replace(tensor: Tensor, reference: Tensor) -> Tensor:
    """Ends errors where they were measured."""
    return reference.to(tensor)  # its device and dtype


def run(
    model: nn.Module,
    rows: Rows,
    input_ids: Tensor,
    see: Callable[[Site, Tensor], Tensor | None],
) -> None:
    with watching(model, rows, see):
        model(input_ids.to(next(model.parameters()).device))


def dtypes_of(*models: nn.Module) -> set[torch.dtype]:
    """What models compute in; integers are widened."""
    parameters = (parameter for model in models for parameter in model.parameters())
    return {p.dtype for p in parameters if p.dtype.is_floating_point}


def tolerance_of(model: KoGPT, other: nn.Module, tokens: int) -> float:
    """The most that rounding alone makes of a site's own error; the rule is this module's."""
    dtype = coarser(*dtypes_of(model, other))
    # transformers keeps the scores of attention in float32, whatever the model's dtype.
    wide = dtype == torch.float64 and isinstance(other, KoGPT)
    sums = torch.finfo(torch.float64 if wide else torch.float32)
    config = model.config
    widest = max(config.n_embd, config.inner_dim, tokens)
    return FACTOR * torch.finfo(dtype).eps + widest**0.5 * sums.eps


def find_parting(
    order: Iterable[Site],
    ours: Mapping[Site, Distance | None],
    theirs: Mapping[Site, Tensor],
    own: Mapping[Site, Distance | None],
    tolerance: float,
    names: tuple[str, str],
) -> Parting | None:
    """The first site, in the order of the network, that rounding does not explain.

    A block that only one side computes is one: a layer was skipped.
    """
    for site in order:
        if layer_of(site) is not None and site == Site(BLOCK.replace("{}", str(layer_of(site)))):
            if (site in ours) != (site in theirs):
                who = names[site in theirs]
                return Parting(*site, layer_of(site), f"only {who} computes this layer")
        error = own.get(site)
        if error is not None and not error.relative <= tolerance:  # NaN is no agreement
            why = f"own error {error.relative:.2g}, {error.ulp:.3g} ulp; tolerance {tolerance:.2g}"
            return Parting(*site, layer_of(site), why)
    return None


def layer_of(site: Site) -> int | None:
    """The layer that a site lies in; None before the first and after the last."""
    parts = site.module.split(".")
    return int(parts[2]) if parts[:2] == ["transformer", "h"] else None
