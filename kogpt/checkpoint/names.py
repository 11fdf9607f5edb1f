"""Names and shapes of the tensors in a checkpoint, in network order.

They are those of the network itself, for KoGPT the released ones. Tables of other layouts lie in
`layouts.py` and `mesh.py`.
"""

import copy
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kogpt.checkpoint.dtypes import dtype_name
from kogpt.errors import InputRefusedError
from kogpt.model.config import KoGPTConfig
from kogpt.model.hollow import hollow
from kogpt.model.transformer import KoGPT
from kogpt.model.variants import class_of

Shapes = dict[str, tuple[int, ...]]

# The head of a classifier (outputs, C), which may lie beside the language model's.
CLASSIFIER = "score.weight"

# Buffers that some libraries saved with the weights: the causal mask, the value put where it
# masks, and tables of rotary angles. All are derived, so they are passed over by name.
IGNORED = re.compile(
    r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias|embed_positions)"
    r"|transformer\.embed_positions"
    r"|gpt_neox\.(layers\.\d+\.attention\.)?(bias|masked_bias|rotary_emb\.inv_freq)"
)

# What the 4 and 8 bit formats put beside or in place of `*.weight`.
QUANTISED = re.compile(
    r".*\.(SCB|weight_format|absmax|quant_map|nested_absmax|nested_quant_map|quant_state.*"
    r"|weight\.(absmax|quant_map|quant_state|nested_absmax|nested_quant_map).*"
    r"|qweight|qzeros|scales|g_idx|weight_packed|weight_scale|weight_shape|weight_zero_point)"
)


def expand(config: KoGPTConfig, model_class: type[KoGPT] | None = None) -> Shapes:
    """Every tensor of a model: name -> shape, in network order.

    Args:
        config: the shape of the model.
        model_class: of the model; None for the one that belongs to the config.
    """
    return dict(_outline(config, model_class or class_of(config)).shapes)


def aliases(config: KoGPTConfig, model_class: type[KoGPT] | None = None) -> dict[str, str]:
    """Names of parameters that are another one's too, with its first name; arguments as above."""
    return dict(_outline(config, model_class or class_of(config)).aliases)


def count_parameters(config: KoGPTConfig, model_class: type[KoGPT] | None = None) -> int:
    """The number of a model's parameters, shared ones once; arguments as for `expand`."""
    outline = _outline(config, model_class or class_of(config))
    names = outline.shapes.keys() - outline.aliases.keys() - outline.buffers
    return sum(math.prod(outline.shapes[name]) for name in names)


class _Outline(NamedTuple):
    """What `expand` and `aliases` give, and which of the tensors are no parameters."""

    shapes: Shapes
    aliases: dict[str, str]
    buffers: frozenset[str]


def _outline_of(config: KoGPTConfig, model_class: Callable[[KoGPTConfig], KoGPT]) -> _Outline:
    model, first, again = hollow(model_class, config), dict[nn.Parameter, str](), dict[str, str]()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if (other := first.setdefault(parameter, name)) != name:
            again[name] = other
    shapes = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    return _Outline(shapes, again, frozenset(name for name, _ in model.named_buffers()))


_outline: Callable[..., _Outline] = cache(_outline_of)


def refuse_unsavable(model: KoGPT) -> None:
    """Refuses what a class of one's own may have that no checkpoint could give back.

    Raises:
        InputRefusedError: a tensor is no floating-point one, is empty or has no dimension, or a
            buffer or an attribute is neither saved nor made anew, or a layer has two names; names
            it.
    """
    refuse_shared_modules(model)
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise InputRefusedError(f"{name} is no tensor: only those are saved")
        if not tensor.is_floating_point():
            raise InputRefusedError(f"{name} is {dtype_name(tensor.dtype)}: only floats are saved")
        if not tensor.ndim:
            raise InputRefusedError(f"{name} is a scalar: give it the shape (1,) to be saved")
        if not tensor.numel():
            raise InputRefusedError(f"{name} is empty: leave it out where it has no contents")
    saved = model.state_dict().keys()
    for path, module in model.named_modules():
        for buffer, _ in module.named_buffers(path, recurse=False):
            # `materialise` moves a model to where it is loaded; in `_apply` a table is remade.
            if buffer not in saved and type(module)._apply is nn.Module._apply:
                raise InputRefusedError(
                    f"{buffer} is a buffer that is not saved: make it persistent, or compute it "
                    "in forward"
                )
            if buffer not in saved and not _is_made_anew(module, buffer.rpartition(".")[2]):
                raise InputRefusedError(
                    f"{buffer} is not saved, and not what it is made anew as: change what makes "
                    "it, such as `RotaryEmbedding.angles`"
                )
        known = {"_parameters", "_buffers"}
        if isinstance(module, nn.RNNBase):
            known.add("_flat_weights")  # its parameters, which it keeps in step by itself
        for attribute, value in vars(module).items():
            if attribute not in known and _has_tensor(value):
                raise InputRefusedError(
                    f"{path}.{attribute} has a tensor that no checkpoint holds: make it a buffer "
                    "or a parameter, or compute it in forward"
                )


def _is_made_anew(module: nn.Module, name: str) -> bool:
    """Whether a buffer comes back as it is where a module is moved; yes if it has no contents."""
    before = module.get_buffer(name)
    if before.is_meta:
        return True
    moved = copy.copy(module)
    moved._parameters, moved._buffers = {}, dict(module._buffers)
    moved._apply(lambda t: t.clone(), recurse=False)
    return torch.equal(before, moved.get_buffer(name))


def _has_tensor(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_has_tensor, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_tensor, value))
    return isinstance(value, Tensor)


def refuse_shared_modules(model: KoGPT) -> None:
    """Refuses a layer in two places: it would have one place in caches, adapters and pictures.

    Raises:
        InputRefusedError: names both.
    """
    first: dict[nn.Module, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        other = first.setdefault(module, name)
        if other != name and any(True for _ in module.parameters()):
            raise InputRefusedError(
                f"{name} is {other}: a layer can have one place; give each place a layer of its "
                "own, and let them share parameters"
            )


def is_ignored(name: str) -> bool:
    """Whether `name` is a derived buffer, which is neither read nor missed."""
    return IGNORED.fullmatch(name) is not None


def is_passed_over(name: str) -> bool:
    """Whether `name` is no part of the language model, though it may be there."""
    return name == CLASSIFIER or is_ignored(name)


def check_names(
    found: Mapping[str, tuple[int, ...]],
    config: KoGPTConfig,
    where: str,
    allow_extra: Collection[str] = (),
    model_class: type[KoGPT] | None = None,
) -> list[str]:
    """Holds the names and shapes found in a checkpoint against those of a model.

    Args:
        found: name -> shape of all that the checkpoint holds.
        config: the shape of the model.
        where: the checkpoint, for messages.
        allow_extra: patterns of names of additional tensors to let pass.
        model_class: of the model; None for the one that belongs to the config.

    Returns:
        The names let pass.

    Raises:
        InputRefusedError: the first name that is missing, unknown or misshapen.
    """
    model_class = model_class or class_of(config)
    wanted = expand(config, model_class)
    for name in found:
        if QUANTISED.fullmatch(name):
            raise InputRefusedError(
                f"{where}: {name} marks a quantised copy; convert the original weights instead"
            )
    for name, shape in wanted.items():
        if name not in found:
            raise InputRefusedError(f"{where}: {missing([name], found)}")
        if found[name] != shape:
            raise InputRefusedError(
                f"{where}: {name} has shape {list(found[name])}, the config asks for {list(shape)}"
            )
    if CLASSIFIER in found:
        _check_classifier(found[CLASSIFIER], config, where)
    extra = [name for name in found if name not in wanted and not is_passed_over(name)]
    for name in extra:
        if not any(fnmatchcase(name, pattern) for pattern in allow_extra):
            raise InputRefusedError(
                f"{where}: {name} is no part of a {model_class.__name__}; if it belongs to a class"
                " of your own, name that by --architecture, with commands that take one; `kogpt"
                " convert --allow-extra` would leave it out"
            )
    return extra


def numbered_labels(outputs: int) -> tuple[str, ...]:
    """Names of a classifier's outputs where none are known, as transformers has them."""
    return tuple(f"LABEL_{i}" for i in range(outputs))


def missing(names: Sequence[str], found: Collection[str]) -> str:
    """What to say of a tensor that is not found under any of its names."""
    alike = [n for n in found for x in names if n.endswith(f".{x}") or x.endswith(f".{n}")]
    hint = f"; with another prefix there is {alike[0]}" if alike else ""
    return f"{' or '.join(names)} is missing{hint}"


def _check_classifier(shape: tuple[int, ...], config: KoGPTConfig, where: str) -> None:
    if len(shape) != 2 or shape[0] < 1 or shape[1] != config.n_embd:
        raise InputRefusedError(
            f"{where}: {CLASSIFIER} has shape {list(shape)}, the head of a classifier would have"
            f" [outputs, {config.n_embd}]"
        )
