"""Settings and their ranges."""

import json
from dataclasses import asdict, fields
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from kogpt.adapters import LoRAConfig, PromptConfig
from kogpt.training import FinetuningConfig, TrainingConfig


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": ()}, "data names no file"),
        ({"data": ""}, "data names no file"),
        ({"out": ""}, "out is empty"),
        ({"weight_decay": 10**400}, "weight_decay is 1000"),
        ({"beta1": 1 - Fraction(1, 10**30)}, "beta1 is Fraction.* below 1"),
        ({"batch_size": 0}, "batch_size is 0, it must be a whole number of at least 1"),
        ({"steps": 0}, "steps is 0, it must be a whole number of at least 1"),
        ({"epochs": 0.0}, "epochs is 0.0, it must be a finite number above 0"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0, it must be a finite number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"beta2": 1.0}, "beta2 is 1.0, it must be a finite number of at least 0 and below 1"),
        (
            {"short_part": 1.5},
            "short_part is 1.5, it must be a finite number of",
        ),
        ({"precision": "float16"}, "precision is 'float16', it must be float32 or bfloat16"),
        (
            {"seed": -1},
            "seed is -1, it must be a whole number of .* at most 4294967295",
        ),
        ({"keep": 0}, "keep is 0, it must be a whole number of at least 1"),
        ({"steps": 2.5}, "steps is 2.5, it must be a whole number"),
        ({"batch_size": 1.5}, "batch_size is 1.5, it must be a whole number"),
        ({"keep": True}, "keep is True, it must be a whole number"),
        ({"weight_decay": float("inf")}, "weight_decay is inf, it must be a finite number"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_range(change, message):
    given = {"data": (Path("reviews.txt"),), "out": Path("run"), **change}
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**given)


@pytest.mark.parametrize("kind", [TrainingConfig, FinetuningConfig])
def test_settings_may_be_numpys_and_names_of_files_texts_or_paths(kind):
    """As sweeps have them; what a run is told is written as JSON."""
    given = {"model": "nano", "out": "run", "data": "a.jsonl", "device": "cpu"}
    more = {"method": "lora", "data_dir": "tasks"} if kind is FinetuningConfig else {}
    usual = kind(**given, **more)
    others = {bool: np.bool_, int: np.int64, float: np.float64}
    numbers = {
        field.name: others[type(value)](value)
        for field in fields(kind)
        if type(value := getattr(usual, field.name)) in others
    }
    given |= {"out": Path("run"), "data": [Path("a.jsonl")], "device": torch.device("cpu")}
    config = kind(**{**given, **more, **numbers})
    assert len(numbers) > 20 and config == usual
    assert json.dumps(config.to_dict()) == json.dumps(usual.to_dict())


def test_numbers_of_an_adapter_become_pythons():
    lora = LoRAConfig(rank=np.int64(4), alpha=np.float32(2), dropout=np.float64(0.5))
    prompt = PromptConfig(np.int64(3), "mlp", np.int32(8))
    assert json.dumps([asdict(lora)["rank"], lora.alpha, lora.dropout]) == "[4, 2.0, 0.5]"
    assert json.dumps([prompt.tokens, prompt.hidden]) == "[3, 8]"


def test_settings_survive_json():
    config = TrainingConfig(data=(Path("a.txt"), Path("b.tsv")), out=Path("run"))
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()
    assert config.to_dict()["data"] == ["a.txt", "b.tsv"]
