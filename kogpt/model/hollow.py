"""A model without contents: names and shapes, at no cost."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kogpt.model.config import KoGPTConfig
from kogpt.model.transformer import KoGPT


class _NothingDrawn(TorchFunctionMode):
    """Draws no weights, as there is no place for any.

    torch would import sympy for that, which takes longer than reading a header.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.normal_, nn.init.normal_):
            tensor: Tensor = args[0] if args else kwargs["tensor"]
            return tensor
        return func(*args, **kwargs)


def hollow(model_class: Callable[[KoGPTConfig], KoGPT], config: KoGPTConfig) -> KoGPT:
    """A model on the meta device."""
    with torch.device("meta"), _NothingDrawn():
        return model_class(config)


def materialise(model: KoGPT, device: torch.device) -> None:
    """Brings a model to a device, where what has no contents gets memory, and tables are made anew.

    As `nn.Module.to_empty` does, which would empty the rest as well.
    """
    model._apply(lambda t: torch.empty_like(t, device=device) if t.is_meta else t.to(device))
