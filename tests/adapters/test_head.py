"""The head of a classifier."""

import pytest
import torch

from kogpt.adapters import LoRAConfig, attach_head, attach_lora


def test_a_head_is_a_linear_layer_in_float32(model):
    model.bfloat16()
    attach_head(model, 3, torch.Generator().manual_seed(1))
    assert model.score.weight.shape == (3, 16) and model.score.weight.dtype == torch.float32
    assert model.score.bias is None
    assert 0 < model.score.weight.std() < 0.04


def test_a_head_stays_trained_whatever_is_attached_after_it(model):
    attach_head(model, 3)
    assert all(parameter.requires_grad for parameter in model.parameters())
    attach_lora(model, LoRAConfig())
    assert model.score.weight.requires_grad and not model.lm_head.weight.requires_grad


def test_a_second_head_is_refused(model):
    attach_head(model, 3)
    with pytest.raises(ValueError, match="has a head already"):
        attach_head(model, 2)
    with pytest.raises(ValueError, match="outputs is 0"):
        attach_head(model, 0)
