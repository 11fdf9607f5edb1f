"""Seeing, and replacing, what passes through a network while it runs; the network stays as it is.

Everything hangs on hooks and on one wrapped attribute, all of which are gone when the context ends.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from inspect import signature
from typing import Any

from torch import Tensor, nn

from kogpt.diagnostics.trace_sites import Place, Site

See = Callable[[Tensor], Tensor | None]
Undo = Callable[[], object]
Attend = Callable[..., Tensor]  # of (q, k, v, ...), each (B, T, H, D)


@contextmanager
def watching(
    model: nn.Module,
    places: Iterable[tuple[Site, Place]],
    see: Callable[[Site, Tensor], Tensor | None],
) -> Iterator[None]:
    """Has `see` called with each site and its tensor, in the order in which they are computed.

    Args:
        model: the network; places in modules that it has not are passed over.
        places: what to watch.
        see: gives the tensor that the network goes on with, or None to leave it as it is. Only
            where the place has no `take`, which has no way back.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    with ExitStack() as stack:
        for site, place in places:
            if place.module in modules:
                taken = partial(_take, partial(see, site), place, model)
                stack.callback(ATTACH[place.end](modules[place.module], taken))
        yield


def _take(see: See, place: Place, model: nn.Module, tensor: Tensor) -> Tensor | None:
    if place.take is None:
        return see(tensor)
    replaced = see(place.take(tensor, model.config))
    assert replaced is None, "what was taken out of a tensor cannot be put back"
    return None


def _on_output(module: nn.Module, see: See) -> Undo:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        return _seen(see, output)

    return module.register_forward_hook(hook).remove


def _on_input(module: nn.Module, see: See) -> Undo:
    def hook(module: nn.Module, args: Any) -> Any:
        return _seen(see, args)

    return module.register_forward_pre_hook(hook).remove


def _seen(see: See, values: Any) -> Any:
    """What takes the place of a tensor, or of a tuple that begins with it; None if nothing does."""
    if isinstance(values, Tensor):
        return see(values)
    replaced = see(values[0])
    return None if replaced is None else (replaced, *values[1:])


def over_attend(module: nn.Module, answer: Callable[[Attend, list[Any]], Tensor]) -> Undo:
    """Has `answer` called in the place of a module's `attend`, with it and its arguments in order.

    It is an attribute of the instance over the method.
    """
    inner: Attend = module.attend  # type: ignore[assignment]  # torch has modules give anything
    before = vars(module).get("attend")
    order = signature(inner)

    def attend(*args: Any, **kwargs: Any) -> Tensor:
        bound = order.bind(*args, **kwargs)
        bound.apply_defaults()
        return answer(partial(inner, **bound.kwargs), list(bound.args))

    vars(module)["attend"] = attend
    if before is None:
        return partial(vars(module).pop, "attend")
    return partial(vars(module).__setitem__, "attend", before)


def _on_argument(index: int, module: nn.Module, see: See) -> Undo:
    """Watches an argument of the method `attend`."""

    def answer(attend: Attend, args: list[Any]) -> Tensor:
        replaced = see(args[index])
        if replaced is not None:
            args[index] = replaced
        return attend(*args)

    return over_attend(module, answer) if hasattr(module, "attend") else lambda: None


ATTACH: dict[str, Callable[[nn.Module, See], Undo]] = {
    "output": _on_output,
    "input": _on_input,
    "query": partial(_on_argument, 0),
    "key": partial(_on_argument, 1),
}
