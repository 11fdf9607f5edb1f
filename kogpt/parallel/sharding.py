"""Sharded training: every process holds a part of each parameter, its gradient and its moments.

By PyTorch's FSDP2 (`fully_shard`), on its own or over tensor parallel. A block's weights are
gathered when it is met, and given up when it is done.
"""

import math
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

import torch
from torch import nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from kogpt.model import KoGPT
from kogpt.parallel.parts import copies, held, is_cut
from kogpt.parallel.processes import Parallel

PASS = "pass_of"  # the model's method that makes of a function a forward pass

P = ParamSpec("P")
R = TypeVar("R")


def shard(
    model: KoGPT, parallel: Parallel, *, precision: str = "float32", offload: bool = False
) -> None:
    """Shards a model, in place, over the rows of the grid.

    Gradients are added up over the processes, not averaged: where each divides the summed loss of
    its rows by the number of all targets of a step, the gradient is that of one process.

    Dropout draws from each process's own generator: give each row of the grid a seed of its own,
    and all processes of a row the same.

    Args:
        model: on the meta device, or whole and the same on every process; cut by `tensor_parallel`
            and with `checkpoint_activations`, where wanted, before.
        parallel: the processes.
        precision: "bfloat16" gathers the blocks' matrices in it, to be used under autocast, which
            would round them anyway; sums of gradients, and whatever is held, stay as they are.
        offload: hold parameters, gradients and moments in the memory of the CPU.
    """
    if parallel.data_size == 1:
        return
    mesh = parallel.mesh["data"]
    # Inputs are left alone: rotary tables are among them, and bfloat16 cannot tell positions apart.
    as_is = MixedPrecisionPolicy(cast_forward_inputs=False)
    narrow = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    on_gpu = parallel.device.type == "cuda"
    where = CPUOffloadPolicy(pin_memory=on_gpu) if offload else OffloadPolicy()
    for block in model.transformer.h:
        norms = [part for part in block.modules() if isinstance(part, model.block_class.norm_class)]
        for norm in norms if precision == "bfloat16" else []:
            fully_shard(norm, mesh=mesh, mp_policy=as_is, offload_policy=where)
        policy = narrow if precision == "bfloat16" else as_is
        fully_shard(block, mesh=mesh, mp_policy=policy, offload_policy=where)
    # Soft prompts are small, and some are networks that must find their weights where they left
    # them: every process holds them, with the head of a classifier that is trained beside.
    small = {p for p in model.parameters() if p.requires_grad} if model.prefix_ids else set()
    # The rest gives up its weights as well, so that parameters are shards whenever they are asked
    # for, though the head is needed again at once.
    fully_shard(
        model,
        mesh=mesh,
        mp_policy=as_is,
        offload_policy=where,
        reshard_after_forward=True,
        ignored_params=small,
    )
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def settle(model: KoGPT) -> None:
    """Gathers every unit of a sharded model once.

    FSDP makes the tensors to gather into at the first pass and keeps them: made in inference mode,
    they would be no good for training.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.unshard()
            module.reshard()


def as_forward(model: nn.Module, function: Callable[P, R]) -> Callable[P, R]:
    """Makes the calls of a function count as forward passes of a sharded model.

    In it the model can be used in any way: embedding, norm and head lie there whole, and
    `model.transformer` and `model.logits` can be called by themselves. All processes must call it
    equally often. Gradients flow from what it returns. Of a model that is not sharded, the function
    itself.
    """
    if not isinstance(model, FSDPModule):
        return function
    if not hasattr(model, PASS):
        setattr(model, PASS, lambda function: function())
        register_fsdp_forward_method(model, PASS)

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        result: R = getattr(model, PASS)(lambda: function(*args, **kwargs))
        return result

    return call


def add_up(parameters: Iterable[nn.Parameter], parallel: Parallel) -> None:
    """Adds up gradients of which every process has a term yet.

    Those are of factors beside a layer that is cut, and of soft prompts, which every process holds.
    """
    for parameter in parameters:
        grad = parameter.grad
        if grad is None:
            continue
        if is_cut(grad) and is_cut(parameter):
            parameter.grad = grad.redistribute(placements=parameter.placements)
        elif not is_cut(grad):
            grad.copy_(parallel.sum(grad))


def gradient_norm(parameters: Iterable[nn.Parameter], parallel: Parallel) -> float:
    """Norm of the gradient of all parameters, the same on every process."""
    squares = torch.zeros((), dtype=torch.float64)
    for parameter in parameters:
        if parameter.grad is not None:
            norm = torch.linalg.vector_norm(held(parameter.grad)).double().cpu()
            squares += norm**2 / copies(parameter.grad, parallel.world_size)
    return math.sqrt(parallel.sum_all(squares).item())


@torch.no_grad()
def clip(parameters: Iterable[nn.Parameter], limit: float, parallel: Parallel) -> float:
    """Scales gradients down to a norm of `limit`; returns what it was, the same on every process.

    What `torch.nn.utils.clip_grad_norm_` is for one process, of parameters that are cut in any way;
    to be called before every step of an optimizer, since it also finishes the gradients' sums.
    """
    parameters = list(parameters)
    add_up(parameters, parallel)
    norm = gradient_norm(parameters, parallel)
    scale = limit / (norm + 1e-6)
    if scale < 1:
        for parameter in parameters:
            if parameter.grad is not None:
                held(parameter.grad).mul_(scale)
    return norm
