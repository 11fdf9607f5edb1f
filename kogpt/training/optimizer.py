"""AdamW for a transformer, and its moments as named tensors."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kogpt.training.config import RunConfig

MOMENTS = ("exp_avg", "exp_avg_sq")


def make_optimizer(model: nn.Module, config: RunConfig) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) that decays matrices and leaves biases and norms alone."""
    parameters = list(trained(model).values())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=True)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The moments of every trained parameter, `NAME.exp_avg` and `NAME.exp_avg_sq`."""
    return {
        f"{name}.{moment}": optimizer.state[parameter][moment]
        for name, parameter in trained(model).items()
        for moment in MOMENTS
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor], step: int
) -> None:
    """Puts the moments back as they were after `step` steps."""
    for name, parameter in trained(model).items():
        moments = {key: tensors[f"{name}.{key}"].to(parameter.device) for key in MOMENTS}
        count = torch.tensor(float(step), device=parameter.device)
        optimizer.state[parameter] = {"step": count, **moments}
