"""AdamW for a transformer, in three grades of memory, and its state as named tensors."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from kogpt.adapters.config import stored_name
from kogpt.choices import EIGHT_BITS, FLOAT32, STOCHASTIC
from kogpt.errors import InputRefusedError, KoGPTError, ParameterError
from kogpt.kernels.building import CannotBuildError, find_compiler
from kogpt.parallel.parts import Rows, fill, is_cut
from kogpt.training.config import RunConfig

STEP, MASTER = "step", "master"
MOMENTS = ("exp_avg", "exp_avg_sq")


def make_optimizer(model: nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101) that decays what has two dimensions or more.

    Biases and norms have one. What else is to stay as it is, a class of one's own names:
    `no_weight_decay()` gives the names of parameters, as it does elsewhere (timm's models).

    Raises:
        KoGPTError: the optimizer that is asked for cannot run here.
        ValueError: the model names a parameter that it has not.
    """
    parameters, kept = trained(model), _kept_from_decay(model)
    decays = {name: p.ndim >= 2 and p not in kept for name, p in parameters.items()}
    groups = [
        {
            "params": [p for name, p in parameters.items() if decays[name] == decayed],
            "weight_decay": config.weight_decay if decayed else 0.0,
        }
        for decayed in (True, False)
    ]
    settings: dict[str, Any] = {"lr": config.learning_rate, "betas": (config.beta1, config.beta2)}
    if config.micro_batch < config.batch_size:
        for parameter in parameters.values():
            # Else each micro-batch would be rounded away a little.
            parameter.grad_dtype = torch.float32
    if config.optimizer == EIGHT_BITS:
        return _eight_bits(groups, settings, config)
    if config.weights == FLOAT32 and not config.offload:
        return torch.optim.AdamW(groups, **settings, fused=True)
    return WideAdamW(
        groups, **settings, stochastic=config.weights == STOCHASTIC, offload=config.offload
    )


def _kept_from_decay(model: nn.Module) -> set[nn.Parameter]:
    """Those that `no_weight_decay` names, also where an adapter lies around them."""
    named = dict(model.named_parameters(remove_duplicate=False))
    named |= {stored_name(name): p for name, p in named.items()}
    names = set(getattr(model, "no_weight_decay", tuple)())
    unknown = names - named.keys()
    if unknown and all(p.requires_grad for p in named.values()):  # else some may be integers
        raise ParameterError(f"no_weight_decay names {min(unknown)!r}, which is no parameter")
    return {named[name] for name in names - unknown}


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the rate of the next step."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # where the step is compiled
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


class WideAdamW(torch.optim.Optimizer):
    """AdamW in float32, whatever the weights are and wherever its state lies.

    Weights that are narrower get their new values in one of two ways. Either float32 master
    weights, part of the state, take the update, and the weights are those rounded. Or there are
    none, and the sum of weight and update is rounded up or down by chance, so that steps smaller
    than a weight's last bit are not lost but taken now and then. The chance is torch's global
    generator's, so a seed gives a result.

    One parameter is updated after the other: no more than one gradient or update is there in
    float32, and, where the state lies on the CPU, no more than one is under way.

    Args:
        groups: parameters, each group with its `weight_decay`.
        lr: learning rate.
        betas: decays of the moments.
        stochastic: round by chance instead of keeping master weights.
        offload: keep the state on the CPU, and compute there.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        stochastic: bool,
        offload: bool,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": 1e-8})
        self.stochastic, self.offload = stochastic, offload

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Takes a step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def initial_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """The state before the first step."""
        device = torch.device("cpu") if self.offload else parameter.device
        wide = parameter.detach().to(device, torch.float32)
        state = {name: torch.zeros_like(wide) for name in MOMENTS}
        state[STEP] = torch.zeros((), dtype=torch.float32, device=device)
        if parameter.dtype != torch.float32 and not self.stochastic:
            state[MASTER] = wide
        return state

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state.update(self.initial_state(parameter))
        exp_avg, exp_avg_sq = (state[name] for name in MOMENTS)
        assert parameter.grad is not None
        # The parameter itself, if it is float32 and in place.
        wide = state[MASTER] if MASTER in state else parameter.detach().to(exp_avg)
        adamw(
            [wide],
            [parameter.grad.to(exp_avg)],
            [exp_avg],
            [exp_avg_sq],
            max_exp_avg_sqs=[],
            state_steps=[state[STEP]],
            fused=True,
            amsgrad=False,
            maximize=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            **{name: group[name] for name in ("lr", "weight_decay", "eps")},
        )
        if wide.dtype != parameter.dtype and self.stochastic:
            wide = round_by_chance(wide)
        parameter.copy_(wide)


def round_by_chance(x: Tensor) -> Tensor:
    """`x`, float32, rounded to a neighbour among bfloat16 numbers, such that the mean is `x`.

    A bfloat16 number is the upper half of a float32 one. The lower half is the way from one such
    number to the next away from zero, in steps of 1 / 65,536: with a random number as large added,
    it carries as often as it should.

    Returns:
        The bfloat16 numbers, as float32.
    """
    bits = torch.randint(1 << 16, x.shape, dtype=torch.int32, device=x.device)
    bits += x.contiguous().view(torch.int32)
    bits &= -1 << 16
    return bits.view(torch.float32)


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, model: nn.Module, steps: int
) -> dict[str, Tensor]:
    """The state of trained parameters: `NAME.exp_avg`, `NAME.exp_avg_sq`, `NAME.master`.

    What is kept in 8 bits is named by its parts: `NAME.exp_avg.codes` and so on. A parameter that
    had no gradient in some of the `steps` of the run has a count of its own, `NAME.step` (1,), by
    which its moments are corrected; one that never had any has nothing else.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in trained(model).items():
        state = optimizer.state.get(parameter) or {STEP: torch.zeros(())}
        tensors |= {f"{name}.{key}": tensor for key, tensor in _parts(state)}
        if (own := state[STEP].item()) != steps:
            tensors[f"{name}.{STEP}"] = torch.tensor([own], dtype=torch.float32)
    return tensors


def restore_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Rows], step: int
) -> None:
    """Puts the state back as it was after `step` steps of the run.

    Raises:
        InputRefusedError: some of it is missing.
    """
    for name, parameter in trained(model).items():
        own = tensors.get(f"{name}.{STEP}")
        taken = step if own is None else own[slice(None)].item()
        if not taken:
            continue
        state = initial_state(optimizer, parameter)
        for key, tensor in _parts(state):
            if (full := f"{name}.{key}") not in tensors:
                raise InputRefusedError(f"the optimizer state of the checkpoint lacks {full}")
            fill(tensor, tensors[full].__getitem__)
        state[STEP].fill_(taken)
        optimizer.state[parameter] = state


def initial_state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """The state of a parameter before the first step."""
    if isinstance(optimizer, WideAdamW):
        return optimizer.initial_state(parameter)
    if isinstance(optimizer, torch.optim.AdamW):
        moments = {name: torch.zeros_like(parameter) for name in MOMENTS}
        return {STEP: torch.zeros((), dtype=torch.float32, device=parameter.device), **moments}
    new = optimizer._new_buffer  # type: ignore[attr-defined]  # torchao's
    moments = {name: new(parameter, signed=name == MOMENTS[0]) for name in MOMENTS}
    return {STEP: torch.zeros((), dtype=torch.float32, device="cpu"), **moments}


def _parts(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a parameter's state but its step, those inside of others one by one."""
    for key, tensor in state.items():
        if hasattr(tensor, "__tensor_flatten__") and not is_cut(tensor):
            for part in tensor.__tensor_flatten__()[0]:
                yield f"{key}.{part}", getattr(tensor, part)
        elif key != STEP:
            yield key, tensor


def _eight_bits(
    groups: list[dict[str, Any]], settings: dict[str, Any], config: RunConfig
) -> torch.optim.Optimizer:
    """torchao's AdamW whose moments are 8 bits each, a scale to 256 (arXiv 2110.02861)."""
    try:
        from torchao.optim import AdamW8bit  # an extra, and slow to import
    except ImportError:
        raise KoGPTError(
            f"optimizer {EIGHT_BITS} needs torchao: pip install 'kogpt[torchao]'"
        ) from None
    require_compiler(f"optimizer {EIGHT_BITS} compiles its step")
    optimizer: torch.optim.Optimizer = AdamW8bit(
        groups, **settings, bf16_stochastic_round=config.weights == STOCHASTIC
    )
    return optimizer


def require_compiler(what: str) -> None:
    """Refuses, in words that begin with `what`, where there is no C++ compiler."""
    try:
        find_compiler()
    except CannotBuildError as reason:
        raise KoGPTError(f"{what}: {reason}") from None
