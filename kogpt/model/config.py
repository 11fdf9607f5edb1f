"""The shape of a model: the fields of the released `config.json`, read strictly."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

from kogpt.errors import InputRefusedError
from kogpt.jsonfiles import read_config_object

# No GPT-J is near these; larger values come from damaged or hostile files.
LIMITS = {
    "vocab_size": 1 << 24,
    "n_positions": 1 << 20,
    "n_embd": 1 << 17,
    "n_layer": 1 << 10,
    "n_head": 1 << 12,
    "n_inner": 1 << 20,
}
SIZES = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")  # that every file tells


@dataclass(frozen=True)
class KoGPTConfig:
    """Sizes and probabilities of a GPT-J, by default those of KoGPT (6,166,502,400 parameters).

    Another network that is more than a `KoGPT` with other sizes has a subclass of this, with the
    fields that it adds and a `model_type` of its own, by which its checkpoints are told apart.

    Attributes:
        model_type: what `config.json` calls the network.
        released_type: what it calls the network in the layout of its own release.
        architecture: its class in transformers.
        fixed: what entries of a file must be; with other values it describes another network.
        absent: what a key that a file leaves out stands for, where that is not the default here.
        vocab_size: rows of the embedding and of the head.
        n_positions: longest sequence, in tokens.
        n_embd: width of the residual stream.
        n_layer: number of blocks.
        n_head: attention heads; each is `n_embd / n_head` wide.
        rotary_dim: leading dims of each head that are rotated; 0 for none, None for all.
        n_inner: inner width of the MLP; None for four times `n_embd`.
        layer_norm_epsilon: added to the variance in each LayerNorm.
        attn_pdrop: dropout of attention weights in training.
        embd_pdrop: dropout of embeddings in training.
        resid_pdrop: dropout of what each block adds to the residual stream, in training.
        initializer_range: standard deviation of new weights.
        bos_token_id: id that begins a text, if the model has one.
        eos_token_id: id that ends a text, if the model has one; several are a tuple.
        pad_token_id: id that fills a batch, if the model has one.

    Raises:
        InputRefusedError: a value makes no sense; the message names it.
    """

    model_type: ClassVar[str] = "gptj"
    released_type: ClassVar[str] = "gptj"
    architecture: ClassVar[str] = "GPTJForCausalLM"
    fixed: ClassVar[Mapping[str, Any]] = {
        "activation_function": "gelu_new",
        "tie_word_embeddings": False,
        "scale_attn_weights": True,
    }
    # The library that writes most files leaves out what equals its own default.
    absent: ClassVar[Mapping[str, Any]] = {
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "bos_token_id": None,
        "eos_token_id": None,
    }

    vocab_size: int = 64512
    n_positions: int = 2048
    n_embd: int = 4096
    n_layer: int = 28
    n_head: int = 16
    rotary_dim: int | None = 64
    n_inner: int | None = None
    layer_norm_epsilon: float = 1e-5
    attn_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    resid_pdrop: float = 0.0
    initializer_range: float = 0.02
    bos_token_id: int | None = 0
    eos_token_id: int | tuple[int, ...] | None = 1
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        for name, limit in LIMITS.items():
            value = getattr(self, name)
            if not (value is None and name == "n_inner"):
                _check_int(name, value, 1, limit)
        if self.n_embd % self.n_head:
            raise InputRefusedError(f"n_embd {self.n_embd} is no multiple of n_head {self.n_head}")
        if self.rotary_dim is not None:
            _check_int("rotary_dim", self.rotary_dim, 0, self.head_dim)
        if self.rotary_width % 2:
            raise InputRefusedError(f"rotary_dim {self.rotary_width} is odd: dims turn in pairs")
        for name in ("attn_pdrop", "embd_pdrop", "resid_pdrop"):
            check_float(name, getattr(self, name), 0.0, 1.0)
        check_float("layer_norm_epsilon", self.layer_norm_epsilon, 0.0, 1.0)
        check_float("initializer_range", self.initializer_range, 0.0, 100.0)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            several = name == "eos_token_id" and isinstance(value, tuple) and len(value) > 1
            for id in value if several else () if value is None else (value,):
                # Not held to vocab_size: ids come from the tokenizer, and many files are careless.
                _check_int(name, id, 0, LIMITS["vocab_size"])

    @property
    def head_dim(self) -> int:
        """Width of one attention head, D."""
        return self.n_embd // self.n_head

    @property
    def inner_dim(self) -> int:
        """Inner width of the MLP, F."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    @property
    def rotary_width(self) -> int:
        """Leading dims of each head that are rotated, R."""
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    @property
    def num_parameters(self) -> int:
        """Exact count of the parameters."""
        C, F, V = self.n_embd, self.inner_dim, self.vocab_size
        attention, mlp, norm = 4 * C * C, 2 * C * F + F + C, 2 * C
        return self.n_layer * (attention + mlp + norm) + 2 * V * C + V + norm

    @classmethod
    def preset(cls, name: str) -> "KoGPTConfig":
        """A known shape by its name.

        Raises:
            ValueError: there is no such preset; the message lists those there are.
        """
        if name not in PRESETS:
            raise ValueError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
        return PRESETS[name]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Reads the keys of a `config.json`.

        Keys about other things (tasks, library versions, dtypes) are passed over. A file of the
        network that this one was made from is read too, as far as it goes.

        Raises:
            InputRefusedError: the file describes another architecture, or lacks a size.
        """
        if "model_type" not in values:
            raise InputRefusedError("model_type is missing: this is not a model's config.json")
        parents = [parent for parent in cls.__mro__ if issubclass(parent, KoGPTConfig)]
        known = [kind for each in parents for kind in (each.model_type, each.released_type)]
        if values["model_type"] not in known:
            raise InputRefusedError(
                f"model_type is {values['model_type']!r}, this model's is {cls.model_type!r}"
            )
        for key, fixed in cls.fixed.items():
            if values.get(key) not in (None, fixed):
                raise InputRefusedError(
                    f"{key} is {values[key]!r}, in {cls.model_type} it is {fixed!r}"
                )
        if missing := [name for name in SIZES if name not in values]:
            raise InputRefusedError(f"{missing[0]} is missing from the config")
        fields = {f.name: f.type for f in dataclasses.fields(cls)}
        given = {key: _as(fields[key], key, values[key]) for key in fields.keys() & values.keys()}
        for key, value in given.items():
            if isinstance(value, Mapping):
                raise InputRefusedError(f"{key} is an object: fields are numbers, texts and tuples")
        return cls(**{**cls.absent, **given})

    @classmethod
    def from_file(cls, path: str | PathLike[str]) -> Self:
        """Reads a `config.json`.

        Raises:
            InputRefusedError: it cannot be read as one; the message names the file.
        """
        values = read_config_object(Path(path))
        try:
            return cls.from_dict(values)
        except InputRefusedError as error:
            raise InputRefusedError(f"{path}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """The `config.json` of this shape, as the wider ecosystem reads it."""
        kind = {"architectures": [self.architecture], "model_type": self.model_type}
        return {**kind, **self.fixed, **dataclasses.asdict(self)}

    def to_released_dict(self) -> dict[str, Any]:
        """The same in the layout of the network's own release, for KoGPT no other."""
        return self.to_dict()


def _as(kind: Any, key: str, value: Any) -> Any:
    """The value of a field, where JSON or a library writes it otherwise."""
    if kind is float and type(value) is int and abs(value) < 1 << 53:  # 0 for 0.0
        return float(value)
    if key.endswith("_token_id"):
        return _as_id(value, several=key == "eos_token_id")
    return _as_tuples(value)


def _as_id(value: Any, several: bool) -> Any:
    """One id, or None where there is none; of a list all that differ if `several`, else the first.

    Some libraries write -1 for none.
    """
    ids = value if isinstance(value, list | tuple) else [value]
    ids = [id for id in ids if id not in (-1, None)]
    if all(type(id) is int for id in ids):  # what is none is refused later, by name
        ids = list(dict.fromkeys(ids))
    if len(ids) > 1 and several:
        return tuple(ids)
    return ids[0] if ids else None


def _as_tuples(value: Any) -> Any:
    """JSON's lists as tuples, which can be frozen."""
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InputRefusedError(f"{name} is {value!r}, it must be a whole number {low} to {high}")


def check_float(name: str, value: object, low: float, high: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high:  # type: ignore[operator]
        raise InputRefusedError(f"{name} is {value!r}, it must be a number {low} to {high}")


_KOGPT_J_BASE = KoGPTConfig(
    vocab_size=51200,
    n_positions=1024,
    n_embd=768,
    n_layer=12,
    n_head=12,
    rotary_dim=16,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)

# For studies of a changed block, with the vocabulary of the model in the box.
_STUDY = KoGPTConfig(
    vocab_size=8000,
    n_positions=1024,
    n_embd=512,
    n_layer=8,
    n_head=8,
    rotary_dim=32,
    attn_pdrop=0.0,
    embd_pdrop=0.0,
    pad_token_id=3,
)

PRESETS = {
    "kogpt-6b": KoGPTConfig(),
    "gpt-j-6b": KoGPTConfig(
        vocab_size=50400, attn_pdrop=0.0, embd_pdrop=0.0, bos_token_id=50256, eos_token_id=50256
    ),
    # The public small Korean GPT-Js (heegyu/kogpt-j-*).
    "kogpt-j-base": _KOGPT_J_BASE,
    "kogpt-j-base-24L": dataclasses.replace(_KOGPT_J_BASE, n_layer=24),
    "kogpt-j-350m": dataclasses.replace(_KOGPT_J_BASE, n_layer=20, n_embd=1024, n_head=16),
    "gpt-j-small": _STUDY,
    "gpt-j-base": dataclasses.replace(_STUDY, n_layer=12, n_embd=768, n_head=12),
    "gpt-j-large": dataclasses.replace(_STUDY, n_layer=24, n_embd=1024, n_head=16),
    # The model in the box.
    "nano": KoGPTConfig(
        vocab_size=8000,
        n_positions=1024,
        n_embd=256,
        n_layer=6,
        n_head=4,
        rotary_dim=32,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=3,
    ),
}
