"""The methods of finetuning: what each puts into a model, and what of it is learnt."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from kogpt.adapters import attach_head, attach_lora, attach_prompt
from kogpt.adapters.head import StoredHead, put_head, read_head
from kogpt.checkpoint import load_model
from kogpt.choices import FLOAT32, FULL, LORA, QLORA
from kogpt.errors import InputRefusedError
from kogpt.kernels.frozen import FrozenLinear
from kogpt.model import KoGPT
from kogpt.parallel import Parallel
from kogpt.parallel.parts import Rows, fill
from kogpt.training.config import FinetuningConfig
from kogpt.training.model import load_weights, own_class
from kogpt.training.optimizer import trained
from kogpt.training.sharing import share_out


def start_model(config: FinetuningConfig, labels: tuple[str, ...], parallel: Parallel) -> KoGPT:
    """The model with what the method puts into it, and a head with these labels, if any.

    Raises:
        InputRefusedError: it cannot be loaded, or holds no integers for QLoRA.
        ValueError: what the method puts in does not fit it.
    """
    dtype = base_dtype(config)
    if config.method in (FULL, LORA):
        add = partial(attach_method, config=config, labels=labels)
        return load_weights(Path(config.model), dtype, config, parallel, add)
    # Whole at first: integers are not cut, and a prompt begins as rows of the table.
    quantized = config.method == QLORA
    own = own_class(config)
    model = load_model(config.model, dtype, parallel.device, model_class=own, quantized=quantized)
    if quantized and not any(isinstance(module, FrozenLinear) for module in model.modules()):
        raise InputRefusedError(
            f"{config.model}: holds no integers to keep: kogpt convert --quantize int4, or lora"
        )
    attach_method(model, config, labels)
    share_out(model, config, parallel)
    return model


def base_dtype(config: FinetuningConfig) -> torch.dtype:
    """The dtype of the model's own weights, where they are not integers."""
    # Weights that are not trained need no more digits than products of them have.
    narrow = config.weights != FLOAT32 if config.method == FULL else config.precision == "bfloat16"
    return torch.bfloat16 if narrow else torch.float32


def attach_method(model: KoGPT, config: FinetuningConfig, labels: tuple[str, ...] = ()) -> None:
    """Puts into the model what the method and a head with these labels, if any, add to it.

    Raises:
        ValueError: it does not fit the model.
    """
    generator = torch.Generator().manual_seed(config.seed)
    if config.method in (LORA, QLORA):
        attach_lora(model, config.lora, generator)
    elif config.method != FULL:
        attach_prompt(model, config.soft_prompt, generator)
    if labels:
        stored = stored_head(config, len(labels))
        if stored is None:
            attach_head(model, len(labels), generator, labels)
        else:
            put_head(model, stored._replace(labels=labels))
        for name, parameter in model.named_parameters():
            if name.startswith("lm_head."):
                parameter.requires_grad_(False)  # nothing asks for tokens


def stored_head(config: FinetuningConfig, outputs: int) -> StoredHead | None:
    """The head that the base has already, if it has so many outputs: training goes on with it."""
    head = read_head(config.model, own_class(config))
    return head if head is not None and len(head.weight) == outputs else None


def learnt(model: KoGPT, method: str) -> dict[str, Tensor]:
    """What a method changes, by name: parameters, and with all of them buffers that are saved."""
    buffers = saved_buffers(model) if method == FULL else {}
    return {**trained(model), **buffers}


def saved_buffers(model: KoGPT) -> dict[str, Tensor]:
    """Buffers that a checkpoint holds, by name; of a class of one's own."""
    names = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in names}


@torch.no_grad()
def restore(learnt: Mapping[str, Tensor], tensors: Mapping[str, Rows]) -> None:
    """Puts back what was learnt.

    Raises:
        InputRefusedError: it is of another model or method.
    """
    if learnt.keys() != tensors.keys():
        odd = min(learnt.keys() ^ tensors.keys())
        raise InputRefusedError(f"cannot resume with another model: {odd} is in one of both")
    for name, tensor in learnt.items():
        fill(tensor, tensors[name].__getitem__)
