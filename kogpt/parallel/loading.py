"""Models of which every process makes and reads its own part, so that nobody holds the whole."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from kogpt.adapters.config import stored_name
from kogpt.adapters.loading import Folders, put_adapter, read_adapters
from kogpt.box import BOX
from kogpt.checkpoint.dtypes import compute_dtype, parse_dtype
from kogpt.checkpoint.loading import ROOM_TO_RUN
from kogpt.checkpoint.reader import open_checkpoint
from kogpt.checkpoint.resources import require_memory
from kogpt.model import KoGPT, KoGPTConfig
from kogpt.model.hollow import hollow, materialise
from kogpt.model.variants import class_of
from kogpt.parallel.parts import fill, held, is_cut
from kogpt.parallel.processes import Parallel
from kogpt.parallel.sharding import settle
from kogpt.parallel.tensor import tensor_parallel

Cut = Callable[[KoGPT], None]


def load_parallel(
    path: str | os.PathLike[str] | None,
    parallel: Parallel,
    dtype: str | torch.dtype | None = None,
    *,
    adapters: Folders = (),
    cut: Cut | None = None,
    offload: bool = False,
) -> KoGPT:
    """Loads a model, ready to run, of which this process reads its own part.

    Args:
        path, dtype: as for `kogpt.checkpoint.load_model`.
        parallel: the processes; the model goes to this one's device.
        adapters: folders of adapters to use with it.
        cut: is given the model without values (on the meta device), to cut it and to add what it
            likes; what it adds has values or is found in the checkpoint. None cuts it by tensor
            parallel alone.
        offload: `cut` shards the model, and keeps the shards in the memory of the CPU.

    Raises:
        InputRefusedError: the checkpoint is damaged, dangerous, or not of this architecture.
        NotEnoughResourcesError: the device has no room for this process's part.
        ValueError: the model does not fall into so many parts, or `dtype` is none that weights
            come in.
    """
    with open_checkpoint(BOX if path is None else path) as reader:
        config = reader.require_config()
        reader.check(config)
        stored = compute_dtype(reader.stored_dtype, parallel.device)
        added = read_adapters(adapters, config)

        def prepare(model: KoGPT) -> None:
            for adapter in added:
                put_adapter(model, adapter)
            (cut or partial(tensor_parallel, parallel=parallel))(model)

        model = _hollow(config, stored if dtype is None else parse_dtype(dtype), prepare)
        names = _materialise(model, partial(_place, parallel, offload), str(reader.path))
        for name, parameter in model.named_parameters():
            if name in names:
                fill(parameter, _rows_of(reader.read, stored_name(name)))
    settle(model)
    return model.eval()


def new_parallel(
    config: KoGPTConfig,
    parallel: Parallel,
    generator: torch.Generator,
    *,
    cut: Cut | None = None,
    offload: bool = False,
) -> KoGPT:
    """A new model in float32, with the weights that `KoGPT.init_weights` draws for one process.

    Args:
        config: its shape.
        parallel: the processes; the model goes to this one's device.
        generator: of a CPU, in the same state on every process.
        cut, offload: as for `load_parallel`.
    """
    model = _hollow(config, torch.float32, cut or partial(tensor_parallel, parallel=parallel))
    _materialise(model, partial(_place, parallel, offload), "the model")
    type(model).init_weights(_Passing(model), generator)
    settle(model)
    return model


def _rows_of(read: Callable[[str, slice], Tensor], name: str) -> Callable[[slice], Tensor]:
    return lambda rows: read(name, rows)


def _hollow(config: KoGPTConfig, dtype: torch.dtype, cut: Cut) -> KoGPT:
    """The shapes of a model, cut."""
    model = hollow(class_of(config), config).to(dtype)
    cut(model)
    return model


def _place(parallel: Parallel, offload: bool, tensor: Tensor) -> torch.device:
    """Where a tensor of a cut model belongs: FSDP wants shards that it offloads on the CPU."""
    is_shard = parallel.data_size > 1 and is_cut(tensor)
    return torch.device("cpu") if offload and is_shard else parallel.device


def _materialise(model: KoGPT, place: Callable[[Tensor], torch.device], what: str) -> set[str]:
    """Gives memory to what has none; returns the names of those parameters."""
    empty = {name: p for name, p in model.named_parameters() if p.is_meta}
    needed: Counter[torch.device] = Counter()
    for parameter in empty.values():
        needed[place(parameter)] += held(parameter).nbytes
    for device, size in needed.items():
        require_memory(device, size + ROOM_TO_RUN, what)
    materialise(model, place)
    return set(empty)


class _Passing(KoGPT):
    """Lets `init_weights` meet the layers of a cut model one by one, each whole while it is met."""

    def __init__(self, model: KoGPT) -> None:
        nn.Module.__init__(self)
        self.config = model.config
        self._layers = list(model.modules())  # in a list: no modules of this one

    def modules(self, remove_duplicate: bool = True) -> Iterator[nn.Module]:
        for layer in self._layers:
            parameters = dict(layer.named_parameters(recurse=False))
            if not parameters:
                continue
            whole = object.__new__(type(layer))  # a copy, which FSDP's classes have not
            vars(whole).update(vars(layer), _parameters=dict(layer._parameters))
            for name, parameter in parameters.items():
                values = torch.empty(parameter.shape, dtype=parameter.dtype)
                whole._parameters[name] = nn.Parameter(values)
            yield whole
            for name, parameter in parameters.items():
                fill(parameter, whole.get_parameter(name).detach().__getitem__)
