"""Neighbours of KoGPT from the same parts, and which class belongs to a config."""

from os import PathLike
from pathlib import Path

from kogpt.errors import InputRefusedError
from kogpt.jsonfiles import read_config_object
from kogpt.model.config import PRESETS as KOGPT_PRESETS
from kogpt.model.config import KoGPTConfig
from kogpt.model.transformer import KoGPT
from kogpt.model.variants import gpt2, gpt_neox
from kogpt.model.variants.gpt2 import GPT2, GPT2Config
from kogpt.model.variants.gpt_neox import GPTNeoX, GPTNeoXConfig

CLASSES: dict[str, type[KoGPT]] = {
    model_class.config_class.model_type: model_class for model_class in (KoGPT, GPT2, GPTNeoX)
}

PRESETS: dict[str, KoGPTConfig] = {**KOGPT_PRESETS, **gpt2.PRESETS, **gpt_neox.PRESETS}

__all__ = [
    "CLASSES",
    "GPT2",
    "PRESETS",
    "GPT2Config",
    "GPTNeoX",
    "GPTNeoXConfig",
    "class_of",
    "find_config",
    "is_shape",
    "read_config",
]


def class_of(config: KoGPTConfig) -> type[KoGPT]:
    """The class of the models that a config describes.

    Raises:
        ValueError: it is none of `CLASSES`; such a model's class has to be given.
    """
    if config.model_type not in CLASSES:
        raise ValueError(f"no model class for a config of model_type {config.model_type!r}")
    return CLASSES[config.model_type]


def is_shape(name: str) -> bool:
    """Whether a name is that of a `config.json` or a preset, not of a checkpoint folder, which
    goes before a preset of its name.
    """
    is_folder = (Path(name) / "config.json").is_file()
    return Path(name).suffix == ".json" or (name in PRESETS and not is_folder)


def find_config(name: str, model_class: type[KoGPT] | None = None) -> KoGPTConfig:
    """A preset by its name, or else the `config.json` at that path.

    Args:
        name: of the preset or file.
        model_class: of the model, whose kind of config it becomes; None for the one that belongs.

    Raises:
        InputRefusedError: the file cannot be read, or the config is of another model.
    """
    if name not in PRESETS:
        return read_config(name, model_class)
    if model_class is None or type(PRESETS[name]) is model_class.config_class:
        return PRESETS[name]
    return model_class.config_class.from_dict(PRESETS[name].to_dict())


def read_config(path: str | PathLike[str], model_class: type[KoGPT] | None = None) -> KoGPTConfig:
    """Reads a `config.json`, in the layout of a release or in ours.

    Args:
        path: of the file.
        model_class: of the model; None for the one of `CLASSES` that the file names.

    Raises:
        InputRefusedError: it cannot be read, or is of another model; the message names the file.
    """
    if model_class is not None:
        return model_class.config_class.from_file(path)
    kind = read_config_object(Path(path)).get("model_type", KoGPTConfig.model_type)
    for model_class in CLASSES.values():
        config_class = model_class.config_class
        if kind in (config_class.model_type, config_class.released_type):
            return config_class.from_file(path)
    known = ", ".join(one.config_class.released_type for one in CLASSES.values())
    raise InputRefusedError(
        f"{path}: model_type is {kind!r}; known are {known}, and others if given their class"
    )
