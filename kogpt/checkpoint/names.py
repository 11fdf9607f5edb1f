"""Names and shapes of the tensors in a GPT-J checkpoint, in network order.

A shape is written with the letters of the network's dimension key: `C` n_embd, `F` inner dim,
`V` vocabulary. The released names are also ours, so the table of that layout is the identity;
the table of mesh-transformer-jax lies in `mesh.py`.
"""

import re
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase

from kogpt.errors import InputRefusedError
from kogpt.model.config import KoGPTConfig

EMBEDDING = {"transformer.wte.weight": "VC"}

# Of every block, behind the prefix `transformer.h.{i}.`
BLOCK = {
    "ln_1.weight": "C",
    "ln_1.bias": "C",
    "attn.q_proj.weight": "CC",
    "attn.k_proj.weight": "CC",
    "attn.v_proj.weight": "CC",
    "attn.out_proj.weight": "CC",
    "mlp.fc_in.weight": "FC",
    "mlp.fc_in.bias": "F",
    "mlp.fc_out.weight": "CF",
    "mlp.fc_out.bias": "C",
}

HEAD = {
    "transformer.ln_f.weight": "C",
    "transformer.ln_f.bias": "C",
    "lm_head.weight": "VC",
    "lm_head.bias": "V",
}

# The head of a classifier (outputs, C), which may lie beside the language model's.
CLASSIFIER = "score.weight"

# Buffers that some libraries saved with the weights: the causal mask, the value put where it
# masks, and tables of rotary angles. All are derived, so they are passed over by name.
IGNORED = re.compile(
    r"transformer\.h\.\d+\.attn\.(bias|masked_bias|embed_positions)|transformer\.embed_positions"
)

# What the 4 and 8 bit formats put beside or in place of `*.weight`.
QUANTISED = re.compile(
    r".*\.(SCB|weight_format|absmax|quant_map|nested_absmax|nested_quant_map|quant_state.*"
    r"|weight\.(absmax|quant_map|quant_state|nested_absmax|nested_quant_map).*"
    r"|qweight|qzeros|scales|g_idx|weight_packed|weight_scale|weight_shape|weight_zero_point)"
)


def expand(config: KoGPTConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model of this shape: name -> shape, in network order."""
    sizes = {"C": config.n_embd, "F": config.inner_dim, "V": config.vocab_size}
    letters = dict(EMBEDDING)
    for layer in range(config.n_layer):
        letters |= {f"transformer.h.{layer}.{name}": shape for name, shape in BLOCK.items()}
    letters |= HEAD
    return {name: tuple(sizes[letter] for letter in shape) for name, shape in letters.items()}


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
) -> list[str]:
    """Holds the names and shapes found in a checkpoint against those of its config.

    Args:
        found: name -> shape of all that the checkpoint holds.
        config: the shape of the model.
        where: the checkpoint, for messages.
        allow_extra: patterns of names of additional tensors to let pass.

    Returns:
        The names let pass.

    Raises:
        InputRefusedError: the first name that is missing, unknown or misshapen.
    """
    wanted = expand(config)
    for name in found:
        if QUANTISED.fullmatch(name):
            raise InputRefusedError(
                f"{where}: {name} marks a quantised copy; convert the original weights instead"
            )
    for name, shape in wanted.items():
        if name not in found:
            raise InputRefusedError(f"{where}: {name} is missing")
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
                f"{where}: {name} is no part of a GPT-J; name it in --allow-extra to leave it out"
            )
    return extra


def _check_classifier(shape: tuple[int, ...], config: KoGPTConfig, where: str) -> None:
    if len(shape) != 2 or shape[0] < 1 or shape[1] != config.n_embd:
        raise InputRefusedError(
            f"{where}: {CLASSIFIER} has shape {list(shape)}, the head of a classifier would have"
            f" [outputs, {config.n_embd}]"
        )
