"""What a model is by its headers, whether it is stored yet or only a shape."""

import os
from typing import NamedTuple

import torch

from kogpt.checkpoint.quantization import Quantization
from kogpt.checkpoint.reader import open_checkpoint
from kogpt.model.config import KoGPTConfig
from kogpt.model.transformer import KoGPT
from kogpt.model.variants import find_config, is_shape


class ModelHeaders(NamedTuple):
    """What is known of a model before a weight is read.

    Attributes:
        config: its shape.
        dtype: of what is stored as floats; None where nothing is stored.
        quantization: of its matrices; None for none.
    """

    config: KoGPTConfig
    dtype: torch.dtype | None = None
    quantization: Quantization | None = None


def read_headers(
    name: str | os.PathLike[str], model_class: type[KoGPT] | None = None
) -> ModelHeaders:
    """Reads the headers of a preset by its name, a `config.json`, or a checkpoint.

    Args:
        name: preset, file or folder.
        model_class: of the model; None for the one that belongs to its config.

    Raises:
        InputRefusedError: it cannot be read, or a checkpoint is not what its config says.
    """
    if is_shape(str(name)):
        return ModelHeaders(find_config(str(name), model_class))
    with open_checkpoint(name, model_class) as reader:
        config = reader.require_config()
        reader.check(config)
        return ModelHeaders(config, reader.stored_dtype, reader.quantization)
