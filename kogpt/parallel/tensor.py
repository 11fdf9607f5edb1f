"""Tensor parallel: several processes hold one model, each some heads and some of every MLP.

Source: Shoeybi et al., "Megatron-LM" (arXiv 1909.08053), section 3, by PyTorch's
`parallelize_module`. q, k, v and fc_in are cut by outputs, so that a process has whole heads, its
own part of the cache among them; out_proj and fc_out are cut by inputs, and their results are
added up, biases once. Embedding and head are cut by tokens. What leaves a layer that is cut is
whole on every process, so the residual stream, the logits and whoever draws by them see no
difference, and logits are equal to the bit on all processes.

Attention's dropout draws the same for the n-th head of every process, where one process draws for
each head anew.
"""

from typing import Any

from torch import Tensor, nn
from torch.distributed import DeviceMesh
from torch.distributed.tensor import (
    DTensor,
    Placement,
    Replicate,
    Shard,
    distribute_module,
    distribute_tensor,
)
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)

from kogpt.errors import ParameterError
from kogpt.model import KoGPT, KoGPTConfig
from kogpt.model.source import change
from kogpt.model.variants.parts import TiedHead
from kogpt.parallel.processes import Parallel

TIED = "tensor parallel cuts a head of its own; this model's is the embedding"


class Whole(ParallelStyle):
    """A layer that every process holds whole.

    Args:
        gives_local: whether what follows expects a plain tensor. Where all that follows is cut by
            outputs it does not: then gradients of all are added up before they meet, once.
    """

    def __init__(self, gives_local: bool) -> None:
        self.gives_local = gives_local

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        # PyTorch annotates the hooks as giving nothing, and documents what they give.
        hooks: Any = self._enter, self._leave
        return distribute_module(module, device_mesh, None, *hooks)

    @staticmethod
    def _enter(module: nn.Module, given: tuple[Tensor], mesh: DeviceMesh) -> DTensor:
        return DTensor.from_local(given[0], mesh, [Replicate()], run_check=False)

    def _leave(self, module: nn.Module, result: DTensor, mesh: DeviceMesh) -> Tensor:
        return result.to_local() if self.gives_local else result


class Updated(ParallelStyle):
    """A layer with a low-rank update, cut as its base is.

    Inside all are DTensors, and PyTorch adds up what has to be. Where the layer is cut by outputs,
    so is the factor B. Where it is cut by inputs the update is whole, and so is what it reads.

    Args:
        by_outputs: how the base is cut.
        gives_local: whether what follows expects a plain tensor; not another update around it.
    """

    def __init__(self, by_outputs: bool, gives_local: bool) -> None:
        self.of_B: Placement = Shard(0) if by_outputs else Replicate()
        self.comes: Placement = Replicate() if by_outputs else Shard(-1)
        self.gives: Placement = Shard(-1) if by_outputs else Replicate()
        self.gives_local = gives_local

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        hooks: Any = self._enter, self._leave
        return distribute_module(module, device_mesh, self._place, *hooks)

    def _place(self, name: str, module: nn.Module, mesh: DeviceMesh) -> None:
        if name == "":
            B = module.get_parameter("lora_B")
            cut = distribute_tensor(B.data, mesh, [self.of_B], src_data_rank=None)
            module.register_parameter("lora_B", nn.Parameter(cut, B.requires_grad))

    def _enter(self, module: nn.Module, given: tuple[Tensor], mesh: DeviceMesh) -> DTensor:
        x = given[0]
        if not isinstance(x, DTensor):
            x = DTensor.from_local(x, mesh, [self.comes], run_check=False)
        return x.redistribute(placements=[Replicate()])

    def _leave(self, module: nn.Module, result: DTensor, mesh: DeviceMesh) -> Tensor:
        result = result.redistribute(placements=[self.gives])
        return result.to_local() if self.gives_local else result


def tensor_parallel(model: KoGPT, parallel: Parallel) -> None:
    """Cuts a model, in place, for the processes that hold it together.

    Its parameters become DTensors. Of parameters with values every process keeps its own part; all
    must hold the same. The network's code and names stay as they are.

    Args:
        model: on the meta device, or whole on every process.
        parallel: the processes.

    Raises:
        ValueError: the model does not fall into so many parts, names both numbers; or its network
            was changed, of which nobody knows what may be cut.
    """
    if parallel.tensor_size == 1:
        return
    if changed := change():
        raise ParameterError(
            f"tensor parallel cuts released blocks only, and {changed} was changed"
        )
    check_divides(model.config, parallel.tensor_size)
    layers = plan(model, parallel.tensor_size)
    parallelize_module(model, parallel.mesh["tensor"], layers, src_data_rank=None)


def check_divides(config: KoGPTConfig, tensor: int) -> None:
    """Refuses what cannot be cut, or not evenly.

    Raises:
        ValueError: says what, and names both numbers.
    """
    if config.fixed.get("tie_word_embeddings"):
        raise ParameterError(TIED)
    for count, what in ((config.n_head, "heads"), (config.inner_dim, "inner units")):
        if count % tensor:
            raise ParameterError(
                f"tensor parallel {tensor} does not divide the model's {count} {what}"
            )


def plan(model: KoGPT, tensor: int) -> dict[str, ParallelStyle]:
    """How each layer is cut, by name.

    Raises:
        ValueError: the head is the embedding.
    """
    if isinstance(model.lm_head, TiedHead):
        raise ParameterError(TIED)
    table = _innermost(model, "transformer.wte")
    layers: dict[str, ParallelStyle] = {
        name: Whole(gives_local=True) for name in (table, "transformer.ln_f", "lm_head")
    }
    if model.config.vocab_size % tensor == 0:
        layers[table] = RowwiseParallel(input_layouts=Replicate())
        layers["lm_head"] = ColwiseParallel(output_layouts=Replicate())
    if hasattr(model, "score") and not model.prefix_ids:  # soft prompts are plain, and so is it
        layers["score"] = Whole(gives_local=True)
    for layer in range(model.config.n_layer):
        block = f"transformer.h.{layer}"
        for name, part in model.get_submodule(block).named_modules():
            if isinstance(part, model.block_class.norm_class):
                layers[f"{block}.{name}"] = Whole(gives_local=False)
        for name in ("attn.q_proj", "attn.k_proj", "attn.v_proj", "mlp.fc_in"):
            layers |= _linear(model, f"{block}.{name}", by_outputs=True)
        for name in ("attn.out_proj", "mlp.fc_out"):
            layers |= _linear(model, f"{block}.{name}", by_outputs=False)
    return layers


def _linear(model: KoGPT, name: str, by_outputs: bool) -> dict[str, ParallelStyle]:
    """How a linear layer is cut, with the updates around it, from the inside out."""
    base = _innermost(model, name)
    if not isinstance(model.get_submodule(base), nn.Linear):
        raise ParameterError(f"tensor parallel cuts weights that are floats; {base} holds integers")
    style = ColwiseParallel if by_outputs else RowwiseParallel
    layers: dict[str, ParallelStyle] = {base: style(use_local_output=base == name)}
    while base != name:
        base = base.removesuffix(".base")
        layers[base] = Updated(by_outputs, gives_local=base == name)
    return layers


def _innermost(model: KoGPT, name: str) -> str:
    """The name of what adapters lie around."""
    while isinstance(getattr(model.get_submodule(name), "base", None), nn.Module):
        name += ".base"
    return name
