"""Models whose matrices stay as stored, against those whose matrices are widened."""

import pytest
import torch
from torch.nn import functional as F

from kogpt.adapters import TARGETS, LoRAConfig
from kogpt.checkpoint import ConversionOptions, convert, load_model
from kogpt.checkpoint.writer import write_checkpoint
from kogpt.kernels import FrozenLinear
from kogpt.model import KoGPTConfig
from tests.adapters.filled import trained_lora
from tests.checkpoint.tiny import tiny_state

CONFIG = KoGPTConfig(
    vocab_size=97, n_positions=32, n_embd=32, n_layer=2, n_head=2, rotary_dim=8, n_inner=64
)
FORMATS = {
    "int8": {"quantize": "int8"},
    "int4": {"quantize": "int4", "group_size": 16},
    "zero points": {"quantize": "int4", "group_size": 16, "zero_points": True},
}


@pytest.fixture(params=FORMATS)
def folder(request, tmp_path):
    write_checkpoint(tmp_path / "float", CONFIG, tiny_state(CONFIG))
    options = ConversionOptions(**FORMATS[request.param], quiet=True)
    convert(tmp_path / "float", tmp_path / "integers", options)
    return tmp_path / "integers"


@pytest.fixture
def ids():
    return torch.randint(97, (2, 11), generator=torch.Generator().manual_seed(1))


def test_logits_are_those_of_the_widened_model(folder, ids):
    model, widened = load_model(folder, quantized=True), load_model(folder)
    kept = [name for name, m in model.named_modules() if isinstance(m, FrozenLinear)]
    assert "transformer.h.1.mlp.fc_in" in kept and len(kept) in (12, 13)
    assert torch.equal(model(ids), widened(ids))
    assert (model.dtype, model.device) == (widened.dtype, widened.device)


def test_updates_have_the_gradients_of_the_widened_model(folder, ids):
    models = load_model(folder, quantized=True), load_model(folder)
    grads = []
    for model in models:
        trained_lora(model, LoRAConfig(targets=TARGETS, rank=2))
        F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert len(grads[0]) == 24 and grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        assert torch.allclose(grad, grads[1][name], rtol=0, atol=1e-6), name


def test_a_checkpoint_of_floats_has_nothing_to_keep(tmp_path, ids):
    write_checkpoint(tmp_path / "float", CONFIG, tiny_state(CONFIG))
    model = load_model(tmp_path / "float", quantized=True)
    assert not any(isinstance(module, FrozenLinear) for module in model.modules())
