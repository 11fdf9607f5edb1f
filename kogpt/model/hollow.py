"""A model without contents: names and shapes, at no cost."""

import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kogpt.errors import InputRefusedError
from kogpt.model.config import KoGPTConfig
from kogpt.model.transformer import KoGPT

# In what torch says, not in what else may say "meta".
NO_CONTENTS = re.compile(
    r"meta (tensor|device)|tensors? on meta|on device meta|devices.*\bmeta\b|'Meta' backend"
    r"|register_meta|Tensor\.__format__",
    re.IGNORECASE,
)


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
    """A model on the meta device.

    Raises:
        InputRefusedError: a class of one's own reads a tensor's contents as it is made; names the
            line.
    """
    try:
        with torch.device("meta"), _NothingDrawn():
            return unwritten(model_class, config)
    except (RuntimeError, TypeError) as error:
        if not NO_CONTENTS.search(str(error)):
            raise
        where = _own_line(error)
        raise InputRefusedError(
            f"{where}: reads the contents of a tensor in `__init__`, but models are also made "
            "without any: compute there with numbers of Python"
        ) from error


def unwritten(model_class: Callable[[KoGPTConfig], KoGPT], config: KoGPTConfig) -> KoGPT:
    """A model whose `init_weights`, with which making one ends, is yet to be called.

    A class of one's own may scale there what parts drew, so it must not be called twice; and may
    make parts, to be drawn there, after the rest.
    """
    if not isinstance(model_class, type):
        return model_class(config)
    model: KoGPT = object.__new__(model_class)
    vars(model)["init_weights"] = lambda *args, **more: None  # goes before the method
    model_class.__init__(model, config)  # type: ignore[misc]
    del vars(model)["init_weights"]
    return model


def _own_line(error: Exception) -> str:
    """The last line on the way to an error that is neither torch's nor here."""
    frames = traceback.extract_tb(error.__traceback__)
    parts = Path(torch.__file__).parent, Path(__file__)
    own = [f for f in frames if not any(Path(f.filename).is_relative_to(part) for part in parts)]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else "a class of your own"


def materialise(model: KoGPT, place: Callable[[Tensor], torch.device]) -> None:
    """Brings a model to where each tensor belongs; what has no contents gets memory there.

    Tables are made anew. As `nn.Module.to_empty` does, which would empty the rest as well.
    """

    def bring(tensor: Tensor) -> Tensor:
        device = place(tensor)
        return torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device)

    model._apply(bring)
