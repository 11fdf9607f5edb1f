"""The head of a classifier."""

import pytest
import torch

from kogpt.adapters import LoRAConfig, attach_head, attach_lora
from kogpt.adapters.head import labels_in


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


def test_outputs_have_names_or_numbers(model):
    with pytest.raises(ValueError, match="there are 1 labels, the head has 2 outputs"):
        attach_head(model, 2, labels=["한쪽"])
    attach_head(model, 2)
    assert model.score.labels == ("LABEL_0", "LABEL_1")


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        ({"0": "부정", "1": "긍정"}, ("부정", "긍정")),
        ({"1": "긍정", "0": "부정"}, ("부정", "긍정")),
        ({"0": "부정"}, ("LABEL_0", "LABEL_1")),
        ({"0": "부정", "1": "긍정", "2": "중립"}, ("LABEL_0", "LABEL_1")),
        ({"0": "부정", "1": 1}, ("LABEL_0", "LABEL_1")),
        ({"1": "부정", "2": "긍정"}, ("LABEL_0", "LABEL_1")),
        (["부정", "긍정"], ("LABEL_0", "LABEL_1")),
        (None, ("LABEL_0", "LABEL_1")),
    ],
)
def test_names_in_a_config_count_where_they_are_those_of_the_outputs(names, labels):
    assert labels_in({"id2label": names}, 2) == labels
