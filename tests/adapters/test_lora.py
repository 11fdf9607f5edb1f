"""LoRA layers against the matrices they stand for."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kogpt.adapters import TARGETS, LoRAConfig, LoRALinear, attach_lora
from kogpt.model import KoGPT
from tests.adapters.filled import trained_lora
from tests.checkpoint.tiny import CONFIG

EVERY = LoRAConfig(targets=TARGETS, rank=3, alpha=7.0)


def merged(model: KoGPT) -> KoGPT:
    """A plain model in float64 with W + alpha / r B A for each W."""
    plain = KoGPT(CONFIG).double().eval()
    state = {}
    for name, value in model.state_dict().items():
        if not name.endswith(("lora_A", "lora_B")):
            state[name.replace(".base.", ".")] = value.double()
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            update = module.lora_B.double() @ module.lora_A.double()
            state[f"{name}.weight"] += module.alpha / module.lora_A.size(0) * update
    plain.load_state_dict(state)
    return plain


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("k_proj", "fc_out"), TARGETS])
def test_logits_are_those_of_the_matrices_with_the_update_added(model, ids, targets):
    trained_lora(model, LoRAConfig(targets=targets, rank=4, alpha=6.0))
    assert torch.allclose(model(ids).double(), merged(model)(ids), rtol=0, atol=1e-5)


def test_gradients_are_those_of_the_product_of_factors(model, ids):
    trained_lora(model, EVERY)
    model.double()
    F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
    plain = merged(model)
    F.cross_entropy(plain(ids).flatten(0, 1), ids.flatten()).backward()
    for name, layer in model.named_modules():
        if isinstance(layer, LoRALinear):
            whole = plain.get_submodule(name).weight.grad * layer.scale  # of B A
            assert torch.allclose(layer.lora_A.grad, layer.lora_B.T @ whole, rtol=0, atol=1e-12)
            assert torch.allclose(layer.lora_B.grad, whole @ layer.lora_A.T, rtol=0, atol=1e-12)


def test_a_new_update_changes_nothing(model, ids):
    before = model(ids)
    attach_lora(model, EVERY)
    assert torch.equal(model(ids), before)


def test_only_the_updates_are_trained(model):
    attach_lora(model, EVERY)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    layers = [
        f"transformer.h.{i}.{part}"
        for i in range(2)
        for part in (
            *(f"attn.{name}_proj" for name in ("q", "k", "v", "out")),
            "mlp.fc_in",
            "mlp.fc_out",
        )
    ]
    assert trained == {f"{layer}.lora_{factor}" for layer in layers for factor in "AB"}


def test_a_seed_gives_the_same_update(model):
    first, second = KoGPT(CONFIG), KoGPT(CONFIG)
    for each in (first, second):
        attach_lora(each, EVERY, torch.Generator().manual_seed(5))
    draws = [{n: p for n, p in m.named_parameters() if "lora_A" in n} for m in (first, second)]
    assert all(torch.equal(draws[0][name], draws[1][name]) for name in draws[0])
    # Uniform as of nn.Linear: within 1 / sqrt(K).
    assert 0.2 < draws[0]["transformer.h.0.attn.q_proj.lora_A"].abs().max() <= CONFIG.n_embd**-0.5


def test_dropout_acts_on_the_input_of_the_update_and_in_training_alone(model, ids):
    trained_lora(model, LoRAConfig(targets=("fc_in",), rank=2, alpha=8.0, dropout=0.5))
    layer = model.transformer.h[0].mlp.fc_in
    x = torch.randn(4, CONFIG.n_embd)
    assert torch.equal(layer(x), layer(x))
    layer.train()
    torch.manual_seed(1)
    y = layer(x)
    torch.manual_seed(1)
    dropped = F.dropout(x, 0.5)
    wanted = layer.base(x) + layer.scale * dropped @ layer.lora_A.T @ layer.lora_B.T
    assert torch.allclose(y, wanted, rtol=0, atol=1e-6)


def test_factors_stay_in_float32_beside_narrower_weights(model, ids):
    model.bfloat16()
    trained_lora(model, EVERY)
    layer = model.transformer.h[0].attn.q_proj
    assert layer.lora_A.dtype == layer.lora_B.dtype == torch.float32
    hidden = model.transformer(ids)
    assert hidden.dtype == torch.bfloat16
    hidden.float().square().mean().backward()
    assert layer.lora_A.grad.dtype == torch.float32


def test_autocast_computes_in_the_dtype_that_the_layer_answers_in(model, ids):
    trained_lora(model, EVERY)
    exact = model(ids)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(ids)
        layer = model.transformer.h[0].attn.q_proj
        assert layer(torch.randn(2, CONFIG.n_embd)).dtype == torch.bfloat16
    plain = merged(model).float()
    with torch.autocast("cpu", torch.bfloat16):
        error_of_plain = (plain(ids) - exact).abs().max()
    assert (rounded - exact).abs().max() < 2 * error_of_plain  # the error budget of kernels
    rounded.sum().backward()
    assert layer.lora_B.grad.isfinite().all()


def test_updates_of_updates_add_up(model, ids):
    trained_lora(model, LoRAConfig(rank=2), seed=1)
    layer = model.transformer.h[0].attn.q_proj
    first = layer.lora_B @ layer.lora_A * layer.scale
    outer = LoRALinear(layer, torch.randn(3, 16), torch.randn(16, 3), alpha=1.5)
    x = torch.randn(5, 16)
    wanted = x @ (layer.base.weight + first + 0.5 * outer.lora_B @ outer.lora_A).T
    assert torch.allclose(outer(x), wanted, rtol=0, atol=1e-5)


class Squashed(nn.Linear):
    """Keeps its result, for its gradient too."""

    def forward(self, x):
        self.result = super().forward(x).tanh()
        return self.result


def test_a_result_that_a_layer_keeps_stays_as_it_was(model):
    for block in model.transformer.h:
        block.mlp.fc_in = Squashed(CONFIG.n_embd, CONFIG.inner_dim)
    trained_lora(model, LoRAConfig(targets=("fc_in",), rank=2))
    layer = model.transformer.h[0].mlp.fc_in
    x = torch.randn(3, CONFIG.n_embd, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    wanted = F.linear(x, layer.base.weight, layer.base.bias).tanh()
    assert torch.equal(layer.base.result, wanted) and not torch.equal(y, wanted)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"targets": ("q_proj", "wte")}, "targets names 'wte', there are q_proj, k_proj"),
        ({"targets": ()}, "targets is empty"),
        ({"rank": 0}, "rank is 0"),
        ({"rank": True}, "rank is True"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"alpha": float("inf")}, "alpha is inf"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(values, message):
    with pytest.raises(ValueError, match=message):
        LoRAConfig(**values)
