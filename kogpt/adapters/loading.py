"""Puts stored adapters into a model that is to be used."""

import os
from collections.abc import Sequence

from kogpt.adapters.config import home, refuse_prepared
from kogpt.adapters.files import Adapter, Update, read_adapter
from kogpt.adapters.head import put_head, refuse_second_head
from kogpt.adapters.lora import LoRALinear
from kogpt.adapters.prompt import SoftPrompt, put_prompt
from kogpt.errors import InputRefusedError
from kogpt.model import KoGPT, KoGPTConfig

Folder = str | os.PathLike[str]
Folders = Folder | Sequence[Folder]


def read_adapters(
    folders: Folders, config: KoGPTConfig, model_class: type[KoGPT] | None = None, held: int = 0
) -> list[Adapter]:
    """Reads one adapter, or several that are to be used together, for a model of this shape.

    `config` and `model_class` are as for `read_adapter`; `held` is how many virtual tokens the
    model has already.

    Raises:
        InputRefusedError: as `read_adapter`; or two have a head, or their prompts fill the context.
    """
    folders = [folders] if isinstance(folders, str | os.PathLike) else folders
    adapters = [read_adapter(folder, config, model_class) for folder in folders]
    headed = [adapter for adapter in adapters if adapter.head is not None]
    if len(headed) > 1:
        raise InputRefusedError(f"{headed[1].folder}: has a head, and so has {headed[0].folder}")
    tokens = held + len(virtual_ids(adapters, config))
    if adapters and tokens >= config.n_positions:
        raise InputRefusedError(
            f"{adapters[-1].folder}: {tokens} virtual tokens in all, the context of the model"
            f" holds {config.n_positions}"
        )
    return adapters


def virtual_ids(adapters: Sequence[Adapter], config: KoGPTConfig) -> range:
    """The ids of the virtual tokens of adapters together."""
    count = sum(len(adapter.prompt) for adapter in adapters if adapter.prompt is not None)
    return range(config.vocab_size, config.vocab_size + count)


def load_adapters(model: KoGPT, folders: Folders) -> None:
    """Puts adapters into a model, to be used and not to be trained further.

    Updates add up; soft prompts follow one another; a head becomes `model.score`.

    Args:
        model: changed in place.
        folders: of one adapter, or of several.

    Raises:
        InputRefusedError: as `read_adapters`.
        ValueError: the model has a head already, and so has an adapter; or it is one prepared for
            decoding. Either way the model is as it was.
    """
    refuse_prepared(model)
    adapters = read_adapters(folders, model.config, type(model), held=len(model.prefix_ids))
    if any(adapter.head is not None for adapter in adapters):
        refuse_second_head(model)
    for adapter in adapters:
        put_adapter(model, adapter)


def put_adapter(model: KoGPT, adapter: Adapter) -> None:
    """Puts one adapter into a model."""
    if adapter.prompt is not None:  # first, as a class of one's own may refuse it
        prompt = SoftPrompt(*adapter.prompt.shape)
        prompt.embedding.weight.data = adapter.prompt
        put_prompt(model, prompt.requires_grad_(False))
    for name, update in adapter.updates.items():
        put_update(model, name, update)
    if adapter.head is not None:
        put_head(model, adapter.head)
        model.get_submodule("score").requires_grad_(False)


def put_update(model: KoGPT, name: str, update: Update) -> None:
    """Puts an update beside a layer."""
    A, B = update.A.to(home(model)), update.B.to(home(model))
    layer = LoRALinear(model.get_submodule(name), A, B, update.alpha)
    layer.lora_A.requires_grad_(False)
    layer.lora_B.requires_grad_(False)
    model.set_submodule(name, layer.train(model.training))
