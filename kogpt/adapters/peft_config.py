"""peft's `adapter_config.json`: what of it is read, what is passed over, what is refused.

A key that is known is read or of no effect on what is computed. Any other key is that of another
method or of a later peft: it may be there as long as it is off.
"""

import re
import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, NoReturn

from kogpt.adapters.expressions import fitting
from kogpt.adapters.lora import LoRALinear
from kogpt.errors import InputRefusedError
from kogpt.model import KoGPTConfig
from kogpt.textfiles import brief

LORA, PROMPT_TUNING, P_TUNING = "LORA", "PROMPT_TUNING", "P_TUNING"
CAUSAL_LM, SEQ_CLS = "CAUSAL_LM", "SEQ_CLS"

MAX_FLOAT = sys.float_info.max  # integers may be larger

# What a key may hold and be off.
OFF: tuple[object, ...] = (None, False, "", [], {})

COMMON = {
    *("peft_type", "task_type", "modules_to_save"),
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision"),
}
OF_PROMPTS = {
    *("num_virtual_tokens", "token_dim", "num_transformer_submodules"),
    *("num_attention_heads", "num_layers"),
}
OF_KIND = {
    LORA: {
        *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("bias", "init_lora_weights", "lora_dropout", "megatron_core", "qalora_group_size"),
        *("eva_config", "runtime_config"),
    },
    PROMPT_TUNING: {
        *OF_PROMPTS,
        *("prompt_tuning_init", "prompt_tuning_init_text"),
        *("tokenizer_name_or_path", "tokenizer_kwargs"),
    },
    P_TUNING: {
        *OF_PROMPTS,
        *("encoder_reparameterization_type", "encoder_hidden_size"),
        *("encoder_num_layers", "encoder_dropout"),
    },
}
# Ways to begin that leave the base as it is; others train beside a base that they changed.
HARMLESS_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
HEADS = ("score", "classifier")  # the second is the other name peft looks for
NUMBER_OF_LAYER = re.compile(r"transformer\.h\.(\d+)\.")
PLAIN = re.compile(r"[\w.]+")


@dataclass(frozen=True)
class LoRATable:
    """What an adapter of low-rank updates says of itself, checked.

    Attributes:
        where: the file, for messages.
        values: its keys.
        has_head: whether a head comes with it.
    """

    where: str
    values: Mapping[str, Any]
    has_head: bool

    def layers(self, all_layers: Collection[str]) -> list[str]:
        """Which layers have updates, of all that can have one, in their order.

        Raises:
            InputRefusedError: none has, or it is told by what is no regular expression that can be
                tried.
        """
        chosen, numbers = self._named("target_modules", all_layers), self._numbers()
        if numbers:  # peft takes an empty list for all
            chosen = [layer for layer in chosen if _number(layer) in numbers]
        if not chosen:
            _refuse(self.where, "target_modules", self.values, "no layer")
        excluded = self._named("exclude_modules", chosen)
        if len(excluded) == len(chosen):
            _refuse(self.where, "exclude_modules", self.values, "leaves no layer")
        return [layer for layer in chosen if layer not in excluded]

    def _named(self, key: str, layers: Collection[str]) -> list[str]:
        """Those of some layers that a list of names names, or an expression fits."""
        named = self.values.get(key) or ()
        if not isinstance(named, str):
            return [layer for layer in layers if any(_ends_in(layer, name) for name in named)]
        try:
            return fitting(named, layers)
        except ValueError as error:
            _refuse(self.where, key, self.values, str(error))

    def rank(self, layer: str) -> int:
        return self._of_layer("rank_pattern", layer, self.values["r"])

    def alpha(self, layer: str) -> float:
        """Numerator of the update's scale, which is alpha / rank."""
        alpha = self._of_layer("alpha_pattern", layer, self.values["lora_alpha"])
        # Rank-stabilised (Kalajdzievski, arXiv 2312.03732): divided by the root of the rank.
        return alpha * sqrt(self.rank(layer)) if self.values.get("use_rslora") else float(alpha)

    def _of_layer(self, key: str, layer: str, default: Any) -> Any:
        """By the first name that fits as peft reads it: a dot in it stands for any character."""
        pattern = self.values.get(key) or {}
        fits = (value for name, value in pattern.items() if re.fullmatch(rf"(.*\.)?{name}", layer))
        return next(fits, default)

    def _numbers(self) -> list[int] | None:
        numbers = self.values.get("layers_to_transform")
        return [numbers] if isinstance(numbers, int) else numbers


@dataclass(frozen=True)
class PromptTable:
    """What a soft prompt says of itself, checked.

    Attributes:
        tokens: virtual ones.
        has_head: whether a head comes with it.
    """

    tokens: int
    has_head: bool


def parse_config(values: Mapping[str, Any], where: str) -> LoRATable | PromptTable:
    """Reads the keys of an `adapter_config.json`.

    Raises:
        InputRefusedError: it is another kind of adapter, or asks for what is not read here.
    """
    kind = values.get("peft_type")
    if not isinstance(kind, str) or kind not in OF_KIND:
        raise InputRefusedError(f"{where}: peft_type is {brief(kind)}, of {', '.join(OF_KIND)}")
    for key, value in values.items():
        if key not in COMMON and key not in OF_KIND[kind] and value not in OFF:
            raise InputRefusedError(f"{where}: {brief(key)} is {brief(value)}: not supported")
    has_head = _has_head(values, where)
    if kind == LORA:
        _check_lora(values, where)
        return LoRATable(where, values, has_head)
    _check_count("num_virtual_tokens", values.get("num_virtual_tokens"), where)
    if values.get("num_transformer_submodules") not in (None, 1):
        _refuse(where, "num_transformer_submodules", values, "must be 1")
    return PromptTable(values["num_virtual_tokens"], has_head)


def _has_head(values: Mapping[str, Any], where: str) -> bool:
    if values.get("task_type") not in (None, CAUSAL_LM, SEQ_CLS):
        _refuse(where, "task_type", values, f"must be {CAUSAL_LM} or {SEQ_CLS}")
    saved = values.get("modules_to_save") or []
    if not isinstance(saved, list) or not all(name in HEADS for name in saved):
        _refuse(where, "modules_to_save", values, "may name score alone")
    return "score" in saved


def _check_lora(values: Mapping[str, Any], where: str) -> None:
    _check_count("r", values.get("r"), where)
    _check_scale("lora_alpha", values.get("lora_alpha"), where)
    if values.get("bias", "none") != "none":
        _refuse(where, "bias", values, "must be none")
    if values.get("init_lora_weights") not in HARMLESS_INITS:
        _refuse(where, "init_lora_weights", values, "belongs to a base that it changed")
    if values.get("layers_pattern") not in (*OFF, "h", ["h"]):
        _refuse(where, "layers_pattern", values, "must be h")
    targets = values.get("target_modules")
    excluded = values.get("exclude_modules") or ""
    for key, named in (("target_modules", targets), ("exclude_modules", excluded)):
        if not isinstance(named, str) and not _is_list_of(named, str):
            _refuse(where, key, values, "must be a list of names, or an expression")
    numbers = values.get("layers_to_transform")
    if isinstance(targets, str) and numbers is not None:
        _refuse(where, "layers_to_transform", values, "goes with a list of target_modules alone")
    if numbers is not None and type(numbers) is not int and not _is_list_of(numbers, int):
        _refuse(where, "layers_to_transform", values, "must hold numbers of layers")
    for key, check in (("rank_pattern", _check_count), ("alpha_pattern", _check_scale)):
        pattern = values.get(key) or {}
        if not isinstance(pattern, dict) or not all(map(PLAIN.fullmatch, pattern)):
            _refuse(where, key, values, "must be a table by names of layers, not by expressions")
        for name, value in pattern.items():
            check(f"{key} of {name}", value, where)


def _check_count(key: str, value: object, where: str) -> None:
    if type(value) is not int or not 1 <= value < 1 << 20:
        raise InputRefusedError(f"{where}: {key} is {brief(value)}, it must be a number from 1")


def _check_scale(key: str, value: object, where: str) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value <= MAX_FLOAT:  # type: ignore[operator]
        raise InputRefusedError(f"{where}: {key} is {brief(value)}, it must be above 0")


def _is_list_of(value: object, kind: type) -> bool:
    return isinstance(value, list) and all(type(item) is kind for item in value)


def _refuse(where: str, key: str, values: Mapping[str, Any], rule: str) -> NoReturn:
    raise InputRefusedError(f"{where}: {key} is {brief(values.get(key))}: {rule}")


def _ends_in(layer: str, name: str) -> bool:
    return layer == name or layer.endswith(f".{name}")


def _number(layer: str) -> int:
    match = NUMBER_OF_LAYER.match(layer)
    assert match, "updates are of layers of blocks"
    return int(match[1])


def describe_lora(
    updates: Mapping[str, LoRALinear], all_layers: Sequence[str], has_head: bool
) -> dict[str, Any]:
    """The keys of an adapter of low-rank updates.

    Args:
        updates: by the names of their layers.
        all_layers: those that can have one.
        has_head: whether a head comes with it.
    """
    ranks = {layer: update.rank for layer, update in updates.items()}
    alphas = {layer: update.alpha for layer, update in updates.items()}
    rank, alpha = _commonest(ranks), _commonest(alphas)
    return {
        **_common(LORA, has_head),
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": max(update.dropout.p for update in updates.values()),
        "target_modules": _targets(updates, all_layers),
        "rank_pattern": {name: r for name, r in ranks.items() if r != rank},
        "alpha_pattern": {name: a for name, a in alphas.items() if a != alpha},
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "layers_to_transform": None,
        "use_rslora": False,
    }


def describe_prompt(kind: str, tokens: int, config: KoGPTConfig, has_head: bool) -> dict[str, Any]:
    """The keys of a soft prompt of either kind."""
    return {
        **_common(kind, has_head),
        "num_virtual_tokens": tokens,
        "token_dim": config.n_embd,
        "num_transformer_submodules": 1,
        "num_attention_heads": config.n_head,
        "num_layers": config.n_layer,
    }


def _common(kind: str, has_head: bool) -> dict[str, Any]:
    return {
        "peft_type": kind,
        "task_type": SEQ_CLS if has_head else CAUSAL_LM,
        "modules_to_save": ["score"] if has_head else None,
        "inference_mode": True,
    }


def _commonest(values: Mapping[str, Any]) -> Any:
    return Counter(values.values()).most_common(1)[0][0]


def _targets(updates: Collection[str], all_layers: Sequence[str]) -> list[str]:
    """Last names, where all layers of these have updates; else whole ones."""
    short = {layer.rpartition(".")[2] for layer in updates}
    meant = [layer for layer in all_layers if layer.rpartition(".")[2] in short]
    return sorted(short) if len(meant) == len(updates) else list(updates)
